"""Audio classification: a label for a recording: a language, a command, a mood (SUPERB, Yang et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from plainformer.inputs.audio.processors import AudioBatch
from plainformer.tasks.calls import media_called_with
from plainformer.tasks.media import AudioTask
from plainformer.tasks.speech.options import AudioOptions
from plainformer.tasks.text.classification import Classification, classify


class AudioClassification(AudioTask):
    """A clip (path, bytes, array with its rate) → a label with its probability."""

    __call__ = media_called_with(AudioOptions, Classification)

    def predict(self, encoded: AudioBatch, options: AudioOptions) -> Tensor:
        """Logits, (B, C)."""
        return torch.cat([self.model(**inputs).logits for inputs in self.runs(encoded)])

    def decode(self, encoded: AudioBatch, predicted: Tensor, options: AudioOptions) -> list[Classification]:
        return classify(predicted, self.config)
