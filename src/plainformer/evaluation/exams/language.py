"""The exam of language models: how many nats a document takes; its perplexity, and bits for each byte of it.

Each document alone, with the beginning token where the tokenizer adds one. Every token is scored once, after as many of the
tokens before it as a window holds; without a beginning token nothing predicts the first one, and its bytes do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plainformer.errors import InputError, PlainformerError, UsageError, opt
from plainformer.evaluate.base import Scorer
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams.base import Exam, Question, short, window_of
from plainformer.tasks.base import Task
from plainformer.tasks.lengths import least
from plainformer.tasks.options import TaskOptions, WindowOptions
from plainformer.tasks.results import Skipped
from plainformer.train.objectives.base import Column
from plainformer.train.objectives.words import TEXT, text_of

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig
    from plainformer.tasks.writing.scoring import ScoredText

_CHARACTERS = 8192  # of the documents that run at once: logits take memory for every token and word of the vocabulary


class Perplexity(Exam):
    """A document."""

    columns: ClassVar[tuple[Column, ...]] = (TEXT,)
    unit: ClassVar[str] = "document"

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        config = self.task.config
        most = config.main_stack.max_positions
        usual = least(most, self.task.tokenizer.max_length, config.trained_positions)
        window, stride = self.options.window, self.options.stride
        if window is not None and most is not None and window > most:
            raise UsageError(f"{opt('window', window)} is more than this model's limit of {most} tokens", "give less")
        self.window = window or usual
        if self.window is not None and stride is not None and stride >= self.window:
            what = f"windows of {self.window} tokens cannot share {opt('stride', stride)} of them"
            raise UsageError(what, "give a smaller stride")
        self.shared = stride if stride is not None else 0 if self.window is None else self.window // 2

    @classmethod
    def options_class(cls, task: type[Task]) -> type[TaskOptions]:
        return WindowOptions

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        return window_of(run)

    def question(self, row: Mapping[str, Any]) -> Question:
        text = text_of(row)
        return Question(text, text, short(text))

    def answers(self, values: Iterator[Any]) -> Iterator[Any]:
        batch: list[str] = []
        for text in values:
            if batch and (len(batch) >= self.options.batch_size or sum(map(len, batch)) + len(text) > _CHARACTERS):
                yield from self._scored(batch)
                batch = []
            batch.append(text)
        yield from self._scored(batch)

    def _scored(self, texts: list[str]) -> list[Any]:
        task: Any = self.task
        lengths = {} if self.window is None else {"stride": self.window - self.shared, "max_length": self.window}
        try:
            return list(task.score(texts, **lengths))
        except InputError as error:
            if len(texts) > 1:
                return [one for text in texts for one in self._scored([text])]
            return [Skipped(0, self._reason(error))]

    def _reason(self, error: PlainformerError) -> PlainformerError:
        return InputError("a document of fewer than two tokens", error.fix) if "one token" in error.what else error

    def answer(self, question: Question, result: ScoredText) -> Any:
        """Return the nats of all scored tokens, and their number."""
        return {"nats": -result.log_probability, "tokens": len(result.tokens) - 1}

    def reference(self, question: Question, result: ScoredText) -> int:
        """Return the bytes of what is scored: all but a first token that nothing predicts."""
        first = result.tokens[1].start if result.tokens[0].end > result.tokens[0].start else 0
        return len(question.value[first:].encode("utf-8", "surrogatepass"))

    def scorer(self) -> Scorer:
        return make_scorer("language")
