"""Which examples each step learns from: arithmetic alone, so that step 1,000,000 is as near as step 1.

An epoch's order is a permutation keyed by (seed, epoch). A step is one or more micro-batches, a micro-batch rows, a row
pieces of examples: one whole example, or several parts where rows are packed.
"""

from __future__ import annotations

from dataclasses import dataclass


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
