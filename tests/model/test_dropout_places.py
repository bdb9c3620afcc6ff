"""Dropout is where the reference has it, with the probabilities of its own configuration: the placement oracle."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers

from plainformer.families import config_from_dict
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.cases import decoders, encoder_decoders, encoders, vision_and_speech
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


def both(case: Case, config: Any) -> tuple[Any, Transformer]:
    """The reference's model and ours of one configuration, in training mode; their weights do not matter."""
    config._attn_implementation = "eager"
    theirs = getattr(transformers, case.model_class)(config)
    raw = {**config.to_dict(), "architectures": [case.model_class]}
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
    for config in (case.config(), differing(case.config())):
        theirs, ours = both(case, config)
        expected = placements(lambda: theirs(**inputs))
        assert placements(lambda: ours(**inputs)) == expected
        assert placements(lambda: ours.eval()(**inputs)) == []
