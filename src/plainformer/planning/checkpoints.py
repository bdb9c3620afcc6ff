"""What a checkpoint says of its model before any weight is read: its configuration, and the types of a GGUF file. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plainformer.config import ModelConfig
from plainformer.planning.described import Described, Ref


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
        return Described(path.parent.name or path.name, config_from_dict(raw, wanted, str(path)))
    named: dict[str, Any] = {name: files.get(name) for name in ("revision", "token", "family")}
    with open_checkpoint(ref, part="config", **named) as checkpoint:
        info = task_info(task) if task is not None else stated_task(checkpoint)
        wanted = head if info is None else head_for_task(info.name, heads_of(checkpoint.model_type))
        config = checkpoint.config(wanted)
        stored, notes = stored_types(checkpoint, config) if checkpoint.folder is None else ({}, ())
    name = str(ref).rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return Described(name, config, stored, notes=notes)


def stored_types(checkpoint: Any, config: ModelConfig) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the dtypes that a GGUF file has, by its own names, with the sentence that says what they come to."""
    from plainformer.plan.devices import short

    del config
    source = checkpoint.tensors()
    kinds = {name: source.stored(name) for name in source.names()}
    size = os.path.getsize(checkpoint.path)
    most = max(set(kinds.values()), key=list(kinds.values()).count)
    said = f"the file has {short(size)}, most of it {most}: `load` turns it into numbers of the dtype asked for"
    return kinds, (said,)
