"""The configuration of ANY transformer, as frozen dataclasses. All validation is here; torch is not.

A family file (`families/<name>.py`) turns a Hugging Face `config.json` into a `ModelConfig`. A model is built from a
`ModelConfig` alone, so two families that end in equal configurations are the same model.
Differences are *values* (`norm_place="post"`), not switches (`use_post_norm=True`).
"""

from __future__ import annotations

from plainformer.config.model import HEAD_KINDS, HeadConfig, ModelConfig, StackConfig
from plainformer.config.parts import (
    Disentangled,
    Dropout,
    Frontend,
    MelFrontend,
    NormConfig,
    PatchFrontend,
    RelativeBias,
    RopeConfig,
    RopeScaling,
    TokenFrontend,
    WaveFrontend,
)  # fmt: skip

__all__ = [
    "HEAD_KINDS",
    "Disentangled",
    "Dropout",
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
]
