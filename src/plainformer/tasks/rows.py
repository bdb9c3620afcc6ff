"""Rows of tokens through a model: as many tokens at a time as pay, of rows that are equally long.

What a row is computed with has no say in its answer but in the last bits; what it costs is its own tokens. The model leaves
out what padding remains (`model/packing.py`).

Shapes: N rows of T tokens, n rows that run at once and their t columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from plainformer.model.pausing import pause

TOKENS = 1024  # at once: more do not run faster, and need more memory (docs/decisions.md)

Run = Callable[[dict[str, Tensor]], Tensor]  # a model's inputs, (n, t) each → (n, ...), or (n, t, ...)


def by_tokens(inputs: dict[str, Tensor], run: Run, *, wide: bool = False) -> Tensor:
    """Return what `run` gives for each row, in their order, (N, ...) on the CPU.

    Args:
        inputs: tensors of (N, T), "attention_mask" among them.
        wide: `run` gives something for each column: (n, t, ...) each, which become (N, T, ...), with zeros for padding.
    """
    real_NT = inputs["attention_mask"].bool()
    found: list[Tensor] = []
    order: list[Tensor] = []
    for places, part in _groups(real_NT):
        if found:
            pause()
        answers = run({name: value[places, part] for name, value in inputs.items()}).cpu()
        if wide:
            after = real_NT.size(1) - part.stop
            rest = (0, 0) * (answers.dim() - 2)
            answers = torch.nn.functional.pad(answers, (*rest, part.start, after))
        found.append(answers)
        order.append(places)
    joined = torch.cat(found)
    return torch.empty_like(joined).index_copy_(0, torch.cat(order).cpu(), joined)


def _groups(real_NT: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Yield the rows that run together, longest first, and the columns that are real in one of them."""
    lengths_N, order_N = real_NT.sum(1).sort(descending=True, stable=True)
    lengths, start = lengths_N.tolist(), 0
    while start < len(lengths):
        stop, tokens = start + 1, lengths[start]
        while stop < len(lengths) and tokens + lengths[stop] <= TOKENS:
            tokens += lengths[stop]
            stop += 1
        places = order_N[start:stop]
        columns = real_NT[places].any(0).nonzero()
        yield places, slice(int(columns[0]), int(columns[-1]) + 1)
        start = stop
