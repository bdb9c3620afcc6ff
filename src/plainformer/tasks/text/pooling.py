"""How the vectors of a text's tokens become one: all the ways of sentence-transformers 6.2, and a model's own pooler.

Shapes: B batch, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plainformer.errors import UsageError, opt
from plainformer.model.heads import pick


def pool(
    names: Sequence[str],
    hidden_BTD: Tensor,
    real_BT: Tensor,
    pooler_BD: Tensor | None,
    pooled_BT: Tensor | None = None,
) -> Tensor:
    """Return the vectors of `names`, side by side, (B, D * len(names)); of real tokens alone, on whichever side padding is.

    "mean_sqrt_len" divides the sum by the square root of the length; "weightedmean" weighs a token by its place in the
    text, 1 for the first (Muennighoff 2022); "cls" is the first token; "pooler" is what the model's own pooler makes of it.
    `pooled_BT`: those of the real tokens that count; all by default.

    Raises:
        UsageError: the model has no pooler.
    """
    places_BT = real_BT.cumsum(1)
    counted_BT = real_BT if pooled_BT is None else pooled_BT
    return torch.cat([_pool(name, hidden_BTD, counted_BT, places_BT, pooler_BD) for name in names], dim=-1)


def _pool(name: str, hidden_BTD: Tensor, real_BT: Tensor, places_BT: Tensor, pooler_BD: Tensor | None) -> Tensor:
    if name == "pooler":
        if pooler_BD is None:
            raise UsageError("this model has no pooler", f"give {opt('pooling', 'mean')} or 'cls'")
        return pooler_BD.float()
    if name == "max":
        return hidden_BTD.masked_fill(~real_BT[..., None], float("-inf")).amax(1)
    if name == "mean_sqrt_len":
        return (hidden_BTD * real_BT[..., None]).sum(1) / real_BT.sum(1, keepdim=True).sqrt()
    if name == "weightedmean":
        weights_BT = places_BT * real_BT
        return (hidden_BTD * weights_BT[..., None]).sum(1) / weights_BT.sum(1, keepdim=True)
    return pick({"cls": "first"}.get(name, name), hidden_BTD, real_BT, None, None)
