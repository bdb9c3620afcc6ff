"""Fill-mask: words for the gaps in a text (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.tasks.base import Result, Task, check_top_k

if TYPE_CHECKING:
    from plainformer.inputs.text import TextBatch


@dataclass(frozen=True)
class Candidate:
    """A word for a gap: its probability, its id, its text, and the whole text with this gap filled."""

    token: str
    score: float
    token_id: int
    text: str


@dataclass(frozen=True)
class FilledMask(Result):
    """The candidates for one gap, `text[start:end]`, best first."""

    start: int
    end: int
    candidates: tuple[Candidate, ...]


class FillMask(Task):
    """A text with mask tokens → a list of gaps, each with its candidates."""

    def encode(self, inputs: Sequence[str], *, truncate: bool = False) -> tuple[Sequence[str], TextBatch]:
        mask_id = self.tokenizer.mask_id
        if mask_id is None:
            raise UsageError(f"the tokenizer of {self.ref or 'this model'} has no mask token", "load a masked language model")
        batch = self.encode_texts(inputs, truncate=truncate)
        for text, row in zip(inputs, batch.encodings, strict=True):
            if mask_id not in row.input_ids:
                raise InputError(
                    f"no mask token in {text[:60]!r}", f"write {self.tokenizer.id_to_token(mask_id)} where a word is missing"
                )
        return inputs, batch

    def predict(self, encoded: tuple[Sequence[str], TextBatch]) -> Tensor:
        logits = self.model(**self.model_inputs(encoded[1])).logits
        return logits.softmax(-1)  # type: ignore[union-attr]

    def decode(
        self, encoded: tuple[Sequence[str], TextBatch], predicted: Tensor, *, top_k: int = 5
    ) -> list[tuple[FilledMask, ...]]:
        texts, batch = encoded
        top_k = check_top_k(top_k, predicted.size(-1))
        results = []
        for index, (text, row) in enumerate(zip(texts, batch.encodings, strict=True)):
            columns = batch.attention_mask[index].nonzero()[:, 0].tolist()
            gaps = [place for place, token in enumerate(row.input_ids) if token == self.tokenizer.mask_id]
            best = [predicted[index, columns[gap]].topk(top_k) for gap in gaps]
            results.append(
                tuple(self._gap(text, row.offsets[gap], b.values, b.indices) for gap, b in zip(gaps, best, strict=True))
            )
        return results

    def _gap(self, text: str, span: tuple[int, int], scores: Tensor, ids: Tensor) -> FilledMask:
        start, end = span
        candidates = []
        for score, token_id in zip(scores.tolist(), ids.tolist(), strict=True):
            word = self.tokenizer.decode([token_id]).strip()
            filled = text[:start] + word + text[end:]
            candidates.append(Candidate(word, score, token_id, filled))
        return FilledMask(start, end, tuple(candidates))
