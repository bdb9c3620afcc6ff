"""Text classification: a label for a text or a pair of texts; single label, several labels, or a value (regression)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plainformer.config import ModelConfig
from plainformer.tasks.base import Task, is_pair
from plainformer.tasks.calls import called_with
from plainformer.tasks.html import bars
from plainformer.tasks.options import TextOptions
from plainformer.tasks.results import LabelScore, Result

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class Classification(Result):
    """The best label; `scores` has them all, in the checkpoint's order.

    score: the label's probability, 0 to 1: among all labels (softmax), or by itself (sigmoid) where several may hold or
        there is only one. Of a regression the value itself, in the unit that it was trained on.
    """

    label: str
    score: float
    scores: tuple[LabelScore, ...]

    def lines(self) -> list[str]:
        return [f"{self.label}  {self.score:.4f}"]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row: the best label, and the score of each in a column of its own."""
        return [{"label": self.label, "score": self.score, **{f"scores.{o.label}": o.score for o in self.scores}}]

    def _repr_html_(self) -> str:
        return bars([(one.label, one.score) for one in self.scores])


def to_scores(logits_BC: Tensor, config: ModelConfig) -> Tensor:
    """Turn logits into what is reported: probabilities that sum to 1, independent probabilities, or the values themselves."""
    problem = config.head.problem
    if problem == "regression":
        return in_own_units(logits_BC, config)
    if problem == "multi_label" or logits_BC.size(-1) == 1:
        return logits_BC.sigmoid()
    return logits_BC.softmax(-1)


def in_own_units(logits_BC: Tensor, config: ModelConfig) -> Tensor:
    """Return a regression's answers in the units of the data, of a head that was trained on scaled ones."""
    scaling = config.head.scaling
    if scaling is None:
        return logits_BC
    offset_C, scale_C = (torch.tensor(numbers, dtype=torch.float64) for numbers in (scaling.offset, scaling.scale))
    return logits_BC.cpu().double() * scale_C + offset_C


def classify(logits_BC: Tensor, config: ModelConfig) -> list[Classification]:
    """Return one `Classification` for each row."""
    results = []
    for row in to_scores(logits_BC.float(), config).tolist():
        scores = tuple(LabelScore(label, score) for label, score in zip(config.labels, row, strict=True))
        best = max(scores, key=lambda s: s.score)
        results.append(Classification(best.label, best.score, scores))
    return results


class TextClassification(Task):
    """A text, or a (text, pair) tuple → a label with its probability."""

    __call__ = called_with(TextOptions, Classification)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or is_pair(inputs)

    def encode(self, inputs: Sequence[Any], options: TextOptions) -> TextBatch:
        return self.encode_texts(inputs, truncate=options.truncate, max_length=options.max_length, pairs=True)

    def predict(self, encoded: TextBatch, options: TextOptions) -> Tensor:
        """Logits, (B, C)."""
        return self.logits_of(encoded)

    def decode(self, encoded: TextBatch, predicted: Tensor, options: TextOptions) -> list[Classification]:
        return classify(predicted, self.config)
