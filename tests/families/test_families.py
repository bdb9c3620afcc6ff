"""Every family declares what the rest of the library asks of it."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

from plainformer.checkpoint.rows import Row
from plainformer.config import HEAD_KINDS
from plainformer.config.tokenizer import kind_of
from plainformer.errors import CheckpointError, UsageError
from plainformer.families import (
    CONVENTIONS,
    FAMILIES,
    HEADS_BY_SUFFIX,
    architecture_with_head,
    config_from_dict,
    head_of,
    heads_of,
    table_for,
)
from plainformer.families.heads import Head
from plainformer.inputs.text.pre_tokenizers import NAMES
from plainformer.tasks import TASKS, head_for_task
from tests.support.configs import TINY, tiny

MODULES = sorted(set(FAMILIES.values()))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"plainformer.families.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_a_family_file_is_complete(name: str) -> None:
    family = module(name)
    first = inspect.getdoc(family).splitlines()[0]  # `plainformer models` shows it
    assert len(first) > 30 and "(" in first, "say which model it is, by whom and when"
    assert "none" in family.HEADS and set(family.HEADS) <= set(HEAD_KINDS)
    assert all(isinstance(head, Head) for head in family.HEADS.values())
    assert set(getattr(family, "ARCHITECTURES", {})) <= set(HEADS_BY_SUFFIX)
    assert set(getattr(family, "ARCHITECTURES", {}).values()) <= set(family.HEADS)
    for convention in getattr(family, "TOKENIZERS", {}).values():
        assert convention.words in NAMES and bool(convention.single) >= bool(convention.pair)


@pytest.mark.parametrize(("model_type", "head"), [(name, head) for name in FAMILIES for head in heads_of(name)])
def test_every_head_has_a_configuration_and_rows(model_type: str, head: str) -> None:
    config = config_from_dict(tiny(model_type), head)
    assert config.head.kind == head and config.family == FAMILIES[model_type]
    rows = table_for(config).rows
    assert all(isinstance(row, Row) for row in rows)
    outputs = [name for row in rows for name in row.ours if name.startswith("head.")]
    assert bool(outputs) or not (config.head.out_size or config.head.transform_size)


@pytest.mark.parametrize(("model_type", "head"), [(name, head) for name in FAMILIES for head in heads_of(name)])
def test_an_architecture_with_a_head_names_that_head(model_type: str, head: str) -> None:
    """The class name that is saved with another head on means that head when it is read again."""
    for name in ("TinyModel", *(f"Tiny{suffix}" for suffix in HEADS_BY_SUFFIX)):
        if head_of(name, model_type) in heads_of(model_type):
            saved = architecture_with_head(config_from_dict(tiny(model_type, name), head))
            assert head_of(saved, model_type) == head


def test_a_head_that_a_family_lacks() -> None:
    with pytest.raises(UsageError, match="gpt2 models have no 'ctc' head"):
        config_from_dict(tiny("gpt2"), "ctc")
    with pytest.raises(CheckpointError, match=r"GPT2ForCTC.*no 'ctc' head"):
        config_from_dict(tiny("gpt2", "GPT2ForCTC"))


def test_what_one_family_means_by_a_class_name() -> None:
    assert head_of("HubertForSequenceClassification", "hubert") == "audio"
    assert head_of("BertForSequenceClassification", "bert") == "sequence"
    assert head_of("ElectraForPreTraining", "electra") == head_of("Wav2Vec2ForPreTraining", "wav2vec2") == "none"
    assert head_of("BertForPreTraining", "bert") == "masked_lm"
    assert head_of("Gemma3ForConditionalGeneration", "gemma3") == "causal_lm"


def test_the_head_that_a_task_needs_follows_from_the_family() -> None:
    speech = "automatic-speech-recognition"
    assert head_for_task(speech, heads_of("whisper")) == "seq2seq_lm"
    assert head_for_task(speech, heads_of("hubert")) == head_for_task(speech, ()) == "ctc"
    for task in TASKS:
        needed = head_for_task(task, heads_of("bert"))
        assert needed is None or needed in HEAD_KINDS


def test_kinds_of_tokenizers_are_declared_once() -> None:
    kinds = [kind for name in MODULES for kind in getattr(module(name), "TOKENIZERS", {})]
    assert len(kinds) == len(set(kinds)) and all(kind == kind_of(kind) for kind in kinds)
    declared = {kind: made for name in MODULES for kind, made in getattr(module(name), "TOKENIZERS", {}).items()}
    assert declared and all(CONVENTIONS.named(kind) is made for kind, made in declared.items())


def test_a_kind_of_tokenizer_that_no_family_has() -> None:
    with pytest.raises(CheckpointError, match="'lama' tokenizer is of no family") as caught:
        CONVENTIONS.named("lama")
    assert "llama" in caught.value.fix
    with pytest.raises(CheckpointError, match="'zzz' tokenizer is of no family") as caught:
        CONVENTIONS.named("zzz")
    assert "xlmroberta" in caught.value.fix and "nllb" in caught.value.fix
    assert CONVENTIONS.of_model("zzz") is None
    roberta = CONVENTIONS.of_model("xlm-roberta")
    assert roberta is not None and roberta.unused_positions == 2


def test_trained_positions_are_read() -> None:
    assert config_from_dict({**tiny("llama"), "max_position_embeddings": 77}).trained_positions == 77
    assert config_from_dict(tiny("llama")).trained_positions is None
    assert config_from_dict(tiny("marian")).trained_positions == 1024
    inner = {**tiny("gemma3"), "text_config": {**TINY, "max_position_embeddings": 55}}
    assert config_from_dict(inner).trained_positions == 55
