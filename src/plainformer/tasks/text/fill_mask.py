"""Fill-mask: words for the gaps in a text (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import InputError, UsageError, nth
from plainformer.tasks.base import Task, best
from plainformer.tasks.calls import called_with
from plainformer.tasks.html import bars
from plainformer.tasks.results import Result
from plainformer.tasks.text.options import FillMaskOptions

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class Candidate:
    """A word for a gap: its text and id, the whole text with this gap filled; `score` is its probability, 0 to 1."""

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

    def lines(self) -> list[str]:
        return [f"{one.score:.4f}  {one.token}  {one.text}" for one in self.candidates]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each candidate."""
        return [{"start": self.start, "end": self.end, **asdict(one)} for one in self.candidates]

    def _repr_html_(self) -> str:
        return bars([(one.text, one.score) for one in self.candidates])


class FillMask(Task):
    """A text with mask tokens → a tuple of its gaps, each with its candidates."""

    __call__ = called_with(FillMaskOptions, tuple[FilledMask, ...])

    def encode(self, inputs: Sequence[str], options: FillMaskOptions) -> tuple[Sequence[str], TextBatch]:
        mask_id = self.tokenizer.mask_id
        if mask_id is None:
            raise UsageError(f"the tokenizer of {self.ref} has no mask token", "load a masked language model")
        mask = self.tokenizer.id_to_token(mask_id)
        batch = self.encode_texts(inputs, truncate=options.truncate, max_length=options.max_length)
        for place, (text, row) in enumerate(zip(inputs, batch.encodings, strict=True)):
            if mask_id not in row.input_ids:
                cut = options.truncate and str(mask) in text
                what = "the mask token was cut off" if cut else "no mask token"
                fix = "shorten the text before it" if cut else f"write {mask} where a word is missing"
                raise InputError(f"{what} in {nth(place)}, {text[:60]!r}", fix)
        return inputs, batch

    def predict(self, encoded: tuple[Sequence[str], TextBatch], options: FillMaskOptions) -> Tensor:
        """Probabilities for every gap of the batch, (gaps, V), row after row."""
        inputs = self.model_inputs(encoded[1])
        logits_BTV: Tensor = self.model(**inputs).logits
        gaps_BT = (inputs["input_ids"] == self.tokenizer.mask_id) & inputs["attention_mask"].bool()
        return logits_BTV[gaps_BT].float().softmax(-1)

    def decode(
        self, encoded: tuple[Sequence[str], TextBatch], predicted: Tensor, options: FillMaskOptions
    ) -> list[tuple[FilledMask, ...]]:
        texts, batch = encoded
        count = min(options.top_k, predicted.size(-1))
        ids = [best(row_V, count) for row_V in predicted]
        ranked = iter([(row_V[own].tolist(), own.tolist()) for row_V, own in zip(predicted, ids, strict=True)])
        results = []
        for text, row in zip(texts, batch.encodings, strict=True):
            spans = [
                span for token, span in zip(row.input_ids, row.offsets, strict=True) if token == self.tokenizer.mask_id
            ]
            results.append(tuple(self._gap(text, span, *next(ranked)) for span in spans))
        return results

    def _gap(self, text: str, span: tuple[int, int], scores: list[float], ids: list[int]) -> FilledMask:
        start, end = span
        # RoBERTa's mask token takes the space before it along; the space belongs to the text, not to the gap.
        start += len(text[start:end]) - len(text[start:end].lstrip())
        candidates = []
        for score, token_id in zip(scores, ids, strict=True):
            word = self.tokenizer.decode(self.tokenizer.known([token_id])).strip()
            filled = text[:start] + word + text[end:]
            candidates.append(Candidate(word, score, token_id, filled))
        return FilledMask(start, end, tuple(candidates))
