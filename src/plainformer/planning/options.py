"""The options of `plan`, sorted; those that would change nothing for a model are refused. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plainformer.config import ModelConfig
from plainformer.config.options import OptionSet, specs
from plainformer.config.parts import PatchFrontend, WaveFrontend
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, did_you_mean, opt
from plainformer.plan.asked import LayoutOptions, ShapeOptions, TargetOptions
from plainformer.plan.lengths import lengths
from plainformer.plan.workload import Workload

_OF_FILES = ("revision", "token", "family", "task", "head")
WRITING = ("causal_lm", "seq2seq_lm")


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
