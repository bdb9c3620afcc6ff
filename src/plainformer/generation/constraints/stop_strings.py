"""Stop strings: texts that end an answer, found wherever tokens happen to be cut.

A stop string may begin inside a token and end inside a later one, so it is looked for in the text, not in the ids. `Scan`
reads a text that grows, `Shown` shows what is safe of it, and `StopStrings` rows of tokens, of which only the last few are decoded
again at each step, whatever the length of the answer. Nothing here knows which row of a batch is which: what is known
about a row belongs to its ids.

Of several stop strings, the one that ends first counts; of those that end together, the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plainformer.errors import UsageError, a_type
from plainformer.generation.constraints.row_states import RowStates

Decode = Callable[[Sequence[int]], str]

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for bytes whose character is not complete yet
# This many tokens may wait for their characters to become whole before the first of them are taken as they are: more than
# bytes of a character, or than characters that byte fallback spells in one go.
_WAITING = 64
_UNSURE = 4  # the last tokens, which may yet become a character of four bytes


@dataclass(frozen=True)
class StopMatch:
    """`string` was written, and begins at character `start` of the text: cut there."""

    string: str
    start: int


@dataclass(frozen=True)
class Scan:
    """A text that grows, read for stop strings so far. `fed` gives the scan of the longer text; this one stays usable.

    Args:
        strings: the stop strings; there may be none.
        skip: characters at the beginning in which none is looked for: a prompt's end that the model writes again.
    Attributes:
        match: the stop string that ends the text, or None.
        length: characters read. held: the last of them, which may begin a stop string.
    """

    strings: tuple[str, ...]
    skip: int = 0
    match: StopMatch | None = None
    length: int = 0
    held: str = ""

    @property
    def safe(self) -> int:
        """How many characters may be shown: all of them once the text ends without a match."""
        return self.match.start if self.match is not None else self.length - len(self.held)

    def fed(self, piece: str) -> Scan:
        """Return the scan of the text with `piece` added to it. After a match nothing is read."""
        if self.match is not None:
            return self
        window = self.held + piece[max(0, self.skip - self.length) :]
        length = self.length + len(piece)
        found = [(at + len(string), at, string) for string in self.strings if (at := window.find(string)) >= 0]
        if found:
            _, at, string = min(found)
            return replace(self, match=StopMatch(string, length - len(window) + at), length=length, held="")
        return replace(self, length=length, held=window[len(window) - self._beginning(window) :])

    def _beginning(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a stop string."""
        longest = max(map(len, self.strings), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[len(text) - n :]) for s in self.strings)), 0)


def first_stop(text: str, strings: Sequence[str], *, skip: int = 0) -> StopMatch | None:
    """Return the stop string that ends a text after its first `skip` characters, or None."""
    return Scan(tuple(strings), skip).fed(text).match


class Shown:
    """A text that comes piece by piece, up to a stop string, without its first `skip` characters.

    What may be the beginning of a stop string is held back until that is known: what `push` returns is never taken back.

    Attributes:
        match: the stop string that has ended the text, or None.
    """

    def __init__(self, strings: Sequence[str], *, skip: int = 0) -> None:
        self._scan, self._skip = Scan(tuple(strings), skip), skip
        self._waiting, self._done = "", skip  # `waiting`: the text after its first `done` characters

    @property
    def match(self) -> StopMatch | None:
        return self._scan.match

    def push(self, piece: str) -> str:
        """Return what can be shown now that this piece has come."""
        if self._scan.match is not None:
            return ""
        self._waiting += piece[max(0, self._skip - self._scan.length) :]
        self._scan = self._scan.fed(piece)
        count = max(0, self._scan.safe - self._done)
        piece, self._waiting = self._waiting[:count], self._waiting[count:]
        self._done += count
        return piece

    def end(self) -> str:
        """Return what was held back, and turned out not to be a stop string, now that the text has ended."""
        return self._waiting if self._scan.match is None else ""


@dataclass(frozen=True)
class _Read:
    """How far a row is read.

    Attributes:
        ids: the tokens that are decoded together; the first `settled` of them are read for good, and are there because
            the text of the others depends on them (a space at the beginning is stripped).
        known: length of the settled ones' text.
        text: the scan of all settled text. match: the stop string found in it or in the text after it.
    """

    ids: tuple[int, ...]
    settled: int
    known: int
    text: Scan
    match: StopMatch | None = None


class StopStrings:
    """Finds the first stop string in rows of tokens.

    Characters that are not whole yet (a U+FFFD at the end of the text) are not read yet.

    Args:
        strings: the stop strings.
        decode: ids → text, as the caller writes it: with special tokens or without.
        after: ids before every row, whose text is then what it adds to theirs. A row's first word in a SentencePiece
            vocabulary begins with a space after any ordinary token, and without one where nothing comes before it.
        skip: characters at the beginning of each row's text in which no stop string is looked for.

    Raises:
        UsageError: there are no strings, or one is empty or not a str.
    """

    def __init__(self, strings: Sequence[str], decode: Decode, *, after: Sequence[int] = (), skip: int = 0) -> None:
        if isinstance(strings, str) or not isinstance(strings, Sequence):
            raise UsageError(f"stop strings are {a_type(strings)}, not a list", 'for example ["\\n\\n"]')
        for string in strings:
            if not isinstance(string, str) or not string:
                raise UsageError(f"{string!r} is not a stop string", "give texts of at least one character")
        if not strings:
            raise UsageError("there are no stop strings", "give at least one, or leave them out")
        self.strings = tuple(dict.fromkeys(strings))
        self.skip = skip
        self._decode = decode
        self._after = tuple(after)
        self._states: RowStates[None, _Read] = RowStates(self._begin, self._advance, keep=4096)

    def find(self, ids: Sequence[int]) -> StopMatch | None:
        """Return the stop string that ends a row of generated ids, or None; quick for one that has grown by a token since."""
        return self._states.of([ids], [None])[0].match

    def _begin(self, _: None) -> _Read:
        after = self._after
        return _Read(after, len(after), len(self._decode(after)) if after else 0, Scan(self.strings, self.skip))

    def _advance(self, state: _Read, token: int) -> _Read:
        if state.match is not None:
            return state
        ids = (*state.ids, token)
        text = self._decode(ids)
        new = text[state.known :]
        whole = new.rstrip(HALF_A_CHARACTER)
        state = replace(state, ids=ids, match=state.text.fed(whole).match)
        if new and whole == new:
            return self._settle(state, len(ids), text)
        if len(ids) - state.settled > _WAITING:
            return self._give_up_waiting(state, text)
        return state

    def _settle(self, state: _Read, count: int, text: str) -> _Read:
        """Read the first `count` of the ids, whose text this is, for good."""
        ids = state.ids[state.settled :]
        settled = count - state.settled
        read = state.text.fed(text[state.known :])
        return replace(state, ids=ids, settled=settled, known=len(self._decode(ids[:settled])), text=read)

    def _give_up_waiting(self, state: _Read, text: str) -> _Read:
        """Keep the tokens to decode few where they have no text, or are bytes that never make a character."""
        count = len(state.ids) - _UNSURE
        head = self._decode(state.ids[:count])
        if len(head) == state.known:
            return replace(state, ids=(*state.ids[: state.settled], *state.ids[count:]))
        return self._settle(state, count, head) if text.startswith(head) else state
