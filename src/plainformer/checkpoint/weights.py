"""Load a checkpoint's tensors into a model, and export them again, by a family's weight rows.

Every tensor is accounted for: a parameter left empty is an error, so is a tensor that no row knows, so is a shape that
does not fit. Nothing is initialised at random.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plainformer.checkpoint.rows import Row, WeightTable, _pattern
from plainformer.config import HeadConfig, ModelConfig
from plainformer.errors import CheckpointError, opt
from plainformer.model.linear import Linear, LinearGroup

if TYPE_CHECKING:
    from plainformer.checkpoint.formats.source import TensorSource
    from plainformer.model.transformer import Transformer

log = logging.getLogger(__name__)
MANY_LAYERS = 64


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors: how many were loaded, and the names of those that were not."""

    loaded: int = 0
    ignored: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def load_weights(
    model: Transformer,
    source: TensorSource,
    table: WeightTable,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    allow_unused: bool = False,
    trainable: bool = False,
) -> LoadReport:
    """Fill a model on the meta device, straight into place.

    Args:
        dtype: of the parameters; None keeps the checkpoint's. Memory-mapped tensors that need no change are not copied.
        allow_unused: ignore tensors that no row knows, instead of raising.
        trainable: whether the parameters get gradients.
    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong shape.
    """
    report = LoadReport()
    tied = dict(model.config.tied)
    copies: dict[str, nn.Parameter | None] = dict.fromkeys(tied)  # of tied parameters, where the file has them too
    expected = dict(model.named_parameters())
    ranks = {row: rank for rank, row in enumerate(table.rows)}
    filled: dict[str, int] = {}  # by which row
    for name in source.names():
        found = table.find(name)
        if found is None:
            report.unused.append(name)
            continue
        row, ours = found
        wanted = [n for n in ours if n in expected or n in tied]
        by_earlier_row = bool(wanted) and all(filled.get(n, ranks[row]) < ranks[row] for n in wanted)
        if (
            row.kind in ("ignore", "constant")
            or by_earlier_row
            or (row.kind == "also" and not any(n in expected for n in wanted))
        ):
            report.ignored.append(name)
            continue
        if not wanted:
            report.unused.append(name)
            continue
        _place(model, name, _read(source, name, row), ours, expected, copies, dtype, device)
        source.release()  # of a tensor that was converted, the file's own pages are not needed any more
        filled.update(dict.fromkeys(ours, ranks[row]))
        report.loaded += 1
    _drop_pooler(model)
    _untie_or_tie(model, tied, copies)
    # Only now, when the file has shown that it is of this size: a lying configuration must not take memory for zeros.
    zeros = [row for row in table.rows if row.kind == "zeros"]
    _account(model, zeros, report, allow_unused)
    _fill_zeros(model, zeros, dtype, device)
    model.requires_grad_(trainable)
    return report


def check_depth(config: ModelConfig, source: TensorSource) -> None:
    """Refuse a configuration that asks for more layers than there are tensors, before a thousand layers are built.

    A few layers are built at once, and then what is missing is named.
    """
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    layers, count = sum(len(set(stack.layer_ids)) for stack in stacks), len(source.names())
    if layers > max(count, MANY_LAYERS):
        raise CheckpointError(
            f"the configuration asks for {layers} layers, and the weights are only {count} tensors",
            "the configuration and the weights are not of the same model",
        )


def _read(source: TensorSource, name: str, row: Row) -> list[Tensor]:
    tensor = source.read(name)
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"tensor {name!r} holds {tensor.dtype}, not floating-point weights",
            "a quantised checkpoint of another tool? load the original, or a GGUF of it",
        )
    try:
        return row.op.load(tensor)
    except (RuntimeError, IndexError):  # sizes that do not add up, or an axis that is not there
        raise CheckpointError(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, which is not {row.op}",
            "the configuration and the weights are not of the same model",
        ) from None


def _place(
    model: nn.Module,
    name: str,
    tensors: list[Tensor],
    ours: tuple[str, ...],
    expected: dict[str, nn.Parameter],
    copies: dict[str, nn.Parameter | None],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    for our_name, tensor in zip(ours, tensors, strict=False):
        target = expected.get(our_name)
        shape = target.shape if target is not None else model.get_parameter(our_name).shape
        if len(tensors) != len(ours) or tensor.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, "
                f"and the configuration asks for {tuple(shape)} ({our_name})",
                "the configuration and the weights are not of the same model",
            )
        value = nn.Parameter(tensor.to(device=device, dtype=dtype or tensor.dtype), requires_grad=False)
        if our_name in copies:
            copies[our_name] = value
            continue
        _set(model, our_name, value)
        expected[our_name] = value


def _set(model: nn.Module, name: str, value: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, value)


def _fill_zeros(model: nn.Module, rows: list[Row], dtype: torch.dtype | None, device: torch.device | str) -> None:
    """Fill parameters that the checkpoint's model does not have, all of them in rows of kind "zeros"."""
    kind = dtype or next((p.dtype for p in model.parameters() if not p.is_meta), torch.float32)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta and _zero(name, rows):
            _set(
                model, name, nn.Parameter(torch.zeros(parameter.shape, dtype=kind, device=device), requires_grad=False)
            )


def _zero(name: str, rows: list[Row]) -> bool:
    return any(_pattern(row.ours[0]).fullmatch(name) for row in rows)


def _drop_pooler(model: Transformer) -> None:
    """Remove the pooler of a base model whose checkpoint has none: masked language models are trained without one."""
    config, parameters = model.config, list(model.head.parameters())
    if config.head.kind == "none" and parameters and all(p.is_meta for p in parameters):
        log.info("the checkpoint has no pooler: pooler_output will be None")
        model.config = replace(config, head=HeadConfig())
        model.head = type(model.head)(model.config.head, config.main_stack.hidden_size)


def _untie_or_tie(model: Transformer, tied: dict[str, str], copies: dict[str, nn.Parameter | None]) -> None:
    """Tie as the configuration says, unless the checkpoint stores two different tensors: then both are used."""
    kept = {}
    for name, source in tied.items():
        own, shared = copies[name], model.get_parameter(source)
        if shared.is_meta and own is not None:  # only the tied end was stored, as some savers do
            _set(model, source, own)
        elif own is not None and not torch.equal(own, shared):
            log.warning("%s is tied in config.json but stored with other values: using both as stored", name)
            _set(model, name, own)
            continue
        kept[name] = source
    model.config = _with_tied(model, kept)
    model.tie()


def _with_tied(model: Transformer, tied: dict[str, str]) -> ModelConfig:
    return replace(model.config, tied=tuple(tied.items()))


def _account(model: nn.Module, zeros: list[Row], report: LoadReport, allow_unused: bool) -> None:
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta and not _zero(name, zeros)]
    if missing:
        head_only = all(name.startswith("head.") for name in missing)
        cause = (
            "the checkpoint has no weights for this head: it was trained for another task"
            if head_only
            else "the file is incomplete, or the configuration is of another model"
        )
        extra = f"; it has {_some(report.unused)} that no row knows" if report.unused else ""
        fix = (
            f"leave out {opt('task', ...)}, or choose a task that it was trained for"
            if head_only
            else "download it again"
        )
        raise CheckpointError(f"no tensor for {_some(missing)}: {cause}{extra}", fix)
    if report.unused and not allow_unused:
        raise CheckpointError(
            f"the checkpoint has {_some(report.unused)} that this model does not use",
            f"{opt('allow_unused', True)} loads it without",
        )


def _some(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    noun = "tensor" if len(names) == 1 else f"{len(names)} tensors"
    return f"{noun} {shown}" + (", ..." if len(names) > limit else "")


def export_weights(model: Transformer, table: WeightTable) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's names and tensors, one at a time, by the rows applied backwards. Tied tensors come once."""
    state = _tensors(model)
    tied = {name for name, _ in model.config.tied}
    left = {name for name in state if name not in tied}
    base = table.prefix if model.config.head.kind == "none" else ""
    for row in table.rows:
        if row.kind == "constant":
            yield row.theirs.removeprefix(base), row.op.save([])
        if row.kind == "zeros":
            left -= {name for name in left if _pattern(row.ours[0]).fullmatch(name)}
        if row.kind != "map":
            continue
        for numbers in _numbers(row, state):
            ours = [_filled(template, numbers) for template in row.ours]
            if any(name in tied for name in ours):
                continue
            theirs = _filled(row.theirs, numbers).removeprefix(base)
            yield theirs, row.op.save([state[name]() for name in ours]).contiguous()
            left -= set(ours)
    if left:
        raise CheckpointError(
            f"no row saves {_some(sorted(left))}", "this is a gap in the family's rows: please report it"
        )


def _tensors(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return each parameter by name, as a function: unpacking all packed ones at once would double the memory."""
    found: dict[str, Callable[[], Tensor]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[name] = parameter.detach
    for path, module in model.named_modules():
        if isinstance(module, Linear) and module.packed is not None:
            found[f"{path}.weight"] = module.packed.dense
        if isinstance(module, LinearGroup) and module.packed is not None:
            for index, name in enumerate(module.names):
                found[f"{path}.{name}.weight"] = partial(_part, module, index)
    return found


def _part(group: LinearGroup, index: int) -> Tensor:
    """Return one part of a packed group, copied: a view would keep all of them in memory."""
    assert group.packed is not None
    return group.packed.dense().split(group.sizes)[index].clone()


def _numbers(row: Row, names: Collection[str]) -> list[tuple[str, ...]]:
    """Return the layer numbers for which the model has the row's parameters, given by their names."""
    if "{}" not in row.ours[0]:
        return [()] if row.ours[0] in names else []
    matches = (_pattern(row.ours[0]).fullmatch(name) for name in names)
    found = {match.groups() for match in matches if match is not None}
    return sorted(found, key=lambda numbers: tuple(int(n) for n in numbers))


def _filled(template: str, numbers: tuple[str, ...]) -> str:
    return template.format(*numbers) if numbers else template
