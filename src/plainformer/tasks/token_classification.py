"""Token classification: a label for each token of a text, with its place (named entities, parts of speech)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from plainformer.tasks.base import Result, Task

if TYPE_CHECKING:
    from plainformer.inputs.text import TextBatch


@dataclass(frozen=True)
class TokenLabel(Result):
    """The best label of one token, its probability, and where the token stands: `text` is the input's [start:end]."""

    label: str
    score: float
    text: str
    start: int
    end: int


class TokenClassification(Task):
    """A text → a tuple with a `TokenLabel` for each of its tokens, special tokens left out."""

    def encode(self, inputs: Sequence[str], *, truncate: bool = False) -> tuple[Sequence[str], TextBatch]:
        return inputs, self.encode_texts(inputs, truncate=truncate)

    def predict(self, encoded: tuple[Sequence[str], TextBatch]) -> Tensor:
        """Probabilities of the labels, (B, T, C)."""
        logits_BTC: Tensor = self.model(**self.model_inputs(encoded[1])).logits
        return logits_BTC.float().softmax(-1)

    def decode(self, encoded: tuple[Sequence[str], TextBatch], predicted: Tensor) -> list[tuple[TokenLabel, ...]]:
        texts, batch = encoded
        best = predicted.max(-1)
        results = []
        for index, (text, row) in enumerate(zip(texts, batch.encodings, strict=True)):
            real = batch.attention_mask[index].bool()
            scores, labels = (part[index].cpu()[real].tolist() for part in (best.values, best.indices))
            tokens = zip(labels, scores, row.offsets, row.special, strict=True)
            results.append(
                tuple(
                    TokenLabel(self.config.labels[label], score, text[start:end], start, end)
                    for label, score, (start, end), special in tokens
                    if not special
                )
            )
        return results
