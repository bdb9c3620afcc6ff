"""What sentence-transformers (6.2, and older) writes beside a model: how its token vectors become a text's vector.

`modules.json` lists the steps, each with a folder of its own; `sentence_bert_config.json` holds the longest text;
`config_sentence_transformers.json` the prompts that texts begin with, and how vectors are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plainformer.checkpoint.small_files import MODULES
from plainformer.config.checks import MAX_POSITIONS, MAX_WIDTH, reading, require_choice, shown
from plainformer.config.fields import Fields
from plainformer.errors import CheckpointError
from plainformer.model.norm import ACTIVATION_FUNCTIONS
from plainformer.tasks.text.similarity import SIMILARITIES

if TYPE_CHECKING:
    from plainformer.checkpoint.opened import Checkpoint

SETTINGS = "config_sentence_transformers.json"
# Of the transformer itself; before version 2 it was named after the model.
_MODELS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
LIMITS = tuple(f"sentence_{model}_config.json" for model in _MODELS)
PACKAGE = "sentence_transformers."
STEPS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
# In this order; there may be several of those that share a place.
_ORDER = {"Transformer": 0, "Pooling": 1, "Dense": 2, "LayerNorm": 2, "Normalize": 3}
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

    @property
    def sizes(self) -> tuple[int, int]:
        """(I, O)."""
        return self.weight.size(1), self.weight.size(0)

    def __call__(self, vectors_BI: Tensor) -> Tensor:
        """(B, I) → (B, O)."""
        bias = None if self.bias is None else self.bias.to(vectors_BI.device)
        out_BO = torch.nn.functional.linear(vectors_BI, self.weight.to(vectors_BI.device), bias)
        return ACTIVATION_FUNCTIONS[self.activation](out_BO)


@dataclass(frozen=True)
class LayerNorm:
    """A norm of a text's vector (Ba et al. 2016) with torch's usual epsilon, 1e-5; weight and bias (D,) fp32."""

    weight: Tensor
    bias: Tensor

    @property
    def sizes(self) -> tuple[int, int]:
        """(D, D)."""
        return self.weight.size(0), self.weight.size(0)

    def __call__(self, vectors_BD: Tensor) -> Tensor:
        """(B, D) → (B, D)."""
        weight, bias = (each.to(vectors_BD.device) for each in (self.weight, self.bias))
        return torch.nn.functional.layer_norm(vectors_BD, weight.shape, weight, bias)


@dataclass(frozen=True)
class SentenceFiles:
    """The steps after a model's last hidden states; without files the mean over tokens, not normalised.

    Attributes:
        pooling: see `pooling.read_poolings`. dense: layers after it, in order. normalized: whether vectors get length 1.
        include_prompt: whether a prompt's tokens count in the pooling.
        max_tokens: the longest text that the vectors were made for, None where nothing says.
        lower_case: whether texts are lower-cased before anything else.
        truncate_dim: how many numbers of a vector are kept, None for all.
        similarity: how two vectors are compared, a name in `similarity.SIMILARITIES`.
        prompts: by name. default_prompt: the one that a text gets where nothing else is asked for.
        names: the files themselves, relative to the folder.
    """

    pooling: str = "mean"
    dense: tuple[Dense | LayerNorm, ...] = ()
    normalized: bool = False
    include_prompt: bool = True
    max_tokens: int | None = None
    lower_case: bool = False
    truncate_dim: int | None = None
    similarity: str = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    names: tuple[str, ...] = ()


def read_sentence_files(checkpoint: Checkpoint) -> SentenceFiles:
    """Return what the files of a checkpoint say.

    Raises:
        CheckpointError: one is unreadable, holds what it cannot, or lists a step that is not supported.
    """
    found = SentenceFiles(**_settings(checkpoint), **_limits(checkpoint), names=(*LIMITS, SETTINGS))
    modules = checkpoint.json_list(MODULES)
    if modules is None:
        return found
    with reading(MODULES):
        steps = _steps([Fields(module) for module in modules])
    for kind, path in steps:
        found = _with_step(found, checkpoint, kind, path)
    return replace(found, names=(MODULES, *found.names))


def _steps(modules: list[Fields]) -> list[tuple[str, str]]:
    """Return the kind and the folder of each step, in their order; refuse what is not supported, by name."""
    steps: list[tuple[str, str]] = []
    for module in modules:
        path, named = module.text("path", default=""), module.text("type", default="")
        # Saving writes to a folder of the same name, so it must be below the checkpoint's on every system.
        roots = (PurePosixPath(path), PureWindowsPath(path))
        if any(root.is_absolute() or root.drive or ".." in root.parts for root in roots) or "\0" in path:
            raise CheckpointError(f"the path {shown(path)} leaves the folder", "correct the entry")
        kind = named.rpartition(".")[2] if named.startswith(PACKAGE) or "." not in named else named
        if kind == "Dropout":  # has an effect in training alone
            continue
        before = _ORDER[steps[-1][0]] if steps else -1
        place = _ORDER.get(kind, -1)
        if place < before + (kind not in ("Dense", "LayerNorm")) or place < 0:
            misplaced = f" after {steps[-1][0]}" if kind in STEPS and steps else ""
            raise CheckpointError(
                f"the step {shown(kind)} is not supported{misplaced}", f"supported: {', '.join(STEPS)}, in this order"
            )
        folder = str(roots[0]) if roots[0].parts else ""  # "./" is the folder itself
        if kind == "Transformer" and folder:
            raise CheckpointError(f"the model is in the folder {shown(path)}", "move its files up to modules.json")
        steps.append((kind, folder))
    missing = next((kind for kind in STEPS[:2] if kind not in dict(steps)), None)
    if missing is not None:
        what = f"no {missing} is listed: the steps give no vector for a whole text"
        raise CheckpointError(what, f"supported: {', '.join(STEPS)}; remove {MODULES} to load the model alone")
    return steps


def _with_step(found: SentenceFiles, checkpoint: Checkpoint, kind: str, path: str) -> SentenceFiles:
    """Return the steps so far, and one more of some kind, whose files are in the folder `path`."""
    if kind == "Transformer":
        return found
    folder = path or {"Pooling": "1_Pooling", "Dense": "2_Dense", "LayerNorm": "2_LayerNorm"}.get(kind, "2_Normalize")
    name = f"{folder}/config.json"
    raw = checkpoint.json(name)
    if raw is None and kind != "Normalize":
        raise CheckpointError(f"{MODULES} lists {folder!r}, and there is no {name}", "download that folder too")
    found = replace(found, names=(*found.names, name))
    with reading(name):
        fields = Fields(raw or {})
        if kind == "Normalize":
            _on_the_text(fields)
            return replace(found, normalized=True)
        if kind == "Pooling":
            return replace(found, pooling=_pooling(fields), include_prompt=fields.flag("include_prompt", default=True))
        files = tuple(f"{folder}/{weights}" for weights in ("model.safetensors", "pytorch_model.bin"))
        read = _norm if kind == "LayerNorm" else _dense
        return replace(found, dense=(*found.dense, read(fields, checkpoint, folder)), names=(*found.names, *files))


def _on_the_text(fields: Fields) -> None:
    """Refuse a step that is on other vectors than the text's own."""
    for name in ("module_input_name", "module_output_name"):
        if (value := fields.get(name, default="sentence_embedding")) != "sentence_embedding":
            raise CheckpointError(f"{name}={shown(value)} is not supported", "supported: 'sentence_embedding'")


def _pooling(fields: Fields) -> str:
    """How a pooling module pools; the newer files name it, the older ones have flags."""
    raw, named = fields.raw, fields.get("pooling_mode")
    if named is None:
        others = [key for key in raw if key.startswith("pooling_mode_") and raw[key] is True and key not in _FLAGS]
        found = [name for key, name in _FLAGS.items() if raw.get(key)] or ["mean"]
    else:
        listed = named if isinstance(named, list) else [named]
        found = [_NAMES[name] for name in listed if isinstance(name, str) and name in _NAMES]
        others = [str(name) for name in listed if str(name) not in _NAMES] if listed else ["nothing"]
    if others:
        raise CheckpointError(f"it asks for {shown(', '.join(others))}", f"supported: {', '.join(_NAMES)}")
    return "+".join(found)


def _dense(fields: Fields, checkpoint: Checkpoint, folder: str) -> Dense:
    """A dense module: config.json names the activation, never executed; the weights are `linear.weight` and `.bias`."""
    activation = fields.text("activation_function", default="Tanh").rpartition(".")[2]
    require_choice("activation_function", activation, tuple(_ACTIVATIONS))
    _on_the_text(fields)
    if fields.flag("use_residual", default=False):
        raise CheckpointError("use_residual=True is not supported", "supported: a linear layer and its activation")
    needed = ["linear.bias", "linear.weight"] if fields.flag("bias", default=True) else ["linear.weight"]
    source = checkpoint.tensors_in(folder)
    try:
        names = sorted(source.names())
        if names != needed or len(source.shape("linear.weight")) != 2:
            what = f"{folder}: a Dense holds {', '.join(reversed(needed))}, this one {', '.join(names[:5])}"
            raise CheckpointError(what, f"take config.json and weights of {folder} from one checkpoint")
        weight = source.read("linear.weight").float().clone()
        bias = source.read("linear.bias").float().clone() if "linear.bias" in needed else None
    finally:
        source.close()
    if bias is not None and bias.shape != weight.shape[:1]:
        what = f"{folder}: linear.bias {tuple(bias.shape)} does not fit {tuple(weight.shape)}"
        raise CheckpointError(what, f"take all files of {folder} from one checkpoint")
    return Dense(weight, bias, _ACTIVATIONS[activation])


def _norm(fields: Fields, checkpoint: Checkpoint, folder: str) -> LayerNorm:
    """A norm's module: config.json has its `dimension`, the weights are `norm.weight` and `norm.bias`."""
    size = fields.integer("dimension")
    source = checkpoint.tensors_in(folder)
    try:
        found = {name: tuple(source.shape(name)) for name in source.names()}
        if found != dict.fromkeys(("norm.weight", "norm.bias"), (size,)):
            what = f"{folder}: a LayerNorm holds norm.weight and norm.bias of {size} numbers, this one {found}"
            raise CheckpointError(what, f"take all files of {folder} from one checkpoint")
        weight, bias = (source.read(f"norm.{name}").float().clone() for name in ("weight", "bias"))
    finally:
        source.close()
    return LayerNorm(weight, bias)


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what holds for all texts: prompts, the measure of likeness, how much of a vector is kept."""
    with reading(SETTINGS):
        fields = Fields(checkpoint.json(SETTINGS) or {})
        similarity = fields.text("similarity_fn_name", default="cosine")
        require_choice("similarity_fn_name", similarity, tuple(SIMILARITIES))
        prompts = fields.object("prompts")
        default = fields.get("default_prompt_name")
        if not all(isinstance(text, str | None) for text in prompts.values()):
            raise CheckpointError("'prompts' does not map names to texts", "correct the entry")
        prompts = {name: text or "" for name, text in prompts.items()}
        if default is not None and (not isinstance(default, str) or default not in prompts):
            raise CheckpointError(
                f"default_prompt_name={shown(default)} is not one of the prompts", "correct the entry"
            )
        kept = fields.get("truncate_dim")
        return {
            "similarity": similarity,
            "prompts": prompts,
            "default_prompt": default,
            "truncate_dim": None if kept is None else fields.bounded("truncate_dim", MAX_WIDTH),
        }


def _limits(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the longest text that the vectors were made for, in tokens, and whether texts are lower-cased."""
    name = next((name for name in LIMITS if checkpoint.json(name) is not None), LIMITS[0])
    with reading(name):
        fields = Fields(checkpoint.json(name) or {})
        usual = "feature-extraction"  # the model without its head
        require_choice("transformer_task", fields.text("transformer_task", default=usual), (usual,))
        longest = fields.get("max_seq_length")
        return {
            "max_tokens": None if longest is None else fields.bounded("max_seq_length", MAX_POSITIONS),
            "lower_case": fields.flag("do_lower_case", default=False),
        }
