"""Pairs of texts through a model that scores each: labels for a text, documents for a query.

A call makes many pairs of few texts, and their lengths differ: those of similar length run together. Equal pairs run once,
for in another batch their last bits would differ, and equal documents change places in a ranking.
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
from plainformer.tasks.options import TextOptions
from plainformer.tasks.rows import by_tokens

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
    """Return logits of rows in their order, (N, C) fp32 on the CPU."""
    first: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    keys = [(tuple(row.input_ids), tuple(row.token_type_ids)) for row in batch.encodings]
    same_N = torch.tensor([first.setdefault(key, place) for place, key in enumerate(keys)])
    distinct_U = torch.tensor(list(first.values()))  # U rows differ
    inputs = {name: value[distinct_U.to(value.device)] for name, value in task.model_inputs(batch).items()}
    logits_UC = by_tokens(inputs, lambda part: task.model(**part, only_logits=True).logits.float())
    row_N = torch.empty_like(same_N).index_copy_(0, distinct_U, torch.arange(len(distinct_U)))
    return logits_UC[row_N[same_N]]
