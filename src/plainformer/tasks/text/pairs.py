"""Pairs of texts through a model that scores each: labels for a text, documents for a query.

A call makes many pairs of few texts, and their lengths differ: they run in batches of pairs of like length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plainformer.errors import InputError
from plainformer.inputs.text.windows import truncated_to_fit
from plainformer.tasks.base import Task, text_limit
from plainformer.tasks.options import BATCH_SIZE

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


def encode_pairs(
    task: Task, pairs: Sequence[tuple[str, str]], *, truncate: bool = False, shortened: int = 0
) -> TextBatch:
    """Pairs as rows of tokens, in order.

    Args:
        truncate: cut the end of one text of a pair that is too long; otherwise that is an error.
        shortened: which one, 0 or 1. The other stays whole.
    Raises:
        InputError: a pair is too long, or has no tokens.
    """
    limit = text_limit(task.config, task.tokenizer)
    most = None if truncate else limit
    rows = task.tokenizer.encode_batch(list(pairs), max_length=most)
    for pair, row in zip(pairs, rows, strict=True):
        if not row.input_ids:
            raise InputError(f"{pair!r} has no tokens: there is nothing to read", "leave empty texts out")
    if truncate and limit is not None:
        rows = [
            row if len(row) <= limit else row.select(truncated_to_fit(row.sequence_ids, limit, shortened))
            for row in rows
        ]
    return task.tokenizer.pad(rows)


def pair_logits(task: Task, batch: TextBatch) -> Tensor:
    """Logits of rows in their order, (N, C) fp32 on the CPU; each batch of them without the columns that are padding."""
    inputs = task.model_inputs(batch)
    real_NT = batch.attention_mask.bool()
    order_N = real_NT.sum(1).argsort(stable=True)
    logits = []
    for places in order_N.split(BATCH_SIZE):
        columns = real_NT[places].any(0).nonzero()
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        run = {name: value[places.to(value.device)][:, part] for name, value in inputs.items()}
        logits.append(task.model(**run, only_logits=True).logits.float().cpu())
    return torch.cat(logits)[order_N.argsort()]
