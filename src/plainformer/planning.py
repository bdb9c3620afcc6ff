"""Plans by reference: a folder, a config.json, a Hub id by its config alone, a GGUF file by its header, a run's YAML.

`plainformer.plan` is this `plan`. What is counted, and how, is in the package `plan`, which knows configurations only. No torch,
but where a run's YAML says how a model begins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config import ModelConfig
from plainformer.config.layout import Layout
from plainformer.config.options import OptionSet, specs
from plainformer.config.parts import PatchFrontend, WaveFrontend
from plainformer.config.values import no_effect
from plainformer.errors import CheckpointError, UsageError, did_you_mean, opt
from plainformer.plan.asked import LayoutOptions, ShapeOptions, TargetOptions
from plainformer.plan.devices import Device, find_device
from plainformer.plan.lengths import lengths
from plainformer.plan.planned import Plan, count_parameters, planned
from plainformer.plan.published import nearest, parse_count, published
from plainformer.plan.rules import said_count
from plainformer.plan.workload import TRAINING, Workload

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

Ref = str | os.PathLike[str]
_OF_FILES = ("revision", "token", "family", "task", "head")
WRITING = ("causal_lm", "seq2seq_lm")
_FAR = 0.1
_NEAR = 0.03  # a model by its number of parameters: how far that may be off before its layers are changed


@dataclass(frozen=True)
class Described:
    """A model by its sizes.

    Attributes:
        name: what it is called. stored: of a GGUF file, the dtype of each parameter by name.
        run: whose model it is, and which says what is asked of it. notes: where its sizes are from, where that has to be said.
    """

    name: str
    config: ModelConfig
    stored: Mapping[str, str] = field(default_factory=dict)
    run: TrainConfig | None = None
    notes: tuple[str, ...] = ()


def plan(
    model: Ref | ModelConfig | None = None,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: str | Device | None = None,
    **options: Any,
) -> Plan:
    """Return what a model needs: `plan("gpt2", purpose="training", batch=8, device="A100 40GB")`. Nothing is loaded.

    Args:
        model: a ModelConfig; a folder, a config.json, a `.gguf` file, a bundled name, a Hub id (of which config.json alone is
            downloaded), or the YAML file of a run; None with `params="7B"`.
        workload, layout: what is asked, and how it is divided, where these are made already.
        device: such as "H100"; None says nothing about what fits.
        options: the fields of `Workload`, `LayoutOptions`, `TargetOptions` and `ShapeOptions`, and `revision`, `token`,
            `family`, `task`, `head`, as for `load`.
    Returns:
        a `Plan`: print it, or read `peak`, `phase`, `parts`, `fits`, `headroom`, `largest_batch`, `time`.
    Raises:
        UsageError: an unknown option, or a layout that cannot work. CheckpointError, HubError: as `load`.
    """
    if isinstance(device, str):
        options, device = {**options, "device": device}, None
    asked = Asked.of(options)
    found = describe(model, asked)
    if layout is None:
        layout = divided(asked.layout, found.run)
    elif asked.layout:
        raise UsageError(f"{opt('layout')} is given, and {opt(next(iter(asked.layout)))} too", "give one of them")
    if workload is None:
        of_run = {} if found.run is None else workload_of(found.run, layout.dp)
        workload = Workload(**{**of_run, **asked.workload})
    elif asked.workload:
        workload = workload.changed(**asked.workload)
    check_effects(found.config, asked)
    check_sizes(found.config, workload)
    workload = adapted(found.config, workload)
    no_effect("zero" in asked.layout and not workload.training, "zero", f"without {opt('purpose', TRAINING)}")
    target = TargetOptions(**asked.target)
    return planned(found.config, workload, layout, device or target.target(), target, found.name, found.notes)


@dataclass(frozen=True)
class Asked:
    """Options by what they are of."""

    workload: dict[str, Any]
    layout: dict[str, Any]
    target: dict[str, Any]
    shape: dict[str, Any]
    files: dict[str, Any]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Asked:
        """Sort options; refuse those that nobody knows."""
        kinds: tuple[type[OptionSet], ...] = (Workload, LayoutOptions, TargetOptions, ShapeOptions)
        names = [*(tuple(specs(kind)) for kind in kinds), _OF_FILES]
        known = [name for group in names for name in group]
        for name in options:
            if name not in known:
                raise UsageError(f"plan has no option {name!r}", did_you_mean(name, known))
        return cls(*({name: value for name, value in options.items() if name in group} for group in names))


def describe(model: Ref | ModelConfig | None, asked: Asked) -> Described:
    """Return the sizes of a model."""
    shape = ShapeOptions(**asked.shape)
    if shape.params is not None:
        if model is not None:
            raise UsageError(f"both a model and {opt('params', shape.params)} are given", "give one of them")
        for name, value in asked.files.items():
            no_effect(value is not None, name, f"with {opt('params')}")
        return of_size(shape)
    for name in sorted(shape.given):
        raise UsageError(
            f"{opt(name, getattr(shape, name))} changes a shape", f"give {opt('params', '7B')}, not a model"
        )
    if model is None:
        raise UsageError("no model to plan for", f"give a reference, or {opt('params', '7B')}")
    if isinstance(model, ModelConfig):
        return Described(model.family, model)
    path = Path(model)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return of_run(path)
    return of_reference(model, asked.files)


def divided(asked: Mapping[str, Any], run: TrainConfig | None) -> Layout:
    """Return the layout that is asked for; what is not said of it is as the run has it."""
    from plainformer.config.parallel import processes

    if run is None:
        return LayoutOptions(**asked).layout()
    if not asked:
        return run.parallel.planned(processes())
    own = {name: getattr(run.parallel, name) for name in ("tp", "pp", "zero", "schedule")}
    usual = LayoutOptions()
    return LayoutOptions(**{n: v for n, v in own.items() if v != getattr(usual, n)} | dict(asked)).layout()


def check_effects(config: ModelConfig, asked: Asked) -> None:
    """Refuse options that change nothing for this model."""
    reads, writes = config.input_frontend.kind, config.decoder is not None and config.head.kind in WRITING
    sound = "on a spectrogram, which is always of 30 s" if reads == "mel" else "on a model that reads no waveforms"
    silent = {
        "image_size": (reads != "patches", "on a model that reads no images"),
        "seconds": (reads != "wave", sound),
        "prompt": (reads != "tokens", "on a model that reads no text"),
        "length": (reads != "tokens", "on a model that reads no text"),
        "padded": (reads == "patches", "on images"),
        "target_length": (config.kind != "encoder-decoder", "on a model that is not an encoder-decoder"),
        **dict.fromkeys(("new", "copies", "cache"), (not writes, "on a model that writes no text")),
    }
    for name, (is_so, where) in silent.items():
        no_effect(is_so and asked.workload.get(name) is not None, name, where)


def check_sizes(config: ModelConfig, workload: Workload) -> None:
    """Refuse images and clips that are too small to be read."""
    frontend = config.input_frontend
    if isinstance(frontend, PatchFrontend) and workload.pixels is not None:
        (height, width), (down, across) = workload.pixels, frontend.patch_size
        if height < down or width < across:
            what = f"{opt('image_size', workload.image_size)} is less than a patch of this model"
            raise UsageError(what, f"give {down}x{across} or more")
    if isinstance(frontend, WaveFrontend) and not lengths(config, workload).encoder:
        what = f"{opt('seconds', workload.seconds)} is too short for one position of this model"
        raise UsageError(what, f"give {opt('seconds', 1)} or more")


def adapted(config: ModelConfig, workload: Workload) -> Workload:
    """Return what is asked with the targets of adapters by names of ours, which the plan counts by.

    Raises:
        UsageError: a target that the model lacks, or a rank that is more than a matrix has.
    """
    from plainformer.checkpoint.matrices import check_rank, chosen, matrices_of
    from plainformer.config.shapes import parameters
    from plainformer.families import table_for

    if workload.trainable != "lora":
        return workload
    linears = {name: one.shape for name, one in parameters(config).items() if one.kind == "linear"}
    targets = None if workload.lora_targets is None else workload.lora_targets.split(",")
    found = chosen(matrices_of(config, linears, table_for(config)), targets, "lora_targets")
    for matrix in found:
        shapes = [linears[f"{name}.weight"] for name in matrix.ours]
        check_rank(workload.lora_rank, matrix, sum(shape[0] for shape in shapes), shapes[0][1], "lora_rank")
    if targets is None:
        return workload
    ours = {name for matrix in found for name in matrix.ours}
    short = {name: re.sub(r"^\w+\.layers\.\d+\.", "", name) for name in ours}
    every = {name: re.sub(r"^\w+\.layers\.\d+\.", "", name).removesuffix(".weight") for name in linears}
    partial = {every[name] for name in linears if name.removesuffix(".weight") not in ours}
    names = sorted({one if short[one] in partial else short[one] for one in ours})
    return workload.changed(lora_targets=",".join(names))


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


def of_size(shape: ShapeOptions) -> Described:
    """Return a decoder with about this many parameters: the nearest published shape, changed where that was asked for."""
    from plainformer.families import config_from_dict

    count = parse_count(str(shape.params))
    found = nearest(count)
    config = config_from_dict(dict(found.config))
    changes = {name: getattr(shape, name) for name in sorted(shape.given - {"params"})}
    config = reshaped(config, changes)
    notes = [
        f"the shape is that of {found.name} ({found.parameters:,} parameters), the published one nearest to {shape.params}"
    ]
    if changes:
        notes.append("with " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items()))

    def is_near(most: float) -> bool:
        return abs(count_parameters(config) / count - 1) <= most or called(found.name, count)

    if "layers" not in changes and not is_near(_NEAR):
        layers = fitting_layers(config, count)
        config = reshaped(config, {"layers": layers})
        notes.append(f"with {layers} layers in place of {found_layers(found.config)}, to come nearer to {shape.params}")
        if not changes and not is_near(_FAR):
            what = (
                f"{opt('params', shape.params)}: of that shape, the nearest has {said_count(count_parameters(config))}"
            )
            raise UsageError(what, f"give {opt('width', 256)} or other sizes as well, or another number")
    name = "model" if changes else f"{said_count(count)} as {found.name}"
    return Described(name, config, notes=("; ".join(notes),))


def called(name: str, count: int) -> bool:
    """Return whether people call this model by that number of parameters."""
    from plainformer.plan.published import size_in

    return size_in(name) == count


def found_layers(config: Mapping[str, Any]) -> int:
    return int(config.get("num_hidden_layers", config.get("n_layer", 0)))


def fitting_layers(config: ModelConfig, count: int) -> int:
    """Return the number of layers with which a model comes nearest to this many parameters."""
    one, two = (count_parameters(reshaped(config, {"layers": layers})) for layers in (1, 2))
    return max(round((count - one) / (two - one)) + 1, 1)


def reshaped(config: ModelConfig, changes: Mapping[str, int]) -> ModelConfig:
    """Return a decoder with other sizes; the width of a head stays, where it is not the heads that change."""
    if not changes:
        return config
    stack = config.decoder
    assert stack is not None
    layers, width = changes.get("layers", stack.num_layers), changes.get("width", stack.hidden_size)
    heads = changes.get("heads", max(width // stack.head_dim, 1) if "width" in changes else stack.num_heads)
    kv_heads = changes.get("kv_heads", max(heads * stack.num_kv_heads // stack.num_heads, 1))
    if "heads" not in changes and "width" not in changes:
        head_dim = stack.head_dim
    else:
        if width % heads:
            raise UsageError(f"{opt('width', width)} is not a multiple of {opt('heads', heads)}", "choose one that is")
        head_dim = width // heads
    if heads % kv_heads:
        raise UsageError(
            f"{opt('heads', heads)} cannot share {opt('kv_heads', kv_heads)} evenly", "let one divide the other"
        )
    ffn = changes.get("ffn_size", round(stack.ffn_size * width / stack.hidden_size))
    words = changes.get("vocabulary", config.vocab_size or 0)
    rope = tuple(None if r is None else replace(r, dim=r.dim * head_dim // stack.head_dim) for r in stack.rope)
    frontend: Any = replace(stack.frontend, vocab_size=words, embedding_size=width)  # type: ignore[arg-type]
    try:
        decoder = replace(
            stack,
            frontend=frontend,
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_size=ffn,
            windows=repeated(stack.windows, layers),
            rope=repeated(rope, layers),
            layer_ids=tuple(range(layers)),
        )
    except CheckpointError as error:
        raise UsageError(f"no such model: {error.what}", "give other sizes, such as the width") from None
    return replace(config, head=replace(config.head, out_size=words), decoder=decoder)


def repeated(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return as many values, in the order in which they come."""
    return tuple(values[place % len(values)] for place in range(count))


def of_run(path: Path) -> Described:
    """Return the model of a run's YAML, and what the run asks of it."""
    from plainformer.config.building import read_config

    return describe_run(read_config(path))


def describe_run(run: TrainConfig) -> Described:
    """Return the same of a run that has been read."""
    from plainformer.checkpoint.opened import open_checkpoint
    from plainformer.starting import config_of_fragment, config_with_head

    head, labels = HEADS[run.objective], run.data.labels
    notes: tuple[str, ...] = ()
    if labels is None and head in LABELLED and run.model.config is not None:
        labels, notes = ("0", "1"), ("labels are in the data, which was not read: two are assumed",)
    if run.model.ref is None:
        config = config_of_fragment(run.model.config or {}, head, labels=labels, problem=run.model.problem)
    else:
        with open_checkpoint(run.model.ref, revision=run.model.revision, part="config") as checkpoint:
            try:
                config, _ = config_with_head(checkpoint, head, labels, run.model.problem)
            except UsageError:
                if head not in LABELLED or labels is not None:
                    raise
                notes = ("labels are in the data, which was not read: two are assumed",)
                config, _ = config_with_head(checkpoint, head, ("0", "1"), run.model.problem)
    name = Path(run.model.ref or run.folder).name
    return Described(name, config, run=run, notes=notes)


# What `train` puts on a model, by objective (each objective's `head`), and which of them are for labels.
HEADS = {
    "causal-lm": "causal_lm",
    "masked-lm": "masked_lm",
    "denoising": "seq2seq_lm",
    "seq2seq": "seq2seq_lm",
    "instruction": "causal_lm",
    "text-classification": "sequence",
    "token-classification": "token",
    "question-answering": "span",
    "multiple-choice": "choice",
    "ctc": "ctc",
    "speech-to-text": "seq2seq_lm",
    "image-classification": "image",
    "audio-classification": "audio",
}
LABELLED = ("sequence", "token", "image", "audio")


def workload_of(run: TrainConfig, dp: int = 1) -> dict[str, Any]:
    """Return what a run asks of its model, as options of `Workload`; lengths that its data decides are the defaults.

    `dp`: data-parallel ranks, among which the micro-batches of a step are dealt out.
    """
    micro = run.batches.micro or run.batches.size
    model = run.model
    found: dict[str, Any] = {
        "purpose": TRAINING,
        "batch": micro,
        "accumulate": -(-run.batches.size // (micro * dp)),
        "precision": run.precision,
        "trainable": "lora" if model.lora is not None else model.train,
        "checkpointing": str(model.checkpointing),
        "average": run.optimizer.ema is not None,
    }
    length = run.batches.row_length or run.data.max_length
    found |= {} if length is None else {"length": length}
    found |= {} if run.data.max_target_length is None else {"target_length": run.data.max_target_length}
    found |= {} if model.dropout is None else {"dropout": model.dropout}
    found |= {} if run.loss.chunk is None else {"loss_chunk": run.loss.chunk}
    if model.lora is not None:
        found["lora_rank"] = model.lora.rank
        found |= {} if model.lora.targets is None else {"lora_targets": ",".join(model.lora.targets)}
    return found


def published_plans(made: Plan) -> list[Plan]:
    """Return the same plan for every published model of the same kind."""
    from plainformer.families import config_from_dict

    found = []
    for one in published():
        config = config_from_dict(dict(one.config))
        if config.kind == made.config.kind and config.head.kind == made.config.head.kind:
            found.append(planned(config, made.workload, made.layout, made.device, made.target, one.name))
    return found


__all__ = ["Described", "Plan", "describe", "find_device", "plan", "published_plans"]
