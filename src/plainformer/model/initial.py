"""Initial weights for a model that has none: to train it from scratch, or to look at shapes without any file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plainformer.model.frontend import ConvPositions
from plainformer.model.norm import LayerNorm, RMSNorm
from plainformer.model.transformer import Transformer


def initialise(model: Transformer, *, seed: int = 0, std: float = 0.02) -> Transformer:
    """Fill every parameter in place, on the CPU in fp32, and return the model in training mode.

    Matrices and tables are normal with mean 0 (std 0.02: Devlin et al. 2019, Radford et al. 2019), biases 0, norms the
    identity, the weights that mix hidden states equal. Equal seeds give equal models.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            first = _first(module, name, parameter.shape, std, generator)
            if isinstance(module, nn.ParameterList):
                module[int(name)] = nn.Parameter(first)
            else:
                setattr(module, name, nn.Parameter(first))
    for module in model.modules():
        if isinstance(module, ConvPositions):  # the magnitude that makes the weight the direction itself
            norm = module.direction.detach().norm(dim=(0, 1), keepdim=True)
            module.magnitude = nn.Parameter(norm)
    model.tie()
    return model.train()


def _first(module: nn.Module, name: str, shape: torch.Size, std: float, generator: torch.Generator) -> Tensor:
    if name in ("bias", "layer_weights"):
        return torch.zeros(shape)
    if isinstance(module, RMSNorm):
        return torch.full(shape, 1.0 - module.offset)
    if isinstance(module, LayerNorm | nn.LayerNorm | nn.GroupNorm):
        return torch.ones(shape)
    return torch.empty(shape).normal_(0.0, std, generator=generator)
