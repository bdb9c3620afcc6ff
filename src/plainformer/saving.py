"""`save`: from a model or a task back to a folder that this library and transformers load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.formats import write_safetensors
from plainformer.checkpoint.weights import export_weights
from plainformer.errors import CheckpointError, UsageError, a_type
from plainformer.families import architecture_with_head, config_from_dict, table_for
from plainformer.inputs.files import make_folder
from plainformer.model.transformer import Transformer
from plainformer.tasks.base import Task

if TYPE_CHECKING:
    from plainformer.parallel.gather import Team

Ref = str | os.PathLike[str]


def save(model: Transformer | Task, folder: Ref) -> None:
    """Write a model (or a task with its tokenizer) to a folder that this library and transformers load.

    Adapters are merged when they are loaded: `save(load(ADAPTER_FOLDER), FOLDER)` makes a plain checkpoint of one.
    """
    from plainformer.tasks.ensemble import refuse_ensemble

    if isinstance(model, Transformer):
        save_model(model, folder)
        return
    if not isinstance(model, Task):
        raise UsageError(f"{a_type(model)} is neither a model nor a task", "pass what load or load_model gave")
    refuse_ensemble(model, "what `save` writes")
    save_model(model.model, folder)
    if model.needs_tokenizer:
        model.tokenizer.save(Path(folder))
    model.checkpoint.save_companions(folder, model.companions)


def save_model(model: Transformer, folder: Ref) -> None:
    """Write `model.safetensors` and `config.json`, as transformers reads them."""
    target = make_folder(folder)
    table = table_for(model.config)
    write_safetensors(export_weights(model, table), target)
    save_config(model, target)


def save_together(model: Transformer, folder: Path, team: Team) -> dict[Path, dict[str, Any]]:
    """Write the weights of a model that several processes have together; all of them call it.

    Returns:
        the files that this one has written, with their sizes and hashes.
    Raises:
        CheckpointError: on all of them, if one cannot write.
    """
    from plainformer.checkpoint.spread import weight_jobs, weights_held, write_spread
    from plainformer.parallel.gather import Gathered

    gathered = Gathered(team, weights_held(model))
    jobs = weight_jobs(model.config, table_for(model.config), gathered)
    return write_spread(gathered, jobs, folder, "model", metadata={"format": "pt"}, index=True)


def save_config(model: Transformer, folder: Path) -> None:
    """Write a model's `config.json`, as transformers reads it."""
    raw = {**model.config.source, "dtype": str(model.dtype).removeprefix("torch.")}
    for name in ("torch_dtype", "quantization_config", "compression_config"):  # what is saved is not quantised
        raw.pop(name, None)
    if model.config.architecture:
        raw["architectures"] = [architecture_with_head(model.config)]
    if config_from_dict(model.config.source, model.config.head.kind).tied and not model.config.tied:
        raw["tie_word_embeddings"] = False  # the checkpoint stored two different tensors
    path = folder / "config.json"
    try:
        path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}", "choose another folder") from None
