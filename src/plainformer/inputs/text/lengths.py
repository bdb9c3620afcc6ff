"""How long rows of tokens may be, and what becomes of longer ones: an error, a cut, or overlapping windows.

Nothing is cut unless that is asked for. A tokenizer does not know its model: the length that its files state is where
`truncate` cuts and how long windows are, and a longer row is said once in the log. Whether a model can read it, the model
says (`tasks.lengths`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict

from plainformer.config.values import check_whole
from plainformer.errors import InputError, UsageError, nth, opt
from plainformer.inputs.text.windows import Side, truncated, windows

if TYPE_CHECKING:
    from plainformer.inputs.text.encoding import Encoding

Limit = int | Literal["own"] | None  # in tokens; "own" is what the tokenizer's files state, None any length

# A text this many times longer than the limit is first measured by its beginning, to fail before gigabytes are used.
_PROBE_CHARACTERS_PER_TOKEN = 64
_REMEDIES = {
    "truncate": f"{opt('truncate', True)} to cut it",
    "stride": f"{opt('stride', ...)} for overlapping windows",
    "max_length": f"a larger {opt('max_length')}",
}


class LengthOptions(TypedDict, total=False):
    """How long rows of tokens may be.

    truncate: cut what exceeds the limit (of a pair: from the longer one) instead of raising; "right" the end, "left" the
        beginning, True what the checkpoint says (`truncation_side`). Default False.
    max_length: the limit in tokens. "own", the default, is the length that the tokenizer's files state: it is where truncate
        cuts and how long windows are, and longer rows are said in the log. None allows any length.
    stride: split what exceeds the window into overlapping windows that share this many tokens; the first is the result,
        the others are its `overflow`. Of a pair, only the second text is split.
    window: the length of a window in tokens; by default the limit.
    """

    truncate: bool | Side
    max_length: Limit
    stride: int | None
    window: int | None


class EncodeOptions(LengthOptions, total=False):
    """How texts become rows of tokens: those of `LengthOptions`, and two more.

    add_special_tokens: put the model's special tokens around a text; default True.
    src_lang: the language that the text is marked with, by a code of `Tokenizer.languages`; default: the checkpoint's.
    """

    add_special_tokens: bool
    src_lang: str | None


class TooLongError(InputError):
    """A text has more tokens than may be read."""

    def offering(self, options: Collection[str]) -> TooLongError:
        """Return the same error with those remedies that are among `options`."""
        return TooLongError(self._parts()[0], remedies(options))


def remedies(options: Collection[str]) -> str:
    """Return what to do with a text that is too long, as far as there are options for it."""
    known = [how for name, how in _REMEDIES.items() if name in options]
    return f"pass {', or '.join(known)}, or split it into shorter ones" if known else "split it into shorter ones"


@dataclass(frozen=True)
class Lengths:
    """The most tokens of a row (None: any), the side that is cut from longer ones, or what their windows share."""

    limit: int | None = None
    cut: Side | None = None
    stride: int | None = None

    @classmethod
    def of(
        cls,
        own: int | None,
        side: Side,
        truncate: bool | Side = False,
        max_length: Limit = "own",
        stride: int | None = None,
        window: int | None = None,
    ) -> Lengths:
        """Check that the arguments agree. `own`: what the tokenizer's files state; `side`: what they say is cut."""
        most = own if max_length == "own" else max_length
        for name, value, least in (("max_length", most, 1), ("window", window, 1), ("stride", stride, 0)):
            if value is not None:
                check_whole(name, value, least, fix=f"for example {opt(name, 128)}")
        if not isinstance(truncate, bool) and truncate not in ("left", "right"):
            raise UsageError(f"{opt('truncate', truncate)} is unknown", "pass True, False, or a side: 'left', 'right'")
        if truncate and stride is not None:
            raise UsageError(f"{opt('truncate')} drops what {opt('stride')} would keep", "pass one of the two")
        if window is not None and stride is None:
            fix = f"pass {opt('stride', 0)} for windows that do not overlap"
            raise UsageError(f"{opt('window')} has no effect without {opt('stride')}", fix)
        changes = bool(truncate) or stride is not None
        if (window or most) is None and changes:
            raise UsageError("this tokenizer states no length", "pass max_length (or window, with stride)")
        limit = (window or most) if changes or max_length != "own" else None
        return cls(limit, (side if truncate is True else truncate) or None, stride)

    def fail_early(self, parts: tuple[str, ...], count: Callable[[str], int], name: str) -> None:
        """Raise for a text whose beginning alone is far beyond the limit, before all of it is tokenized."""
        limit = self.limit
        if limit is None or self.cut is not None or self.stride is not None:
            return
        for text in parts:
            if len(text) > _PROBE_CHARACTERS_PER_TOKEN * limit:
                # Twice the limit, so that no merge across the cut could bring the whole text below it.
                found = count(text[: _PROBE_CHARACTERS_PER_TOKEN // 2 * limit])
                if found > 2 * limit + 16:
                    raise _too_long(name, f"{len(text)} characters, more than {found} tokens", limit)

    def fit(self, row: Encoding, place: int) -> Encoding:
        """Return the row, cut or in windows where it is too long; `place`: of the text, for the error."""
        if self.limit is None or len(row) <= self.limit:
            return row
        if self.cut is not None:
            return row.select(truncated(row.sequence_ids, self.limit, self.cut))
        if self.stride is None:
            raise _too_long(nth(place), f"{len(row)} tokens", self.limit)
        first, *rest = [row.select(positions) for positions in windows(row.sequence_ids, self.limit, self.stride)]
        return replace(first, overflow=tuple(rest))


def _too_long(name: str, length: str, limit: int) -> TooLongError:
    return TooLongError(f"{name} has {length}; the limit is {limit}", remedies(_REMEDIES))
