"""How alike vectors are: the four measures that sentence-transformers names in `similarity_fn_name`. Higher is more alike.

Shapes: N and M vectors of D numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

Similarity = Callable[[Tensor, Tensor], Tensor]


def cosine(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return the cosines of the angles, (N, M), -1 to 1; 0 with a vector of zeros."""
    return normalize(a_ND, dim=-1) @ normalize(b_MD, dim=-1).T


def dot(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return the dot products, (N, M)."""
    return a_ND @ b_MD.T


def euclidean(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return the negative straight-line distances, (N, M): 0 for equal vectors."""
    # By differences: a matrix product is faster, and loses the distance of near vectors in rounding.
    return -torch.cdist(a_ND, b_MD, compute_mode="donot_use_mm_for_euclid_dist")


def manhattan(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return the negative sums of absolute differences, (N, M): 0 for equal vectors."""
    return -torch.cdist(a_ND, b_MD, p=1.0)


SIMILARITIES: dict[str, Similarity] = {
    "cosine": cosine,
    "dot": dot,
    "euclidean": euclidean,
    "manhattan": manhattan,
}
