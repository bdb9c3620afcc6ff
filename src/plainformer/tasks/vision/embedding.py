"""Image feature extraction: a picture as a vector."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize as unit_length

from plainformer.config import PatchFrontend
from plainformer.errors import UsageError, did_you_mean
from plainformer.tasks.media import ImageTask
from plainformer.tasks.text.embedding import Embedding

POOLINGS = ("cls", "pooler", "mean")


class ImageFeatureExtraction(ImageTask):
    """An image (path, bytes, PIL image, array) → its vector.

    `pooling`: "cls" is the class token's vector after the last norm, "pooler" what the checkpoint's pooler makes of it,
    "mean" the mean over the patches. `normalize`: to length 1.
    """

    def predict(self, encoded: Tensor, *, pooling: str = "cls", normalize: bool = False) -> Tensor:
        """Vectors, (B, D)."""
        if pooling not in POOLINGS:
            raise UsageError(f"pooling={pooling!r} is unknown", did_you_mean(str(pooling), POOLINGS))
        output = self.model(pixel_values=encoded)
        frontend = self.config.main_stack.frontend
        assert isinstance(frontend, PatchFrontend)
        vectors: Tensor | None = output.pooler_output
        if pooling != "pooler":
            hidden_BTD = output.last_hidden_state.float()
            vectors = hidden_BTD[:, 0] if pooling == "cls" else hidden_BTD[:, frontend.class_tokens :].mean(1)
        if vectors is None:
            raise UsageError(f"{self.ref or 'this checkpoint'} has no pooler", "use pooling='cls' or 'mean'")
        return unit_length(vectors.float(), dim=-1) if normalize else vectors.float()

    def decode(
        self, encoded: Tensor, predicted: Tensor, *, pooling: str = "cls", normalize: bool = False
    ) -> list[Embedding]:
        return [Embedding(vector, pooling, normalize) for vector in predicted.cpu()]
