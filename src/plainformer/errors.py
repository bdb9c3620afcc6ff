"""The errors that a user can meet. Each says what was given, why it cannot work, and what to do next.

    PlainformerError            exit code 1: something failed while it ran
    ├── CheckpointError         a checkpoint's files
    ├── HubError                a reference that could not be turned into local files
    ├── MissingDependencyError  an optional package
    ├── TrainingError           a run that cannot go on
    └── UsageError              exit code 2: the call itself cannot work
        └── InputError          one of its inputs

A message names options through `opt`: Python then reads `top_k=0`, the command line `--top-k 0`. Nothing but these errors
may reach a user: a traceback is a defect.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

# An option inside a message: \x02 name \x1f value \x03. No text that is shown by its repr holds these characters.
_OPTION = re.compile("\x02([^\x1f\x03]*)(?:\x1f([^\x03]*))?\x03")
# The place of an input among those of a call: \x04 place \x05.
_PLACE = re.compile("\x04(\\d+)\x05")
_MISSING = object()
Spelling = Callable[[str, str | None], str]  # an option's name, its value's text if there is one → how it is written


def opt(name: str, value: object = _MISSING) -> str:
    """An option for a message, with its value where that is said: `opt("top_k", 0)`. `...` stands for any value."""
    if value is _MISSING:
        return f"\x02{name}\x03"
    text = "..." if value is ... else repr(value)
    return f"\x02{name}\x1f{text if len(text) <= 200 else text[:200] + '…'}\x03"


def opt_text(name: str, value: str | None) -> str:
    """An option for a message, as `opt`, of a value that is written already: for `PlainformerError.respelt`."""
    return f"\x02{name}\x03" if value is None else f"\x02{name}\x1f{value}\x03"


def nth(place: int) -> str:
    """An input of a batch for a message, by its place from 0; `PlainformerError.moved` makes it the caller's own place."""
    return f"\x04{place}\x05"


def in_python(name: str, value: str | None) -> str:
    """How Python writes an option."""
    return name if value is None else f"{name}={value}"


def spelt(text: str, spelling: Spelling = in_python, first: int = 0) -> str:
    """A message with its options written in the way of one front end, which counts inputs from `first`."""
    options = _OPTION.sub(lambda found: spelling(found[1], found[2]), text)
    return _PLACE.sub(lambda found: f"input {int(found[1]) + first}", options)


class PlainformerError(Exception):
    """Base of every error that plainformer raises on purpose.

    Args:
        what: the value or object concerned, and why it cannot work.
        fix: the next step for the user; appended to the message.
    Attributes:
        what, fix: as Python writes them. option: the first option that `what` names, or None. fix_options: those that `fix` names.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self._message = f"{what}\n  → {fix}" if fix else what
        self.what, self.fix = spelt(what), spelt(fix)
        named = _OPTION.search(what)
        self.option: str | None = named[1] if named is not None else None
        self.fix_options: tuple[str, ...] = tuple(found[1] for found in _OPTION.finditer(fix))
        super().__init__(spelt(self._message))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self._parts()

    def _parts(self) -> tuple[str, str]:
        what, _, fix = self._message.partition("\n  → ")
        return what, fix

    def moved(self, places: Sequence[int] | None) -> PlainformerError:
        """The same error for inputs that stood at these places of the caller's list; None where there is only one."""
        return self.named(lambda place: "the input" if places is None else nth(places[place]))

    def named(self, name: Callable[[int], str]) -> PlainformerError:
        """Return the same error with its inputs, given by their places, named in the caller's words: "line 2 of big.txt"."""
        if self.place is None:
            return self
        what, fix = (_PLACE.sub(lambda found: name(int(found[1])), part) for part in self._parts())
        return type(self)(what, fix)

    @property
    def place(self) -> int | None:
        """The place of the first input that the message names, from 0; None where it names none."""
        found = _PLACE.search(self._message)
        return None if found is None else int(found[1])

    def advised(self, fix: str) -> PlainformerError:
        """Return the same error with one more thing to do."""
        what, known = self._parts()
        return type(self)(what, "; ".join(part for part in (known, fix) if part)) if fix else self

    def within(self, where: str) -> PlainformerError:
        """Return the same error with the name of what it is about before it: a file, a field."""
        what, fix = self._parts()
        return type(self)(f"{where}: {what}", fix)

    def respelt(self, spelling: Spelling, note: str = "") -> PlainformerError:
        """Return the same error with its options as `spelling` writes them, perhaps by `opt` again, and a note after `what`."""
        what, fix = (_OPTION.sub(lambda found: spelling(found[1], found[2]), part) for part in self._parts())
        return type(self)(what + note, fix)

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options that the message names, in order."""
        return tuple(found[1] for found in _OPTION.finditer(self._message))

    def reason(self, spelling: Spelling = in_python, first: int = 0) -> str:
        """Return the message without the next step; arguments as those of `message`."""
        return spelt(self._parts()[0], spelling, first)

    def message(self, spelling: Spelling = in_python, first: int = 0) -> str:
        """The whole message, with options as a front end writes them and inputs as it counts them."""
        return spelt(self._message, spelling, first)


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun: "1 document", "2,000 documents"; `nouns` where the plural is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def a_type(value: object) -> str:
    """Return the type of a value with its article, for a message: "a list", "an int", "None"."""
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeioAEIO" or name == "ndarray" else f"a {name}"


@contextmanager
def placed(places: Sequence[int] | None) -> Iterator[None]:
    """Where an error names an input by its place among some, name it by its place among the caller's (`moved`)."""
    try:
        yield
    except PlainformerError as error:
        moved = error.moved(places)
        if moved is error:
            raise
        raise moved from error.__cause__


class UsageError(PlainformerError, ValueError):
    """The call itself cannot work: an unknown name, an impossible combination, a value out of range."""

    exit_code = 2


class CheckpointError(PlainformerError):
    """A checkpoint's files are missing, corrupt, unsafe, or describe a model of no supported family."""


class HubError(PlainformerError):
    """A reference could not be turned into local files: no network, no such repository, no permission."""


class InputError(UsageError):
    """An input (text, ids, audio, image) that the model cannot take: empty, too long, out of range, unreadable."""


class MissingDependencyError(PlainformerError):
    """An optional package is needed and not installed."""


class TrainingError(PlainformerError):
    """A run of training cannot go on: a loss that is not finite, a full disk. Its last checkpoint is good."""


def did_you_mean_these(names: Iterable[str]) -> str:
    """Return "did you mean 'a' or 'b'?"; "" for none."""
    listed = " or ".join(map(repr, names))
    return f"did you mean {listed}?" if listed else ""


def did_you_mean(name: str, options: Iterable[str], limit: int = 3, *, few: bool = True) -> str:
    """Return a sentence that names the options closest to `name`; where none is close, all if they are `few`, else ""."""
    name = name[:80]  # comparing a forged name of megabytes would take minutes
    known = sorted(set(options))
    by_lower = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=limit, cutoff=0.6)
    if close:
        return did_you_mean_these(by_lower[c] for c in close)
    if few and len(known) <= 12:
        return "known: " + ", ".join(known)
    return ""


def spelling_of(name: str, options: Iterable[str]) -> str:
    """Name what differs from `name` in case, hyphens, underscores and dots alone; "" where nothing does.

    For names of what a checkpoint computes, where another name that is merely close would give other answers.
    """
    plain = re.sub(r"[-_. ]", "", name.lower())
    return did_you_mean_these(option for option in options if re.sub(r"[-_. ]", "", option.lower()) == plain)


def to_install(extra: str) -> str:
    """Return the command that installs what one of our extras needs: the packages themselves, wherever we came from."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = [
            one.partition(";")[0].strip() for one in requires("plainformer") or () if f'extra == "{extra}"' in one
        ]
    except PackageNotFoundError:
        needed = []
    return "pip install " + (" ".join(f"'{one}'" for one in needed) or f"'plainformer[{extra}]'")


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, a limit on the size of files


def said_by(error: Exception) -> str:
    """Return the cause of a failed write in words."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"the disk is full ({error.strerror})"
    if isinstance(error, PlainformerError):
        return error.what
    text = str(error)
    return f"the disk is full ({text})" if "No space left" in text else text
