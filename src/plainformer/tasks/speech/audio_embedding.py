"""Audio feature extraction: a recording as a vector, the mean over its frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length

from plainformer.inputs.audio.processors import AudioBatch
from plainformer.tasks.embeddings import Embedding, EmbeddingTask, embeds_media_with
from plainformer.tasks.media import AudioTask
from plainformer.tasks.speech.options import AudioFeatureExtractionOptions


class AudioFeatureExtraction(AudioTask, EmbeddingTask):
    """A clip (path, bytes, array with its rate) → the mean of the encoder's last vectors over its own sound.

    Whisper's encoder hears the silence after a clip too; the vectors there are left out of the mean.
    """

    __call__ = embeds_media_with(AudioFeatureExtractionOptions)

    def predict(self, encoded: AudioBatch, options: AudioFeatureExtractionOptions) -> Tensor:
        """Vectors, (B, D)."""
        states = [self.model.encode(**inputs).last_hidden_state.float() for inputs in self.runs(encoded)]
        rows = (row for hidden_BTD in states for row in hidden_BTD)
        vectors = torch.stack([row[:length].mean(0) for row, length in zip(rows, self.frames(encoded), strict=True)])
        return unit_length(vectors, dim=-1) if options.normalize else vectors

    def decode(self, encoded: AudioBatch, predicted: Tensor, options: AudioFeatureExtractionOptions) -> list[Embedding]:
        return [Embedding(vector, "mean", options.normalize) for vector in predicted.cpu()]
