"""First weights for a model that has none: to train it from scratch, a new head, or to look at shapes without any file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from plainformer.config.initial import Distribution, FirstWeights, constant, normal
from plainformer.model.frontend import ConvPositions
from plainformer.model.norm import LayerNorm, RMSNorm
from plainformer.model.position import sinusoid
from plainformer.model.spare import with_rows
from plainformer.model.transformer import Transformer


def initialise(model: Transformer, *, seed: int = 0, std: float | None = None, empty_only: bool = False) -> Transformer:
    """Fill every parameter, on the CPU in fp32, and return the model in training mode.

    Args:
        model: filled in place. Each family has first weights of its own (`config.first`), those of its paper.
        seed: equal seeds give equal models. A parameter's numbers depend on the seed and its own name alone; a part of a
            model begins with that part of them.
        std: one normal distribution with this deviation for all matrices and tables, not the family's.
        empty_only: fill only what is on the meta device, and leave all else as it is.
    """
    first = model.config.first if std is None else FirstWeights(std)
    tied = {name for name, _ in (model.config.tied if model.local is None else model.local.tied)}
    for name, module, leaf, parameter in list(_parameters(model)):
        if name in tied or (empty_only and not parameter.is_meta):
            continue
        value = _first_of(model, first, name, module, parameter.shape, seed)
        setattr(module, leaf, nn.Parameter(value, requires_grad=parameter.requires_grad))
    model.tie()
    return model.train()


def _first_of(
    model: Transformer, first: FirstWeights, name: str, module: nn.Module, shape: torch.Size, seed: int
) -> Tensor:
    """Return a parameter's first value; of a part of one, that of the whole is drawn, so that all divisions begin alike."""
    if model.local is None:
        return _first(first, name, module, shape, seed)
    part = model.local.parts[name]
    value, rows = _first(first, part.name, module, torch.Size(part.shape), seed), model.local.rows(part)
    if part.dim is not None:
        value = value.narrow(part.dim, part.start, part.stop - part.start)
    if rows is not None:
        return with_rows(value, *rows, value.dtype)
    return value if part.dim is None else value.clone()


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield each parameter's name, its module, its name there, and itself; a magnitude after the direction it is of."""
    found = [
        (f"{path}.{leaf}" if path else leaf, module, leaf, parameter)
        for path, module in model.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
    ]
    yield from sorted(found, key=lambda entry: isinstance(entry[1], ConvPositions) and entry[2] == "magnitude")


def _first(first: FirstWeights, name: str, module: nn.Module, shape: torch.Size, seed: int) -> Tensor:
    """Return one parameter's first value."""
    if isinstance(module, ConvPositions) and name.endswith(".magnitude"):  # that makes the weight the direction itself
        return module.direction.detach().norm(dim=(0, 1), keepdim=True)
    found = first.rule(name) or _usual(first, name, module, shape)
    value = _FILL[found.kind](torch.empty(shape), found, generator_of(seed, name))
    for row in first.rows_of_zeros(name):
        value[row] = 0
    return value


def _usual(first: FirstWeights, name: str, module: nn.Module, shape: torch.Size) -> Distribution:
    """Return what is usual for a parameter of its kind."""
    leaf = name.rpartition(".")[2]
    if leaf == "bias":
        return constant(0.0)
    if leaf == "layer_weights":  # a softmax makes them shares: equal ones
        return constant(1 / shape[0])
    if isinstance(module, RMSNorm):
        return constant(1.0 - module.offset)
    if isinstance(module, LayerNorm | nn.LayerNorm | nn.GroupNorm):
        return constant(1.0)
    return normal(first.std)


def generator_of(seed: int, name: str) -> torch.Generator:
    """Return a parameter's own source of numbers: it does not matter what else is filled, and in which order."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _truncated(x: Tensor, found: Distribution, generator: torch.Generator) -> Tensor:
    """Draw by the inverse of the distribution function, between its values at both ends."""
    end = torch.erf(torch.tensor(found.cutoff / found.scale / 2**0.5, dtype=torch.float64)).item()
    x.uniform_(-end, end, generator=generator).erfinv_().mul_(found.scale * 2**0.5)
    return x.clamp_(-found.cutoff, found.cutoff)


def _sinusoids(x: Tensor, found: Distribution, generator: torch.Generator) -> Tensor:
    return sinusoid(torch.arange(len(x)), x.size(1), "tensor2tensor")


def _interleaved(x: Tensor, found: Distribution, generator: torch.Generator) -> Tensor:
    columns = sinusoid(torch.arange(len(x)), x.size(1), "paper")
    x[:, 0::2], x[:, 1::2] = columns.split([(x.size(1) + 1) // 2, x.size(1) // 2], dim=1)
    return x


_FILL: dict[str, Callable[[Tensor, Distribution, torch.Generator], Tensor]] = {
    "normal": lambda x, found, generator: x.normal_(0.0, found.scale, generator=generator),
    "truncated": _truncated,
    "uniform": lambda x, found, generator: x.uniform_(-found.scale, found.scale, generator=generator),
    "share": lambda x, found, generator: x.uniform_(0.0, found.scale, generator=generator),
    "constant": lambda x, found, generator: x.fill_(found.scale),
    "sinusoids": _sinusoids,
    "interleaved sinusoids": _interleaved,
}
