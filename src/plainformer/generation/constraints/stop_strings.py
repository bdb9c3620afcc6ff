"""Stop strings: texts that end an answer, found wherever tokens happen to be cut.

A stop string may begin inside a token and end inside a later one, so it is looked for in the text, not in the ids. Only
the last few tokens are decoded again at each step, whatever the length of the answer. Nothing here knows which row of a
batch is which: what is known about a row hangs on its ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plainformer.errors import UsageError
from plainformer.generation.constraints.row_states import RowStates

Decode = Callable[[Sequence[int]], str]

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
# So many tokens may wait for their characters to become whole before the first of them are taken as they are: more than
# bytes of a character, or than characters that byte fallback spells in one go.
_WAITING = 64
_UNSURE = 4  # the last tokens, which may yet become a character of four bytes


@dataclass(frozen=True)
class StopMatch:
    """`string` was written, and begins at character `start` of the row's text: cut there."""

    string: str
    start: int


@dataclass(frozen=True)
class Scan:
    """What is known of a row's text.

    Attributes:
        match: the stop string that ends it, or None.
        safe: how many of its characters may be shown: those behind may begin a stop string, or be half a character. All
            of the text may be shown when it ends without a match.
    """

    match: StopMatch | None
    safe: int


def scan_text(text: str, strings: Sequence[str], start: int = 0) -> Scan:
    """Find the first stop string in a text; of several that end together, the longest.

    Args:
        start: characters at the beginning that are not searched.
    """
    found = [(at + len(string), at, string) for string in strings if (at := text.find(string, start)) >= 0]
    if found:
        _, at, string = min(found)
        return Scan(StopMatch(string, at), at)
    most = min(max(map(len, strings), default=1) - 1, len(text) - start)
    ends = (text[len(text) - length :] for length in range(most, 0, -1))
    held = next((end for end in ends if any(string.startswith(end) for string in strings)), "")
    return Scan(None, len(text) - len(held))


@dataclass(frozen=True)
class _Read:
    """How far a row is read.

    Attributes:
        ids: the tokens that are decoded together; the first `shown` of them are settled, and are there because the
            text of the others depends on them (a space at the beginning is stripped).
        known: length of the settled ones' text.
        settled: characters of the row that are settled. recent: the last of them, where a match may have begun.
    """

    ids: tuple[int, ...]
    shown: int
    known: int
    settled: int
    recent: str
    scan: Scan


class StopStrings:
    """Looks for the first stop string in rows of tokens.

    Of several, the one that ends first counts; of those that end together, the longest. Characters that are not whole
    yet (a U+FFFD at the end of the text) are no text yet.

    Args:
        strings: the stop strings.
        decode: ids → text, as the caller writes it: with special tokens or without.
        behind: ids in front of every row, whose text is then what it adds to theirs. A row's first word in a
            SentencePiece vocabulary has a space in front of it behind any ordinary token, and none behind nothing.
        skip: characters at the beginning of every row that are not searched: a healed prompt's own, written again.

    Raises:
        UsageError: there are no strings, or one is empty or no text.
    """

    def __init__(self, strings: Sequence[str], decode: Decode, *, behind: Sequence[int] = (), skip: int = 0) -> None:
        if isinstance(strings, str) or not isinstance(strings, Sequence):
            raise UsageError(f"stop strings are a {type(strings).__name__}, not a list", 'give ["\\n\\n"], say')
        for string in strings:
            if not isinstance(string, str) or not string:
                raise UsageError(f"{string!r} is no stop string", "give texts of at least one character")
        if not strings:
            raise UsageError("there are no stop strings", "give at least one, or leave them out")
        self.strings = tuple(dict.fromkeys(strings))
        self._decode = decode
        self._overlap = max(len(string) for string in self.strings) - 1
        self._behind, self._skip = tuple(behind), skip
        self._states: RowStates[None, _Read] = RowStates(self._begin, self._advance, keep=4096)

    def scan(self, rows: Sequence[Sequence[int]]) -> list[Scan]:
        """What is known of each row, given all its generated ids. Quick for rows that have grown by a token since."""
        return [state.scan for state in self._states.of(rows, [None] * len(rows))]

    def find(self, ids: Sequence[int]) -> StopMatch | None:
        """The stop string that ends a row, or None."""
        return self.scan([ids])[0].match

    def _begin(self, _: None) -> _Read:
        behind = self._behind
        return _Read(behind, len(behind), len(self._decode(behind)) if behind else 0, 0, "", Scan(None, 0))

    def _advance(self, state: _Read, token: int) -> _Read:
        if state.scan.match is not None:
            return state
        ids = (*state.ids, token)
        text = self._decode(ids)
        new = text[state.known :]
        firm = new.rstrip(HALF_A_CHARACTER)
        state = replace(state, ids=ids, scan=self._look(state, firm))
        if new and firm == new:
            return self._settle(state, len(ids), text)
        if len(ids) - state.shown > _WAITING:
            return self._give_up_waiting(state, text)
        return state

    def _look(self, state: _Read, firm: str) -> Scan:
        """Search the characters that a new match can lie in."""
        window = state.recent + firm
        base = state.settled - len(state.recent)
        scan = scan_text(window, self.strings, max(0, self._skip - base))
        match = StopMatch(scan.match.string, base + scan.match.start) if scan.match is not None else None
        return Scan(match, base + scan.safe)

    def _settle(self, state: _Read, count: int, text: str) -> _Read:
        """The first `count` of the ids are read for good; `text` is theirs."""
        recent = state.recent + text[state.known :]
        ids = state.ids[state.shown :]
        shown = count - state.shown
        return replace(
            state,
            ids=ids,
            shown=shown,
            known=len(self._decode(ids[:shown])),
            settled=state.settled + len(text) - state.known,
            recent=recent[max(0, len(recent) - self._overlap) :],
        )

    def _give_up_waiting(self, state: _Read, text: str) -> _Read:
        """Keep the tokens to decode few where they have no text, or are bytes that never make a character."""
        count = len(state.ids) - _UNSURE
        head = self._decode(state.ids[:count])
        if len(head) == state.known:
            return replace(state, ids=(*state.ids[: state.shown], *state.ids[count:]))
        return self._settle(state, count, head) if text.startswith(head) else state
