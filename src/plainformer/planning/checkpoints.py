"""What a checkpoint says of its model before any weight is read: its configuration, and the types of a GGUF file. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config import ModelConfig
from plainformer.plan.stored import NUMBERS, READ_AS_THEY_ARE, FileTensor, StoredFile
from plainformer.planning.described import Described, Ref

if TYPE_CHECKING:
    from plainformer.checkpoint.opened import Checkpoint


def of_reference(ref: Ref, files: Mapping[str, Any]) -> Described:
    """Return what a checkpoint's configuration says."""
    from plainformer.checkpoint.opened import open_checkpoint
    from plainformer.families import completed, config_from_dict, heads_of
    from plainformer.tasks import head_for_task, stated_task, task_info

    task, head = files.get("task"), files.get("head")
    path = Path(ref)
    if path.suffix == ".json" and path.is_file():
        from plainformer.checkpoint.formats import read_json_object

        raw = completed(read_json_object(path), files.get("family"))
        wanted = head if task is None else head_for_task(task_info(task).name, heads_of(str(raw.get("model_type"))))
        name, config = path.parent.name or path.name, config_from_dict(raw, wanted, str(path))
        return Described(name, config, stated_type(raw))
    named: dict[str, Any] = {name: files.get(name) for name in ("revision", "token", "family")}
    with open_checkpoint(ref, part="config", **named) as checkpoint:
        info = task_info(task) if task is not None else stated_task(checkpoint)
        wanted = head if info is None else head_for_task(info.name, heads_of(checkpoint.model_type))
        config = checkpoint.config(wanted)
        stored = (
            stated_type(checkpoint.raw_config) if checkpoint.folder is not None else stored_file(checkpoint, config)
        )
    name = str(ref).rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return Described(name, config, stored)


def stated_type(raw: Mapping[str, Any]) -> str | None:
    """Return the type that a config.json says its weights are stored in; None where it says none that is known."""
    found = raw.get("dtype") or raw.get("torch_dtype")
    return found if isinstance(found, str) and found in NUMBERS else None


def stored_file(checkpoint: Checkpoint, config: ModelConfig) -> StoredFile:
    """Return a GGUF file by its header, with the parameters that each tensor becomes."""
    from plainformer.checkpoint.rows import assigned
    from plainformer.config.shapes import every_name

    source = checkpoint.tensors()
    every, tied = every_name(config), dict(config.tied)
    found, _ = assigned(checkpoint.rows(config), source.names(), every, tied)
    used: dict[str, tuple[tuple[str, ...], bool, bool]] = {}
    for name, row, ours in found:
        in_blocks = source.stored(name) in READ_AS_THEY_ARE and len(source.shape(name)) == 2 and row.op.whole_rows
        matrices = all(one not in tied and every[one].kind in ("linear", "table") for one in ours)
        used[name] = tuple(ours), row.op.copies, in_blocks and matrices
    tensors = (FileTensor(source.stored(name), source.shape(name), *used.get(name, ())) for name in source.names())
    return StoredFile(sum(map(len, source.maps)), tuple(tensors))
