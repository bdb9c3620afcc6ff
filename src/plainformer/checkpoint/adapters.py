"""Adapters (PEFT): a folder with a few weights that are added to a base model's while it is loaded.

    adapter_config.json         what kind it is, its base model, its rank and scale
    adapter_model.safetensors   base_model.model.<matrix>.lora_A.weight (M, I), .lora_B.weight (O, M), and whole tensors

Only LoRA (Hu et al. 2021) is read: W + scale * B A. Every tensor of an adapter must find its place in the base model.

Shapes: I inputs, O outputs, M rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.formats.source import WEIGHT_FILES, StoredTensor, TensorSource, read_json_object
from plainformer.config.checks import shown
from plainformer.errors import CheckpointError, opt

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")
BEFORE = "base_model.model."
# What an adapter's `task_type` says of the head; others leave the base model's.
HEADS = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token", "QUESTION_ANS": "span"}
# Kinds that put their own vectors before the input, instead of changing weights: nothing to add.
_OF_INPUTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT")
# Fields of adapter_config.json that make the adapter something other than W + scale * B A, unless they are empty.
_OTHERWISE = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
_MERGE = "merge it with peft, and load that"
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_PART = re.compile(r"(.+?)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")


@dataclass(frozen=True)
class Delta:
    """What one matrix of the base model gets: the factors' names, and their scale."""

    module: str
    a: str
    b: str
    scale: float
    embedding: bool


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's folder, read.

    Attributes:
        values: adapter_config.json. source: its tensors. deltas: for each matrix. whole: tensors that replace the base
            model's or are added to them, by their names there, with the names in the file.
    """

    folder: Path
    values: Mapping[str, Any]
    source: TensorSource
    deltas: tuple[Delta, ...]
    whole: Mapping[str, str]


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and no weights of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).exists() for name in WEIGHT_FILES)


def base_of(folder: Path, named: str) -> str:
    """Return the reference of an adapter's base model. Raises CheckpointError where it names none, or is of another kind."""
    values = read_json_object(folder / ADAPTER_CONFIG)
    _refuse_kinds(values, named)
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        what = f"{named} is an adapter, and {ADAPTER_CONFIG} does not name its base model"
        raise CheckpointError(what, f"load the base model with {opt('adapter', ...)}")
    return base


def read_adapter(folder: Path, named: str) -> AdapterFiles:
    """Read an adapter's folder.

    Raises:
        CheckpointError: it is not an adapter, or of a kind that is not read; a factor without the other, or of another rank.
    """
    from plainformer.checkpoint.formats.opening import open_weights

    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{named} holds no {ADAPTER_CONFIG}: it is not an adapter", "give a folder that PEFT or this library wrote"
        )
    values = read_json_object(folder / ADAPTER_CONFIG)
    _refuse_kinds(values, named)
    found = next((folder / name for name in ADAPTER_FILES[1:] if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{named} holds no {ADAPTER_WEIGHTS}", "copy the whole folder of the adapter")
    source = open_weights([found])
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in source.names():
        bare = name.removeprefix(BEFORE).replace("modules_to_save.default.", "").replace("modules_to_save.", "")
        match = _PART.fullmatch(bare)
        if match is None:
            whole[bare] = name
        else:
            factors.setdefault(match[1], {})[f"{match[2] or ''}{match[3]}"] = name
    deltas = tuple(_delta(module, own, source, values, named) for module, own in factors.items())
    if not deltas:
        raise CheckpointError(
            f"{named} holds no factors of an adapter (lora_A, lora_B)", "is it damaged, or another kind?"
        )
    return AdapterFiles(folder, values, source, deltas, whole)


def _refuse_kinds(values: Mapping[str, Any], named: str) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        fix = "load the base model, or a fine-tuned model that is whole" if kind in _OF_INPUTS else _MERGE
        raise CheckpointError(f"{named} is an adapter of the kind {shown(kind)}: only LoRA is read", fix)
    for field in _OTHERWISE:
        if values.get(field):
            raise CheckpointError(f"{named}: {field}={shown(values[field])} is not known here", _MERGE)
    start = values.get("init_lora_weights", True)
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        what = f"{named}: init_lora_weights={shown(start)} changed the base model's weights when training began"
        raise CheckpointError(what, _MERGE)


def _delta(module: str, own: Mapping[str, str], source: TensorSource, values: Mapping[str, Any], named: str) -> Delta:
    embedding = any(part.startswith("embedding_") for part in own)
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(own) != set(names):
        missing = ", ".join(f"lora_{part}" for part in names if part not in own)
        raise CheckpointError(
            f"{named}: {module!r} has no {missing}", "the file is damaged, or was edited: copy it again"
        )
    a, b = (own[part] for part in names)
    rank, columns = source.shape(a)[0], source.shape(b)[-1]
    if len(source.shape(a)) != 2 or len(source.shape(b)) != 2 or rank != columns:
        what = f"{named}: {module!r} has factors of shapes {source.shape(a)} and {source.shape(b)}"
        raise CheckpointError(what, "A is (rank, inputs) and B (outputs, rank): was one transposed?")
    return Delta(module, a, b, _scale(module, rank, values, named), embedding)


def _scale(module: str, rank: int, values: Mapping[str, Any], named: str) -> float:
    """Return the scale of a matrix's adapter: alpha / rank, or alpha over the rank's root."""
    stated = _of_pattern(values.get("rank_pattern"), module, values.get("r"))
    if stated is not None and stated != rank:
        what = f"{named}: {module!r} has factors of rank {rank}, and {ADAPTER_CONFIG} says {shown(stated)}"
        raise CheckpointError(what, "the files are not of the same adapter, or A and B were exchanged")
    alpha = _of_pattern(values.get("alpha_pattern"), module, values.get("lora_alpha", 8))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"{named}: lora_alpha is {shown(alpha)}, not a number", f"correct {ADAPTER_CONFIG}")
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _of_pattern(patterns: Any, module: str, default: Any) -> Any:
    """Return the value that a module has of its own: patterns are regular expressions of the end of its name."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def with_adapter(base: TensorSource, adapter: AdapterFiles, named: str) -> TensorSource:
    """Return the base model's tensors, with what an adapter adds to them, and the tensors that it replaces or brings.

    Raises:
        CheckpointError: a matrix that the base model does not have, or one of another shape.
    """
    tensors = dict(base.tensors)
    for delta in adapter.deltas:
        name = _place(delta.module, tensors, adapter, named)
        tensors[name] = replace(tensors[name], read=_sum(tensors[name], name, delta, adapter, named))
    for name, own in adapter.whole.items():
        there = _named(name, base.tensors)
        tensors[there or name] = adapter.source.tensors[own]
    made = TensorSource(
        base.where, f"{base.kind} with a LoRA adapter", tensors, base.maps, base.metadata, base.files, base.dtype
    )
    made.maps += adapter.source.maps
    return made


def _place(module: str, tensors: Mapping[str, StoredTensor], adapter: AdapterFiles, named: str) -> str:
    found = _named(f"{module}.weight", tensors)
    if found is None:
        base = adapter.values.get("base_model_name_or_path")
        of = f"; it says that it is for {shown(base)}" if base else ""
        raise CheckpointError(
            f"{named}: the base model has no {module + '.weight'!r}{of}", "load it with its own base model"
        )
    return found


def _named(name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Return what a tensor is called in the base model: its name, with or without the prefix that models with heads have."""
    if name in tensors:
        return name
    shorter = name.partition(".")[2]
    if shorter in tensors:
        return shorter
    longer = [other for other in tensors if other.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else None


def _sum(weight: StoredTensor, name: str, delta: Delta, adapter: AdapterFiles, named: str) -> Any:
    """Return what reads a weight with its adapter, as PEFT merges it: in fp32, rounded once."""
    (_, inputs), (outputs, _) = adapter.source.shape(delta.a), adapter.source.shape(delta.b)
    stored, flag = tuple(weight.shape), bool(adapter.values.get("fan_in_fan_out"))
    straight, turned = stored == (outputs, inputs), stored == (inputs, outputs)
    if not straight and not turned:
        what = f"{named}: the adapter of {name!r} is for a matrix of {outputs} x {inputs}, and it is {stored}"
        raise CheckpointError(what, "load it with its own base model")
    transposed = delta.embedding or (turned and (flag or not straight))
    return partial(_read, weight, adapter.source, delta, transposed)


def _read(weight: StoredTensor, source: TensorSource, delta: Delta, transposed: bool) -> torch.Tensor:
    import torch

    value = weight.read()
    a, b = source.read(delta.a).to(torch.float32), source.read(delta.b).to(torch.float32)
    product = (b @ a) * delta.scale
    return (value.to(torch.float32) + (product.t() if transposed else product)).to(value.dtype)
