"""Write a checkpoint whose tensors are divided among the processes of a run: each writes files of its own.

All ranks give what they have of one tensor after the other, and one of them has the whole for a moment. No rank ever has
more than what it writes in one file, beside its own share and the tensor that is on its way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from plainformer.checkpoint.formats.source import INDEX_SUFFIX
from plainformer.checkpoint.rows import WeightTable
from plainformer.checkpoint.weights import exported
from plainformer.config import ModelConfig
from plainformer.errors import CheckpointError
from plainformer.model.linear import Linear
from plainformer.model.lora import Adapter, adapted
from plainformer.model.transformer import Transformer
from plainformer.parallel.gather import (
    Block,
    Gathered,
    Held,
    files_of,
    gathered_files,
    held,
    local_of,
    shares,
    slices,
    undivided,
)
from plainformer.replacing import facts

MOST = 5 * 2**30  # bytes of a file
Facts = dict[str, Any]


class Job(NamedTuple):
    """A tensor to write: its name, those that it is made of, and how."""

    name: str
    parts: Sequence[str]
    make: Callable[[list[Tensor]], Tensor]


def weights_held(model: Transformer) -> dict[str, Held]:
    """Return what this process has of the weights that are saved: adapters are merged. All processes call it."""
    of = shares(model)
    plain = {name: p for name, p in model.named_parameters() if ".adapter." not in name}
    found = held(plain, of)
    factors: dict[int, tuple[Tensor, Tensor]] = {}  # those of a matrix may be divided among data-parallel ranks
    for path, linear in adapted(model):
        assert isinstance(linear.adapter, Adapter)
        low = linear.adapter.low
        if id(low) not in factors:
            factors[id(low)] = undivided(low.a), undivided(low.b)
        share = of[f"{path}.weight"]
        merged = partial(_merged, linear, share.block, *factors[id(low)])
        found[share.name] = Held(share, linear.weight.dtype, merged)
    return found


def _merged(linear: Linear, block: Block, a: Tensor, b: Tensor) -> Tensor:
    """Return the block of a weight that is here, with its adapter's product."""
    assert isinstance(linear.adapter, Adapter)
    low, (rows, columns) = linear.adapter.low, slices(block)
    return (local_of(linear.weight) + low.parts(b)[linear.adapter.number][rows] @ a[:, columns] * low.scale).detach()


def weight_jobs(config: ModelConfig, table: WeightTable, gathered: Gathered) -> list[Job]:
    """Return what the checkpoint of a model has, as `export_weights` gives it to one process."""
    return [Job(theirs, ours, row.op.save) for theirs, row, ours in exported(config, table, gathered)]


def same_jobs(names: Sequence[str]) -> list[Job]:
    """Return tensors that are written as they are."""
    return [Job(name, [name], lambda tensors: tensors[0]) for name in names]


def write_spread(
    gathered: Gathered,
    jobs: Sequence[Job],
    folder: Path,
    stem: str,
    *,
    metadata: Mapping[str, str] | None = None,
    index: bool = False,
    most: int = MOST,
) -> dict[Path, Facts]:
    """Write STEM-00001-of-0000N.safetensors, or STEM.safetensors if one file is enough; all ranks call it.

    Args:
        jobs: the same on all ranks. index: whether the first rank writes an index of the files, as for weights.
    Returns:
        the files that this rank has written, forced to the disk, with their facts.
    Raises:
        CheckpointError: on all ranks, if one cannot write.
    """
    team = gathered.team
    by_name = {job.name: job for job in jobs}
    files = files_of({job.name: sum(gathered[part].nbytes for part in job.parts) for job in jobs}, team.count, most)
    names = {file.number: _name(stem, file.number, len(files)) for file in files}

    def make(name: str, to: int) -> Tensor | None:
        job = by_name[name]
        parts = [gathered.fetch(part, to) for part in job.parts]
        if to != team.rank:
            return None
        return job.make([part for part in parts if part is not None]).contiguous()

    written: dict[Path, Facts] = {}
    total, problem = 0, ""
    for file, tensors in gathered_files(files, team.rank, make):
        total += sum(tensor.nbytes for tensor in tensors.values())
        try:
            if not problem:  # one that failed goes on giving what the others need
                path = folder / names[file.number]
                write_file(path, tensors, metadata)
                written[path] = facts(path)
        except (OSError, SafetensorError) as error:
            problem = str(getattr(error, "strerror", None) or error)
        tensors.clear()
    told = team.gather((problem, total))
    for rank, (cause, _) in enumerate(told):
        if cause:
            raise cannot_write(folder, f"{cause} (rank {rank})")
    if index and len(files) > 1 and team.is_first:
        table = {name: names[file.number] for file in files for name in file.names}
        content = {"metadata": {"total_size": sum(size for _, size in told)}, "weight_map": table}
        text = json.dumps(content, indent=2) + "\n"
        (folder / f"{stem}.safetensors{INDEX_SUFFIX}").write_text(text, encoding="utf-8")
    return written


def _name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.safetensors" if count > 1 else f"{stem}.safetensors"


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file and force it to the disk. Raises OSError, SafetensorError."""
    size, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(28, f"No space left on device: {size:,} bytes are needed, {free:,} are free")
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path, dict(metadata) if metadata else None)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def cannot_write(folder: Path, cause: str) -> CheckpointError:
    """Return the error of weights that cannot be written."""
    full = "the disk is full: " if "No space left" in cause else ""
    fix = "choose a folder that is writable and has enough free space"
    return CheckpointError(f"{folder}: the weights cannot be written: {full}{cause}", fix)
