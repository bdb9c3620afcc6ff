"""`load` and `save`: from a reference to something ready to call, and back to a folder that others can load."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plainformer.checkpoint.formats import find_weights, open_weights, read_json_object, write_safetensors
from plainformer.checkpoint.references import Files, resolve
from plainformer.checkpoint.weights import check_depth, export_weights, load_weights
from plainformer.config import ModelConfig
from plainformer.errors import CheckpointError, UsageError, did_you_mean
from plainformer.families import CONVENTIONS, architecture_with_head, config_from_dict, head_of, heads_of, table_for
from plainformer.inputs.files import make_folder
from plainformer.model.block import set_ffn_chunk_size
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.transformer import Transformer

if TYPE_CHECKING:
    from plainformer.checkpoint.formats.source import TensorSource
    from plainformer.inputs.text.tokenizer import Tokenizer

Ref = str | os.PathLike[str]
DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def as_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """A dtype by name. None: fp32 on a CPU, where half precision is slower; the checkpoint's own elsewhere."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    if isinstance(dtype, torch.dtype):
        if dtype in DTYPES.values():
            return dtype
    elif isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise UsageError(f"dtype={dtype!r} is not supported", did_you_mean(str(dtype), DTYPES))


def as_device(device: str | torch.device) -> torch.device:
    """A device that exists, or an error that says which do."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"device={device!r} is unknown", "use 'cpu' or 'cuda'") from None
    if found.type not in ("cpu", "cuda"):
        raise UsageError(f"device={str(device)!r} is not supported", "use 'cpu' or 'cuda'")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise UsageError(f"device={str(device)!r}: this machine has {count} CUDA devices", "use device='cpu'")
    return found


def load_model(
    ref: Ref | Files,
    *,
    head: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    quantize: str | None = None,
    ffn_chunk_size: int = 0,
    allow_unused: bool = False,
    prepare: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> Transformer:
    """The model of a reference, without tokenizer and task.

    Args:
        ref: a local folder, a `.gguf` file, a bundled name or a Hub id.
        head: the kind of head (`config.HEAD_KINDS`); None takes what the checkpoint's architecture says.
        dtype: "fp32", "bf16", "fp16"; None is fp32 on a CPU and the checkpoint's own on a GPU.
        device: "cpu", "cuda", "cuda:1".
        backend: how linears compute on a CPU: "plain", "fused", "onednn", "compiled", or "auto": "compiled" for a decoder,
            otherwise what measures best for each shape; name one where the last bits must not differ between processes.
        quantize: "int8" rounds the weights of all linears to eight bits (fp32, CPU): a quarter of the memory, faster
            token by token. The answers change a little, and the model can no longer be saved or trained.
        ffn_chunk_size: positions that a feed-forward network runs at a time; 0 for all.
        allow_unused: accept tensors that no weight row knows.
        prepare: False keeps plain, separate weights that can be trained.
        revision, token: of a Hub repository.
    Raises:
        HubError, CheckpointError, UsageError: see each message.
    """
    _check_quantize(quantize, backend, prepare)
    files = ref if isinstance(ref, Files) else resolve(ref, revision=revision, token=token)
    target = as_device(device)
    wanted = as_dtype(dtype, target)
    source: TensorSource
    if files.gguf is not None:
        from plainformer.families.from_gguf import load_gguf_parts

        config, table, source = load_gguf_parts(files.gguf, head)
    else:
        assert files.folder is not None
        config = read_config(files.folder, head)
        table, source = table_for(config), open_weights(find_weights(files.folder))
    try:
        check_depth(config, source)
        model = Transformer(config)
        load_weights(model, source, table, dtype=wanted, device=target, allow_unused=allow_unused)
        model.eval()
        set_ffn_chunk_size(model, ffn_chunk_size)
        if prepare:
            rows = 1 if config.decoder is not None else 128
            prepare_for_inference(model, quantize or backend, rows, source.release)
    finally:
        source.close()
    return model


def _check_quantize(quantize: str | None, backend: str, prepare: bool) -> None:
    if quantize is None:
        return
    if quantize != "int8":
        raise UsageError(f"quantize={quantize!r} is unknown", did_you_mean(str(quantize), ("int8",)) or "use 'int8'")
    if backend != "auto" or not prepare:
        raise UsageError("quantize='int8' chooses the backend itself", "leave out backend=... and prepare=...")


def read_config(folder: Path, head: str | None = None) -> ModelConfig:
    """The configuration in a folder's `config.json`."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json", "is this a Hugging Face model folder?")
    return config_from_dict(read_json_object(path), head)


def save_model(model: Transformer, folder: Ref) -> None:
    """Write `model.safetensors` and `config.json`, as the reference library reads them."""
    target = make_folder(folder)
    table = table_for(model.config)
    write_safetensors(export_weights(model, table), target)
    raw = {**model.config.source, "dtype": str(model.dtype).removeprefix("torch.")}
    raw.pop("torch_dtype", None)
    if model.config.architecture:
        raw["architectures"] = [architecture_with_head(model.config)]
    if config_from_dict(model.config.source, model.config.head.kind).tied and not model.config.tied:
        raw["tie_word_embeddings"] = False  # the checkpoint stored two different tensors
    try:
        (target / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target / 'config.json'}: {error.strerror}", "choose another folder"
        ) from None


def load(
    ref: Ref,
    *,
    task: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    quantize: str | None = None,
    ffn_chunk_size: int = 0,
    allow_unused: bool = False,
    prepare: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> Any:
    """A checkpoint, ready to call for its task: `load("all-minilm-l6-v2")("a text")`.

    Args:
        ref: a local folder, a `.gguf` file, a bundled name (`plainformer models` lists them) or a Hub id.
        task: one of `plainformer tasks`; None takes the one that the checkpoint's architecture implies.
        dtype, device, backend, quantize, ffn_chunk_size, allow_unused, prepare, revision, token: see `load_model`.
    Returns:
        a `Task` with `.model`, `.tokenizer` and `.config`; call it with one input or many.
    Raises:
        PlainformerError: with the value, the cause and the next step.
    """
    from plainformer.tasks import BUILT_ON, default_task, head_for_task, task_class, task_info, tasks_of

    files = resolve(ref, revision=revision, token=token)
    info = task_info(task) if task is not None else None
    head = head_for_task(info.name, heads_of(_model_type(files))) if info is not None else None
    if info is not None:
        _check_task(files, info.name, head)
    model = load_model(
        files,
        head=head,
        dtype=dtype,
        device=device,
        backend=backend,
        quantize=quantize,
        ffn_chunk_size=ffn_chunk_size,
        allow_unused=allow_unused,
        prepare=prepare,
    )
    implied = default_task(model.config)
    chosen = info or implied
    if implied.name not in (chosen.name, *BUILT_ON.get(chosen.name, ())):
        raise UsageError(
            f"{files.ref} cannot do {chosen.name!r}: as loaded, it does {_listed(tasks_of(model.config))}",
            "leave out task=..., or choose one of these",
        )
    made = task_class(chosen, model.config.head.kind)
    tokenizer = load_tokenizer(files) if made.needs_tokenizer else None
    return made(chosen.name, model, tokenizer, files.folder, files.ref)


def _check_task(files: Files, task: str, head: str | None) -> None:
    """A checkpoint with another task's head cannot do this one, even where its tensors happen to have fitting names.

    Every checkpoint gives features; one without a head is left to its weights (GPT2Model's are all that GPT-2 needs).
    """
    from plainformer.tasks import BUILT_ON, default_task, tasks_of

    if files.folder is None or head == "none":
        return
    raw = read_json_object(files.folder / "config.json")
    names = raw.get("architectures") or [""]
    stated = head_of(str(names[0]), str(raw.get("model_type"))) if names[0] else "none"
    if stated in ("none", head):
        return
    config = config_from_dict(raw, stated)
    if default_task(config).name in BUILT_ON.get(task, ()):
        return
    raise UsageError(
        f"{files.ref} cannot do {task!r}: its architecture {names[0]} does {_listed(tasks_of(config))}",
        "leave out task=..., or choose one of these",
    )


def _listed(names: Sequence[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def pipeline(task: str, ref: Ref, **options: Any) -> Any:
    """`load` with the task first, for those who are used to that order."""
    return load(ref, task=task, **options)


def load_tokenizer(ref: Ref | Files, *, revision: str | None = None, token: str | None = None) -> Tokenizer:
    """The tokenizer of a reference, without its model: no weights are downloaded."""
    from plainformer.inputs.text.tokenizer import Tokenizer

    files = ref if isinstance(ref, Files) else resolve(ref, revision=revision, token=token, part="tokenizer")
    if files.gguf is not None:
        from plainformer.checkpoint.formats import open_gguf

        file = open_gguf(files.gguf)
        try:
            return Tokenizer.from_gguf(file.metadata)
        finally:
            file.close()
    assert files.folder is not None
    path = files.folder / "config.json"
    return Tokenizer.from_folder(files.folder, read_json_object(path) if path.is_file() else None, CONVENTIONS)


def _model_type(files: Files) -> str:
    if files.folder is None:
        return ""
    return str(read_json_object(files.folder / "config.json").get("model_type", ""))


def save(model: Any, folder: Ref) -> None:
    """Write a model (or a task with its tokenizer) to a folder that this library and the reference library load."""
    if isinstance(model, Transformer):
        save_model(model, folder)
        return
    from plainformer.tasks.base import Task

    if not isinstance(model, Task):
        raise UsageError(f"a {type(model).__name__} is neither a model nor a task", "pass what load or load_model gave")
    save_model(model.model, folder)
    if model._tokenizer is not None:
        model.tokenizer.save(Path(folder))
    if model.folder is not None:
        for name in model.companions:
            _copy(model.folder / name, Path(folder) / name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file that is there, unless it is the same one."""
    if not source.is_file() or source.resolve() == target.resolve():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}", "choose another folder") from None
