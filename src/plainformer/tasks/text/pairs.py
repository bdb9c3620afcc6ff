"""Pairs of texts through a model that scores each: labels for a text, documents for a query.

A call makes many pairs of few texts, and their lengths differ: they run in batches of pairs of like length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plainformer.tasks.base import Task
from plainformer.tasks.options import BATCH_SIZE

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


def pair_logits(task: Task, batch: TextBatch) -> Tensor:
    """Return logits of rows in their order, (N, C) fp32 on the CPU; each batch of them without the columns that are padding."""
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
