"""Image feature extraction: a picture as a vector."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize as unit_length

from plainformer.config import PatchFrontend
from plainformer.errors import UsageError, opt
from plainformer.tasks.embeddings import Embedding, EmbeddingTask, embeds_media_with
from plainformer.tasks.media import ImageTask
from plainformer.tasks.vision.options import ImageFeatureExtractionOptions


class ImageFeatureExtraction(ImageTask, EmbeddingTask):
    """An image (path, bytes, PIL image, array) → its vector."""

    __call__ = embeds_media_with(ImageFeatureExtractionOptions)

    def predict(self, encoded: Tensor, options: ImageFeatureExtractionOptions) -> Tensor:
        """Vectors, (B, D)."""
        output = self.model(pixel_values=encoded)
        frontend = self.config.main_stack.frontend
        assert isinstance(frontend, PatchFrontend)
        vectors: Tensor | None = output.pooler_output
        if options.pooling != "pooler":
            hidden_BTD = output.last_hidden_state.float()
            is_cls = options.pooling == "cls"
            vectors = hidden_BTD[:, 0] if is_cls else hidden_BTD[:, frontend.class_tokens :].mean(1)
        if vectors is None:
            raise UsageError(f"{self.ref} has no pooler", f"give {opt('pooling', 'cls')} or 'mean'")
        return unit_length(vectors.float(), dim=-1) if options.normalize else vectors.float()

    def decode(self, encoded: Tensor, predicted: Tensor, options: ImageFeatureExtractionOptions) -> list[Embedding]:
        return [Embedding(vector, options.pooling, options.normalize) for vector in predicted.cpu()]
