"""The exam of masked language models: what they find for tokens that are hidden.

Hidden are the tokens that training would hide (15 %, of which 80 % become the mask token), chosen by what a text holds: the same
in each evaluation, in any order. The loss is the mean over hidden tokens. It is not the pseudo-perplexity, for which each token
is hidden by itself (Salazar et al. 2020), and is not comparable with a causal model's loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from plainformer.config.training import DataConfig, SourceConfig, StartConfig, TrainConfig
from plainformer.errors import InputError
from plainformer.evaluate.base import Scorer
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams.base import Dropped, Exam, Question, short, window_of
from plainformer.tasks.base import Task
from plainformer.tasks.lengths import usual_length
from plainformer.tasks.options import TaskOptions, WindowOptions
from plainformer.tasks.results import Skipped
from plainformer.train.draws import generator
from plainformer.train.objectives.base import Arrays, Column
from plainformer.train.objectives.masked import MaskedLanguageModel
from plainformer.train.objectives.words import TEXT, text_of

if TYPE_CHECKING:
    from plainformer.train.objectives.base import Batch

SEED = 0


class HiddenTokens(Exam):
    """A text, of any length: what is long is read in windows, in each of which tokens are hidden."""

    columns: ClassVar[tuple[Column, ...]] = (TEXT,)
    unit: ClassVar[str] = "text"
    stated: ClassVar[str] = "loss of the tokens that are hidden, 15 % of each text; it is not a pseudo-perplexity"

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        task, options = self.task, self.options
        window = options.window or usual_length(task.config, task.tokenizer)
        config = self.run or TrainConfig(
            objective="masked-lm",
            folder="-",
            model=StartConfig(ref=task.ref),
            data=DataConfig(train=SourceConfig(path="-")),
        )
        data = replace(config.data, max_length=window, stride=options.stride or 0, too_long="window")
        self.objective = MaskedLanguageModel(replace(config, data=data), task.config, task.tokenizer)

    @classmethod
    def options_class(cls, task: type[Task]) -> type[TaskOptions]:
        return WindowOptions

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        return window_of(run)

    def question(self, row: Mapping[str, Any]) -> Question:
        text = text_of(row)
        return Question(text, None, short(text))

    def answers(self, values: Iterator[Any]) -> Iterator[Any]:
        batch: list[str] = []
        for text in values:
            batch.append(text)
            if len(batch) == self.options.batch_size:
                yield from self._answered(batch)
                batch = []
        yield from self._answered(batch)

    def _answered(self, texts: list[str]) -> list[Any]:
        """Return of each text the loss, number and right answers of hidden tokens, (3,)."""
        encoded: list[list[Arrays] | Dropped] = []
        for text in texts:
            try:
                encoded.append(self.objective.encode({"text": text}).examples)
            except Dropped as dropped:
                encoded.append(dropped)
        windows = [
            (place, number, example)
            for place, examples in enumerate(encoded)
            if not isinstance(examples, Dropped)
            for number, example in enumerate(examples)
        ]
        sums = np.zeros((len(texts), 3))
        size = self.options.batch_size
        for start in range(0, len(windows), size):
            part = windows[start : start + size]
            draws = [generator(SEED, _number(texts[place]), number) for place, number, _ in part]
            batch = self.objective.collate([[example] for *_, example in part], draws)
            for (place, *_), row in zip(part, self._statistics(batch), strict=True):
                sums[place] += row
        return [
            Skipped(place, InputError(one.reason)) if isinstance(one, Dropped) else sums[place].tolist()
            for place, one in enumerate(encoded)
        ]

    @torch.inference_mode()
    def _statistics(self, batch: Batch) -> Any:
        device = self.task.model.device
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        targets = {name: value.to(device) for name, value in batch.targets.items()}
        return self.objective.statistics(self.task.model, replace(batch, inputs=inputs, targets=targets))

    def answer(self, question: Question, result: Any) -> Any:
        loss, hidden, right = result
        return {"nats": loss, "tokens": int(hidden), "right": int(right)}

    def scorer(self) -> Scorer:
        return make_scorer("masked")


def _number(text: str) -> int:
    """Return a number that a text alone decides."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
