"""Dropout is where the reference has it, with the probabilities of its own configuration: the placement oracle."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from plainformer.errors import CheckpointError
from plainformer.families import FAMILIES, config_from_dict, heads_of
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.cases import decoders, encoder_decoders, encoders, vision_and_speech
from tests.support.configs import TINY, tiny
from tests.support.dropout import placements
from tests.support.parity import Case, make_inputs

CASES = [
    *encoders.ALL,
    *decoders.LLAMA,
    *decoders.OTHERS,
    *encoder_decoders.BART,
    *encoder_decoders.SINUSOIDAL,
    *encoder_decoders.T5,
    *vision_and_speech.IMAGES,
    *vision_and_speech.WAVES,
    *vision_and_speech.MELS,
]


def both(case: Case, config: Any, stated: bool = True) -> tuple[Any, Transformer]:
    """The reference's model and ours of one configuration, in training mode; their weights do not matter.

    `stated`: whether ours is told what to drop.
    """
    config._attn_implementation = "eager"
    theirs = getattr(transformers, case.model_class)(config)
    raw = {name: value for name, value in json.loads(config.to_json_string()).items() if stated or "drop" not in name}
    raw["architectures"] = [case.model_class]
    return theirs.train(), initialise(Transformer(config_from_dict(raw))).train()


def differing(config: Any) -> Any:
    """The configuration with another probability in each of its fields about dropout."""
    names = [field.name for field in dataclasses.fields(config) if "drop" in field.name]
    for index, name in enumerate(sorted(names)):
        setattr(config, name, 0.01 + index / 100)
    return config


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_placement(case: Case) -> None:
    inputs = make_inputs(case)
    theirs, ours = both(case, differing(case.config()))
    expected = placements(lambda: theirs(**inputs))
    assert expected
    assert placements(lambda: ours(**inputs)) == expected
    assert placements(lambda: ours.eval()(**inputs)) == []


@pytest.mark.parametrize("case", {case.model_class: case for case in CASES}.values(), ids=str)
@torch.no_grad()
def test_defaults(case: Case) -> None:
    """A config.json that says nothing about dropout means the reference's defaults."""
    inputs = make_inputs(case)
    theirs, ours = both(case, case.config(), stated=False)
    assert placements(lambda: ours(**inputs)) == placements(lambda: theirs(**inputs))


# Fields that are read and that the reference's configuration classes do not declare; null where another takes over.
UNDECLARED = {
    "bert-BertForSequenceClassification": {"classifier_dropout": None, "hidden_dropout_prob": 0.3},
    "bert-BertForTokenClassification": {"classifier_dropout": 0.0, "hidden_dropout_prob": 0.3},
    "roberta-RobertaForMultipleChoice": {"classifier_dropout": 0.2, "hidden_dropout_prob": 0.3},
    "deberta-v3-DebertaV2ForSequenceClassification": {"cls_dropout": 0.4},
    "deberta-v3-DebertaV2ForMultipleChoice": {"cls_dropout": 0.0, "pooler_dropout": 0.2},
    "electra-ElectraForMultipleChoice": {"summary_first_dropout": 0.4, "summary_last_dropout": 0.0},
    "llama-token-LlamaForTokenClassification": {"hidden_dropout": 0.4},
    "gpt2-GPT2ForTokenClassification": {"hidden_dropout": 0.4, "classifier_dropout": 0.2},
    "gpt_neox-GPTNeoXForTokenClassification": {"hidden_dropout": 0.4},
}


@pytest.mark.parametrize("name", UNDECLARED)
@torch.no_grad()
def test_fields_that_take_over(name: str) -> None:
    case = next(case for case in CASES if str(case) == name)
    config, inputs = case.config(), make_inputs(case)
    for field, value in UNDECLARED[name].items():
        setattr(config, field, value)
    theirs, ours = both(case, config)
    assert placements(lambda: ours(**inputs)) == placements(lambda: theirs(**inputs))


WRONG = (1.5, -0.1, "abc", True, [0.1])
# What the reference does not use either, or only in models that are not supported.
UNREAD = {"phi3": ["embd_pdrop"], "gpt2": ["summary_first_dropout"], "wav2vec2": ["feat_quantizer_dropout"]}
FIELDS = [
    (model_type, field.name)
    for model_type in FAMILIES
    for field in dataclasses.fields(CONFIG_MAPPING[model_type])
    if "drop" in field.name and field.name not in UNREAD.get(model_type, ())
]


@pytest.mark.parametrize(("model_type", "field"), FIELDS)
def test_refused_values(model_type: str, field: str) -> None:
    """Of any field about dropout that any head of the family reads."""
    for value in WRONG:
        refused = 0
        for head in heads_of(model_type):
            raw = {**tiny(model_type), field: value, "text_config": {**TINY, field: value}}
            try:
                config_from_dict(raw, head)
            except CheckpointError as error:
                assert field in str(error) and str(value) in str(error)
                refused += 1
        assert refused, f"{field}={value} was taken"


def test_a_default_wins_over_the_hidden_states() -> None:
    """GPT-NeoX's tagger has a default of its own, where Llama's takes what hidden states have."""
    stated = {"hidden_dropout": 0.4}
    for model_type, p in (("gpt_neox", 0.1), ("llama", 0.4)):
        assert config_from_dict({**tiny(model_type), **stated}, "token").head.dropout == p
    assert transformers.GPTNeoXConfig(**stated).classifier_dropout == 0.1
