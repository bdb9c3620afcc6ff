"""The configuration of ANY transformer, as frozen dataclasses. All validation is here; torch is not.

A family file (`families/<name>.py`) turns a Hugging Face `config.json` into a `ModelConfig`. A model is built from a
`ModelConfig` alone, so two families that end in equal configurations are the same model.
Differences are *values* (`norm_place="post"`), not switches (`use_post_norm=True`).
"""

from __future__ import annotations

from plainformer.config.checks import (
    ACTIVATIONS,
    MAX_CONVOLUTIONS,
    MAX_LAYERS,
    MAX_PATCH,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    is_number,
    reading,
    require,
    require_choice,
    require_positive,
    require_size,
    shown,
)
from plainformer.config.frontends import Frontend, MelFrontend, PatchFrontend, TokenFrontend, WaveFrontend
from plainformer.config.model import HEAD_KINDS, HeadConfig, ModelConfig, StackConfig
from plainformer.config.parts import Disentangled, NormConfig, RelativeBias, RopeConfig, RopeScaling

__all__ = [
    "ACTIVATIONS",
    "HEAD_KINDS",
    "MAX_CONVOLUTIONS",
    "MAX_LAYERS",
    "MAX_PATCH",
    "MAX_POSITIONS",
    "MAX_VOCABULARY",
    "MAX_WIDTH",
    "Disentangled",
    "Frontend",
    "HeadConfig",
    "MelFrontend",
    "ModelConfig",
    "NormConfig",
    "PatchFrontend",
    "RelativeBias",
    "RopeConfig",
    "RopeScaling",
    "StackConfig",
    "TokenFrontend",
    "WaveFrontend",
    "is_number",
    "reading",
    "require",
    "require_choice",
    "require_positive",
    "require_size",
    "shown",
]
