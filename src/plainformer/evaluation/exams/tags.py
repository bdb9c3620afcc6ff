"""The exam of token classification: a tag for each word, however long the sentence is.

The words are joined by spaces, as in training, and the task reads that text, in windows where it is long. A word's tag is that
of its first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from plainformer.config.tag_schemes import OUTSIDE, has_scheme
from plainformer.config.values import no_effect
from plainformer.evaluate.base import Scorer
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams.base import Exam, Question, label_of, short, window_of
from plainformer.inputs.text.words import trimmed
from plainformer.train.objectives.base import Column
from plainformer.train.objectives.token import TokenClassification, tagged_words

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig


class Tags(Exam):
    """Words and their tags."""

    columns: ClassVar[tuple[Column, ...]] = TokenClassification.columns
    unit: ClassVar[str] = "sentence"

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        aggregation, self.scheme = self.options.aggregation, self.options.scheme
        no_effect(aggregation not in (None, "none"), "aggregation", "on words that are given")
        self.options = self.options.changed(aggregation="none", scheme=None)
        self.labels = self.task.config.labels
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.nothing = OUTSIDE if OUTSIDE in self.numbers else self.labels[0]

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        return window_of(run)

    def question(self, row: Mapping[str, Any]) -> Question:
        pairs = tagged_words(row)
        text = " ".join(word for word, _ in pairs)
        right = [label_of(tag, self.labels, self.numbers) for _, tag in pairs]
        return Question(text, right, short(text), [word for word, _ in pairs])

    def answer(self, question: Question, result: Any) -> Any:
        return word_tags(question.value, question.about, result, self.nothing)

    def shown(self, question: Question, answer: Any) -> Mapping[str, Any]:
        return {"words": question.about}

    def scorer(self) -> Scorer:
        if has_scheme(self.labels):
            return make_scorer("entities", labels=self.labels, scheme=self.scheme)
        no_effect(self.scheme is not None, "scheme", ": these labels mark no entities")
        return make_scorer("tags", labels=self.labels)


def word_tags(text: str, words: Sequence[str], tokens: Sequence[Any], nothing: str) -> list[str]:
    """Return the tag of each word: that of the first token that begins in it; `nothing` of a word without a token.

    Args:
        text: the words, joined by spaces. tokens: with start, end and label.
    """
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    found: dict[int, str] = {}
    for token in tokens:
        start, end = trimmed(text, token.start, token.end)
        if start < end:
            found.setdefault(int(np.searchsorted(starts, start, side="right")) - 1, token.label)
    return [found.get(number, nothing) for number in range(len(words))]
