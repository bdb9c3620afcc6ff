"""Feature extraction: a text as a vector, pooled as its checkpoint says (Sentence-BERT, Reimers & Gurevych 2019).

Its files: `modules.json` lists the steps, `1_Pooling/config.json` says how to pool.
"""

from __future__ import annotations

import json
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

FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
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
    """A text → its vector. Without sentence-transformers files: the mean over tokens, not normalised.

    Of an encoder-decoder, the encoder's vectors: they are the ones that stand for the text.
    """

    companions = (*FILES, "1_Pooling/config.json")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pooling, self.normalized = read_pooling(self.folder)
        if self.folder is None:  # a GGUF file says it among its metadata
            self.pooling = self.config.source.get("pooling", self.pooling)
        self.max_tokens = read_max_tokens(self.folder)

    def encode(self, inputs: Sequence[str], *, truncate: bool = False) -> TextBatch:
        return self.encode_texts(inputs, truncate=truncate, limit=self.max_tokens)

    def predict(self, encoded: TextBatch, *, pooling: str | None = None, normalize: bool | None = None) -> Tensor:
        how = self.pooling if pooling is None else pooling
        if how not in POOLINGS:
            raise UsageError(f"pooling={how!r} is unknown", did_you_mean(str(how), POOLINGS))
        inputs = self.model_inputs(encoded)
        output = self.model(**inputs) if self.config.encoder is None else self.model.encode(**inputs)
        hidden_BTD = output.last_hidden_state.float()
        vectors_BD = pick(POOLINGS[how], hidden_BTD, inputs["attention_mask"].bool(), None, None)
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
    """Pooling, and whether vectors get length 1, from `modules.json`; without it the mean, not normalised."""
    path = folder / "modules.json" if folder is not None else None
    if folder is None or path is None or not path.is_file():
        return "mean", False
    pooling, normalized = "mean", False
    for module in _modules(path):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _mode(folder / str(module.get("path") or "1_Pooling") / "config.json")
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer":
            raise CheckpointError(
                f"modules.json lists {kind!r}, which changes the vectors and is not supported",
                "supported: Transformer, Pooling, Normalize",
            )
    return pooling, normalized


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}", "fetch the file again") from error
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"{path} is not a list of modules", "fetch the file again")
    return listed


def _mode(path: Path) -> str:
    raw = read_json_object(path)
    chosen = [name for key, name in _MODES.items() if raw.get(key)]
    others = [key for key in raw if key.startswith("pooling_mode_") and raw[key] is True and key not in _MODES]
    if len(chosen) != 1 or others:
        raise CheckpointError(f"{path} asks for {chosen + others}", "exactly one of mean, cls, last token is supported")
    return chosen[0]


def read_max_tokens(folder: Path | None) -> int | None:
    """The longest text that the vectors were made for, in tokens, from `sentence_bert_config.json`."""
    path = folder / "sentence_bert_config.json" if folder is not None else None
    if path is None or not path.is_file():
        return None
    raw = read_json_object(path)
    longest = raw.get("max_seq_length")
    if raw.get("do_lower_case"):
        raise CheckpointError(f"{path}: do_lower_case is not supported", "lower the texts, and set it to false")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise CheckpointError(f"{path}: max_seq_length={longest!r} is not a count", "correct the entry")
    return longest
