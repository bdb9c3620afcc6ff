"""Put a checkpoint's tensors into a model's parameters: whole ones, or the rows of them that are here.

Tied parameters are one, as the configuration says, unless the file has two different tensors for them: then both are used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plainformer.model.empty import Embedding
from plainformer.model.fast.blocks import Blocks
from plainformer.model.fast.packed import BlockWeight
from plainformer.model.linear import Linear, outermost
from plainformer.model.spare import with_rows

if TYPE_CHECKING:
    from plainformer.config.local import Part
    from plainformer.model.transformer import Transformer

log = logging.getLogger(__name__)
Move = Callable[[Tensor, "torch.device | str", torch.dtype], Tensor]


class Filling:
    """A model that is being filled.

    Args:
        dtype, device: of its parameters; dtype None keeps each tensor's.
        move: makes a parameter's tensor of one of the file's, a device and a dtype.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype | None, device: torch.device | str, move: Move) -> None:
        self.model, self.dtype, self.device, self.move = model, dtype, device, move
        self.tied = dict(model.config.tied)
        self.kept: dict[str, Blocks] = {}  # matrices that stay in the file's own blocks
        self.copies: dict[str, Tensor] = {}  # of tied parameters, where the file has them too
        self.places: dict[
            str, list[tuple[str, Part]]
        ] = {}  # the whole model's name -> names here, and the part that is
        for here, part in model.local.parts.items() if model.local is not None else ():
            self.places.setdefault(part.name, []).append((here, part))

    def wants(self, names: Sequence[str]) -> bool:
        """Return whether any of the whole model's parameters is needed here."""
        return self.model.local is None or any(name in self.places or name in self.tied for name in names)

    def put(self, name: str, tensor: Tensor, stored: Tensor | None) -> None:
        """Fill a parameter of the whole model, as far as it is here.

        `stored`: what the file has, whose memory may be kept, because it is the file's own; None: keep nothing of it.
        """
        if self.model.local is None:
            value = self._moved(tensor)
            if name in self.tied:
                self.copies[name] = value
            else:
                put(self.model, name, value)
            return
        if name in self.tied or name in self.tied.values():
            self.copies[name] = tensor
        for here, part in self.places.get(name, ()):
            put(self.model, here, self._part(tensor, part, stored))

    def keep(self, name: str, blocks: Blocks) -> None:
        """Let a parameter lie in the file's own blocks, once the model is tied; see `pack_kept`."""
        self.kept[name] = blocks

    def reads_blocks(self, name: str) -> bool:
        """Return whether a parameter may lie in blocks: the weight of a linear, or of a table of tokens."""
        path, _, leaf = name.rpartition(".")
        return leaf == "weight" and isinstance(self.model.get_submodule(path), Linear | Embedding)

    def pack_kept(self) -> None:
        """Compute with the blocks that were kept, and in such a model with every linear in their way: one kernel is for all."""
        if not self.kept:
            return
        tied = {**self.tied, **{name: name for name in self.kept}}
        for path, module in self.model.named_modules():
            if isinstance(module, Embedding) and f"{path}.weight" in self.kept:
                module.pack(self.kept[f"{path}.weight"])
        paths = {module: path for path, module in self.model.named_modules()}
        for linear in outermost(self.model):
            names = [f"{paths[linear]}.{name}" for name in linear.names]
            found = [self.kept.get(tied.get(name, name)) for name in names]
            weights, _ = linear.unjoined()
            parts = [Blocks.plain(w) if one is None else one for one, w in zip(found, weights, strict=True)]
            linear.pack(partial(_in_blocks, parts))

    def tie(self) -> None:
        """Tie as the configuration says, unless the checkpoint stores two different tensors: then both are used."""
        model, kept = self.model, []
        for name, source in self.tied.items():
            own, shared = self.copies.get(name), self._shared(source)
            if own is not None and shared is None:  # only the tied end was stored, as some savers do
                self._fill(source, own)
            elif own is not None and shared is not None and not torch.equal(own, shared):
                log.warning("%s is tied in config.json but stored with other values: using both as stored", name)
                self._fill(name, own)
                continue
            kept.append((name, source))
        model.configure(replace(model.config, tied=tuple(kept)))
        model.tie()

    def _shared(self, source: str) -> Tensor | None:
        if self.model.local is not None:
            return self.copies.get(source)
        parameter = self.model.get_parameter(source)
        return None if parameter.is_meta else parameter

    def _fill(self, name: str, tensor: Tensor) -> None:
        if self.model.local is None:
            put(self.model, name, tensor)
        elif name in self.places:
            self.put(name, tensor, None)
        elif self.model.local.holds(name):  # it is tied no longer, and has its rows from now on
            put(self.model, name, self._part(tensor, self.model.local.of(name), None))

    def _part(self, tensor: Tensor, part: Part, stored: Tensor | None) -> nn.Parameter:
        """Return what is here of a parameter; of a mapped tensor, only the pages of these rows are read."""
        assert self.model.local is not None
        rows = self.model.local.rows(part)
        if rows is None:
            return self._moved(_rows(tensor, part, stored))
        own = with_rows(_cut(tensor, part), *rows, self.dtype or tensor.dtype)
        return nn.Parameter(own.to(self.device), requires_grad=False)

    def _moved(self, tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(self.move(tensor, self.device, self.dtype or tensor.dtype), requires_grad=False)


def _in_blocks(parts: Sequence[Blocks], weights: Sequence[Tensor], bias_O: Tensor | None, leave: object) -> BlockWeight:
    """Return the layout of a linear whose weights are blocks, whatever it had."""
    return BlockWeight(parts, bias_O)


def put(model: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter by its name."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, value)


def _rows(tensor: Tensor, part: Part, stored: Tensor | None) -> Tensor:
    """Return a part of a tensor, in order; a view only of what is the file's own memory, and stays there anyway."""
    if part.dim is None:
        return tensor
    rows = _cut(tensor, part)
    kept = stored is not None and stored.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return rows if kept and rows.is_contiguous() else rows.clone(memory_format=torch.contiguous_format)


def _cut(tensor: Tensor, part: Part) -> Tensor:
    return tensor if part.dim is None else tensor.narrow(part.dim, part.start, part.stop - part.start)
