"""Token classification: labels of a text's tokens, with their places (parts of speech), or the entities that they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from plainformer.config.tag_schemes import check_scheme, has_scheme, read_tags
from plainformer.config.values import no_effect
from plainformer.errors import opt
from plainformer.inputs.text.encoding import Encoding
from plainformer.inputs.text.windows import counted, window_size
from plainformer.inputs.text.words import characters, trimmed, words
from plainformer.tasks.base import Task
from plainformer.tasks.calls import called_with
from plainformer.tasks.html import marked
from plainformer.tasks.lengths import text_limit, usual_length
from plainformer.tasks.results import Result, listed, pandas
from plainformer.tasks.text.options import TokenClassificationOptions

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class LabelledSpan(Result):
    """A label and what it is of: `text` is the input's [start:end]; `score` is the label's probability, 0 to 1."""

    label: str
    score: float
    text: str
    start: int
    end: int

    def lines(self) -> list[str]:
        return [f"{self.label}  {self.score:.4f}  {self.text!r} [{self.start}:{self.end}]"]


@dataclass(frozen=True)
class TokenLabel(LabelledSpan):
    """The best label of one token."""


@dataclass(frozen=True)
class Entity(LabelledSpan):
    """An entity: `label` is its type, `score` the mean probability of its words' labels, 0 to 1."""


class Spans(tuple[LabelledSpan, ...]):
    """The entities, or the labelled tokens, of one text, in order; a notebook shows them in their text."""

    text: str

    @classmethod
    def of(cls, text: str, spans: Iterable[LabelledSpan]) -> Spans:
        """Return the spans of a text."""
        made = cls(spans)
        made.text = text
        return made

    def __repr__(self) -> str:
        return f"Spans({listed(f'{one.text!r} {one.label} {one.score:.2f}' for one in self)})"

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each."""
        return [one.to_dict() for one in self]

    def to_dataframe(self) -> pd.DataFrame:
        """Return the spans as a pandas DataFrame."""
        return pandas().DataFrame(self.rows(), columns=["label", "score", "text", "start", "end"])

    def _repr_html_(self) -> str:
        return marked(self.text, [(one.start, one.end, one.label) for one in self])


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text, special ones left out, as the windows over it see them together.

    Attributes:
        spans: (start, end) of each in the text. word_ids: see `Encoding`. scores_NC: the probability of each label.
    """

    text: str
    spans: list[tuple[int, int]]
    word_ids: list[int | None]
    scores_NC: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Windows:
    """Texts, their windows as one batch, and how many tokens neighbouring windows share."""

    texts: Sequence[str]
    batch: TextBatch
    overlap: int


class TokenClassification(Task):
    """A text → a tuple with an `Entity` for each it holds, or with a `TokenLabel` for each of its tokens.

    Texts of any length: what does not fit the model is read in overlapping windows, and of two windows that hold a token
    the one counts that has more of the text around it. See `TokenClassificationOptions`.
    """

    __call__ = called_with(TokenClassificationOptions, Spans)

    def checked(self, inputs: Any, options: TokenClassificationOptions) -> Any:
        check_scheme(options.scheme, self.config.labels)
        idle = options.scheme is not None and self._aggregation(options) == "none"
        fix = f"leave it out, or give {opt('aggregation', 'simple')}"
        no_effect(idle, "scheme", ": these labels mark no entities", fix)
        idle = options.stride is not None and self._size(options) is None
        no_effect(idle, "stride", ": this model has no limit", f"give {opt('window')} too, or leave it out")
        return inputs

    def _size(self, options: TokenClassificationOptions) -> int | None:
        """Return the tokens of a window; None where nothing limits it."""
        limit = text_limit(self.config, self.tokenizer.max_length)
        return window_size(options.window, limit, usual_length(self.config, self.tokenizer))

    def _aggregation(self, options: TokenClassificationOptions) -> str:
        return options.aggregation or ("first" if has_scheme(self.config.labels) else "none")

    def encode(self, inputs: Sequence[str], options: TokenClassificationOptions) -> Windows:
        size = self._size(options)
        overlap = size // 4 if options.stride is None and size is not None else options.stride
        return Windows(inputs, self.encode_texts(inputs, window=size, stride=overlap), overlap or 0)

    def predict(self, encoded: Windows, options: TokenClassificationOptions) -> Tensor:
        """Probabilities of the labels, (B, T, C), a row for each window."""
        return self.logits_of(encoded.batch, wide=True).softmax(-1)

    def decode(self, encoded: Windows, predicted: Tensor, options: TokenClassificationOptions) -> list[Spans]:
        batch, how = encoded.batch, self._aggregation(options)
        rows = iter(zip(batch.encodings, predicted.numpy(), batch.attention_mask.bool().numpy(), strict=True))
        results = []
        for text, count in zip(encoded.texts, batch.counts, strict=True):
            tokens = _joined(text, [next(rows) for _ in range(count)], encoded.overlap)
            found = self._labels(tokens) if how == "none" else self._entities(tokens, how, options.scheme)
            results.append(Spans.of(text, found))
        return results

    def _labels(self, tokens: Tokens) -> tuple[TokenLabel, ...]:
        best = tokens.scores_NC.argmax(-1).tolist()
        scores = tokens.scores_NC.max(-1).tolist()
        return tuple(
            TokenLabel(self.config.labels[label], score, tokens.text[start:end], start, end)
            for label, score, (start, end) in zip(best, scores, tokens.spans, strict=True)
        )

    def _entities(self, tokens: Tokens, how: str, scheme: str | None) -> tuple[Entity, ...]:
        text = tokens.text
        every = [trimmed(text, *span) for span in tokens.spans]
        ranks = [rank for rank, (start, end) in enumerate(every) if start < end]
        spans = [every[rank] for rank in ranks]
        if how == "simple":
            groups = characters(spans)
        else:
            groups = words(text, spans, [tokens.word_ids[rank] for rank in ranks])
        scores = [_scores(tokens.scores_NC[[ranks[own] for own in group]], how) for group in groups]
        best = [int(row.argmax()) for row in scores]
        found = []
        for first, end, kind in read_tags([self.config.labels[label] for label in best], scheme):
            start = spans[groups[first][0]][0]
            stop = max(spans[own][1] for group in groups[first:end] for own in group)
            mean = float(np.mean([scores[place][best[place]] for place in range(first, end)]))
            found.append(Entity(kind, mean, text[start:stop], start, stop))
        return tuple(found)


def _scores(scores_NC: npt.NDArray[np.float32], how: str) -> Any:
    """Return the probabilities of a word's labels from its tokens', (C,)."""
    if how == "average":
        return scores_NC.mean(0)
    if how == "max":
        return scores_NC[scores_NC.max(-1).argmax()]
    return scores_NC[0]


def _joined(text: str, windows: Sequence[tuple[Encoding, Any, Any]], overlap: int) -> Tokens:
    """Return the windows over a text as one row of tokens, each from the window in which it is farther from the edge."""
    spans: list[tuple[int, int]] = []
    word_ids: list[int | None] = []
    scores = []
    places = counted([row for row, _, _ in windows], overlap)
    for (row, predicted_TC, mask_T), kept in zip(windows, places, strict=True):
        spans += [row.offsets[place] for place in kept]
        word_ids += [row.word_ids[place] for place in kept]
        scores.append(predicted_TC[mask_T][kept])
    return Tokens(text, spans, word_ids, np.concatenate(scores))
