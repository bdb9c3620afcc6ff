"""Multiple choice: which of several texts goes best with a prompt (Zellers et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import InputError, nth, placed
from plainformer.tasks.base import TwoPartTask
from plainformer.tasks.calls import called_with
from plainformer.tasks.html import bars
from plainformer.tasks.options import TextOptions
from plainformer.tasks.results import Result
from plainformer.tasks.rows import by_tokens

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class Choice(Result):
    """The best choice: its place and text. `score` is its probability, 0 to 1, among all; `scores` theirs, in the order given."""

    index: int
    text: str
    score: float
    scores: tuple[float, ...]

    def lines(self) -> list[str]:
        return [f"{self.text}  {self.score:.4f}"]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row: the best choice, and the score of each in a column of its own."""
        scores = {f"scores.{place}": score for place, score in enumerate(self.scores)}
        return [{"index": self.index, "text": self.text, "score": self.score, **scores}]

    def _repr_html_(self) -> str:
        return bars([(self.text if place == self.index else f"[{place}]", s) for place, s in enumerate(self.scores)])


class MultipleChoice(TwoPartTask):
    """A (prompt, [choices]) tuple, or a dict {"prompt", "choices"} → the choice that fits best."""

    parts = ("prompt", "choices")
    __call__ = called_with(TextOptions, Choice)

    def fits(self, first: Any, second: Any) -> bool:
        return isinstance(first, str) and isinstance(second, list | tuple)

    def encode(self, inputs: Sequence[Any], options: TextOptions) -> tuple[list[tuple[str, ...]], TextBatch]:
        questions = [self._question(item, place) for place, item in enumerate(inputs)]
        pairs = [(prompt, choice) for prompt, choices in questions for choice in choices]
        with placed([place for place, (_, choices) in enumerate(questions) for _ in choices]):
            batch = self.encode_texts(pairs, truncate=options.truncate, max_length=options.max_length, pairs=True)
        return [choices for _, choices in questions], batch

    def _question(self, item: Any, place: int) -> tuple[str, tuple[str, ...]]:
        prompt, choices = self.parts_of(item, place)
        if not choices:
            raise InputError(f"{nth(place)}, {prompt[:60]!r}, has no choices", "give at least one")
        return prompt, tuple(choices)

    def predict(self, encoded: tuple[list[tuple[str, ...]], TextBatch], options: TextOptions) -> Tensor:
        """A logit for each choice of each prompt, (choices in all,).

        Every choice is scored by itself, so the batch's choices pass as those of one prompt, however many each has.
        """

        def run(rows: dict[str, Tensor]) -> Tensor:
            one = {name: value[None] for name, value in rows.items()}
            logits: Tensor = self.model(**one, only_logits=True).logits
            return logits[0].float()

        return by_tokens(self.model_inputs(encoded[1]), run)

    def decode(
        self, encoded: tuple[list[tuple[str, ...]], TextBatch], predicted: Tensor, options: TextOptions
    ) -> list[Choice]:
        results = []
        for choices, logits in zip(encoded[0], predicted.split([len(c) for c in encoded[0]]), strict=True):
            scores = logits.softmax(-1).tolist()
            index = max(range(len(scores)), key=scores.__getitem__)
            results.append(Choice(index, choices[index], scores[index], tuple(scores)))
        return results
