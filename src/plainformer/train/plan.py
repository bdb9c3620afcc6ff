"""Which examples each step learns from: arithmetic alone, so that step 1,000,000 is as near as step 1.

An epoch's order is a permutation keyed by (seed, epoch). A step is one or more micro-batches, a micro-batch rows, a row
pieces of examples: one whole example, or several parts where rows are packed. Nothing is left out and nothing comes twice:
an epoch has every example (packed: every token) exactly once; one of its steps has the rest, however few.

Shapes: N examples, B batches (steps) of an epoch, R rows of an epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plainformer.config.training import BatchConfig, LengthConfig
from plainformer.errors import CheckpointError, InputError, UsageError, opt, plural
from plainformer.replacing import replacing, write_whole
from plainformer.train.draws import generator
from plainformer.train.packing import Packing

Integers = npt.NDArray[np.int64]
POOL = 50  # batches whose examples are sorted by length together: more make less padding and less chance
_EVALUATED = -1  # the "epoch" of what evaluations draw
PLAN_FILE, LENGTHS_FILE = "plan.json", "lengths.npy"


@dataclass(frozen=True)
class Piece:
    """A part of an example: its tokens from `start` up to and without `stop`; None for its end."""

    example: int
    start: int = 0
    stop: int | None = None


Row = tuple[Piece, ...]
MicroBatch = tuple[Row, ...]


@dataclass(frozen=True)
class Step:
    """What one step learns from. `step` counts from 0, `epoch` too."""

    step: int
    epoch: int
    micro: tuple[MicroBatch, ...]


class Order(Protocol):
    """One epoch's order."""

    def rows(self, batch: int) -> list[Row]:
        """Return the rows of a step, by its number within the epoch."""

    def tokens_seen(self, batches: int) -> Integers:
        """Return how many tokens of each example the epoch's first steps have, (N,)."""

    def whole_seen(self, batches: int) -> npt.NDArray[np.bool_]:
        """Return which examples the epoch's first steps have in whole, (N,)."""


class WholeOrder:
    """Rows of one whole example each, batches of like length in random order.

    The permutation's remainder, its last N mod `size`, is a batch as it is: sorted with the others it would be the longest
    examples of all, and a small batch gives its examples a large weight.
    """

    def __init__(self, lengths: Integers, size: int, by_length: bool, draws: np.random.Generator) -> None:
        self.lengths, self.size = lengths, size
        self.order_N = draws.permutation(len(lengths))
        if by_length:
            full = len(lengths) // size * size
            for first in range(0, full, POOL * size):
                pool = self.order_N[first : min(first + POOL * size, full)]  # a view: sorted in place
                pool[:] = pool[np.argsort(lengths[pool], kind="stable")]
        self.batches_B = draws.permutation(-(-len(lengths) // size)) if by_length else None

    def _examples(self, batch: int) -> Integers:
        place = batch if self.batches_B is None else int(self.batches_B[batch])
        return self.order_N[place * self.size : (place + 1) * self.size]

    def rows(self, batch: int) -> list[Row]:
        return whole_rows(self._examples(batch).tolist())

    def whole_seen(self, batches: int) -> npt.NDArray[np.bool_]:
        seen = np.zeros(len(self.lengths), bool)
        if self.batches_B is None:
            seen[self.order_N[: batches * self.size]] = True
            return seen
        places = self.batches_B[:batches, None] * self.size + np.arange(self.size)
        seen[self.order_N[places[places < len(seen)]]] = True
        return seen

    def tokens_seen(self, batches: int) -> Integers:
        return np.where(self.whole_seen(batches), self.lengths, 0)


class PackedOrder:
    """Rows of several examples, as `Packing` has laid them out, in random order."""

    def __init__(self, packing: Packing, size: int, draws: np.random.Generator) -> None:
        self.packing, self.size = packing, size
        self.piece_G = packing.filled(draws)
        self.rows_R = draws.permutation(packing.rows)

    def rows(self, batch: int) -> list[Row]:
        return [self._row(row) for row in self.rows_R[batch * self.size : (batch + 1) * self.size]]

    def _row(self, row: int) -> Row:
        packing = self.packing
        held = self.piece_G[packing.first_R[row] : packing.first_R[row + 1]]
        starts, stops = packing.start_P[held], packing.start_P[held] + packing.length_P[held]
        examples = packing.example_P[held]
        stops_or_end = np.where(stops == packing.lengths_N[examples], -1, stops)
        parts = zip(examples.tolist(), starts.tolist(), stops_or_end.tolist(), strict=True)
        return tuple(Piece(example, start, None if stop < 0 else stop) for example, start, stop in parts)

    def tokens_seen(self, batches: int) -> Integers:
        packing = self.packing
        done_R = np.zeros(packing.rows, bool)
        done_R[self.rows_R[: batches * self.size]] = True
        pieces = self.piece_G[np.repeat(done_R, np.diff(packing.first_R))]
        seen = np.zeros(len(packing.lengths_N), np.int64)
        np.add.at(seen, packing.example_P[pieces], packing.length_P[pieces])
        return seen

    def whole_seen(self, batches: int) -> npt.NDArray[np.bool_]:
        lengths_N = self.packing.lengths_N
        return (self.tokens_seen(batches) == lengths_N) & (lengths_N > 0)


class Plan:
    """All steps of a run.

    Attributes:
        lengths: tokens of each example, (N,). size: rows of a step. micro: rows of a micro-batch.
        row_length: tokens of a packed row; None where each row is one whole example.
        total_steps: of the run. rows_per_epoch, steps_per_epoch, tokens_per_epoch: of a whole epoch.
    """

    def __init__(
        self,
        lengths: Integers,
        *,
        size: int,
        micro: int,
        seed: int,
        row_length: int | None = None,
        by_length: bool = True,
        total_steps: int = 0,
    ) -> None:
        self.lengths, self.size, self.micro, self.seed = lengths, size, micro, seed
        self.row_length, self.by_length, self.total_steps = row_length, by_length, total_steps
        self.tokens_per_epoch = int(lengths.sum())
        self.packing = Packing(lengths, row_length) if row_length is not None else None
        self.rows_per_epoch = len(lengths) if self.packing is None else self.packing.rows
        self.steps_per_epoch = -(-self.rows_per_epoch // size)
        self._orders: dict[int, Order] = {}

    @property
    def epochs(self) -> float:
        """Return how many times the run goes over the data."""
        return self.total_steps / self.steps_per_epoch

    def order(self, epoch: int) -> Order:
        """Return an epoch's order; the last two are kept, because a thread that prepares batches is ahead of the others."""
        order = self._orders.get(epoch)
        if order is None:
            draws = generator(self.seed, epoch)
            if self.packing is None:
                order = WholeOrder(self.lengths, self.size, self.by_length, draws)
            else:
                order = PackedOrder(self.packing, self.size, draws)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return order

    def step(self, step: int) -> Step:
        """Return what a step learns from; it depends on the step alone, not on the steps that were asked for before."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} of a plan of {plural(self.total_steps, 'step')}")
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = self.order(epoch).rows(batch)
        return Step(step, epoch, _split(rows, self.micro))

    def padding(self, steps: int = 200) -> float:
        """Return the share of positions that are padding in the first steps: micro-batches are as wide as their longest row."""
        real = positions = 0
        for k in range(min(steps, self.total_steps)):
            for micro in self.step(k).micro:
                widths = [sum(self.tokens_of(piece) for piece in row) for row in micro]
                real, positions = real + sum(widths), positions + max(widths) * len(widths)
        return 1 - real / max(positions, 1)

    def tokens_of(self, piece: Piece) -> int:
        """Return the length of a piece."""
        return int(self.lengths[piece.example] if piece.stop is None else piece.stop) - piece.start

    def seen(self, steps: int) -> Integers:
        """Return how often each example has been seen in whole after this many steps, (N,)."""
        epochs, batches = divmod(steps, self.steps_per_epoch)
        passes = np.full(len(self.lengths), epochs)
        if self.row_length is not None:
            passes[self.lengths == 0] = 0
        return passes + self.order(epochs).whole_seen(batches) if batches else passes

    def tokens_seen(self, steps: int) -> Integers:
        """Return how many tokens of each example have been seen after this many steps, (N,), repetitions counted."""
        epochs, batches = divmod(steps, self.steps_per_epoch)
        tokens = self.lengths * epochs
        return tokens + self.order(epochs).tokens_seen(batches) if batches else tokens

    def save(self, folder: Path) -> None:
        """Write what the plan is made of, so that `load_plan` can make it again without the data."""
        smallest = np.min_scalar_type(int(self.lengths.max()))
        with replacing(folder / LENGTHS_FILE) as path, path.open("wb") as file:
            np.save(file, self.lengths.astype(smallest))
        write_whole(folder / PLAN_FILE, json.dumps(self.values(), indent=2) + "\n")

    def values(self) -> dict[str, Any]:
        """Return everything but the lengths, by the names that `Plan(...)` takes."""
        names = ("size", "micro", "seed", "row_length", "by_length", "total_steps")
        return {name: getattr(self, name) for name in names}


def load_plan(folder: Path) -> Plan:
    """Return the plan that `Plan.save` wrote. Raises UsageError, CheckpointError."""
    if not (folder / PLAN_FILE).is_file():
        raise UsageError(
            f"{folder} has no {PLAN_FILE}: it is not the folder of a training run", "give the run's folder"
        )
    try:
        values = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        lengths = np.load(folder / LENGTHS_FILE, allow_pickle=False)
        return Plan(lengths.astype(np.int64), **values)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise CheckpointError(
            f"{folder}: {PLAN_FILE} and {LENGTHS_FILE} cannot be read: {error}", "begin the run in a new folder"
        ) from None


def make_plan(
    lengths: npt.ArrayLike,
    batches: BatchConfig,
    length: LengthConfig,
    seed: int,
    *,
    packs: bool,
    row_length: int | None = None,
    epochs_default: int = 1,
    shares: int = 1,
) -> Plan:
    """Return the plan of a run.

    Args:
        lengths: tokens of each example.
        packs: whether the objective can put several examples into one row; `batches.packed` says whether it shall.
        row_length: tokens of a packed row where `batches.row_length` is None; usually the longest input of the model.
        epochs_default: passes over the data where `length` says nothing.
        shares: ranks, or devices, among which a step's micro-batches are dealt out.
    Raises:
        UsageError: packed rows without a length; a rank would have no rows. InputError: nothing to learn from.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    packed = packs and batches.packed
    _check(lengths_N)
    rows_of = (batches.row_length or row_length) if packed else None
    if packed and rows_of is None:
        raise UsageError("packed rows need a length", f"give {opt('batches.row_length', ...)}")
    most = -(-batches.size // shares)  # rows of a micro-batch, so that none has to wait while another has two
    size, micro = batches.size, batches.micro or most
    if size < shares:
        what = f"{opt('batches.size', size)} leaves some of {shares} data-parallel ranks without rows"
        raise UsageError(what, f"give {opt('batches.size', shares)} or more")
    if micro > most:
        parts = plural(-(-size // micro), "micro-batch", "micro-batches")
        what = f"{opt('batches.micro', micro)} makes {parts} of a step's {size} rows, and {shares} data-parallel ranks share them"
        raise UsageError(what, f"give {opt('batches.micro', most)} or less")
    plan = Plan(lengths_N, size=size, micro=micro, seed=seed, row_length=rows_of, by_length=batches.by_length)
    plan.total_steps = _total_steps(plan, length, epochs_default)
    return plan


def _check(lengths: Integers) -> None:
    if not len(lengths):
        raise InputError("there are no examples to learn from", "what the data report lists as dropped says why")
    if lengths.min() < 0:
        raise ValueError(f"an example of {lengths.min()} tokens")
    if not lengths.any():
        raise InputError("no example has a single token", "look at what the data set's columns hold")


def _total_steps(plan: Plan, length: LengthConfig, epochs_default: int) -> int:
    if length.steps is not None:
        return length.steps
    if length.tokens is not None:  # tokens / (mean tokens of a step), rounded up, in whole numbers
        return -(-length.tokens * plan.steps_per_epoch // plan.tokens_per_epoch)
    return plan.steps_per_epoch * (length.epochs or epochs_default)


def evaluation_batches(
    lengths: npt.ArrayLike, size: int, longest: int | None = None, *, most: int | None = None, seed: int = 0
) -> list[MicroBatch]:
    """Return all examples, each exactly once, in rows of their own, batches of like length, the longest first.

    The longest come first so that a batch that does not fit into memory fails at once. Examples of more than `longest`
    tokens are cut into pieces of that many, each in a row of its own; so none is left out. Of more rows than `most`, that many are
    drawn by the seed.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    longest = max(1, int(lengths_N.max(initial=1))) if longest is None else longest
    pieces_N = np.maximum(-(-lengths_N // longest), 1)
    after_N = np.cumsum(pieces_N)
    total = int(pieces_N.sum())
    chosen_R = np.arange(total)
    if most is not None and most < total:
        chosen_R = np.sort(generator(seed, _EVALUATED).choice(total, most, replace=False))
    example_R = np.searchsorted(after_N, chosen_R, side="right")
    start_R = (chosen_R - (after_N - pieces_N)[example_R]) * longest
    tokens_R = np.minimum(lengths_N[example_R] - start_R, longest)
    rows: list[Row] = []
    for i in np.argsort(-tokens_R, kind="stable"):  # equally long ones stay in order
        example, start, stop = int(example_R[i]), int(start_R[i]), int(start_R[i] + tokens_R[i])
        rows.append((Piece(example, start, stop if stop < lengths_N[example] else None),))
    return list(_split(rows, size))


def whole_rows(examples: Iterable[int]) -> list[Row]:
    """Return a row for each example."""
    return [(Piece(example),) for example in examples]


def _split(rows: Sequence[Row], size: int) -> tuple[MicroBatch, ...]:
    return tuple(tuple(rows[first : first + size]) for first in range(0, len(rows), size))
