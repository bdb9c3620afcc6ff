"""Families as data: which module knows a `model_type`, and which head an architecture's name implies.

A family module has

- `HEADS`: kind of head → `Head`, its values and its weight rows,
- `config(source, head) -> ModelConfig`: what its config.json means, but for the head, which is put on here,
- `table(config) -> WeightTable`: its weight rows, but for the head's,

and, where it needs them,

- `DEFAULTS`: values of config.json's fields where it has none, before `config` reads it,
- `ALIASES`: other names that config.json may have for a field, and the name that `config` reads,
- `ARCHITECTURES`: class-name ending → head, where it differs from `HEADS_BY_SUFFIX`,
- `first_weights(source, config) -> FirstWeights`: what a model that is not trained yet starts with, where that is not
  `families.first.usual`,
- `TOKENIZERS`: kind of tokenizer (`config.tokenizer.kind_of`) → what its vocabulary files do not say.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from plainformer.checkpoint.rows import WeightTable
from plainformer.config import ModelConfig
from plainformer.config.checks import reading, shown
from plainformer.config.fields import noting
from plainformer.config.tokenizer import TokenizerConvention, kind_of
from plainformer.config.values import check_choice
from plainformer.errors import CheckpointError, PlainformerError, UsageError, a_type, opt, spelling_of
from plainformer.families.by_hand import PROBE
from plainformer.families.first import usual
from plainformer.families.heads import Head
from plainformer.families.hf_config import HfConfig
from plainformer.families.naming import HEADS_BY_SUFFIX, foreign_class, implied_model_type

# model_type in config.json → module here.
_CALLED_ALIKE = (
    "albert bart bert distilbert electra gemma gpt2 gpt_neox llama marian mistral modernbert mpnet olmo2 pegasus phi3 "
    "roberta smollm3 t5 vit wav2vec2 whisper"
)
FAMILIES = {
    **{name: name for name in _CALLED_ALIKE.split()},
    "camembert": "roberta",
    "deberta-v2": "deberta",
    "deit": "vit",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "gemma3_text": "gemma",
    "hubert": "wav2vec2",
    "m2m_100": "m2m",
    "mbart": "bart",
    "mt5": "t5",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "xlm-roberta": "roberta",
}
FAMILIES = dict(sorted(FAMILIES.items()))


def family_module(model_type: str) -> ModuleType:
    """Return the module that knows `model_type`, or raise an error that offers the closest ones."""
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model_type {shown(model_type)} is not a family that is supported",
            spelling_of(model_type, FAMILIES) or f"supported: {', '.join(FAMILIES)}",
        )
    return importlib.import_module(f"plainformer.families.{FAMILIES[model_type]}")


class _Conventions:
    """What the families say of their tokenizers' files; see `config.tokenizer.Conventions`."""

    def of_model(self, model_type: str) -> TokenizerConvention | None:
        if model_type not in FAMILIES:
            return None
        return _tokenizers(FAMILIES[model_type]).get(kind_of(model_type))

    def known(self, kind: str) -> TokenizerConvention | None:
        return self._all().get(kind)

    def named(self, kind: str) -> TokenizerConvention:
        known = self._all()
        if kind not in known:
            raise CheckpointError(
                f"a {kind!r} tokenizer is of no family that is supported",
                spelling_of(kind, known) or f"supported: {', '.join(sorted(known))}; or provide a tokenizer.json",
            )
        return known[kind]

    def _all(self) -> dict[str, TokenizerConvention]:
        return {name: found for module in FAMILIES.values() for name, found in _tokenizers(module).items()}


CONVENTIONS = _Conventions()


def _tokenizers(module: str) -> dict[str, TokenizerConvention]:
    return getattr(importlib.import_module(f"plainformer.families.{module}"), "TOKENIZERS", {})


def heads_of(model_type: str) -> Collection[str]:
    """Return the kinds of head that a family's models have; none for a family that is not known."""
    heads: dict[str, Head] = family_module(model_type).HEADS if model_type in FAMILIES else {}
    return heads.keys()


def head_of(architecture: str, model_type: str) -> str:
    """Return the head that a class name implies: as its family says, or else as all others mean it."""
    own: Mapping[str, str] = getattr(family_module(model_type), "ARCHITECTURES", {}) if model_type in FAMILIES else {}
    for suffix, head in {**HEADS_BY_SUFFIX, **own}.items():
        if architecture.endswith(suffix):
            return head
    raise CheckpointError(
        f"architecture {shown(architecture)} is not supported",
        spelling_of(architecture, HEADS_BY_SUFFIX) or f"pass {opt('task', ...)} to choose a head",
    )


def fields_of(raw: Mapping[str, Any], heads: Collection[str]) -> set[str]:
    """Return the fields that are read in a `config.json` of this family for any of some heads."""
    probe = {**PROBE, "model_type": raw.get("model_type")}
    with noting() as known:
        for head in heads:
            for one in (probe, {**probe, **raw}):
                with suppress(PlainformerError):  # a value is refused where it is read in earnest
                    table_for(config_from_dict(dict(one), head))
    return known | {"model_type", "architectures"}


def architecture_with_head(config: ModelConfig) -> str:
    """Return the class name to save under: the checkpoint's own, its ending exchanged if another head was put on."""
    name, model_type = config.architecture, str(config.source.get("model_type", ""))
    if head_of(name, model_type) == config.head.kind:
        return name
    stem = next(name.removesuffix(suffix) for suffix in HEADS_BY_SUFFIX if name.endswith(suffix))
    endings = [s for s in HEADS_BY_SUFFIX if head_of(stem + s, model_type) == config.head.kind]
    usual = {
        "none": "Model",
        "masked_lm": "ForMaskedLM",
        "causal_lm": "ForCausalLM",
        "seq2seq_lm": "ForConditionalGeneration",
    }
    return stem + usual.get(config.head.kind, endings[0])


def completed(raw: dict[str, Any], family: str | None = None) -> dict[str, Any]:
    """Return a `config.json` with its `model_type`: `family` where that is given, else what its class name implies.

    Raises:
        UsageError: `family` is not one that is supported.
    """
    if family is not None:
        check_choice("family", family, FAMILIES)
        return {**raw, "model_type": family}
    names = raw.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    if raw.get("model_type") is not None or not isinstance(first, str):
        return raw
    implied = implied_model_type(first, raw, FAMILIES)
    return raw if implied is None else {**raw, "model_type": implied}


def refuse_own_code(raw: dict[str, Any]) -> None:
    """Refuse a checkpoint whose model is code of its own: it may compute anything (decoders that see both directions)."""
    model_type, names = raw.get("model_type"), raw.get("architectures")
    first = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    name = foreign_class(raw, first, FAMILIES)
    if name and isinstance(model_type, str) and model_type in FAMILIES:
        raise CheckpointError(
            f"class {shown(name)} is not of the {model_type!r} family: it is code of its own, which is never executed",
            f"if it computes what {model_type} models do, pass {opt('family', model_type)}; otherwise use another checkpoint",
        )


def config_from_dict(raw: dict[str, Any], head: str | None = None, where: str = "config.json") -> ModelConfig:
    """Return a Hugging Face `config.json` as a ModelConfig.

    Args:
        raw: the parsed file.
        head: a kind of head (see `config.HEAD_KINDS`); None takes the one of the file's `architectures`.
        where: the name of what `raw` was read from, for messages.
    Raises:
        CheckpointError: the file does not describe a model that is known. UsageError: the family lacks the head.
    """
    with reading(where):
        return _config_from_dict(raw, head)


def _config_from_dict(raw: dict[str, Any], head: str | None) -> ModelConfig:
    if not isinstance(raw, dict):
        raise CheckpointError(f"{a_type(raw)} is not an object", "it is not a model's config")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        if model_type is not None:
            what = f"'model_type' is {shown(model_type)}, not a name"
            raise CheckpointError(what, "is this a Hugging Face model folder?")
        what = "'model_type' is missing, and no class in 'architectures' implies it"
        raise CheckpointError(what, f"pass {opt('family', ...)}: {', '.join(FAMILIES)}")
    module = family_module(model_type)
    source = HfConfig(raw).renamed(getattr(module, "ALIASES", {})).with_defaults(**getattr(module, "DEFAULTS", {}))
    source.refuse_variants()
    architecture = next(iter(source.texts("architectures")), "")
    wanted = head if head is not None else head_of(architecture, model_type) if architecture else "none"
    if wanted not in module.HEADS:
        what = f"{model_type} models have no {wanted!r} head"
        if head is None:
            raise CheckpointError(f"architecture {shown(architecture)}: {what}", f"pass {opt('task', ...)}")
        raise UsageError(what, "choose another task")
    config: ModelConfig = module.config(source, wanted)
    if head is None and wanted == "causal_lm" and config.main_stack.direction == "both":
        wanted = "none"  # published under a decoder's class, an embedding model writes nothing
        config = module.config(source, wanted)
    head_config = module.HEADS[wanted].config(source, config.main_stack)
    config = replace(
        config,
        head=head_config,
        labels=source.labels() if head_config.kind in ("sequence", "token", "image", "audio") else (),
        pad_id=source.id("pad_token_id"),
        bos_id=source.id("bos_token_id"),
        eos_ids=source.ids("eos_token_id"),
        decoder_start_id=source.id("decoder_start_token_id", config.decoder_start_id),
        trained_positions=config.trained_positions or source.trained_positions(),
        architecture=architecture,
        source=raw,
    )
    return replace(config, first=getattr(module, "first_weights", usual)(source, config))


def table_for(config: ModelConfig) -> WeightTable:
    """Return the weight rows of a model: its head's, then its family's, which know other heads' tensors as extras."""
    module = importlib.import_module(f"plainformer.families.{config.family}")
    table: WeightTable = module.table(config)
    return replace(table, rows=(*module.HEADS[config.head.kind].rows_of(config), *table.rows))
