"""Exams of classifiers: of texts and pairs, images, clips, and without training (zero-shot)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from plainformer.errors import UsageError, did_you_mean, opt
from plainformer.evaluate.base import Scorer
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams.base import Dropped, Exam, Question, cut_as_in, label_of, short
from plainformer.evaluation.temperature import tempered
from plainformer.train.objectives.base import Column
from plainformer.train.objectives.classify import TextClassification
from plainformer.train.objectives.labels import as_numbers, is_missing, named, several
from plainformer.train.objectives.media import AudioClassification, ImageClassification
from plainformer.train.objectives.words import text_of

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

SCORERS = {"single_label": "single-label", "multi_label": "multi-label", "regression": "regression"}


class LabelExam(Exam):
    """One label, several, or numbers, as the head of the model says."""

    calibrates = True

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        config = self.task.config
        self.problem = config.head.problem or ("single_label" if len(config.labels) > 1 else "regression")
        self.labels = config.labels
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        if self.temperature != 1.0 and self.problem == "regression":
            raise UsageError(
                f"{opt('temperature', self.temperature)}: a regression has no probabilities", "leave it out"
            )

    def right(self, row: Mapping[str, Any]) -> Any:
        """Return what is right: a label, a list of labels, or numbers. Raises Dropped, UsageError."""
        value = row.get("label")
        if is_missing(value) and not (value == "" and self.problem == "multi_label"):
            raise Dropped("no label")
        if self.problem == "single_label":
            return label_of(named(value), self.labels, self.numbers)
        if self.problem == "multi_label":
            return [label_of(name, self.labels, self.numbers) for name in several(value)]
        numbers = np.atleast_1d(as_numbers(value)).astype(float)
        if len(numbers) != len(self.labels):
            what = f"a row has {len(numbers)} numbers to predict, and the model gives {len(self.labels)}"
            raise UsageError(what, "every row needs as many")
        if not np.isfinite(numbers).all():
            raise Dropped("a number to predict that is not finite")
        return float(numbers[0]) if len(numbers) == 1 else numbers.tolist()

    def answer(self, question: Question, result: Any) -> Any:
        scores = [one.score for one in result.scores]
        if self.problem == "regression":
            return scores[0] if len(scores) == 1 else scores
        chances = tempered(scores, self.temperature, together=self.problem == "single_label")
        if self.problem == "multi_label":
            chosen = [label for label, chance in zip(self.labels, chances, strict=True) if chance > 0.5]
            return {"labels": chosen, "probabilities": chances}
        return {"label": result.label, "probabilities": chances}

    def scorer(self) -> Scorer:
        plain = self.problem == "regression" and len(self.labels) == 1
        return make_scorer(SCORERS[self.problem], **({} if plain else {"labels": self.labels}))


class TextLabels(LabelExam):
    """A text, or a pair of texts."""

    columns: ClassVar[tuple[Column, ...]] = TextClassification.columns

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        return cut_as_in(run, known)

    def question(self, row: Mapping[str, Any]) -> Question:
        reference, text = self.right(row), text_of(row)
        if row.get("text_pair") is None:
            return Question(text, reference, short(text))
        pair = text_of(row, "text_pair")
        return Question((text, pair), reference, short([text, pair]))

    def lost(self, question: Question) -> int:
        texts = question.value
        return self.over(texts) if isinstance(texts, str) else self.over(*texts)


class ImageLabels(LabelExam):
    """An image."""

    columns: ClassVar[tuple[Column, ...]] = ImageClassification.columns

    def question(self, row: Mapping[str, Any]) -> Question:
        return Question(media(row, "image"), self.right(row), said_media(row, "image"))


class ClipLabels(LabelExam):
    """A clip."""

    columns: ClassVar[tuple[Column, ...]] = AudioClassification.columns

    def question(self, row: Mapping[str, Any]) -> Question:
        return Question(media(row, "audio"), self.right(row), said_media(row, "audio"))


class ZeroShotLabels(Exam):
    """A text, and which of the labels that the caller gives is right."""

    columns: ClassVar[tuple[Column, ...]] = TextClassification.columns
    calibrates = True

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.options.multi_label:
            what = f"{opt('multi_label')} gives each label a probability of its own, and rows have one label each"
            raise UsageError(what, "leave it out")

    def question(self, row: Mapping[str, Any]) -> Question:
        if is_missing(row.get("label")):
            raise Dropped("no label")
        label, labels = named(row["label"]), list(self.options.labels)
        if label not in labels:
            what = f"the label {label!r} is none of those given"
            raise UsageError(what, did_you_mean(label, labels) or f"give each: {opt('labels', ...)}")
        return Question(text_of(row), label, short(row["text"]))

    def answer(self, question: Question, result: Any) -> Any:
        known = {one.label: one.score for one in result.scores}
        chances = tempered([known[label] for label in self.options.labels], self.temperature)
        return {"label": result.label, "probabilities": chances}

    def scorer(self) -> Scorer:
        return make_scorer("single-label", labels=tuple(self.options.labels))


def media(row: Mapping[str, Any], name: str) -> Any:
    """Return a clip or an image as the task reads it: a path, bytes, or an array. Raises Dropped."""
    value = row.get(name)
    if value is None:
        raise Dropped(f"no {name}")
    if isinstance(value, Mapping) and "array" not in value:  # inside a parquet file
        value = value.get("bytes") or value.get("path")
        if value is None:
            raise Dropped(f"no {name}")
    return str(value) if isinstance(value, str) else value


def said_media(row: Mapping[str, Any], name: str) -> str:
    """Return a clip or an image for people: its file, where it has one."""
    value = row.get(name)
    if isinstance(value, Mapping):
        value = value.get("path") or name
    return value if isinstance(value, str) else f"{name} {getattr(value, 'shape', '')}".strip()
