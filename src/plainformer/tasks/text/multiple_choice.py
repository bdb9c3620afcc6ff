"""Multiple choice: which of several texts goes best with a prompt (Zellers et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import InputError, nth, placed
from plainformer.tasks.base import Result, Task, called_with
from plainformer.tasks.text.options import MultipleChoiceOptions

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class Choice(Result):
    """The best choice: its place, its text, its probability, and the probabilities of all in the order given."""

    index: int
    text: str
    score: float
    scores: tuple[float, ...]

    def lines(self) -> list[str]:
        return [f"{self.text}  {self.score:.4f}"]


class MultipleChoice(Task):
    """A (prompt, [choices]) tuple, or a dict {"prompt", "choices"} → the choice that fits best."""

    __call__ = called_with(MultipleChoiceOptions, Choice)

    def is_one(self, inputs: Any) -> bool:
        if isinstance(inputs, Mapping):
            return True
        shape = isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], str)
        return shape and isinstance(inputs[1], list | tuple)

    def encode(self, inputs: Sequence[Any], options: MultipleChoiceOptions) -> tuple[list[tuple[str, ...]], TextBatch]:
        questions = [self._question(item, place) for place, item in enumerate(inputs)]
        pairs = [(prompt, choice) for prompt, choices in questions for choice in choices]
        with placed([place for place, (_, choices) in enumerate(questions) for _ in choices]):
            batch = self.encode_texts(pairs, truncate=options.truncate, pairs=True)
        return [choices for _, choices in questions], batch

    def _question(self, item: Any, place: int) -> tuple[str, tuple[str, ...]]:
        if isinstance(item, Mapping) and set(item) == {"prompt", "choices"}:
            item = (item["prompt"], item["choices"])
        if isinstance(item, Mapping) or not self.is_one(item) or not all(isinstance(c, str) for c in item[1]):
            what = f"{nth(place)}, {str(item)[:60]!r}, is not a prompt with choices"
            raise InputError(what, "give a (prompt, [choice, ...]) tuple")
        if not item[1]:
            raise InputError(f"{nth(place)}, {item[0][:60]!r}, has no choices", "give at least one")
        return item[0], tuple(item[1])

    def predict(self, encoded: tuple[list[tuple[str, ...]], TextBatch], options: MultipleChoiceOptions) -> Tensor:
        """A logit for each choice of each prompt, (choices in all,).

        Every choice is scored by itself, so the batch's choices pass as those of one prompt, however many each has.
        """
        inputs = {name: value[None] for name, value in self.model_inputs(encoded[1]).items()}
        logits: Tensor = self.model(**inputs, only_logits=True).logits
        return logits[0].float()

    def decode(
        self, encoded: tuple[list[tuple[str, ...]], TextBatch], predicted: Tensor, options: MultipleChoiceOptions
    ) -> list[Choice]:
        results = []
        for choices, logits in zip(encoded[0], predicted.split([len(c) for c in encoded[0]]), strict=True):
            scores = logits.softmax(-1).tolist()
            index = max(range(len(scores)), key=scores.__getitem__)
            results.append(Choice(index, choices[index], scores[index], tuple(scores)))
        return results
