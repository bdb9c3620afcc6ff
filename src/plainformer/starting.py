"""What training starts from, beside `load_model(purpose="train")`: a known backbone with a new head, or a model from scratch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch

from plainformer.checkpoint.formats.source import TensorSource, some
from plainformer.checkpoint.opened import Checkpoint
from plainformer.checkpoint.rows import WeightTable
from plainformer.checkpoint.weights import check_depth, check_weights, for_head, load_weights
from plainformer.config import ModelConfig
from plainformer.config.loading import LoadArgs, LoadOptions
from plainformer.config.scaling import TARGETS
from plainformer.config.values import check_whole
from plainformer.errors import CheckpointError, UsageError, a_type, did_you_mean, opt, plural
from plainformer.families import config_from_dict, family_module, fields_of, head_of, heads_of, table_for
from plainformer.families.by_hand import missing_sizes, unread, with_ids
from plainformer.families.naming import class_name
from plainformer.loading import MakeModel, Ref, as_device, open_asked
from plainformer.model.block import set_ffn_chunk_size
from plainformer.model.fast.threads import settle
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer

log = logging.getLogger(__name__)
LABELLED = ("sequence", "token", "image", "audio")  # heads that have one output for each label
PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_OF_LABELS = ("id2label", "label2id", "num_labels", "problem_type", TARGETS)
WHERE = "model.config"  # what messages call a fragment


@dataclass(frozen=True)
class NewHead:
    """A model with the head that was asked for.

    Attributes:
        model: with gradients, in training mode.
        initialised: the parameters that no tensor of the checkpoint filled, by the names that they are saved under.
        dropped: the checkpoint's tensors that belong to another head, and are not in the model.
    """

    model: Transformer
    initialised: tuple[str, ...]
    dropped: tuple[str, ...]


def with_head(
    ref: Ref,
    head: str,
    *,
    labels: Sequence[str] | None = None,
    problem: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    make: MakeModel = Transformer,
    **options: Unpack[LoadArgs],
) -> NewHead:
    """Return a checkpoint's model with a head that may be new, to be trained: `with_head(REF, "token", labels=TAGS)`.

    The backbone is copied. Of the head, what the checkpoint has is kept where it was trained for the same labels; the rest
    starts as its family starts it.

    Args:
        ref: a local folder, a `.gguf` file, a bundled name or a Hub id.
        head: "sequence", "token", "span", "choice", "image", "audio", "ctc", "masked_lm", "causal_lm" or "seq2seq_lm".
        labels: the names of the classes in order, for the first two, "image" and "audio"; None keeps the checkpoint's.
        problem: of a "sequence" or "image" head: "single_label", "multi_label" or "regression" (which needs no labels).
        config: fields of config.json to change, such as {"classifier_dropout": 0.1}, or {"vocab_size": 30,
            "pad_token_id": 29}, the alphabet and the blank of a "ctc" head.
        seed: of the new numbers.
        make: as for `load_model`: makes the empty model, or a rank's part of it.
        options: as for `load_model`; the purpose is training.
    Raises:
        UsageError: the family has no such head, or labels are missing, repeated or without effect.
        CheckpointError: the checkpoint lacks a part of the backbone.
    """
    asked = _asked(options)
    check_whole("seed", seed, 0)
    with open_asked(ref, asked) as checkpoint:
        made, before = config_with_head(checkpoint, head, labels, problem, config)
        return _fill(checkpoint, made, before, asked, seed, make)


def config_with_head(
    checkpoint: Checkpoint,
    head: str,
    labels: Sequence[str] | None = None,
    problem: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[ModelConfig, ModelConfig | None]:
    """Return the configuration of what `with_head` makes, and the one that the checkpoint states; no weight is read."""
    if checkpoint.model_type:
        _check_head(head, checkpoint.model_type)
    before = _stated(checkpoint)
    raw = _changed(checkpoint.raw_config, head, before, labels, problem, config)
    return checkpoint.config_of(raw, head), before


def from_fragment(
    fragment: Mapping[str, Any],
    head: str,
    *,
    labels: Sequence[str] | None = None,
    problem: str | None = None,
    seed: int = 0,
    make: MakeModel = Transformer,
) -> Transformer:
    """Return a model from scratch, with its family's first weights: `from_fragment({"model_type": "llama", ...}, "causal_lm")`.

    Args:
        fragment: fields of a Hugging Face `config.json`; `model_type` must be there, and a vocabulary's size. What is left
            out is as in the family's published models.
        head, labels, problem, seed, make: as for `with_head`.
    Raises:
        UsageError: a field that the family does not have. CheckpointError: values that do not fit together.
    """
    check_whole("seed", seed, 0)
    config = config_of_fragment(fragment, head, labels=labels, problem=problem)
    return initialise(make(config), seed=seed)


def config_of_fragment(
    fragment: Mapping[str, Any], head: str, *, labels: Sequence[str] | None = None, problem: str | None = None
) -> ModelConfig:
    """Return the configuration of what `from_fragment` makes; arguments and errors are the same."""
    if not isinstance(fragment, Mapping):
        raise UsageError(f"{a_type(fragment)} is not a fragment of config.json", "give a dictionary with a model_type")
    raw = dict(fragment)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise UsageError(f"{WHERE}: 'model_type' is missing", "add it: llama, bert, t5 ...")
    _check_head(head, model_type)
    _check_fields(raw, raw, WHERE)
    missing = missing_sizes(raw, fields_of(raw, [head]))
    if missing:
        raise UsageError(f"{WHERE}: {', '.join(missing)} must be there", "a model from scratch has no usual sizes")
    raw = with_ids(raw)
    stated = config_from_dict(raw, head, WHERE)
    given = any(raw.get(name) is not None for name in ("id2label", "num_labels"))
    before = replace(stated, labels=stated.labels if given else ())
    return config_from_dict(_changed(raw, head, before, labels, problem, None), head, WHERE)


# ---------------------------------------------------------------------------------------------------- what is asked


def _asked(options: LoadArgs) -> LoadOptions:
    if options.get("purpose", "train") != "train":
        raise UsageError(
            f"{opt('purpose', options['purpose'])}: a new head is there to be trained",
            f"leave out {opt('purpose', ...)}",
        )
    return LoadOptions.of({**options, "purpose": "train"}, "with_head")


def _check_head(head: str, model_type: str) -> None:
    """Refuse a head that the family's models do not have; so is the base model's "none"."""
    family_module(model_type)
    known = [kind for kind in heads_of(model_type) if kind != "none"]
    if head == "none":
        raise UsageError(
            f"{opt('head', head)} is a model without a head", "load_model(ref, head='none', purpose='train')"
        )
    if head not in known:
        what = f"{opt('head', head)}: {model_type} models have no such head"
        raise UsageError(what, did_you_mean(str(head), known, few=False) or f"they have {', '.join(known)}")


def _check_fields(given: Mapping[str, Any], whole: Mapping[str, Any], where: str) -> None:
    """Refuse fields that the family's config.json does not have: a misspelt one would have no effect."""
    model_type = str(whole.get("model_type"))
    known = fields_of(whole, heads_of(model_type)) | set(unread(model_type))
    if given.get("gradient_checkpointing"):
        what = f"{where}: gradient_checkpointing is of a run, not of the model"
        raise UsageError(what, f"leave it out; a run has {opt('model.checkpointing', 'all')}")
    for name in given:
        if name not in known and not str(name).startswith("_"):  # those are a library's own notes
            fix = did_you_mean(str(name), known, few=False) or "leave it out, or correct its name"
            raise UsageError(f"{where}: {model_type} models have no field {str(name)[:80]!r}", fix)


def _stated(checkpoint: Checkpoint) -> ModelConfig | None:
    """Return the configuration with the head that the checkpoint was saved with; None for one that is not known here."""
    try:
        head = head_of(checkpoint.architecture, checkpoint.model_type) if checkpoint.architecture else "none"
        return checkpoint.config_of(checkpoint.raw_config, head)
    except UsageError:
        return None
    except CheckpointError as error:
        if "architecture" in str(error):
            return None
        raise


def _changed(
    raw: Mapping[str, Any],
    head: str,
    before: ModelConfig | None,
    labels: Sequence[str] | None,
    problem: str | None,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the config.json of the model with its head, as both libraries read it."""
    made = {**raw, **(config or {})}
    if config:
        _check_fields(config, made, opt("config"))
    model_type = str(made.get("model_type"))
    _check_labels(head, labels, problem, model_type)
    same = before is not None and before.head.kind == head
    if not (same and labels is None and problem is None):
        # A classifier of two tokens (DeiT) keeps its name while its labels stay.
        made["architectures"] = [class_name(model_type, head)]
    elif not made.get("architectures"):
        made["architectures"] = [class_name(model_type, head)]
    if head not in LABELLED:
        return {name: value for name, value in made.items() if name not in _OF_LABELS}
    known = before.labels if same and before is not None else ()
    names = _names(labels, problem, known)
    kept = before.head.problem if same and before is not None and labels is None else ""
    stated = problem or kept or ("single_label" if len(names) > 1 else "")
    if not stated:
        raise UsageError(
            f"one label, {names[0]!r}, makes every answer the same",
            f"say what it is: {opt('problem', 'regression')} or {opt('problem', 'multi_label')}",
        )
    if stated != "regression" or list(known) != names:
        made.pop(TARGETS, None)  # the units of another head's answers
    made.update(
        id2label={str(number): name for number, name in enumerate(names)},
        label2id={name: number for number, name in enumerate(names)},
        num_labels=len(names),
    )
    if head in ("sequence", "image"):
        made["problem_type"] = PROBLEMS[stated]
    else:
        made.pop("problem_type", None)
    return made


def _check_labels(head: str, labels: Sequence[str] | None, problem: str | None, model_type: str) -> None:
    """Refuse labels that are not names, that repeat, or that have no effect."""
    if labels is not None and head not in LABELLED:
        fix = "its alphabet is config={'vocab_size': ..., 'pad_token_id': ...}" if head == "ctc" else "leave them out"
        raise UsageError(f"{opt('labels')}: a {head!r} head of {model_type} has none", fix)
    if problem is not None:
        if head not in ("sequence", "image"):
            raise UsageError(
                f"{opt('problem', problem)} has no effect on a {head!r} head", f"leave out {opt('problem')}"
            )
        if problem not in PROBLEMS:
            raise UsageError(f"{opt('problem', problem)} is unknown", did_you_mean(str(problem), PROBLEMS))
    if labels is None:
        return
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence) or not labels:
        raise UsageError(f"{opt('labels', labels)} is not a list of names", "labels=['negative', 'positive']")
    for place, name in enumerate(labels):
        if not isinstance(name, str) or not name:
            raise UsageError(f"label {place} is {name!r}, not a name", "give every label as a text")
        if name in labels[:place]:
            raise UsageError(f"label {name!r} is there twice", "name every label once")
    if problem == "single_label" and len(labels) == 1:
        raise UsageError("one label makes every answer the same", f"name more, or say {opt('problem', 'multi_label')}")


def _names(labels: Sequence[str] | None, problem: str | None, known: Sequence[str]) -> list[str]:
    if labels is not None:
        return list(labels)
    if known:
        return list(known)
    if problem == "regression":
        return ["LABEL_0"]
    raise UsageError("a new head needs to know its labels", "labels=['negative', 'positive']")


# ---------------------------------------------------------------------------------------------------------- filling


def _fill(
    checkpoint: Checkpoint,
    config: ModelConfig,
    before: ModelConfig | None,
    asked: LoadOptions,
    seed: int,
    make: MakeModel,
) -> NewHead:
    """Build the model, copy what fits, and initialise the rest."""
    settle(asked.threads)
    device, source, table = as_device(asked.device), checkpoint.tensors(), checkpoint.rows(config)
    check_depth(config, source)
    model = make(config)
    misfits = _misfits(model, source, table, before)
    dropped = {**misfits, **_left_behind(checkpoint, model, before, table)}
    kept = _without(source, misfits)
    load_weights(
        model, kept, table, dtype=torch.float32, allow_unused=asked.allow_unused, trainable=True, new_head=True
    )
    initialised = saved_names(model.config, _left_empty(model, kept, table))
    initialise(model, seed=seed, empty_only=True)
    set_ffn_chunk_size(model, asked.ffn_chunk_size)
    if device.type != "cpu":
        model.to(device)
        model.tie()
    _report(checkpoint, model, initialised, dropped, source)
    return NewHead(model, initialised, tuple(dropped))


def _left_empty(model: Transformer, source: TensorSource, table: WeightTable) -> list[str]:
    """Return the parameters, of the whole model, that nothing of the file has filled."""
    tied = {name for name, _ in model.config.tied}
    if model.local is None:
        return [name for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta and name not in tied]
    filled = {
        name for _, _, ours in check_weights(model, source, table, allow_unused=True, new_head=True) for name in ours
    }
    return [name for name in model.sizes() if name not in filled | tied and not table.is_zero(name)]


def _misfits(
    model: Transformer, source: TensorSource, table: WeightTable, before: ModelConfig | None
) -> dict[str, str]:
    """Return the tensors that the head would read and must not, each with the reason."""
    config, tied, found = model.config, dict(model.config.tied), for_head(model, source, table)
    reason = {name: "of another shape" for name, (_, fits) in found.items() if not fits}
    other = _other_purpose(config, before)
    if other:
        reason |= {
            name: other
            for name, (ours, _) in found.items()
            if name not in reason and _is_output(ours) and not tied.keys() & set(ours)
        }
    modules = {_module(our_name) for name in reason for our_name in found[name][0]}
    return {  # a weight and its bias go together
        name: reason.get(name, next(iter(reason.values())))
        for name, (ours, _) in found.items()
        if any(_module(our_name) in modules for our_name in ours)
    }


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_output(ours: Collection[str]) -> bool:
    return any(name.startswith(("head.out.", "head.distilled.")) for name in ours)


def _other_purpose(config: ModelConfig, before: ModelConfig | None) -> str:
    """Return why the checkpoint's output is not this head's, whatever its shape; "" where it is."""
    if before is None or before.head.kind == "none":
        return ""
    if before.head.kind != config.head.kind:
        return f"trained for a head of another kind, {before.head.kind}"
    if before.labels != config.labels:
        return f"trained for other labels: {some(list(before.labels), 6)}"
    return ""


def _left_behind(
    checkpoint: Checkpoint, model: Transformer, before: ModelConfig | None, table: WeightTable
) -> dict[str, str]:
    """Return the tensors of the checkpoint's own head that the new one does not read."""
    if before is None or before.head.kind in ("none", model.config.head.kind):
        return {}
    old, ours = checkpoint.rows(before), set(model.sizes())

    def reads(rows: WeightTable, name: str, wanted: Collection[str] | None) -> bool:
        found = rows.find(name)
        if found is None or found[0].kind not in ("map", "also", "twin"):
            return False
        return any(n.startswith("head.") if wanted is None else n in wanted for n in found[1])

    return {
        name: f"trained for a head of another kind, {before.head.kind}"
        for name in checkpoint.tensors().names()
        if reads(old, name, None) and not reads(table, name, ours)
    }


def _without(source: TensorSource, names: Collection[str]) -> TensorSource:
    """Return the same source as if it did not hold these tensors."""
    tensors = {name: tensor for name, tensor in source.tensors.items() if name not in names}
    return TensorSource(source.where, source.kind, tensors, source.maps, source.metadata, source.files, source.dtype)


def saved_names(config: ModelConfig, names: Collection[str]) -> tuple[str, ...]:
    """Return what checkpoints call parameters of ours; one that has two names there has both here."""
    found: dict[str, None] = {}
    for row in table_for(config).rows:
        for theirs, _ours in row.instances(set(names)) if row.kind in ("map", "twin") else ():
            found.setdefault(theirs)
    return tuple(found)


def _report(
    checkpoint: Checkpoint,
    model: Transformer,
    initialised: Sequence[str],
    dropped: Mapping[str, str],
    source: TensorSource,
) -> None:
    """Say in one line each what is new, and what of the checkpoint is not in the model."""
    kind = model.config.head.kind
    for why in dict.fromkeys(dropped.values()):
        said = [f"{name} {tuple(source.shape(name))}" for name in dropped if dropped[name] == why]
        log.warning("%s: %s, left out of the %s head: %s", checkpoint.ref, why, kind, ", ".join(said))
    if initialised:
        count = plural(len(initialised), "parameter")
        log.info("%s: %s of the %s head newly initialised: %s", checkpoint.ref, count, kind, ", ".join(initialised))
