"""Load a checkpoint's tensors into a model, and export them again, by a family's weight rows.

Every tensor is accounted for: a parameter left empty is an error, so is a tensor that no row knows, so is a shape that
does not fit. Nothing is initialised at random.

A model that is a part of a larger one (`config/local.py`) is filled with its own rows: what the file holds is accounted for as
that of the whole model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plainformer.checkpoint.account import what_to_do, why_missing
from plainformer.checkpoint.filling import Filling, put
from plainformer.checkpoint.formats.source import some
from plainformer.checkpoint.rows import Assigned, Row, WeightTable, assigned
from plainformer.config import HeadConfig, ModelConfig
from plainformer.config.loading import LoadOptions
from plainformer.errors import CheckpointError, UsageError, opt, plural
from plainformer.model.fast.blocks import KIND_CODES, Blocks
from plainformer.model.linear import Linear, LinearGroup
from plainformer.model.lora import Adapter, adapted

if TYPE_CHECKING:
    from plainformer.checkpoint.formats.source import TensorSource
    from plainformer.model.transformer import Transformer

log = logging.getLogger(__name__)
MANY_LAYERS = 64
Sizes = Mapping[str, tuple[int, ...]]  # of the whole model's parameters
_OTHER = "the configuration and the weights are not of the same model"


def load_weights(
    model: Transformer,
    source: TensorSource,
    table: WeightTable,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    allow_unused: bool = False,
    trainable: bool = False,
    new_head: bool = False,
    keep_blocks: bool = False,
) -> None:
    """Fill a model on the meta device, straight into place.

    Of a model that is a part of another: a tensor of which nothing is here is not read, and of a mapped file only the pages
    of the rows that are here.

    Args:
        dtype: of the parameters; None keeps the checkpoint's. Memory-mapped tensors that need no change are not copied.
        allow_unused: ignore tensors that no row knows, instead of raising.
        new_head: leave parameters of the head empty (on the meta device) that no tensor fills.
        keep_blocks: leave matrices that a file packs into blocks as they lie there, where kernels read them so: fp32, for
            inference, without other processes.
        trainable: copy every tensor into memory of its own, and give the parameters that are learned gradients.
    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong shape.
    """
    dtype = dtype or (getattr(torch, source.dtype) if source.dtype is not None else None)
    parameters, sizes = dict(model.named_parameters(remove_duplicate=False)), model.sizes()
    filling = Filling(model, dtype, device, _own if trainable else Tensor.to)
    # Until the file has shown that it is of this size, a lying configuration must not take memory for zeros.
    plan = check_weights(model, source, table, allow_unused=allow_unused, new_head=new_head)
    for name, row, ours in plan:
        if keep_blocks and _stays_in_blocks(filling, source, name, row, ours):
            _keep(filling, source, name, row, ours)
        elif filling.wants(ours):
            _fill(filling, source, name, row, ours, sizes)
            source.release()  # of a tensor that was converted, the file's own pages are not needed any more
    _drop_pooler(model, plan)
    filling.tie()
    filling.pack_kept()
    _fill_zeros(model, table if new_head else None, dtype, device)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(trainable and parameters[name].requires_grad)


def _own(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Return a copy that lies in order in memory of its own, 64-byte aligned as torch's allocator gives it."""
    return torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)


def check_weights(
    model: Transformer, source: TensorSource, table: WeightTable, *, allow_unused: bool = False, new_head: bool = False
) -> Assigned:
    """Return what `load_weights` reads, and refuse what it refuses, by names, shapes and types: nothing is read.

    Raises CheckpointError.
    """
    sizes = model.sizes()
    plan, unused = _plan(model, source, table)
    for name, row, ours in plan:
        _check_type(name, source.stored(name))
        _fit(name, torch.empty(source.shape(name), device="meta"), row, ours, sizes)
    _account(model, table, plan, unused, allow_unused, new_head)
    return plan


def for_head(model: Transformer, source: TensorSource, table: WeightTable) -> dict[str, tuple[Sequence[str], bool]]:
    """Return the tensors that the model's head would read, each with our names and whether its shape fits."""
    sizes, found = model.sizes(), {}
    for name, row, ours in _plan(model, source, table)[0]:
        if any(our_name.startswith("head.") for our_name in ours):
            try:
                _fit(name, torch.empty(source.shape(name), device="meta"), row, ours, sizes)
                found[name] = (ours, True)
            except CheckpointError:
                found[name] = (ours, False)
    return found


def _plan(model: Transformer, source: TensorSource, table: WeightTable) -> tuple[Assigned, list[str]]:
    return assigned(table, source.names(), set(model.sizes()), dict(model.config.tied))


def check_depth(config: ModelConfig, source: TensorSource) -> None:
    """Refuse a configuration that asks for more layers than there are tensors, before a thousand layers are built.

    A few layers are built at once, and then what is missing is named.
    """
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    layers, count = sum(len(set(stack.layer_ids)) for stack in stacks), len(source.names())
    if layers > max(count, MANY_LAYERS):
        raise CheckpointError(
            f"the configuration asks for {layers} layers, and the weights are only {plural(count, 'tensor')}",
            _OTHER,
        )


def _fill(filling: Filling, source: TensorSource, name: str, row: Row, ours: Sequence[str], sizes: Sizes) -> None:
    """Read a tensor into its parameters; what was made of it on the way is gone before the next is read."""
    stored = source.read(name)
    for our_name, tensor in zip(ours, _read(name, stored, row, ours, sizes), strict=True):
        filling.put(our_name, tensor, stored if source.is_mapped(name) else None)


def keeps_blocks(options: LoadOptions, source: TensorSource, dtype: torch.dtype | None, device: torch.device) -> bool:
    """Return whether matrices that a file packs into blocks stay so. Raises UsageError where they cannot."""
    if options.quantize != "keep":
        return False
    keep, leave = opt("quantize", "keep"), f"leave {opt('quantize')} out"
    if options.tp != 1 or options.pp != 1 or device.type != "cpu" or dtype != torch.float32:
        what = f"{keep} is for one process on a CPU, which computes in fp32"
        raise UsageError(
            what, f"{leave}, or {opt('tp', ...)}, {opt('pp', ...)}, {opt('device', ...)} and {opt('dtype', ...)}"
        )
    if not any(source.in_blocks(name) and source.stored(name) in KIND_CODES for name in source.names()):
        what = f"{keep}: {source.where} holds no matrices in blocks that are read as they are"
        raise UsageError(what, f"{leave}; such are " + ", ".join(kind for kind in KIND_CODES if kind != "F32"))
    return True


def _stays_in_blocks(filling: Filling, source: TensorSource, name: str, row: Row, ours: Sequence[str]) -> bool:
    """Return whether kernels read a tensor as the file packs it: of a known kind, its rows whole, all of linears and tables."""
    read = source.in_blocks(name) and source.stored(name) in KIND_CODES and row.op.whole_rows
    return read and all(name not in filling.tied and filling.reads_blocks(name) for name in ours)


def _keep(filling: Filling, source: TensorSource, name: str, row: Row, ours: Sequence[str]) -> None:
    stored_OW, size = source.blocks(name), source.shape(name)[1]
    for our_name, rows in zip(ours, row.op.load(stored_OW), strict=True):
        filling.keep(our_name, Blocks(source.stored(name), rows, size))


def _read(name: str, tensor: Tensor, row: Row, ours: Sequence[str], sizes: Sizes) -> list[Tensor]:
    """Return a tensor of the file as the tensors of ours that it is, of the model's shapes."""
    _check_type(name, str(tensor.dtype).removeprefix("torch."))
    return _fit(name, tensor, row, ours, sizes)


def _check_type(name: str, stored: str) -> None:
    """Refuse weights that are whole numbers, without scales beside them."""
    if stored.startswith(("int", "uint", "bool", "complex")):
        raise CheckpointError(
            f"tensor {name!r} holds {stored}, not floating-point weights",
            "a quantised checkpoint of another tool? load the original, or a GGUF of it",
        )


def _fit(name: str, tensor: Tensor, row: Row, ours: Sequence[str], sizes: Sizes) -> list[Tensor]:
    """Return a tensor as the tensors of ours that it is, of the model's shapes."""
    try:
        tensors = row.op.load(tensor)
    except (RuntimeError, IndexError):  # sizes that do not add up, or an axis that is not there
        raise CheckpointError(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, which is not {row.op}", _OTHER
        ) from None
    shapes = [sizes[our_name] for our_name in ours]
    if [part.shape for part in tensors] != shapes:
        wanted = ", ".join(f"{shape} ({our_name})" for shape, our_name in zip(shapes, ours, strict=True))
        what = " and ".join(str(tuple(part.shape)) for part in tensors)
        raise CheckpointError(f"tensor {name!r} has shape {what}, and the configuration asks for {wanted}", _OTHER)
    return tensors


def _fill_zeros(
    model: nn.Module, table: WeightTable | None, dtype: torch.dtype | None, device: torch.device | str
) -> None:
    """Fill what is still empty: parameters that the checkpoint's model does not have, all of them in rows of "zeros".

    `table`, where a head is new and stays empty, says which these are.
    """
    kind = dtype or next((p.dtype for p in model.parameters() if not p.is_meta), torch.float32)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta and (table is None or table.is_zero(name)):
            put(model, name, nn.Parameter(torch.zeros(parameter.shape, dtype=kind, device=device), False))


def _drop_pooler(model: Transformer, plan: Assigned) -> None:
    """Remove the pooler of a base model whose checkpoint has none: masked language models are trained without one."""
    config, has_pooler = model.config, any(name.startswith("head.") for name in model.sizes())
    filled = any(name.startswith("head.") for _, _, ours in plan for name in ours)
    if config.head.kind == "none" and has_pooler and not filled:
        log.info("the checkpoint has no pooler: pooler_output will be None")
        model.configure(replace(config, head=HeadConfig()))
        model.head = type(model.head)(model.config.head, config.main_stack.hidden_size)


def _account(
    model: Transformer, table: WeightTable, plan: Assigned, unused: list[str], allow_unused: bool, new_head: bool
) -> None:
    """Refuse parameters that no tensor would fill, and tensors that would fill none."""
    filled, tied = {our_name for _, _, ours in plan for our_name in ours}, dict(model.config.tied)
    filled |= {shared for own, shared in tied.items() if own in filled}  # only the tied end was stored
    names = [name for name in model.sizes() if name not in tied]
    if new_head or (model.config.head.kind == "none" and not any(name.startswith("head.") for name in filled)):
        names = [name for name in names if not name.startswith("head.")]  # the pooler, which is dropped then
    missing = [name for name in names if name not in filled and not table.is_zero(name)]
    if missing:
        cause, fix = why_missing(missing, unused, bool(plan))
        extra = f"; it has {_some(unused)} that the model does not use" if unused else ""
        raise CheckpointError(f"{_missing(missing)}: {cause}{extra}", fix)
    if unused and not allow_unused:
        raise CheckpointError(
            f"the checkpoint has {_some(unused)} that this model does not use",
            what_to_do(unused),
        )


def _some(names: list[str]) -> str:
    return f"{'tensor' if len(names) == 1 else f'{len(names)} tensors'} {some(list(map(repr, names)), 4)}"


def _missing(names: list[str]) -> str:
    be = "is" if len(names) == 1 else "are"
    return f"{plural(len(names), 'weight')} {be} missing from the checkpoint: {some(list(map(repr, names)), 4)}"


Export = tuple[str, Row, list[str]]  # a tensor of the checkpoint, the row that makes it, and what it is made of


def exported(config: ModelConfig, table: WeightTable, names: Collection[str]) -> Iterator[Export]:
    """Yield what the checkpoint of a model with these parameters has, by the rows in reverse; tied tensors come once."""
    tied = {name for name, _ in config.tied}
    left = {name for name in names if name not in tied and not table.is_zero(name)}
    base = table.prefix if config.head.kind == "none" else ""
    for row in table.rows:
        if row.kind == "constant":
            yield row.theirs.removeprefix(base), row, []
        for theirs, ours in row.instances(names) if row.kind == "map" else ():
            if not tied.intersection(ours):
                yield theirs.removeprefix(base), row, ours
                left.difference_update(ours)
    if left:
        fix = "this is a gap in the family's rows: please report it"
        raise CheckpointError(f"no row saves {_some(sorted(left))}", fix)


def export_weights(model: Transformer, table: WeightTable) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's names and tensors, one at a time, by the rows applied in reverse; tied tensors come once."""
    state = _tensors(model)
    for theirs, row, ours in exported(model.config, table, state):
        tensor = row.op.save([state[name]() for name in ours])
        yield theirs, tensor.contiguous() if ours else tensor


def _tensors(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return each parameter by name, as a function: unpacking all packed ones at once would double the memory."""
    found: dict[str, Callable[[], Tensor]] = {
        name: parameter.detach
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if ".adapter." not in name
    }
    for path, linear in adapted(model):
        found[f"{path}.weight"] = partial(_merged, linear)
    for path, module in model.named_modules():
        if isinstance(module, Linear | LinearGroup) and module.packed is not None:
            for index, name in enumerate(module.names):
                found[f"{path}.{name}"] = partial(_weight, module, index)
    return found


def _merged(linear: Linear) -> Tensor:
    """Return a weight with its adapter's product."""
    assert isinstance(linear.adapter, Adapter)
    return (linear.weight + linear.adapter.delta()).detach()


def _weight(module: Linear | LinearGroup, index: int) -> Tensor:
    """Return a packed weight; one of a group as a copy, since a view would keep all of them in memory."""
    assert module.packed is not None
    weights = module.packed.dense().split(module.sizes)
    return weights[index].clone() if len(weights) > 1 else weights[index]
