"""SpecAugment (Park et al. 2019), as wav2vec 2.0 does it (Baevski et al. 2020): spans of time and bands of features are hidden.

A wave's are hidden where its frames enter the encoder: frames become the vector that the checkpoint learnt for it, features 0.
Of a spectrogram both become 0, near its mean. Padding is never among the frames of which some are chosen.

Shapes: B batch, T frames, D hidden size (or mel bands).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config import ModelConfig, WaveFrontend
from plainformer.config.training import AugmentConfig

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Spans:
    """Spans that are hidden of an axis.

    Attributes:
        share: of the axis, if no two overlapped; `least` spans at any rate. length: of each span.
    """

    share: float = 0.0
    length: int = 10
    least: int = 0

    def mask(self, size: int, draw: np.random.Generator) -> Mask:
        """Return what is hidden of an axis, (size,). Spans start at different places and may overlap; they fit into it.

        Their number is share * size / length, rounded up or down by chance so that its mean is that.
        """
        hidden = np.zeros(size, dtype=np.bool_)
        if self.share == 0:
            return hidden
        wanted = max(int(self.share * size / self.length + draw.random()), self.least)
        places = size - self.length + 1
        count = min(wanted, size // self.length)
        for start in draw.choice(places, count, replace=False) if count else ():
            hidden[start : start + self.length] = True
        return hidden


def hidden_spans(config: AugmentConfig, model: ModelConfig) -> tuple[Spans, Spans]:
    """Return the spans of time and the bands of features that a run hides: what it asks for, else what `config.json` states.

    A field that is left out there counts as 0, so that a model from scratch hides nothing that nobody asked for.
    """
    stated = model.source
    on = stated.get("apply_spec_augment", isinstance(model.input_frontend, WaveFrontend))
    usual = stated if on else {}
    time = _spans(config.time_mask, config.time_mask_length, "mask_time", usual, least=2)
    return time, _spans(config.feature_mask, config.feature_mask_length, "mask_feature", usual, least=0)


def _spans(share: float | None, length: int | None, name: str, stated: Mapping[str, Any], least: int) -> Spans:
    length = length or int(stated.get(f"{name}_length") or 10)
    if share is not None:
        return Spans(share, length)
    return Spans(float(stated.get(f"{name}_prob") or 0.0), length, int(stated.get(f"{name}_min_masks", least)))


def masks(
    sizes: Sequence[int], longest: int, width: int, spans: tuple[Spans, Spans], draws: Sequence[np.random.Generator]
) -> tuple[Mask, Mask]:
    """Return what is hidden of clips of these numbers of frames: (B, T) of frames, T being `longest`, and (B, D) of features."""
    time_BT = np.zeros((len(sizes), longest), dtype=np.bool_)
    features_BD = np.zeros((len(sizes), width), dtype=np.bool_)
    for row, (size, draw) in enumerate(zip(sizes, draws, strict=True)):
        time_BT[row, :size] = spans[0].mask(size, draw)
        features_BD[row] = spans[1].mask(width, draw)
    return time_BT, features_BD
