"""Low-rank adapters beside linear layers: y = W x + s B (A x), where only A and B are trained (Hu et al. 2021).

An adapter belongs to a matrix as the checkpoint stores it, which may be several linears here (fused q, k, v): they share
one A, and each has its rows of B. So files of adapters fit both ways.

Shapes: ... any leading dimensions, I inputs, O outputs, M rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.model.dropout import Draws, drop
from plainformer.model.linear import Linear

Parts = Callable[[Tensor], Sequence[Tensor]]


class LowRank(nn.Module):
    """A and B of one matrix of a checkpoint.

    Attributes:
        a (M, I), b (O, M): the factors. scale: of their product. dropout: of what A reads, in training.
        parts: b → the rows of it that each linear of ours has.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float, parts: Parts) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.dropout, self.parts = scale, dropout, parts


class Adapter(nn.Module):
    """What a linear adds to its output: `number` says which rows of B are its own.

    `cut`: the linear's, where ranks share it. A and B are small, and whole on each rank, which uses its rows of B or its
    columns of A alone: of both, the ranks' gradients are added up. `draws`: as `drop` takes it, where x is a rank's own.
    """

    def __init__(
        self, low: LowRank, number: int, cut: tuple[int, int, int] | None = None, draws: Draws | None = None
    ) -> None:
        super().__init__()
        self.low, self.number, self.cut, self.draws = low, number, cut, draws

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) → (..., O)."""
        x = drop(x, self.low.dropout, self.training, self.draws)
        a_MI, b_OM = self.factors()
        return F.linear(F.linear(x, a_MI), b_OM) * self.low.scale

    def delta(self) -> Tensor:
        """Return what the adapter adds to the weight, (O, I)."""
        a_MI, b_OM = self.factors()
        return b_OM @ a_MI * self.low.scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return what this linear uses of A and B."""
        a_MI, b_OM = self.low.a, self.low.parts(self.low.b)[self.number]
        if self.cut is None:
            return a_MI, b_OM
        dim, start, stop = self.cut
        return (a_MI, b_OM[start:stop]) if dim == 0 else (a_MI[:, start:stop], b_OM)


def adapted(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Yield the linears that have an adapter, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.adapter is not None:
            yield name, module


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add each adapter's product to its weight, in place, and take the adapters away."""
    for _, linear in list(adapted(model)):
        assert isinstance(linear.adapter, Adapter)
        linear.weight += linear.adapter.delta()
        linear.adapter = None
