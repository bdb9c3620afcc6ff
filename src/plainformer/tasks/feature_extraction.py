"""Feature extraction: a text as a vector, pooled as the checkpoint's sentence-transformers files say (Reimers & Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plainformer.errors import CheckpointError, UsageError, did_you_mean
from plainformer.formats import read_json_object
from plainformer.model.heads import pick
from plainformer.tasks.base import Result, Task

if TYPE_CHECKING:
    from plainformer.inputs.text import TextBatch

POOLINGS = {"mean": "mean", "cls": "first", "last": "last"}
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}


@dataclass(frozen=True)
class Embedding(Result):
    """A text's vector, (D,) fp32, and how it was pooled."""

    vector: Tensor
    pooling: str
    normalized: bool

    def to_dict(self) -> dict[str, Any]:
        return {"vector": self.vector.tolist(), "pooling": self.pooling, "normalized": self.normalized}


class FeatureExtraction(Task):
    """A text → its vector. Without sentence-transformers files: the mean over tokens, not normalised."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pooling, self.normalized = read_pooling(self.folder)

    def encode(self, inputs: Sequence[str], *, truncate: bool = False) -> TextBatch:
        return self.encode_texts(inputs, truncate=truncate)

    def predict(self, encoded: TextBatch, *, pooling: str | None = None, normalize: bool | None = None) -> Tensor:
        how = self.pooling if pooling is None else pooling
        if how not in POOLINGS:
            raise UsageError(f"pooling={how!r} is unknown", did_you_mean(how, POOLINGS))
        inputs = self.model_inputs(encoded)
        hidden_BTD = self.model(**inputs).last_hidden_state
        vectors_BD = pick(POOLINGS[how], hidden_BTD, inputs["attention_mask"].bool(), None, None).float()
        return torch.nn.functional.normalize(vectors_BD, dim=-1) if self._normalizes(normalize) else vectors_BD

    def decode(
        self,
        encoded: TextBatch,
        predicted: Tensor,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
    ) -> list[Embedding]:
        how = self.pooling if pooling is None else pooling
        return [Embedding(vector, how, self._normalizes(normalize)) for vector in predicted.cpu()]

    def _normalizes(self, normalize: bool | None) -> bool:
        return self.normalized if normalize is None else normalize

    def similarity(self, text: str, other: str) -> float:
        """The cosine between two texts' vectors, -1 to 1."""
        a, b = (result.vector for result in self([text, other]))
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def read_pooling(folder: Path | None) -> tuple[str, bool]:
    """Pooling and normalisation from `modules.json` and `1_Pooling/config.json`; the mean, not normalised, without them."""
    modules = folder / "modules.json" if folder is not None else None
    if folder is None or modules is None or not modules.is_file():
        return "mean", False
    import json

    listed = json.loads(modules.read_text(encoding="utf-8"))
    types = [str(m.get("type", "")) for m in listed] if isinstance(listed, list) else []
    normalized = any(kind.endswith(".Normalize") for kind in types)
    for module in listed:
        if str(module.get("type", "")).endswith(".Pooling"):
            raw = read_json_object(folder / str(module.get("path", "1_Pooling")) / "config.json")
            chosen = [name for key, name in _MODES.items() if raw.get(key)]
            others = [key for key in raw if key.startswith("pooling_mode_") and raw[key] is True and key not in _MODES]
            if len(chosen) != 1 or others:
                raise CheckpointError(
                    f"1_Pooling/config.json asks for {chosen + others}", "exactly one of mean, cls, last token is supported"
                )
            return chosen[0], normalized
    return "mean", normalized
