"""Exams of question answering: extractive and abstractive, and multiple choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from plainformer.errors import UsageError, a_type
from plainformer.evaluate.base import Scorer
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams.base import Dropped, Exam, Question, cut_as_in, excerpt, short, window_of
from plainformer.evaluation.temperature import tempered
from plainformer.train.objectives.base import Column
from plainformer.train.objectives.choice import MultipleChoice, right_choice
from plainformer.train.objectives.span import QuestionAnswering
from plainformer.train.objectives.words import text_of

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig


_NEVER = 1e9  # a threshold that no answer reaches


class Spans(Exam):
    """A question about a context: SQuAD 1.1 where every question has an answer, 2.0 where some have none.

    In 2.0 the answer may be that there is none. The task gives its best span and how far "no answer" outscores it, and the
    scorer applies the threshold of `no_answer` as the task would: so the best threshold can be told, too.
    """

    columns: ClassVar[tuple[Column, ...]] = tuple(
        Column(one.name, one.aliases, one.name != "answers", one.help, one.target) for one in QuestionAnswering.columns
    )
    unit: ClassVar[str] = "paragraph"
    unit_column: ClassVar[str | None] = "context"

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.threshold = self.options.threshold
        if self.threshold is not None:
            self.options = self.options.changed(no_answer=_NEVER)

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        given = window_of(run)
        if run is not None and run.data.stride:
            given["stride"] = run.data.stride
        return given

    @classmethod
    def look(cls, row: Mapping[str, Any], seen: dict[str, Any]) -> None:
        if not seen.get("none") and not answers_of(row.get("answers")):
            seen["none"] = True

    @classmethod
    def seen(cls, seen: Mapping[str, Any]) -> dict[str, Any]:
        return {"no_answer": True} if seen.get("none") else {}

    def question(self, row: Mapping[str, Any]) -> Question:
        question, context = text_of(row, "question"), text_of(row, "context")
        return Question((question, context), answers_of(row.get("answers")), short(question))

    def answer(self, question: Question, result: Any) -> Any:
        if self.threshold is None:
            return {"text": result.text}
        score = result.no_answer_score
        return {"text": result.text, "no_answer_score": score, "given": "" if score > self.threshold else result.text}

    def shown(self, question: Question, answer: Any) -> Mapping[str, Any]:
        return {"context": excerpt(question.value[1], (*question.reference, answer["text"]))}

    def scorer(self) -> Scorer:
        if self.threshold is None:
            return make_scorer("squad", version="1.1")
        return make_scorer("squad", version="2.0", no_answer_scores=True, threshold=self.threshold)


class WrittenAnswers(Exam):
    """A question about a context, answered in the model's own words: SQuAD's exact match and F1 against the answers given."""

    columns: ClassVar[tuple[Column, ...]] = QuestionAnswering.columns
    unit: ClassVar[str] = "paragraph"
    unit_column: ClassVar[str | None] = "context"

    def question(self, row: Mapping[str, Any]) -> Question:
        question, context = text_of(row, "question"), text_of(row, "context")
        right = answers_of(row.get("answers"))
        if not right:
            raise Dropped("no answer")
        return Question((question, context), right, short(question))

    def answer(self, question: Question, result: Any) -> Any:
        return {"text": result.text}

    def shown(self, question: Question, answer: Any) -> Mapping[str, Any]:
        return {"context": excerpt(question.value[1], (*question.reference, answer["text"]))}

    def scorer(self) -> Scorer:
        return make_scorer("squad", version="1.1")

    def lost(self, question: Question) -> int:
        task: Any = self.task
        counts = []
        for truncate in (False, True):
            prompt = task._prompt(question.value, 0, self.options.changed(truncate=truncate))
            text = prompt if isinstance(prompt, str) else prompt[0]["content"]
            counts.append(len(self.task.tokenizer.encode(text, max_length=None)))
        return counts[0] - counts[1]


class Choices(Exam):
    """A text and what may follow it."""

    columns: ClassVar[tuple[Column, ...]] = MultipleChoice.columns
    calibrates = True

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        return cut_as_in(run, known)

    def question(self, row: Mapping[str, Any]) -> Question:
        text, choices = text_of(row), row.get("choices")
        if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
            raise UsageError(f"the column 'choices' holds {a_type(choices)}, not a list of texts", "map it: --columns")
        if len(choices) < 2:
            raise Dropped("fewer than two choices")
        return Question((text, list(choices)), right_choice(row.get("label"), list(choices)), short(text))

    def answer(self, question: Question, result: Any) -> Any:
        return {"label": result.index, "probabilities": tempered(result.scores, self.temperature)}

    def scorer(self) -> Scorer:
        return make_scorer("choice")

    def lost(self, question: Question) -> int:
        text, choices = question.value
        return sum(self.over(text, choice) for choice in choices)


def answers_of(value: Any) -> list[str]:
    """Return the texts of the right answers, in any of the forms that data sets have; none where there is no answer."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, Mapping):
        texts = value.get("text", [])
        return [texts] if isinstance(texts, str) else [str(text) for text in texts]
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        return [text for one in value for text in answers_of(one)]
    fix = 'give {"text", "answer_start"}, a list of them, or texts; map the column: --columns'
    raise UsageError(f"the column 'answers' holds {a_type(value)}", fix)
