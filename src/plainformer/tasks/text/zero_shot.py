"""Zero-shot classification: labels that a model never saw, by asking whether the text entails them (Yin et al. 2019).

A model of natural language inference reads the text as the premise and "This example is LABEL." as the hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.tasks.base import LabelScore
from plainformer.tasks.legacy import LegacyTask
from plainformer.tasks.text.classification import Classification
from plainformer.tasks.text.pairs import encode_pairs, pair_logits

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch

TEMPLATE = "This example is {}."


@dataclass(frozen=True)
class RankedLabels(Classification):
    """The best label with its probability; `scores` has all labels, best first."""


class ZeroShotClassification(LegacyTask):
    """A text → which of the labels given fits it best, by a model with an entailment label.

    Options:
        labels: what to choose from, a list of texts; required.
        template: the hypothesis; `{}` in it is where a label goes.
        multi_label: False: the labels exclude each other, and their probabilities sum to 1 (a softmax over the labels'
            entailment logits). True: each holds or not by itself (entailment against contradiction); so it is, too,
            where there is a single label.
        truncate: cut the end of a text that is too long; the hypothesis stays whole.
    Scores equal those of the reference's pipeline (transformers 5.23) for its label orders; where the checkpoint names its
    contradiction label, that name counts, and not its place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entailment = self._find("entail")
        if self.entailment is None:
            raise UsageError(
                f"{self.ref or 'this checkpoint'} has no entailment label: it has {', '.join(self.config.labels)}",
                "take a checkpoint of natural language inference (MNLI, XNLI)",
            )
        found = self._find("contra")
        # As in the reference where it is not named: the first label, or the last where entailment is the first.
        self.contradiction = found if found is not None else len(self.config.labels) - 1 if self.entailment == 0 else 0

    def _find(self, beginning: str) -> int | None:
        places = (i for i, label in enumerate(self.config.labels) if label.lower().startswith(beginning))
        return next(places, None)

    def encode(
        self,
        inputs: Sequence[Any],
        *,
        labels: Sequence[str] | None = None,
        template: str = TEMPLATE,
        truncate: bool = False,
    ) -> TextBatch:
        """One row for each label of each text, in order."""
        names = check_labels(labels)
        if not isinstance(template, str) or "{}" not in template:
            raise UsageError(f"template={template!r} has no place for a label", f"put {{}} into it: {TEMPLATE!r}")
        for text in inputs:
            if not isinstance(text, str):
                raise InputError(f"a {type(text).__name__} is not an input for {self.name}", f"give {self.reads()}")
            if not text.strip():
                raise InputError(f"{text!r} is an empty text: there is nothing to classify", "leave empty texts out")
        pairs = [(text, template.replace("{}", name)) for text in inputs for name in names]
        return encode_pairs(self, pairs, truncate=truncate, shortened=0)

    def predict(self, encoded: TextBatch) -> Tensor:
        """Logits, (texts x labels, C)."""
        return pair_logits(self, encoded)

    def decode(
        self,
        encoded: TextBatch,
        predicted: Tensor,
        *,
        labels: Sequence[str] | None = None,
        multi_label: bool = False,
    ) -> list[RankedLabels]:
        names = check_labels(labels)
        if not isinstance(multi_label, bool):
            raise UsageError(f"multi_label={multi_label!r} is neither True nor False", "give multi_label=True")
        logits_BLC = predicted.unflatten(0, (-1, len(names)))
        if multi_label or len(names) == 1:
            scores_BL = logits_BLC[..., [self.contradiction, self.entailment]].softmax(-1)[..., 1]
        else:
            scores_BL = logits_BLC[..., self.entailment].softmax(-1)
        results = []
        for row in scores_BL.tolist():
            pairs = sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])
            scores = tuple(LabelScore(name, score) for name, score in pairs)
            results.append(RankedLabels(scores[0].label, scores[0].score, scores))
        return results


def check_labels(labels: Any) -> tuple[str, ...]:
    """Labels to choose from: a list of different texts."""
    if labels is None or isinstance(labels, str) or not isinstance(labels, Sequence):
        given = "is missing" if labels is None else f"is a {type(labels).__name__}, not a list"
        raise UsageError(f"labels {given}: there is nothing to choose from", 'give labels=["politics", "sports"]')
    if not labels:
        raise UsageError("labels is an empty list: there is nothing to choose from", "give at least one")
    for place, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise UsageError(f"labels[{place}] is {label!r}, not a text with words", "give words for each label")
        if label in labels[:place]:
            raise UsageError(f"labels has {label!r} twice", "give each label once")
    return tuple(labels)
