"""Drawing tokens: every row has its own stream of random numbers, so its sample does not depend on its neighbours.

A row's stream is named by the seed and by which copy of its prompt it is, not by its place in the batch: a prompt alone
draws what it draws in any batch. Two equal prompts therefore draw alike; give a seed for each, or ask for several
sequences of one prompt.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from plainformer.config.values import is_whole
from plainformer.errors import UsageError, opt


class Draws:
    """A stream of uniform numbers in [0, 1) for each row.

    Args:
        seed: an int for all prompts, a list of one for each, or None for a new one.
    """

    def __init__(self, seed: int | Sequence[int] | None, prompts: int, copies: int) -> None:
        seeds = _seeds(seed, prompts)
        self.streams = [random.Random(f"{seed}/{copy}") for seed in seeds for copy in range(copies)]

    def of_row(self, row: int) -> Draws:
        """Return the stream of one row alone."""
        alone = Draws([], 0, 0)
        alone.streams = self.streams[row : row + 1]
        return alone

    def next(self, device: torch.device) -> Tensor:
        """Return one number for each row, (R,) fp64."""
        uniform_R = torch.tensor([stream.random() for stream in self.streams], dtype=torch.float64)
        return uniform_R.to(device, non_blocking=True)  # a GPU's work so far is not waited for


def _seeds(seed: int | Sequence[int] | None, prompts: int) -> list[int]:
    if seed is None:
        return new_seeds(prompts)
    seeds = [seed] * prompts if isinstance(seed, int) else list(seed) if isinstance(seed, Sequence) else []
    if len(seeds) != prompts or not all(map(is_whole, seeds)):
        raise UsageError(f"{opt('seed', seed)} for {prompts} prompts", "give one int, or a list of one for each prompt")
    return seeds


def new_seeds(prompts: int) -> list[int]:
    """Return a seed for each prompt that nobody can foretell."""
    return [secrets.randbits(63) for _ in range(prompts)]


def draw_tokens(logits_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """Return the token of each row at which the distribution's cumulative sum passes the row's number: (R,)."""
    cumulative_RV = logits_RV.double().softmax(-1).cumsum(-1)
    total_R1 = cumulative_RV[:, -1:]
    picked_R1 = torch.searchsorted(cumulative_RV, uniform_R[:, None] * total_R1, right=True)
    last_R1 = (cumulative_RV < total_R1).sum(-1, keepdim=True)  # the last token that has any probability
    return torch.minimum(picked_R1, last_R1)[:, 0]


def draw_without_replacement(log_weights_N: Tensor, count: int, stream: random.Random) -> Tensor:
    """Return indices of `count` different entries, drawn in turn with probabilities exp(log_weights) of what is left: (count,).

    Fewer where fewer have any probability.
    """
    left_1N = log_weights_N.double()[None].clone()
    picked: list[int] = []
    while len(picked) < count and bool(left_1N.isfinite().any()):
        uniform = torch.tensor([stream.random()], dtype=torch.float64, device=left_1N.device)
        index = int(draw_tokens(left_1N, uniform))
        picked.append(index)
        left_1N[0, index] = float("-inf")
    return torch.tensor(picked, device=log_weights_N.device)
