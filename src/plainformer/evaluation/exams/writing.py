"""Exams of tasks that write a text which is compared with the right one: text to text, and answers in a chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plainformer.evaluate.base import Scorer
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams.base import Dropped, Exam, Question, short
from plainformer.tasks.lengths import least
from plainformer.train.objectives.base import Column
from plainformer.train.objectives.instruction import InstructionTuning, messages_of
from plainformer.train.objectives.seq2seq import SequenceToSequence
from plainformer.train.objectives.words import text_of

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig


class Rewriting(Exam):
    """A source and its target: a summary, a translation."""

    columns: ClassVar[tuple[Column, ...]] = SequenceToSequence.columns

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        if run is None:
            return {}
        data = run.data
        given: dict[str, Any] = {
            "prefix": data.prefix,
            "src_lang": data.source_language,
            "tgt_lang": data.target_language,
        }
        given |= {"max_new_tokens": data.max_target_length, "truncate": data.too_long in (None, "cut") or None}
        return {name: value for name, value in given.items() if value is not None and name in known}

    def question(self, row: Mapping[str, Any]) -> Question:
        source, target = text_of(row, "source"), text_of(row, "target")
        return Question(source, target, short(source))

    def answer(self, question: Question, result: Any) -> Any:
        return result.text

    def scorer(self) -> Scorer:
        return make_scorer("text")

    def lost(self, question: Question) -> int:
        return self.over(self.task.prefix_of(self.options) + question.value)  # type: ignore[attr-defined]


class ChatAnswers(Exam):
    """A conversation up to the assistant's last message, which is what is right; or a prompt and its response.

    A model without a chat template continues the prompt.
    """

    columns: ClassVar[tuple[Column, ...]] = InstructionTuning.columns
    unit: ClassVar[str] = "conversation"

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        return {}

    def question(self, row: Mapping[str, Any]) -> Question:
        messages = [dict(message) for message in messages_of(row)]
        last = next((n for n in reversed(range(len(messages))) if messages[n].get("role") == "assistant"), None)
        if not last:
            raise Dropped("no answer to a message")
        right, before = messages[last].get("content"), messages[:last]
        if not isinstance(right, str) or not right:
            raise Dropped("an answer without text")
        asked = str(before[-1].get("content", ""))
        if self.task.tokenizer.has_chat_template:
            return Question(before, right, short(asked))
        if len(before) > 1:
            raise Dropped("several messages, and the model has no chat template")
        return Question(asked, right, short(asked))

    def answer(self, question: Question, result: Any) -> Any:
        return result.text

    def scorer(self) -> Scorer:
        return make_scorer("text", main="exact_match")

    def lost(self, question: Question) -> int:
        task: Any = self.task
        most = least(task.config.main_stack.max_positions, task.tokenizer.max_length)
        if most is None:
            return 0
        return max(0, len(task.row_of(question.value, self.options, any_length=True)) - most)
