"""What a processor sees: logits of this step, and the tokens of each row so far.

A processor is a function `(logits, context) -> logits` without state of its own: whatever it needs to know about a row it
takes from the row's tokens, so that beams can be reordered, rows can end, and a batch changes nothing.

Shapes: R rows (prompts, or hypotheses of prompts), T positions so far, S encoder positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Protocol

from torch import Tensor


@dataclass
class Context:
    """The rows that a step's logits belong to.

    Attributes:
        ids: (R, T) prompt and generated tokens, padding on the left.
        prompt_columns: how many of the T columns are prompt (for an encoder-decoder: its start tokens and prefix).
        real: (R, T) bool, False for padding; None where nothing is padded.
        encoder_ids: (R, S) the encoder's input, None for a decoder. encoder_real: (R, S) as `real`.
        ended: rows that have ended and only keep their place: what they are given is ignored.
    """

    ids: Tensor
    prompt_columns: int
    real: Tensor | None = None
    encoder_ids: Tensor | None = None
    encoder_real: Tensor | None = None
    ended: Sequence[bool] | None = None

    @property
    def step(self) -> int:
        """How many tokens have been generated."""
        return self.ids.size(1) - self.prompt_columns

    @cached_property
    def rows(self) -> list[list[int]]:
        """Each row's real tokens, prompt included. On a GPU this waits for it: use tensors where that is possible."""
        return _real_rows(self.ids, self.real)

    @cached_property
    def new_rows(self) -> list[list[int]]:
        """Each row's generated tokens."""
        return _real_rows(self.ids[:, self.prompt_columns :], None)

    @cached_property
    def encoder_rows(self) -> list[list[int]]:
        """Each row's real encoder tokens; empty lists for a decoder."""
        if self.encoder_ids is None:
            return [[] for _ in range(len(self.ids))]
        return _real_rows(self.encoder_ids, self.encoder_real)


def _real_rows(ids: Tensor, real: Tensor | None) -> list[list[int]]:
    rows: list[list[int]] = ids.tolist()
    if real is None:
        return rows
    return [list(compress(row, kept)) for row, kept in zip(rows, real.tolist(), strict=True)]


class Processor(Protocol):
    """Changes logits (R, V) before a token is picked; returns a new tensor, and never writes into the one it was given."""

    @property
    def name(self) -> str:
        """What options and traces call it: "top_k"."""

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        """Return the logits after this processor; -inf bans a token."""
