"""Question answering: the span of a context that answers a question (Rajpurkar et al. 2016, Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import InputError, UsageError, nth, opt, placed
from plainformer.inputs.text.pairs import encode_questions
from plainformer.inputs.text.windows import window_size
from plainformer.tasks.answering.options import QuestionAnsweringOptions
from plainformer.tasks.answering.spans import Answer, Span, Window, by_probability, by_squad
from plainformer.tasks.base import TwoPartTask
from plainformer.tasks.calls import called_with
from plainformer.tasks.lengths import least, text_limit, usual_length

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch

__all__ = ["Answer", "QuestionAnswering", "Questions", "Span"]

WINDOW = 384  # tokens: the default of transformers


@dataclass(frozen=True)
class Questions:
    """Encoded questions.

    Attributes:
        contexts: of each question. ranks: of each window, how many of its context's tokens come before it.
        several: of each input, how many questions it asks, or None for the one that is not in a list.
        batch: all windows; its `counts` are those of each question.
    """

    contexts: tuple[str, ...]
    ranks: tuple[int, ...]
    several: tuple[int | None, ...]
    batch: TextBatch


class QuestionAnswering(TwoPartTask):
    """A question and its context → an `Answer`; several questions about one context → a tuple of them, in order.

    An input is a (question, context) tuple, or {"question": ..., "context": ...}; in place of the question it may have a
    list of them. A list of inputs gives a list of results. All windows of a batch go through the model together.

    A context of any length is read in overlapping windows, each with the whole question (`encode_questions`).

    Results are those of transformers 4.57 (removed in 5), with the options' names there: the pipeline with max_seq_len
    (window), doc_stride (stride), max_answer_len, align_to_words and handle_impossible_answer; and, for "squad",
    `compute_predictions_logits`. The differences:

    - Spans are of the context alone, never white space, and without white space at their ends. The pipeline may name spans
      of probability 0 (too long, backwards, or from the class token) where `top_k` is high; and where padding is on the left
      it takes the question's tokens for the context's.
    - Words of scripts without spaces (Chinese, Japanese, Thai...) are not extended: to some tokenizers they are whole
      sentences.
    - "squad": the text is the context's own; the scripts rebuild it from normalised words. They tokenize word by word and
      cut questions after 64 tokens, we tokenize the text and cut none. Padding is never among the best tokens. Where these
      make no span, the scripts answer "empty", we with the best span.
    """

    parts = ("question", "context")
    # For a list of questions: a tuple of answers.
    __call__ = called_with(QuestionAnsweringOptions, Answer)

    def fits(self, first: Any, second: Any) -> bool:
        questions = first if isinstance(first, list) else [first]
        return all(isinstance(each, str) for each in (*questions, second))

    def checked(self, inputs: Any, options: QuestionAnsweringOptions) -> Any:
        self._size(options)
        if options.threshold is not None and self.tokenizer.cls_id is None:
            what = "this model's tokenizer has no class token, which means 'no answer'"
            raise UsageError(what, f"leave {opt('no_answer')} out")
        return inputs

    def _size(self, options: QuestionAnsweringOptions) -> int:
        """Return the tokens of a window."""
        limit, usual = text_limit(self.config, self.tokenizer.max_length), usual_length(self.config, self.tokenizer)
        return window_size(options.window, limit, least(WINDOW, usual)) or WINDOW

    def encode(self, inputs: Sequence[Any], options: QuestionAnsweringOptions) -> Questions:
        """Return all windows of all questions.

        Raises:
            InputError: an empty question or context, or a question that leaves no room for the context.
        """
        asked = [self._questions(item, place) for place, item in enumerate(inputs)]
        pairs = [(question, context) for questions, context, _ in asked for question in questions]
        size = self._size(options)
        with placed([place for place, (questions, _, _) in enumerate(asked) for _ in questions]):
            rows, ranks = encode_questions(self.tokenizer, pairs, window=size, stride=options.stride)
        several = tuple(len(questions) if is_list else None for questions, _, is_list in asked)
        return Questions(tuple(context for _, context in pairs), tuple(ranks), several, self.tokenizer.pad(rows))

    def predict(self, encoded: Questions, options: QuestionAnsweringOptions) -> Tensor:
        """Start and end logits of all windows, (N, T, 2)."""
        return self.logits_of(encoded.batch, wide=True)

    def decode(
        self, encoded: Questions, predicted: Tensor, options: QuestionAnsweringOptions
    ) -> list[Answer | tuple[Answer, ...]]:
        top_k = min(options.top_k, predicted.size(1) ** 2)
        longest, align, threshold = options.longest, options.alignment, options.threshold
        every = self._windows(encoded, predicted)
        answers = []
        for count in encoded.batch.counts:
            own = [next(every) for _ in range(count)]
            if options.scoring == "squad":
                ranking = by_squad(own, longest=longest, align=align, with_null=threshold is not None)
            else:
                ranking = by_probability(own, top_k=top_k, longest=longest, align=align)
            answers.append(ranking.answer(top_k, threshold, own[0].context))
        rest = iter(answers)
        return [next(rest) if n is None else tuple(next(rest) for _ in range(n)) for n in encoded.several]

    def _windows(self, encoded: Questions, predicted: Tensor) -> Iterator[Window]:
        """Yield every window with its logits."""
        batch = encoded.batch
        contexts = (context for context, n in zip(encoded.contexts, batch.counts, strict=True) for _ in range(n))
        logits = (row[real] for row, real in zip(predicted.double(), batch.attention_mask.bool(), strict=True))
        sequence, class_id = int(self.tokenizer.padding_side != "left"), self.tokenizer.cls_id
        for context, row, own, rank in zip(contexts, batch.encodings, logits, encoded.ranks, strict=True):
            yield Window(context, row, own.numpy(), sequence, class_id, rank)

    def _questions(self, item: Any, place: int) -> tuple[tuple[str, ...], str, bool]:
        """Return an input's questions, their context, and whether they came as a list."""
        if isinstance(item, Mapping) and isinstance(item.get("question"), tuple):
            item = {**item, "question": list(item["question"])}
        question, context = self.parts_of(item, place)
        questions = tuple(question) if isinstance(question, list) else (question,)
        if not questions:
            raise InputError(f"the list of questions of {nth(place)} is empty", "ask at least one")
        for name, text in (*(("question", text) for text in questions), ("context", context)):
            if not text.strip():
                raise InputError(f"the {name} of {nth(place)} is empty", f"give a {name} with words")
        return questions, context, isinstance(question, list)
