"""What every objective shares: `encode` a row once, `collate` examples into a batch, compute the `loss`.

Shapes: B batch (rows of a micro-batch), T positions, N labels, C classes, M numbers that a metric is made of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plainformer.config.training import PRETRAINING
from plainformer.evaluate.base import Metric as Metric
from plainformer.train.objectives.collate import row_sums
from plainformer.train.robust import robust_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.model.transformer import Transformer

Arrays = dict[str, npt.NDArray[Any]]  # one example, as the cache keeps it


class Dropped(Exception):
    """A row that cannot be learnt from; the reason is one of few texts, since reports count them ("answer outside text")."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Column:
    """A column that an objective reads: its name, other names that data sets use for it, and whether it must be there.

    `target`: it is what is learnt ("label", "tags", "answers"). Copies are found by all other columns.
    """

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    help: str = ""
    target: bool = False


@dataclass(frozen=True)
class Batch:
    """A micro-batch, made on the CPU by `collate`.

    Attributes:
        inputs: what the model's forward takes, by name.
        targets: what the loss takes besides, by name.
        count: how many labels it has: known before the model runs, because a step's loss is divided by the labels of all
            its micro-batches.
        tokens: real positions (padding not counted), for the speed that is reported.
        examples: the number of each row's first example, for per-example losses.
        noise: what is added to the token vectors of its texts, (R, T, W); None: nothing. See `noise.py`.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    count: int
    tokens: int
    examples: tuple[int, ...] = ()
    noise: Tensor | None = None

    @property
    def passes(self) -> int:
        """Return how often the model runs for it."""
        return 1


@dataclass
class Loss:
    """The loss of a micro-batch.

    Attributes:
        values: the loss of each label, (N,), those of a row next to each other.
        counts: how many of them each row has, (B,); None where each has one.
        labels: how many labels each row has, (B,), where one value is that of several; None: `counts`.
    """

    values: Tensor
    counts: Tensor | None = None
    labels: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Return the sum over labels, ()."""
        return self.values.sum()

    @property
    def per_row(self) -> Tensor:
        """Return the sum of each row's losses, (B,), without a gradient."""
        return self.values.detach() if self.counts is None else row_sums(self.values, self.counts)

    @property
    def labels_per_row(self) -> Tensor:
        """Return how many labels each row has, (B,)."""
        known = self.counts if self.labels is None else self.labels
        return known if known is not None else torch.ones_like(self.values, dtype=torch.int64)

    def of_rows(self, weights_B: Tensor) -> Tensor:
        """Return the sum over labels, each times its row's weight, (); nothing of a GPU's is waited for."""
        if self.counts is None:
            return (self.values * weights_B).sum()
        return (self.values * weights_B.repeat_interleave(self.counts, output_size=len(self.values))).sum()


@dataclass
class Encoded:
    """What a row became: usually one example, several windows of a long text; `cut` counts the tokens that were left out."""

    examples: list[Arrays] = field(default_factory=list)
    cut: int = 0


@dataclass(frozen=True)
class Labels:
    """What a new head tells apart: the labels in order, and what kind of problem it is."""

    names: tuple[str, ...]
    problem: str | None = None  # "single_label", "multi_label" or "regression"; None of heads that know no other


@dataclass(frozen=True)
class SpeechInputs:
    """The processor of an objective that learns text from sound: what reads the sound, and the tokenizer."""

    audio: Any
    tokenizer: Any


class Objective(ABC):
    """One way to learn.

    An objective is made once for a run, of the configuration, the model's configuration and what turns raw input into
    tensors: a tokenizer, a processor of audio or images, or both of speech (`SpeechInputs`).

    Attributes:
        name: in `objective:` of a configuration. head: the kind of head that its model has.
        reads: what its processor is: a tokenizer ("text"), a processor of images or of audio, or both of audio and text
            ("speech": `SpeechInputs`).
        columns: what it reads of a row. packs: whether several examples may share a row.
        distils: whether a teacher can be imitated: `scored` and `scored_losses` say what both models score.
        metrics: what evaluation gives besides the loss; the first chooses the best checkpoint.
        limit: the longest example in tokens, None for any.
        robust: what becomes of a label's cross entropy in training; None: nothing. Evaluation never asks for it.
    """

    name: ClassVar[str]
    head: ClassVar[str]
    reads: ClassVar[str] = "text"
    columns: ClassVar[tuple[Column, ...]]
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("loss", "lower"),)
    packs: ClassVar[bool] = False
    distils: bool = False
    limit: int | None = None

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        self.config, self.model_config, self.processor = config, model, processor
        self.robust = robust_of(config.loss)

    @classmethod
    def labels_of(cls, config: TrainConfig, rows: Iterable[Mapping[str, Any]]) -> Labels | None:
        """Return the labels of a new head, of `data.labels` or found in rows under this objective's names; None: it has none."""
        return None

    @property
    def too_long(self) -> str:
        """Return what becomes of examples that are too long: "cut", "drop" or "window"."""
        return self.config.data.too_long or ("window" if self.name in PRETRAINING else "cut")

    @abstractmethod
    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return the examples of a row, whose columns have this objective's names. Raises Dropped."""

    def length(self, example: Arrays) -> int:
        """Return how many positions an example takes, for batches of like length."""
        return len(example["input_ids"])

    def part(self, example: Arrays, start: int, stop: int | None) -> Arrays:
        """Return the piece of an example from position `start` up to and without `stop` (None: its end), as `collate` takes it."""
        return example if start == 0 and stop is None else {name: array[start:stop] for name, array in example.items()}

    def augmented(
        self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]
    ) -> Sequence[Sequence[Arrays]]:
        """Return rows of examples as they are learnt from this time (`augment`); evaluation does not ask."""
        return rows

    def hidden(self, batch: Batch, draws: Sequence[np.random.Generator]) -> Batch:
        """Return a batch with what is hidden of it this time (SpecAugment); evaluation does not ask."""
        return batch

    @abstractmethod
    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return rows of pieces of examples as tensors; `draws` has one source of random numbers for each row's choices."""

    @abstractmethod
    def loss(self, model: Transformer, batch: Batch) -> Loss:
        """Run the model."""

    def apart(self, batch: Batch) -> Sequence[Batch]:
        """Return a batch as those for each of which the model runs once; their `tokens` do not count."""
        return [batch]

    def texts(self, batch: Batch) -> list[list[int]]:
        """Return which of the texts that the model reads belong to each row: one, where a row is not several choices."""
        return [[row] for row in range(len(batch.inputs["input_ids"]))]

    def scored(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the scores of what has a label, (N, C), in the order of the rows; `targets["per_row"]`, (B,), counts them."""
        raise NotImplementedError

    def scored_losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each of those, (N,)."""
        raise NotImplementedError

    @abstractmethod
    def statistics(self, model: Transformer, batch: Batch) -> npt.NDArray[np.float64]:
        """Return sums for each row, (B, M), of which metrics are made: the first two columns are loss and labels."""

    @abstractmethod
    def measured(self, sums: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return metrics of statistics summed over rows, (M,): "loss" and those of `metrics`."""

    @abstractmethod
    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return an example token by token with what each is to learn, "" for nothing: for people."""
