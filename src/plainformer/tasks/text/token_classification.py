"""Token classification: labels of a text's tokens, with their places (parts of speech), or the entities that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from plainformer.errors import UsageError, did_you_mean
from plainformer.inputs.text.encoding import Encoding
from plainformer.inputs.text.words import characters, trimmed, words
from plainformer.tasks.base import Result, text_limit
from plainformer.tasks.legacy import LegacyTask
from plainformer.tasks.text.tag_schemes import check_scheme, has_scheme, read_tags

if TYPE_CHECKING:
    import numpy.typing as npt

    from plainformer.inputs.text.tokenizer import TextBatch

AGGREGATIONS = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class TokenLabel(Result):
    """The best label of one token, its probability, and where the token stands: `text` is the input's [start:end]."""

    label: str
    score: float
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Entity(Result):
    """An entity: its type, the mean probability of its words' labels, and its place: `text` is the input's [start:end]."""

    label: str
    score: float
    text: str
    start: int
    end: int


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


class TokenClassification(LegacyTask):
    """A text → a tuple with an `Entity` for each it holds, or with a `TokenLabel` for each of its tokens.

    Texts of any length: what does not fit the model is read in overlapping windows, and of two windows that hold a token
    the one counts that has more of the text around it.
    """

    def encode(self, inputs: Sequence[str], *, window: int | None = None, stride: int | None = None) -> Windows:
        """
        Args:
            window: tokens read at once, special ones included; default: the model's limit.
            stride: tokens that neighbouring windows share; default: a quarter of the window.
        """
        limit = text_limit(self.config, self.tokenizer)
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise UsageError(f"window={window!r} is not a count of tokens", "give window=256, say")
        if window is not None and limit is not None and window > limit:
            raise UsageError(f"window={window} is more than this model's limit of {limit} tokens", "give less")
        size = window or limit
        if size is None and stride is not None:
            raise UsageError("stride has no effect: this model sets no limit", "give window too, or leave it out")
        overlap = size // 4 if stride is None and size is not None else stride
        return Windows(inputs, self.encode_texts(inputs, limit=window, stride=overlap), overlap or 0)

    def predict(self, encoded: Windows) -> Tensor:
        """Probabilities of the labels, (B, T, C), a row for each window."""
        return self.logits_of(encoded.batch).softmax(-1)

    def decode(
        self,
        encoded: Windows,
        predicted: Tensor,
        *,
        aggregation: str | None = None,
        scheme: str | None = None,
    ) -> list[tuple[Any, ...]]:
        """
        Args:
            aggregation: "none" labels each token. The others find entities, by the label of each token ("simple"), or of
                each word: that of its first token, of the mean over its tokens ("average"), or of the token that is most
                certain ("max"). Default: "first", as such models are trained; "none" where labels have no B- or I-.
            scheme: how the labels mark entities, strictly: IOB1, IOB2, IOBES or BILOU. Default: by their prefixes, and
                whatever has a type is part of an entity.
        """
        how = aggregation if aggregation is not None else "first" if has_scheme(self.config.labels) else "none"
        if how not in AGGREGATIONS:
            raise UsageError(
                f"aggregation={how!r} is unknown", did_you_mean(str(how), AGGREGATIONS) or ", ".join(AGGREGATIONS)
            )
        if scheme is not None and how == "none":
            raise UsageError("scheme has no effect with aggregation='none'", "leave one of them out")
        check_scheme(scheme, self.config.labels)
        batch = encoded.batch
        rows = iter(zip(batch.encodings, predicted.numpy(), batch.attention_mask.bool().numpy(), strict=True))
        results = []
        for text, count in zip(encoded.texts, batch.counts, strict=True):
            tokens = _joined(text, [next(rows) for _ in range(count)], encoded.overlap)
            results.append(self._labels(tokens) if how == "none" else self._entities(tokens, how, scheme))
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
        visible = [(rank, trimmed(text, *span)) for rank, span in enumerate(tokens.spans)]
        visible = [(rank, span) for rank, span in visible if span[0] < span[1]]
        spans = [span for _, span in visible]
        ranks = [rank for rank, _ in visible]
        if how == "simple":
            groups = characters(spans)
        else:
            groups = words(text, spans, [tokens.word_ids[rank] for rank in ranks])
        scores = [_scores(tokens.scores_NC[[ranks[own] for own in group]], how) for group in groups]
        best = [int(row.argmax()) for row in scores]
        found = []
        for first, behind, kind in read_tags([self.config.labels[label] for label in best], scheme):
            start = spans[groups[first][0]][0]
            end = max(spans[own][1] for group in groups[first:behind] for own in group)
            mean = float(np.mean([scores[place][best[place]] for place in range(first, behind)]))
            found.append(Entity(kind, mean, text[start:end], start, end))
        return tuple(found)


def _scores(scores_NC: npt.NDArray[np.float32], how: str) -> npt.NDArray[np.float32]:
    """The probabilities of a word's labels from its tokens', (C,)."""
    if how == "average":
        return scores_NC.mean(0)
    if how == "max":
        best: npt.NDArray[np.float32] = scores_NC[scores_NC.max(-1).argmax()]
        return best
    first: npt.NDArray[np.float32] = scores_NC[0]
    return first


def _joined(text: str, windows: Sequence[tuple[Encoding, Any, Any]], overlap: int) -> Tokens:
    """The windows over a text as one row of tokens: each from the window in which it stands farther from the edge."""
    spans: list[tuple[int, int]] = []
    word_ids: list[int | None] = []
    scores = []
    for number, (row, predicted_TC, mask_T) in enumerate(windows):
        own = [place for place, special in enumerate(row.special) if not special]
        first = overlap // 2 if number > 0 else 0
        last = len(own) - (overlap - overlap // 2 if number + 1 < len(windows) else 0)
        kept = own[first:last]
        spans += [row.offsets[place] for place in kept]
        word_ids += [row.word_ids[place] for place in kept]
        scores.append(predicted_TC[mask_T][kept])
    return Tokens(text, spans, word_ids, np.concatenate(scores))
