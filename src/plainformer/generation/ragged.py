"""One decoding step for rows of different lengths, which join and leave between steps.

A row is read by an ordinary `Session` of its own (prefill), and `join` then copies its keys and values into blocks. What a
step computes for a row depends on its tokens alone, to the last bit: it is what that session's `decode_step` computes.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from plainformer.errors import UsageError, plural
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.cache.paged import BLOCK, BlockPool, blocks_for
from plainformer.model.fast.compiled import FEW_ROWS
from plainformer.model.fast.ragged import BlockSteps, way_of
from plainformer.model.fast.step import FastStack
from plainformer.model.transformer import Transformer


@dataclass(eq=False)
class RaggedRow:
    """A row between steps.

    Attributes:
        blocks: numbers of its blocks in their order, some of which may be other rows' too; more may be appended.
        length: tokens that it holds.
        kernels: what its prompt was read with, and the row is continued with; None for modules.
        cache: its keys and values where modules read them; None where kernels do, in the blocks.
    """

    blocks: list[int]
    length: int
    kernels: ModuleType | None = None
    cache: KeyValueCache | None = None


class Ragged:
    """A model that decodes rows of different lengths together. Raises UsageError for one that `unfit` names a reason for."""

    def __init__(self, model: Transformer, pool: BlockPool) -> None:
        reason = unfit(model)
        if reason is not None:
            raise UsageError(
                f"{reason}: rows of different lengths cannot be decoded together", "decode them one by one"
            )
        self.model, self.pool = model, pool
        self.steps = BlockSteps(model, pool.numbers) if isinstance(model.decoder, FastStack) else None

    def join(self, cache: KeyValueCache, blocks: Sequence[int], filled: int = 0) -> RaggedRow:
        """Return a row that continues what a cache of one row holds after its prefill; the cache is the row's from here on.

        Args:
            cache: of one row, of kind "full".
            blocks: enough for what it holds; those for what is to come may be among them.
            filled: how many of the first blocks hold their part already (a shared beginning); nothing is written to these.
        """
        if cache.rows != 1 or cache.copies != 1 or not cache.exact:
            raise UsageError("only a cache of one row, with keys as they are, can join", "prefill each row by itself")
        self._check_room(blocks, cache.length)
        self.pool.write(blocks, cache, filled)
        kernels = way_of(self.model, cache)
        return RaggedRow([*blocks], cache.length, kernels, cache if kernels is None else None)

    def load(self, blocks: Sequence[int], length: int, capacity: int | None = None) -> KeyValueCache:
        """Return a cache of one row that holds a beginning from blocks, as after a prefill in chunks of `BLOCK`.

        A session that is given it (and `tokens`, the ids that it holds) goes on from there: with the very bits of a session
        that read everything, if `length` is a multiple of `BLOCK`. `capacity`: positions to make room for; None: `length`.
        """
        self._check_room(blocks, length)
        room = max(capacity or length, length, 1)
        cache = KeyValueCache(self.model.config, 1, room, dtype=self.pool.dtype, device=self.pool.device)
        cache.restore(length, BLOCK, lambda layer, start, end: self.pool.read(blocks, layer, start, end))
        return cache

    @torch.inference_mode()
    def step(self, rows: Sequence[RaggedRow], tokens: Sequence[int]) -> Tensor:
        """Append one token to each row; return the logits of the next, (R, V)."""
        for row in rows:
            self._check_room(row.blocks, row.length + 1)
        logits: list[Tensor | None] = [None] * len(rows)
        usual = self.steps is not None and self.steps.is_usual()
        together = [index for index, row in enumerate(rows) if usual and row.kernels is not None]
        for first in range(0, len(together), FEW_ROWS):
            some = together[first : first + FEW_ROWS]
            found_RV = self._together([rows[index] for index in some], [tokens[index] for index in some])
            for index, found_V in zip(some, found_RV, strict=True):
                logits[index] = found_V
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if logits[index] is None:
                logits[index] = self._alone(row, token)
        for row in rows:
            row.length += 1
        return torch.stack([each for each in logits if each is not None])

    def _together(self, rows: Sequence[RaggedRow], tokens: Sequence[int]) -> Tensor:
        assert self.steps is not None and rows[0].kernels is not None
        return self.steps(tokens, [row.length for row in rows], [row.blocks for row in rows], rows[0].kernels)

    def _alone(self, row: RaggedRow, token: int) -> Tensor:
        """Return the logits of one row, (V,), by the model as it is: without kernels, or with someone's hooks."""
        cache = row.cache if row.cache is not None else self.load(row.blocks, row.length, row.length + 1)
        ids = torch.tensor([[token]], device=self.model.device)
        output = self.model(ids, cache=cache, logits_to_keep=1, only_logits=True)
        if row.cache is None:
            self.pool.write(row.blocks, cache, row.length // BLOCK)
        logits: Tensor = output.logits[0, -1]
        return logits

    def _check_room(self, blocks: Sequence[int], length: int) -> None:
        if blocks_for(length) > len(blocks):
            raise UsageError(
                f"{plural(length, 'position')} do not fit into {plural(len(blocks), 'block')} of {BLOCK}",
                "take enough blocks from the pool, and append them to the row's",
            )


def unfit(model: Transformer) -> str | None:
    """Return why a model cannot decode rows of different lengths together; None if it can."""
    stack, head = model.config.decoder, model.config.head
    if stack is None or model.encoder is not None:
        return "it has an encoder" if stack is not None else "it has no decoder"
    if head.kind != "causal_lm" or stack.direction != "causal":
        return "it does not continue text"
    if stack.relative_bias is not None or stack.disentangled is not None:
        return "its attention has a bias that is counted from the end"
    return "it is divided among processes" if model.local is not None else None
