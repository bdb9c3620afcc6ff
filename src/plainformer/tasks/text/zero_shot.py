"""Zero-shot classification: labels that a model never saw, by asking whether the text entails them (Yin et al. 2019).

A model of natural language inference reads the text as the premise and "This example is LABEL." as the hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import InputError, UsageError, did_you_mean, nth, opt
from plainformer.tasks.base import Task
from plainformer.tasks.calls import called_with
from plainformer.tasks.results import LabelScore
from plainformer.tasks.text.classification import Classification
from plainformer.tasks.text.options import ZeroShotOptions
from plainformer.tasks.text.pairs import pair_batch, pair_logits

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class RankedLabels(Classification):
    """The best label; `scores` has all labels, best first.

    score: the label's probability, 0 to 1: among the labels given, or with `multi_label` by itself.
    """


class ZeroShotClassification(Task):
    """A text → which of the labels given fits it best, by a model with an entailment label; see `ZeroShotOptions`.

    Scores equal those of transformers' pipeline (5.23) for its label orders; where the checkpoint names its
    contradiction label, that name counts, and not its place.
    """

    __call__ = called_with(ZeroShotOptions, RankedLabels)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.config.labels) < 2:
            what = f"{self.ref} has no entailment label: it has {', '.join(self.config.labels)}"
            raise UsageError(what, "take a checkpoint of natural language inference (MNLI, XNLI)")
        self.entailment = self._find("entail")

    def _find(self, beginning: str) -> int | None:
        places = (i for i, label in enumerate(self.config.labels) if label.lower().startswith(beginning))
        return next(places, None)

    def checked(self, inputs: Any, options: ZeroShotOptions) -> Any:
        self._places(options)
        return inputs

    def _places(self, options: ZeroShotOptions) -> tuple[int, int]:
        """Return the places of the contradiction's label and of the entailment's.

        Raises:
            UsageError: no label is the entailment's, or none has the name that is given.
        """
        labels, given = self.config.labels, options.entailment_label
        if given is not None and given not in labels:
            what = f"{opt('entailment_label', given)} is not a label of this model"
            raise UsageError(what, did_you_mean(given, labels) or f"it has {', '.join(labels[:12])}")
        place = self.entailment if given is None else labels.index(given)
        if place is None:
            what = f"{self.ref} has no label that begins with 'entail': it has {', '.join(labels[:12])}"
            fix = "take a checkpoint of natural language inference (MNLI, XNLI)"
            raise UsageError(what, f"{fix}, or say which one it is: {opt('entailment_label', ...)}")
        found = self._find("contra")
        # As in transformers where it is not named: the first label, or the last where entailment is the first.
        return (found if found is not None else len(labels) - 1 if place == 0 else 0), place

    def encode(self, inputs: Sequence[Any], options: ZeroShotOptions) -> TextBatch:
        """One row for each label of each text, in order."""
        for place, text in enumerate(inputs):
            if not isinstance(text, str):
                raise self.not_an_input(text, place)
            if not text.strip():
                raise InputError(f"{nth(place)}, {text!r}, is empty: there is nothing to classify", "leave it out")
        pairs = [(text, options.template.replace("{}", name)) for text in inputs for name in options.labels]
        places = [place for place in range(len(inputs)) for _ in options.labels]
        return pair_batch(self, pairs, options, places, shortened=0)

    def predict(self, encoded: TextBatch, options: ZeroShotOptions) -> Tensor:
        """Logits, (texts x labels, C)."""
        return pair_logits(self, encoded)

    def decode(self, encoded: TextBatch, predicted: Tensor, options: ZeroShotOptions) -> list[RankedLabels]:
        names = options.labels
        logits_BLC = predicted.unflatten(0, (-1, len(names)))
        contradiction, entailment = self._places(options)
        if options.multi_label or len(names) == 1:
            scores_BL = logits_BLC[..., [contradiction, entailment]].softmax(-1)[..., 1]
        else:
            scores_BL = logits_BLC[..., entailment].softmax(-1)
        results = []
        for row in scores_BL.tolist():
            pairs = sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])
            scores = tuple(LabelScore(name, score) for name, score in pairs)
            results.append(RankedLabels(scores[0].label, scores[0].score, scores))
        return results
