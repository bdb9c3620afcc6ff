"""What sentence-transformers (6.2, and older) writes beside a model: how its token vectors become a text's vector.

`modules.json` lists the steps, each with a folder of its own; `sentence_bert_config.json` holds the longest text;
`config_sentence_transformers.json` the prompts that texts begin with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plainformer.checkpoint.formats import find_weights, open_weights, read_json_object
from plainformer.config.checks import reading, require_choice
from plainformer.config.fields import Fields
from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError
from plainformer.model.norm import ACTIVATION_FUNCTIONS
from plainformer.tasks.text.similarity import SIMILARITIES

MODULES, LIMITS, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
# Our name of a pooling, the name in a pooling module's config.json, and the flag that older files have instead, which
# concatenate poolings in this order.
_POOLINGS = (
    ("cls", "cls", "cls_token"),
    ("max", "max", "max_tokens"),
    ("mean", "mean", "mean_tokens"),
    ("mean_sqrt_len", "mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("weightedmean", "weightedmean", "weightedmean_tokens"),
    ("last", "lasttoken", "lasttoken"),
)
_NAMES = {name: own for own, name, _ in _POOLINGS}
_FLAGS = {f"pooling_mode_{flag}": own for own, _, flag in _POOLINGS}
_ACTIVATIONS = {name: name.lower() for name in ("Tanh", "Identity", "ReLU", "GELU", "Sigmoid", "SiLU")}


@dataclass(frozen=True)
class Dense:
    """A linear layer after the pooling, weight (O, I) and bias (O,) fp32, and its activation."""

    weight: Tensor
    bias: Tensor | None
    activation: str

    def __call__(self, vectors_BI: Tensor) -> Tensor:
        """(B, I) → (B, O)."""
        bias = None if self.bias is None else self.bias.to(vectors_BI.device)
        out_BO = torch.nn.functional.linear(vectors_BI, self.weight.to(vectors_BI.device), bias)
        return ACTIVATION_FUNCTIONS[self.activation](out_BO)


@dataclass(frozen=True)
class SentenceFiles:
    """The steps after a model's last hidden states; without files the mean over tokens, not normalised.

    Attributes:
        pooling: see `pooling.read_poolings`. dense: layers after it. normalized: whether vectors get length 1.
        include_prompt: whether a prompt's tokens count in the pooling.
        max_tokens: the longest text that the vectors were made for, None where nothing says.
        similarity: how two vectors are compared, a name in `similarity.SIMILARITIES`.
        prompts: by name. default_prompt: the one that a text gets where nothing else is asked for.
        names: the files themselves, relative to the folder.
    """

    pooling: str = "mean"
    dense: tuple[Dense, ...] = ()
    normalized: bool = False
    include_prompt: bool = True
    max_tokens: int | None = None
    similarity: str = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    names: tuple[str, ...] = ()


def read_sentence_files(folder: Path | None) -> SentenceFiles:
    """Return what the files of a checkpoint's folder say.

    Raises:
        CheckpointError: one is unreadable, holds what it cannot, or lists a step that is not supported.
    """
    if folder is None:
        return SentenceFiles()
    prompts, default = _prompts(folder / PROMPTS)
    found = SentenceFiles(
        max_tokens=_max_tokens(folder),
        similarity=_similarity(folder / PROMPTS),
        prompts=prompts,
        default_prompt=default,
        names=(LIMITS, PROMPTS),
    )
    if not (folder / MODULES).is_file():
        return found
    for module in _modules(folder / MODULES):
        kind = str(module.get("type", "")).rpartition(".")[2]
        found = _with_step(found, folder, kind, str(module.get("path") or ""))
    return replace(found, names=(MODULES, *found.names))


def _with_step(found: SentenceFiles, folder: Path, kind: str, path: str) -> SentenceFiles:
    """Return the steps so far, and one more of some kind, whose files are in the folder `path`."""
    if kind == "Transformer":
        return found
    if kind == "Normalize":
        return replace(found, normalized=True)
    if kind == "Pooling":
        name = f"{_subfolder(folder, path or '1_Pooling')}/config.json"
        pooling, include_prompt = _pooling(folder / name)
        return replace(found, pooling=pooling, include_prompt=include_prompt, names=(*found.names, name))
    if kind == "Dense" and not found.normalized:
        path = _subfolder(folder, path or "2_Dense")
        names = (f"{path}/{name}" for name in ("config.json", "model.safetensors", "pytorch_model.bin"))
        return replace(found, dense=(*found.dense, _dense(folder / path)), names=(*found.names, *names))
    raise CheckpointError(
        f"{MODULES} lists {kind!r}, which changes the vectors and is not supported"
        + (" after Normalize" if kind == "Dense" else ""),
        "supported: Transformer, Pooling, Dense, Normalize, in this order",
    )


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}", "fetch the file again") from error
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"{path} is not a list of modules", "fetch the file again")
    return listed


def _subfolder(folder: Path, path: str) -> str:
    """A module's folder, which must lie in the checkpoint's: saving writes to a folder of the same name."""
    if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
        raise CheckpointError(f"{folder / MODULES}: the path {path!r} leaves the folder", "correct the entry")
    return path


def _pooling(path: Path) -> tuple[str, bool]:
    """How a pooling module pools, and whether prompts count; the newer files name it, the older ones have flags."""
    raw = read_json_object(path)
    named = raw.get("pooling_mode")
    if named is None:
        others = [key for key in raw if key.startswith("pooling_mode_") and raw[key] is True and key not in _FLAGS]
        found = [name for key, name in _FLAGS.items() if raw.get(key)] or ["mean"]
    else:
        listed = named if isinstance(named, list) else [named]
        found = [_NAMES[name] for name in listed if isinstance(name, str) and name in _NAMES]
        others = [str(name) for name in listed if str(name) not in _NAMES] if listed else ["nothing"]
    if others:
        raise CheckpointError(f"{path} asks for {', '.join(others)}", f"supported: {', '.join(_NAMES)}")
    return "+".join(found), raw.get("include_prompt", True) is not False


def _dense(folder: Path) -> Dense:
    """A dense module: config.json names the activation, never executed; the weights are `linear.weight` and `.bias`."""
    raw = read_json_object(folder / "config.json")
    activation = str(raw.get("activation_function", "Tanh")).rpartition(".")[2]
    vectors = ("sentence_embedding", None)
    odd = raw.get("use_residual") or any(
        raw.get(key) not in vectors for key in ("module_input_name", "module_output_name")
    )
    if activation not in _ACTIVATIONS or odd:
        what = f"{folder / 'config.json'}: this Dense is not supported (activation {activation!r})"
        raise CheckpointError(what, f"supported: {', '.join(_ACTIVATIONS)}, on the pooled vector, without a residual")
    source = open_weights(find_weights(folder))
    try:
        has_bias, names = raw.get("bias", True) is not False, source.names()
        needed = ["linear.weight", "linear.bias"] if has_bias else ["linear.weight"]
        if sorted(names) != sorted(needed) or len(source.shape("linear.weight")) != 2:
            raise CheckpointError(f"{folder}: a Dense holds {', '.join(needed)}, this one {', '.join(names[:5])}")
        weight = source.read("linear.weight").float().clone()
        bias = source.read("linear.bias").float().clone() if has_bias else None
    finally:
        source.close()
    if bias is not None and bias.shape != weight.shape[:1]:
        raise CheckpointError(f"{folder}: linear.bias {tuple(bias.shape)} does not fit {tuple(weight.shape)}")
    return Dense(weight, bias, _ACTIVATIONS[activation])


def _prompts(path: Path) -> tuple[dict[str, str], str | None]:
    """Prompts by name, and the name of the default one."""
    raw = read_json_object(path) if path.is_file() else {}
    prompts, default = raw.get("prompts") or {}, raw.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{path}: 'prompts' does not map names to texts", "correct the entry")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{path}: default_prompt_name={default!r} is not one of the prompts", "correct the entry")
    return prompts, default


def _similarity(path: Path) -> str:
    """Return the measure by which the vectors are compared; cosine where the file does not say."""
    name = Fields(read_json_object(path) if path.is_file() else {}).text("similarity_fn_name", default="cosine")
    with reading(str(path)):
        require_choice("similarity_fn_name", name, tuple(SIMILARITIES))
    return name


def _max_tokens(folder: Path) -> int | None:
    """Return the longest text that the vectors were made for, in tokens, from `sentence_bert_config.json`."""
    path = folder / LIMITS
    if not path.is_file():
        return None
    raw = read_json_object(path)
    longest = raw.get("max_seq_length")
    if raw.get("do_lower_case"):
        raise CheckpointError(f"{path}: do_lower_case is not supported", "lower the texts, and set it to false")
    if longest is not None and not is_whole(longest, 1):
        raise CheckpointError(f"{path}: max_seq_length={longest!r} is not a count", "correct the entry")
    return None if longest is None else int(longest)
