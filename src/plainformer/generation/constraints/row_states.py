"""What is known about a row after its tokens, kept from step to step without knowing which row of the batch it is.

A state belongs to a sequence of tokens. The next step's state is derived from that of the same tokens without the last
one, wherever in the batch that row was; a row whose past has been forgotten is read again from its beginning.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Start = TypeVar("Start", bound=Hashable)
State = TypeVar("State")

_ID_BYTES = array("q").itemsize
_KEY_BYTES = 1 << 24  # of all keys together, where the rows of one call do not need more


class RowStates(Generic[Start, State]):
    """States of rows of tokens. Those asked for longest ago are forgotten first.

    Args:
        begin: what a row starts from → the state before its first token.
        advance: a state and the next token → the state after that token. The old state must stay usable: two
            hypotheses may share it.
        keep: how many states are kept; more where a call asks for many rows, so that four steps of them are.
    """

    def __init__(
        self, begin: Callable[[Start], State], advance: Callable[[State, int], State], *, keep: int = 64
    ) -> None:
        self._begin = begin
        self._advance = advance
        self._keep = keep
        self._known: dict[tuple[Start, bytes], State] = {}  # in the order of their last use
        self._size = 0

    def of(self, rows: Sequence[Sequence[int]], starts: Sequence[Start]) -> list[State]:
        """Return the state of each row, given its tokens and what it started from."""
        states = []
        for row, start in zip(rows, starts, strict=True):
            key = (start, array("q", row).tobytes())
            state = self._find(key, row)
            if key in self._known:
                del self._known[key]
            else:
                self._size += len(key[1])
            self._known[key] = state
            states.append(state)
        self._forget(max(self._keep, 4 * len(rows)), max(_KEY_BYTES, 4 * _ID_BYTES * sum(map(len, rows))))
        return states

    def __len__(self) -> int:
        """Return how many states are kept."""
        return len(self._known)

    def _forget(self, most: int, size: int) -> None:
        while len(self._known) > most or self._size > size:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._size -= len(oldest[1])

    def _find(self, key: tuple[Start, bytes], row: Sequence[int]) -> State:
        start, ids = key
        if key in self._known:
            return self._known[key]
        before = (start, ids[:-_ID_BYTES])
        if row and before in self._known:
            return self._advance(self._known[before], row[-1])
        lengths = sorted({len(other[1]) for other in self._known if len(other[1]) < len(ids)}, reverse=True)
        known = next((length for length in lengths if (start, ids[:length]) in self._known), None)
        state = self._begin(start) if known is None else self._known[start, ids[:known]]
        for token in row[(known or 0) // _ID_BYTES :]:
            state = self._advance(state, token)
        return state
