"""Image classification: a label for a picture (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from plainformer.tasks.media import ImageTask
from plainformer.tasks.text.classification import Classification, classify


class ImageClassification(ImageTask):
    """An image (path, bytes, PIL image, array) → a label with its probability."""

    def predict(self, encoded: Tensor) -> Tensor:
        """Logits, (B, C)."""
        logits: Tensor = self.model(pixel_values=encoded, only_logits=True).logits
        return logits

    def decode(self, encoded: Tensor, predicted: Tensor) -> list[Classification]:
        return classify(predicted, self.config)
