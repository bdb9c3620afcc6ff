"""Hidden states → logits: pick the vectors, transform them, score them.

Shapes: B batch, T positions, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plainformer.config import HeadConfig
from plainformer.errors import InputError
from plainformer.model.dropout import drop
from plainformer.model.frontend import may_look
from plainformer.model.linear import Linear
from plainformer.model.norm import ACTIVATION_FUNCTIONS, make_norm

FIRST, LAST = slice(0, 1), slice(-1, None)  # positions of (B, T, D)


class Head(nn.Module):
    """pick → dense, activation, norm → out. What a model lacks is an identity.

    `gather`: the scores of this rank's words → those of all, (..., V), where ranks share `out`.
    """

    gather: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.config, self.dropout, self.dense_dropout = config, config.dropout, config.dense_dropout
        size = config.transform_size or hidden_size
        has_transform = config.transform_size > 0
        self.dense = Linear(hidden_size, size, config.transform_bias) if has_transform else nn.Identity()
        self.activation = ACTIVATION_FUNCTIONS[config.transform_activation if has_transform else "identity"]
        self.norm = make_norm(size, config.transform_norm)
        self.out = Linear(size, config.out_size, config.out_bias) if config.out_size else nn.Identity()
        self.layer_weights = nn.Parameter(torch.empty(config.mixed_states)) if config.mixed_states else None
        second = config.pick == "first_two"
        self.distilled = Linear(size, config.out_size, config.out_bias) if second else nn.Identity()

    def mix(self, states: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of all hidden states, each (B, T, D), weighted by a softmax over a learned number for each."""
        assert self.layer_weights is not None
        weights = self.layer_weights.softmax(-1)
        return sum((state * weight for state, weight in zip(states, weights, strict=True)), torch.zeros_like(states[0]))

    def reads(self, keep: int) -> slice | None:
        """Return the only position that the logits come from, if no row has padding there; None if there are several.

        `keep`: how many of the last positions are scored, 0 for all.
        """
        if self.config.out_size == 0 or self.config.mixed_states:
            return None
        if self.config.pick == "first":
            return FIRST
        return LAST if self.config.pick == "last" or (self.config.pick == "all" and keep == 1) else None

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None, input_ids: Tensor | None, eos_id: int | None) -> Tensor:
        """Return logits: (B, T, V) or (B, T, C) if every position is scored, else (B, C)."""
        if self.config.pick == "first_two":
            return (self.out(x_BTD[:, 0]) + self.distilled(x_BTD[:, 1])) / 2
        return self.score(pick(self.config.pick, x_BTD, real_BT, input_ids, eos_id, self.training))

    def score(self, x: Tensor) -> Tensor:
        """Return the logits of vectors that were picked, (..., D) → (..., V) or (..., C)."""
        logits = self.scores(self.transform(x))
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def scores(self, x: Tensor) -> Tensor:
        """Return what `out` makes of vectors that were transformed, (..., D) → (..., V) or (..., C)."""
        scores: Tensor = self.out(x)
        return scores if self.gather is None else self.gather(scores)

    def transform(self, x: Tensor) -> Tensor:
        """Return what `out` reads."""
        if self.config.scale != 1.0:
            x = x * self.config.scale
        x = self.norm(self.activation(self.dense(drop(x, self.dense_dropout, self.training))))
        return drop(x, self.dropout, self.training)


def pick(
    how: str,
    x_BTD: Tensor,
    real_BT: Tensor | None,
    input_ids: Tensor | None,
    eos_id: int | None,
    training: bool = False,
) -> Tensor:
    """Return the vectors that a head reads: all of them, (B, T, D), or one for each row, (B, D)."""
    if how == "all":
        return x_BTD
    if how == "first":  # the first real token: with padding on the left, it is not in column 0
        return x_BTD[:, 0] if real_BT is None else _at(x_BTD, real_BT.int().argmax(-1))
    if how == "mean":
        if real_BT is None:
            return x_BTD.mean(1)
        weights_BT1 = real_BT[..., None].to(x_BTD.dtype)
        return (x_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1)
    if how == "last":
        return x_BTD[:, -1] if real_BT is None else _at(x_BTD, last_true(real_BT))
    return _at(x_BTD, _last_eos(input_ids, eos_id, training))


def _last_eos(input_ids: Tensor | None, eos_id: int | None, training: bool) -> Tensor:
    if input_ids is None or eos_id is None:
        raise InputError(
            "this head reads the hidden state of the end-of-sequence token, and there are no input_ids to find it in",
            "give input_ids, not inputs_embeds; config.json must name eos_token_id",
        )
    is_eos = input_ids == eos_id
    if may_look(is_eos, training) and not bool(is_eos.any(-1).all()):
        raise InputError(
            f"a row has no end-of-sequence token (id {eos_id}), whose hidden state this head reads",
            "encode with special tokens, or append the token",
        )
    return last_true(is_eos)


def last_true(mask_BT: Tensor) -> Tensor:
    """Return the last column in which each row is true, (B,)."""
    return (mask_BT.long() * torch.arange(1, mask_BT.size(1) + 1, device=mask_BT.device)).argmax(-1)


def _at(x_BTD: Tensor, index_B: Tensor) -> Tensor:
    return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), index_B]
