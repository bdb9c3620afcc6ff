"""The configuration of every parity case: all families, heads and frontends, tiny."""

from __future__ import annotations

import functools
import json

from plainformer.config import ModelConfig
from plainformer.families import config_from_dict
from tests.support.cases import decoders, encoder_decoders, encoders, vision_and_speech
from tests.support.parity import Case

CASES: list[Case] = [
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


@functools.cache
def every_config() -> dict[str, ModelConfig]:
    """Return the configuration of each case by its name and number."""
    made: dict[str, ModelConfig] = {}
    for number, case in enumerate(CASES):
        raw = {**json.loads(case.config().to_json_string()), "architectures": [case.model_class]}
        made[f"{number}-{case}"] = config_from_dict(raw)
    return made
