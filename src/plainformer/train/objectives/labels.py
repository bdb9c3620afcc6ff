"""What objectives share whose examples have one answer each: a class, several classes, or numbers.

Shapes: B batch, T positions, C classes (or numbers to predict), M numbers that a metric is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plainformer.config.scaling import Scaling
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, a_type, did_you_mean, opt
from plainformer.train.losses import binary_losses, huber_losses, label_losses, squared_losses, wide
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped, Labels, Loss, Metric, Objective

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import LossConfig, TrainConfig
    from plainformer.model.transformer import Transformer

LABEL = Column(
    "label",
    ("labels", "class", "category", "target", "sentiment"),
    help="A label, a list of them, or a number.",
    target=True,
)
METRICS = {
    "single_label": (Metric("accuracy"), Metric("loss", "lower")),
    "multi_label": (Metric("f1", evaluated="f1_micro"), Metric("loss", "lower")),
    "regression": (Metric("loss", "lower"), Metric("mean_absolute_error", "lower")),
}


class LabelObjective(Objective):
    """An objective whose model gives (B, C) scores. An example has `label`: a class, C of 0 and 1, or C numbers.

    Attributes:
        problem: "single_label" (cross entropy), "multi_label" (binary cross entropy of each class) or "regression"
            (squared error): what the model's head says.
        scaling: of a regression's numbers; the loss is that of scaled ones, errors are in the data's units.
    """

    metrics: ClassVar[tuple[Metric, ...]] = METRICS["single_label"]

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        self.problem = model.head.problem or "single_label"
        self.scaling: Scaling | None = model.head.scaling
        check_loss(config.loss, self.problem)
        self.metrics = METRICS[self.problem]  # type: ignore[misc]
        self.distils = self.problem == "single_label"
        self.labels, self.classes = model.labels, model.head.out_size
        self.numbers = {label: number for number, label in enumerate(model.labels)}

    @classmethod
    def labels_of(cls, config: TrainConfig, rows: Iterable[Mapping[str, Any]]) -> Labels:
        """Return the labels that are asked for, else those that rows have, sorted: numbers by their values."""
        problem = config.model.problem or "single_label"
        if config.data.labels:
            return Labels(tuple(config.data.labels), problem)
        values = (row["label"] for row in rows if not is_missing(row.get("label")))
        if problem == "regression":
            count = len(np.atleast_1d(as_numbers(next(values, 0.0))))
            return Labels(tuple(f"LABEL_{number}" for number in range(count)), problem)
        read = several if problem == "multi_label" else lambda value: [named(value)]
        names = in_order({name for value in values for name in read(value)})
        if problem == "single_label" and len(names) == 1:
            what = f"all rows that are learnt from have one label, {names[0]!r}, which makes every answer the same"
            raise UsageError(what, f"give rows of other labels, or name all labels in {opt('data.labels')}")
        return Labels(names, problem)

    def answer(self, row: Mapping[str, Any]) -> npt.NDArray[Any]:
        """Return what is to be learnt of a row: (1,) whole for one class, else (C,) of numbers. Raises Dropped."""
        value = row.get("label")
        if is_missing(value) and not (value == "" and self.problem == "multi_label"):
            raise Dropped("no label")
        if self.problem == "single_label":
            return np.array([place_of(named(value), self.numbers)], dtype=np.int64)
        if self.problem == "multi_label":
            found = np.zeros(self.classes, dtype=np.float32)
            found[[place_of(name, self.numbers) for name in several(value)]] = 1.0
            return found
        numbers = np.atleast_1d(as_numbers(value))
        if len(numbers) != self.classes:
            what = f"a row has {len(numbers)} numbers to predict, and the model gives {self.classes}"
            raise UsageError(what, "every row needs as many")
        if not np.isfinite(numbers).all():
            raise Dropped("a number to predict that is not finite")
        return numbers

    def targets(self, examples: Iterable[Arrays]) -> dict[str, Tensor]:
        """Return the labels of a batch, (B,) or (B, C)."""
        values = np.stack([example["label"] for example in examples])
        if self.scaling is not None:
            values = (values.astype(np.float64) - self.scaling.offset) / self.scaling.scale
        labels = torch.from_numpy(values)
        return {"labels": labels[:, 0].long() if self.problem == "single_label" else labels.float()}

    def scores(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the model's answers, (B, C) fp32."""
        logits = model(**batch.inputs, only_logits=True).logits
        assert logits is not None
        return wide(logits)

    def losses(self, scores_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row in evaluation, (B,): of several classes or numbers their mean."""
        if self.problem == "single_label":
            return label_losses(scores_BC, labels)
        if self.problem == "multi_label":
            return binary_losses(scores_BC, labels)
        return squared_losses(scores_BC, labels)

    def learnt_losses(self, scores_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row in training, (B,), as `loss` says."""
        how = self.config.loss
        if self.problem == "single_label":
            return label_losses(scores_BC, labels, how.label_smoothing, self.robust)
        if self.problem == "multi_label":
            return binary_losses(scores_BC, labels, self.robust)
        return huber_losses(scores_BC, labels, how.delta) if how.kind == "huber" else squared_losses(scores_BC, labels)

    def scored(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the scores of the labels, (B, C)."""
        return self.scores(model, batch)

    def scored_losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each row, (B,)."""
        return self.learnt_losses(scores, batch.targets["labels"])

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        return Loss(self.learnt_losses(self.scores(model, batch), batch.targets["labels"]))

    @torch.no_grad()
    def statistics(self, model: Transformer, batch: Batch) -> npt.NDArray[np.float64]:
        """Return each row's loss, 1, and what its metric is made of.

        One class: whether it is right. Several: how many are right, found and true. Numbers: their mean absolute error, in
        the data's units.
        """
        scores_BC, labels = self.scores(model, batch), batch.targets["labels"]
        losses_B = self.losses(scores_BC, labels).double()
        columns = [torch.ones_like(losses_B)]
        if self.problem == "single_label":
            columns += [(scores_BC.argmax(-1) == labels).double()]
        elif self.problem == "multi_label":
            found, true = scores_BC > 0, labels > 0.5
            columns += [(found & true).sum(-1).double(), found.sum(-1).double(), true.sum(-1).double()]
        else:
            apart_BC = (scores_BC.double() - labels.double()).abs()
            if self.scaling is not None:
                apart_BC = apart_BC * apart_BC.new_tensor(self.scaling.scale)
            columns += [apart_BC.mean(-1)]
        return torch.stack([losses_B, *columns], -1).cpu().numpy()

    def measured(self, sums: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return the mean loss of a row, and accuracy, micro-averaged F1, or the mean absolute error."""
        loss, labels, *more = (float(value) for value in sums)
        mean = {"loss": loss / labels if labels else math.nan}
        if self.problem == "multi_label":
            right, found, true = more
            return {**mean, "f1": 2 * right / (found + true) if found + true else math.nan}
        name = "accuracy" if self.problem == "single_label" else "mean_absolute_error"
        return {**mean, name: more[0] / labels if labels else math.nan}

    def said_label(self, example: Arrays) -> str:
        """Return an example's answer for people."""
        values = example["label"]
        if self.problem == "regression":
            return ", ".join(f"{value:g}" for value in values)
        numbers = [int(values[0])] if self.problem == "single_label" else np.flatnonzero(values).tolist()
        return ", ".join(self.labels[number] if number < len(self.labels) else str(number) for number in numbers)


def check_loss(config: LossConfig, problem: str) -> None:
    """Refuse a loss that is not of this problem, which may be known by the checkpoint alone."""
    numbers = problem == "regression"
    named = f"the problem is {problem.replace('_', ' ')}"
    if config.kind != "usual" and numbers != (config.kind == "huber"):
        known = (
            f"{opt('loss.kind', 'huber')}" if numbers else f"{opt('loss.kind', 'focal')} or {opt('loss.kind', 'gce')}"
        )
        why = "has no probability of a label" if numbers else "has no distance of numbers"
        raise UsageError(f"{opt('loss.kind', config.kind)} cannot be: {named}, which {why}", f"give {known}")
    no_effect(config.label_smoothing > 0 and problem != "single_label", "loss.label_smoothing", f"where {named}")


def is_missing(value: Any) -> bool:
    """Return whether a row has nothing where its label should be: tables write that as not a number, too."""
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    )


def place_of(name: str, numbers: Mapping[str, int]) -> int:
    """Return the place of a label; a whole number is the place itself where no label is a number. `numbers`: label → place."""
    if name in numbers:
        return numbers[name]
    if name.isdecimal() and int(name) < len(numbers) and not any(label.isdecimal() for label in numbers):
        return int(name)
    known = did_you_mean(name, numbers) or f"known: {', '.join(list(numbers)[:20])} ..."
    fix = f"{known}; labels that rows of train lack are named in {opt('data.labels')}, with all others"
    raise UsageError(f"the model has no label {name!r}", fix)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return labels sorted; numbers by their values."""
    known = list(names)
    return tuple(sorted(known, key=int) if known and all(name.isdecimal() for name in known) else sorted(known))


def named(value: Any) -> str:
    """Return a label as the text that names it: 0 and "0" are the same, and so are true and "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int | float) or hasattr(value, "item"):
        return str(value).strip()
    fix = f"give one label a row; several are for {opt('model.problem', 'multi_label')}"
    raise UsageError(f"a label is {a_type(value)}", fix)


def several(value: Any) -> list[str]:
    """Return a list of labels, or those that a text has between commas."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return [name for name in map(named, parts) if name]


def as_numbers(value: Any) -> npt.NDArray[np.float32]:
    """Return a number, or a list of them."""
    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        fix = f"numbers are for {opt('model.problem', 'regression')}; classes for single_label"
        raise UsageError(f"the label {value!r} is not a number", fix) from None
