"""The words nearest to a vector: those of the vocabulary whose embedding has the largest cosine with it.

Of a token's embedding they are words that the model takes for alike; of a hidden state, what the token has become in its
context. Hidden states of some models are far from all embeddings (small cosines): then the nearest say little.

Shapes: N vectors, V vocabulary, W width of the token vectors, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import UsageError, opt
from plainformer.model.frontend import TokenEmbedding
from plainformer.tasks.base import Task, best, check_top_k

NEAREST_TOKENS = 4  # of each vector, unless top_k says
_ROWS = 16_384  # of the table at a time: a vocabulary of 256,000 would be gigabytes in fp32


@dataclass(frozen=True)
class Neighbour:
    """A token of the vocabulary, and the cosine of its embedding with the vector."""

    token: str
    token_id: int
    cosine: float


@dataclass(frozen=True)
class Nearest:
    """The nearest tokens to the vector of the piece at `index`, best first; `token` is that piece."""

    index: int
    token: str
    neighbours: tuple[Neighbour, ...]


@torch.inference_mode()
def nearest_tokens(
    task: Task, vectors: Any, *, top_k: int = 5, without: Sequence[int] = ()
) -> list[tuple[Neighbour, ...]]:
    """Return for each vector the tokens whose embeddings are nearest to it, best first.

    Args:
        task: what `load` returned, of a model that reads tokens.
        vectors: several, (N, D), or one, (D,): a tensor or an array. Where token vectors have a width of their own (ALBERT,
            ELECTRA), vectors of that width are compared with them, and vectors of the hidden size with their projections.
        top_k: how many. without: a token id for each vector that does not count.
    Raises:
        UsageError: the model reads no tokens, or the vectors have another width.
    """
    x_ND = torch.as_tensor(vectors, dtype=torch.float32, device=task.model.device)
    x_ND = x_ND[None] if x_ND.dim() == 1 else x_ND
    frontend = (task.model.encoder or task.model.main).frontend
    if not isinstance(frontend, TokenEmbedding):
        raise UsageError(
            f"{task.name} reads no tokens: there are no words near a vector", "take a model that reads text"
        )
    width, hidden = frontend.config.embedding_size, task.config.input_stack.hidden_size
    if x_ND.dim() != 2 or x_ND.size(-1) not in (width, hidden):
        sizes = f"{width}" if width == hidden else f"{width} (token vectors) or {hidden} (hidden states)"
        raise UsageError(
            f"vectors of shape {tuple(x_ND.shape)}: this model's have width {sizes}", "give (D,) or (N, D)"
        )
    projected = x_ND.size(-1) != width
    unit_ND = x_ND / x_ND.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    cosines_NV = torch.cat([unit_ND @ _unit(part_VD).T for part_VD in _table(frontend, projected, task)], dim=-1)
    ids = range(cosines_NV.size(-1))
    unknown = [i for i in ids if task.tokenizer.id_to_token(i) is None]  # rows that fill the table up to a round size
    cosines_NV[:, unknown] = -torch.inf
    for row, token_id in enumerate(without):
        cosines_NV[row, token_id] = -torch.inf
    count = check_top_k(top_k, len(ids) - len(unknown) - bool(without))
    return [
        tuple(Neighbour(str(task.tokenizer.id_to_token(i)), i, float(row_V[i])) for i in best(row_V, count).tolist())
        for row_V in cosines_NV
    ]


def _table(frontend: TokenEmbedding, projected: bool, task: Task) -> Iterator[Tensor]:
    """Yield the vocabulary's vectors, a part of the rows at a time."""
    for ids in torch.arange(frontend.config.vocab_size, device=task.model.device).split(_ROWS):
        rows = frontend.embed(ids)
        yield frontend.after_norm(frontend.before_norm(rows)) if projected else rows


def _unit(x_VD: Tensor) -> Tensor:
    x_VD = x_VD.float()
    return x_VD / x_VD.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def vectors_at(task: Task, place: int | str, embedded: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Return the vectors of one row's tokens at a place: "embedding" (T, W), after a layer, or "last" (T, D).

    Raises:
        UsageError: this model has no such layer.
    """
    if place == "embedding":
        return embedded
    layers = len(states) - 1
    if place == "last":
        place = layers - 1
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < layers:
        raise UsageError(f"{opt('nearest', place)} names no layer", f'give 0 to {layers - 1}, "embedding" or "last"')
    return states[place + 1][0]
