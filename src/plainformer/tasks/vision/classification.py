"""Image classification: a label for a picture (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from plainformer.tasks.calls import media_called_with
from plainformer.tasks.media import ImageTask
from plainformer.tasks.text.classification import Classification, classify
from plainformer.tasks.vision.options import ImageOptions


class ImageClassification(ImageTask):
    """An image (path, bytes, PIL image, array) → a label with its probability."""

    __call__ = media_called_with(ImageOptions, Classification)

    def predict(self, encoded: Tensor, options: ImageOptions) -> Tensor:
        """Logits, (B, C)."""
        logits: Tensor = self.model(pixel_values=encoded, only_logits=True).logits
        return logits

    def decode(self, encoded: Tensor, predicted: Tensor, options: ImageOptions) -> list[Classification]:
        return classify(predicted, self.config)
