"""Pairs of texts through a model that scores each: labels for a text, documents for a query.

A call makes many pairs of few texts, and their lengths differ: they run in batches of pairs of similar length. Equal pairs run
once, for in another batch their last bits would differ, and equal documents change places in a ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plainformer.errors import placed
from plainformer.inputs.text.pairs import encode_pairs
from plainformer.tasks.base import Task
from plainformer.tasks.lengths import max_length_of, offering
from plainformer.tasks.options import BATCH_SIZE, TextOptions

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


def pair_batch(
    task: Task, pairs: Sequence[tuple[str, str]], options: TextOptions, places: Sequence[int], *, shortened: int
) -> TextBatch:
    """Return pairs as padded tensors.

    Args:
        places: of the caller's inputs that the pairs are of, for errors.
        shortened: the text of a pair, 0 or 1, that `truncate` cuts.
    Raises:
        InputError: a pair is longer than `max_length` or the model allows.
    """
    limit = max_length_of(task.config, task.tokenizer, truncate=options.truncate, asked=options.max_length)
    with offering(task.Options), placed(places):
        rows = encode_pairs(task.tokenizer, pairs, limit=limit, truncate=options.truncate, shortened=shortened)
    return task.tokenizer.pad(rows)


def pair_logits(task: Task, batch: TextBatch) -> Tensor:
    """Return logits of rows in their order, (N, C) fp32 on the CPU; each batch of them without the columns that are padding."""
    inputs = task.model_inputs(batch)
    real_NT = batch.attention_mask.bool()
    first: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    keys = [(tuple(row.input_ids), tuple(row.token_type_ids)) for row in batch.encodings]
    same_N = torch.tensor([first.setdefault(key, place) for place, key in enumerate(keys)])
    distinct_U = torch.tensor(list(first.values()))  # U rows differ
    order_U = distinct_U[real_NT[distinct_U].sum(1).argsort(stable=True)]
    logits = []
    for places in order_U.split(BATCH_SIZE):
        columns = real_NT[places].any(0).nonzero()
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        run = {name: value[places.to(value.device)][:, part] for name, value in inputs.items()}
        logits.append(task.model(**run, only_logits=True).logits.float().cpu())
    row_N = torch.empty_like(same_N).index_copy_(0, order_U, torch.arange(len(order_U)))
    return torch.cat(logits)[row_N[same_N]]
