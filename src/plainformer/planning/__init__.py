"""Plans by reference: a folder, a config.json, a Hub id by its config alone, a GGUF file by its header, a run's YAML.

`plainformer.plan` is this `plan`. What is counted, and how, is in the package `plan`, which knows configurations only. No torch,
but where a run's YAML says how a model begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

from plainformer.config import ModelConfig
from plainformer.config.layout import Layout
from plainformer.config.values import check_choice, no_effect
from plainformer.errors import UsageError, opt
from plainformer.plan.asked import LayoutOptions, ShapeOptions, TargetOptions
from plainformer.plan.devices import Device
from plainformer.plan.fitted import CheapestLayouts, Fitted, LargestBatch, LargestContext, LargestModels
from plainformer.plan.planned import Plan, planned
from plainformer.plan.published import published
from plainformer.plan.workload import TRAINING, Workload
from plainformer.planning.checkpoints import of_reference
from plainformer.planning.described import Described, Ref
from plainformer.planning.options import Asked, adapted, check_effects, check_sizes
from plainformer.planning.runs import divided, of_run, workload_of
from plainformer.planning.shapes import of_size

Model = Ref | ModelConfig | None
Target = str | Device | None


@overload
def plan(
    model: Model = None,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: Target = None,
    *,
    fit: None = None,
    **options: Any,
) -> Plan: ...
@overload
def plan(
    model: Model = None,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: Target = None,
    *,
    fit: Literal["batch"],
    **options: Any,
) -> LargestBatch: ...
@overload
def plan(
    model: Model = None,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: Target = None,
    *,
    fit: Literal["context"],
    **options: Any,
) -> LargestContext: ...
@overload
def plan(
    model: Model = None,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: Target = None,
    *,
    fit: Literal["model"],
    **options: Any,
) -> LargestModels: ...
@overload
def plan(
    model: Model = None,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: Target = None,
    *,
    fit: Literal["layout"],
    **options: Any,
) -> CheapestLayouts: ...
def plan(
    model: Model = None,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: Target = None,
    *,
    fit: str | None = None,
    **options: Any,
) -> Plan | Fitted:
    """Return what a model needs: `plan("gpt2", purpose="training", batch=8, device="A100 40GB")`. Nothing is loaded.

    Args:
        model: a ModelConfig; a folder, a config.json, a `.gguf` file, a bundled name, a Hub id (of which config.json alone is
            downloaded), or the YAML file of a run; None with `params="7B"`.
        workload, layout: what is asked, and how it is divided, where these are made already.
        device: such as "H100"; None says nothing about what fits.
        fit: what is sought in place of a plan, for the memory of the device: the largest "batch", "context" or published
            "model", or the cheapest "layout".
        options: the fields of `Workload`, `LayoutOptions`, `TargetOptions` and `ShapeOptions`, and `revision`, `token`,
            `family`, `task`, `head`, as for `load`.
    Returns:
        a `Plan`: print it, or read `peak`, `phase`, `parts`, `fits`, `headroom`, `largest_batch`, `time`. With `fit` a
        `Fitted`: its `answer`, the `plans` that fit, the best first, the one that is `rejected`, and `why`.
    Raises:
        UsageError: an unknown option, or a layout that cannot work. CheckpointError, HubError: as `load`.
    """
    if fit is not None:
        check_choice("fit", fit, FITS)
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
    made = planned(
        found.config, workload, layout, device or target.target(), target, found.name, found.notes, found.stored
    )
    return made if fit is None else fitted(made, fit, LayoutOptions(**asked.layout))


FITS = ("batch", "context", "model", "layout")


def fitted(made: Plan, what: str, asked: LayoutOptions) -> Fitted:
    """Return the largest or the cheapest that fits, from a plan; `asked`: what stays as it is of a layout that is sought.

    Raises UsageError where no memory is named, or there is nothing of that kind to choose.
    """
    from plainformer.plan.fit import fit_batch, fit_context, fit_layout, fit_models

    if what == "batch":
        return fit_batch(made)
    if what == "context":
        return fit_context(made)
    return fit_models(published_plans(made)) if what == "model" else fit_layout(made, asked)


def describe(model: Model, asked: Asked) -> Described:
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


def published_plans(made: Plan) -> list[Plan]:
    """Return the same plan for every published model of the same kind."""
    from plainformer.families import config_from_dict

    found = []
    for one in published():
        config = config_from_dict(dict(one.config))
        if config.kind == made.config.kind and config.head.kind == made.config.head.kind:
            found.append(planned(config, made.workload, made.layout, made.device, made.target, one.name))
    return found
