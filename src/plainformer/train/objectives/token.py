"""Token classification: a label for each word, learnt at the word's first token (Devlin et al. 2019, section 5.3).

Shapes: N labels, C classes, M numbers that a metric is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plainformer.config.tag_schemes import OUTSIDE, has_scheme, read_tags
from plainformer.errors import InputError, UsageError, a_type, opt
from plainformer.inputs.text.windows import windows
from plainformer.inputs.text.words import trimmed
from plainformer.train.losses import label_losses, wide
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped, Encoded, Labels, Loss, Metric, Objective
from plainformer.train.objectives.collate import NONE, Ids, label_targets, row_sums
from plainformer.train.objectives.labels import in_order, named, place_of
from plainformer.train.objectives.reading import Reading, single, tokens_of
from plainformer.train.objectives.words import labelled_states

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.inputs.text.encoding import Encoding
    from plainformer.model.transformer import Transformer


class TokenClassification(Objective):
    """Words and their tags. The words are joined by spaces, as the trained model will read them in a text.

    A word is learnt once, in the first window that has it, at its first token; the others have no label. An example is
    `input_ids` and `labels` with NONE where there is none.
    """

    distils = True
    name = "token-classification"
    head = "token"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("tokens", ("words",), help="A list of words."),
        Column("tags", ("ner_tags", "labels", "pos_tags"), help="A list of tags, one for each word.", target=True),
    )

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        self.reading = Reading.of(config, model, processor)
        self.labels = model.labels
        self.numbers = {label: number for number, label in enumerate(model.labels)}
        self.entities = has_scheme(model.labels)
        first = (Metric("f1"), Metric("accuracy")) if self.entities else (Metric("accuracy"),)
        self.metrics = (*first, Metric("loss", "lower"))  # type: ignore[misc]

    @classmethod
    def labels_of(cls, config: TrainConfig, rows: Iterable[Mapping[str, Any]]) -> Labels:
        """Return the tags that are asked for, else those that rows have: O first, the others sorted."""
        if config.data.labels:
            return Labels(tuple(config.data.labels))
        found = {named(tag) for row in rows for tag in row.get("tags") or ()}
        outside = (OUTSIDE,) if OUTSIDE in found else ()
        return Labels((*outside, *in_order(found - {OUTSIDE})))

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a sentence as one example, or as windows where it is too long."""
        pairs = tagged_words(row)
        text = " ".join(word for word, _ in pairs)
        whole = self.processor.encode(text, max_length=None)
        labels = self._labels(text, whole, pairs)
        if not (labels != NONE).any():
            raise Dropped("no word has a token")
        if self.reading.limit is None or len(whole) <= self.reading.limit:
            return Encoded([self._example(whole, labels)])
        if self.too_long == "window":
            return Encoded(list(self._windows(whole, labels)))
        kept, cut = self.reading.fitted(whole)
        places = _places(whole, kept)
        return Encoded([self._example(kept, labels[places])], cut)

    def _labels(self, text: str, row: Encoding, pairs: Sequence[tuple[str, str]]) -> Ids:
        """Return each token's label: a word's tag at the first token that begins in it."""
        found = np.full(len(row), NONE, dtype=np.int64)
        starts = np.cumsum([0, *(len(word) + 1 for word, _ in pairs)])
        done: set[int] = set()
        for place, ((start, end), special) in enumerate(zip(row.offsets, row.special, strict=True)):
            start, end = trimmed(text, start, end)
            if special or start >= end:
                continue
            word = int(np.searchsorted(starts, start, side="right")) - 1
            if word not in done:
                done.add(word)
                found[place] = place_of(pairs[word][1], self.numbers)
        return found

    def _windows(self, row: Encoding, labels: Ids) -> Iterable[Arrays]:
        left = labels.copy()
        assert self.reading.limit is not None
        for places in windows(row.sequence_ids, self.reading.limit, self.config.data.stride):
            own = left[places]
            left[places] = NONE
            if (own != NONE).any():
                yield self._example(row.select(places), own)

    def _example(self, row: Encoding, labels: Ids) -> Arrays:
        return {**self.reading.arrays(row), "labels": labels}

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return sentences padded on the right, and where their labels are."""
        examples = single(rows)
        targets = label_targets([example["labels"] for example in examples])
        return Batch(self.reading.inputs(examples), targets, len(targets["labels"]), tokens_of(examples))

    def scores(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the scores of the tokens that have a label, (N, C) fp32."""
        return wide(model.score(labelled_states(model, batch)))

    def scored(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the scores of the tokens that have a label, (N, C)."""
        return self.scores(model, batch)

    def scored_losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each of them, (N,)."""
        return label_losses(scores, batch.targets["labels"], self.config.loss.label_smoothing, self.robust)

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        return Loss(self.scored_losses(self.scores(model, batch), batch), batch.targets["per_row"])

    @torch.no_grad()
    def statistics(self, model: Transformer, batch: Batch) -> npt.NDArray[np.float64]:
        """Return each row's loss, labels, right ones; then entities that are right, found and true, (B, 6)."""
        scores_NC, labels_N, counts = self.scores(model, batch), batch.targets["labels"], batch.targets["per_row"]
        guesses_N = scores_NC.argmax(-1)
        losses = row_sums(label_losses(scores_NC, labels_N).double(), counts)
        right = row_sums((guesses_N == labels_N).double(), counts)
        simple = torch.stack((losses, counts.double(), right), -1).cpu().numpy()
        ends = np.cumsum(counts.tolist())[:-1]
        each = zip(np.split(guesses_N.cpu().numpy(), ends), np.split(labels_N.cpu().numpy(), ends), strict=True)
        return np.concatenate((simple, [self._entities(*pair) for pair in each]), axis=1)

    def _entities(self, guesses: Ids, labels: Ids) -> tuple[int, int, int]:
        """Return how many entities are right, found and true: those of equal words and type, as seqeval counts them."""
        if not self.entities:
            return 0, 0, 0
        found, true = (set(read_tags([self.labels[number] for number in numbers])) for numbers in (guesses, labels))
        return len(found & true), len(found), len(true)

    def measured(self, sums: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return the mean loss of a word, accuracy by words, and F1 of entities where the tags are of such."""
        loss, labels, right, both, found, true = (float(value) for value in sums)
        scores = {"loss": loss / labels if labels else math.nan, "accuracy": right / labels if labels else math.nan}
        if self.entities:
            scores["f1"] = 2 * both / (found + true) if found + true else 0.0
        return scores

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return each token with its word's tag, where it is the first."""
        tokens = self.reading.shown(example["input_ids"])
        return [
            (token, "" if label == NONE else self.labels[label])
            for token, label in zip(tokens, example["labels"], strict=True)
        ]


def tagged_words(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row's words with their tags; words of white space alone are left out. Raises Dropped, InputError."""
    words, tags = as_list_of(row, "tokens"), [named(tag) for tag in as_list_of(row, "tags")]
    if len(words) != len(tags):
        what = f"a row has {len(words)} words and {len(tags)} tags"
        raise InputError(what, "each word needs one tag; is a column missing in a line?")
    pairs = [(word.strip(), tag) for word, tag in zip(words, tags, strict=True) if word.strip()]
    if not pairs:
        raise Dropped("no words")
    return pairs


def as_list_of(row: Mapping[str, Any], name: str) -> list[Any]:
    """Return the list that a column holds."""
    value = row.get(name)
    if value is None:
        raise Dropped(f"no {name}")
    if isinstance(value, str) or (not isinstance(value, Sequence) and not hasattr(value, "tolist")):
        raise UsageError(
            f"the column {name!r} holds {a_type(value)}, not a list", f"map another column: {opt('data.columns')}"
        )
    return list(value)


def _places(whole: Encoding, kept: Encoding) -> list[int]:
    """Return which tokens of a row were kept: the special ones, and a run of the others."""
    if len(kept) == len(whole):
        return list(range(len(whole)))
    spans = {offsets for offsets, special in zip(kept.offsets, kept.special, strict=True) if not special}
    return [
        place
        for place, (offsets, special) in enumerate(zip(whole.offsets, whole.special, strict=True))
        if special or offsets in spans
    ]
