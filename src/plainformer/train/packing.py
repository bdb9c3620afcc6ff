"""Several examples in one row: which lengths share a row is computed once, which examples in every epoch anew.

Best fit decreasing (Johnson 1974), on counts of lengths instead of single examples (Krell et al. 2021, arXiv 2107.02027): from
the longest length down, each goes where the least room is left that holds it. A row of 512 then has some 0.1 % padding,
and only examples longer than a row are cut; filling rows one after another would cut a quarter of all paragraphs.

Shapes: N examples, P pieces, G slots, that is, places for pieces (G = P), R rows.
"""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Group = tuple[
    tuple[tuple[int, int], ...], int
]  # ((length, how many of it), ...) of a row, and how many rows are like that


class Packing:
    """Pieces of examples, and rows of slots for them.

    Attributes:
        example_P, start_P, length_P: whose piece it is, its first token, its tokens. Tokens of an example that is longer than
            a row fill whole rows, and the rest is a piece like others. An example without tokens has no piece.
        rows: how many.
    """

    def __init__(self, lengths: Integers, row_length: int) -> None:
        self.lengths_N = lengths
        pieces_N = -(-lengths // row_length)
        self.example_P = np.repeat(np.arange(len(lengths)), pieces_N)
        before_N = np.cumsum(pieces_N) - pieces_N
        self.start_P = (np.arange(len(self.example_P)) - before_N[self.example_P]) * row_length
        self.length_P = np.minimum(lengths[self.example_P] - self.start_P, row_length)
        groups = best_fit(np.bincount(self.length_P, minlength=row_length + 1), row_length)
        slots_G, sizes_R = _laid_out(groups)
        self.rows = len(sizes_R)
        self.first_R = np.concatenate(
            [[0], np.cumsum(sizes_R)]
        )  # row r has the slots from first_R[r] to first_R[r + 1]
        # As few bits as there can be: numpy then sorts 16 bits by counting, ten times as fast.
        self._small_P = self.length_P.astype(np.min_scalar_type(row_length))
        self._slots_by_length_G = np.argsort(slots_G.astype(self._small_P.dtype), kind="stable")

    def filled(self, draws: np.random.Generator) -> Integers:
        """Return the piece in each slot, (G,): of those that have the slot's length, a random one."""
        order_P = draws.permutation(len(self.length_P))
        piece_G = np.empty_like(order_P)
        piece_G[self._slots_by_length_G] = order_P[np.argsort(self._small_P[order_P], kind="stable")]
        return piece_G


def best_fit(counts: Integers, row_length: int) -> list[Group]:
    """Return rows that hold `counts[n]` pieces of each length n up to `row_length`, alike ones together."""
    rooms: dict[int, list[Group]] = {}  # room that is left → rows
    sorted_rooms: list[int] = []
    full: list[Group] = []

    def keep(room: int, group: Group) -> None:
        if not room:
            full.append(group)
        elif group[1]:
            if room not in rooms:
                rooms[room] = []
                bisect.insort(sorted_rooms, room)
            rooms[room].append(group)

    for length in range(row_length, 0, -1):
        left = int(counts[length])
        while left:
            place = bisect.bisect_left(sorted_rooms, length)
            if place < len(sorted_rooms):
                room = sorted_rooms[place]
                held, rows = rooms[room].pop()
                if not rooms[room]:
                    del rooms[room], sorted_rooms[place]
            else:
                room, held, rows = row_length, (), left
            each = min(room // length, left)
            used = min(rows, left // each)
            keep(room - each * length, ((*held, (length, each)), used))
            if held:
                keep(room, (held, rows - used))
            left -= each * used
    return full + [group for room in sorted_rooms for group in rooms[room]]


def _laid_out(groups: list[Group]) -> tuple[Integers, Integers]:
    """Return the length of every slot, row after row, (G,), and the number of slots of each row, (R,)."""
    slots, sizes = [], []
    for held, rows in groups:
        one = np.repeat([length for length, _ in held], [many for _, many in held])
        slots.append(np.tile(one, rows))
        sizes.append(np.full(rows, len(one)))
    return np.concatenate(slots), np.concatenate(sizes)
