"""Question answering: the span of a context that answers a question (Rajpurkar et al. 2016, Devlin et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import InputError, UsageError, did_you_mean
from plainformer.inputs.text.windows import windows
from plainformer.tasks.answering.spans import Answer, Span, Window, by_probability, by_squad
from plainformer.tasks.base import check_top_k, text_limit
from plainformer.tasks.legacy import LegacyTask

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Encoding, TextBatch

__all__ = ["Answer", "QuestionAnswering", "Questions", "Span"]

WINDOW, STRIDE = 384, 128  # tokens: the reference's defaults
MAX_ANSWER_TOKENS = {"probability": 15, "squad": 30}  # of the pipeline, and of run_squad.py
ALIGN = {"probability": "words", "squad": "tokens"}


@dataclass(frozen=True)
class Questions:
    """Encoded questions.

    Attributes:
        contexts: of each question. ranks: of each window, how many of its context's tokens stand before it.
        several: of each input, how many questions it asks, or None for the one that is not in a list.
        batch: all windows; its `counts` are those of each question.
    """

    contexts: tuple[str, ...]
    ranks: tuple[int, ...]
    several: tuple[int | None, ...]
    batch: TextBatch


class QuestionAnswering(LegacyTask):
    """A question and its context → an `Answer`; several questions about one context → a tuple of them, in order.

    An input is a (question, context) tuple, or {"question": ..., "context": ...}; in place of the question it may have a
    list of them. A list of inputs gives a list of results. All windows of a batch go through the model together.

    A context of any length is read in overlapping windows, which all hold the whole question. The question stands first;
    where the tokenizer pads on the left, the context does, as such models are trained (`run_qa.py` of transformers).
    """

    def is_one(self, inputs: Any) -> bool:
        if isinstance(inputs, Mapping):
            return True
        if not isinstance(inputs, tuple) or len(inputs) != 2 or not isinstance(inputs[1], str):
            return False
        return isinstance(inputs[0], str) or (
            isinstance(inputs[0], list) and all(isinstance(q, str) for q in inputs[0])
        )

    def encode(self, inputs: Sequence[Any], *, window: int | None = None, stride: int | None = None) -> Questions:
        """
        Args:
            window: tokens read at once, those of the question and special ones included; default: 384, or the model's
                limit if that is less. A shorter context is one window.
            stride: tokens of the context that neighbouring windows share; default: 128, at most half a window, and half
                the room that a long question leaves. (`doc_stride` of run_squad.py is the distance between windows: room
                less stride.)
        Raises:
            UsageError: a window beyond the model's limit, or of no more than `stride`.
            InputError: an empty question or context, or a question that leaves no room for the context.
        """
        asked = [self._questions(item) for item in inputs]
        pairs = [(question, context) for questions, context, _ in asked for question in questions]
        size = self._window(window)
        _check_stride(stride, size)
        on_left = self.tokenizer.padding_side == "left"
        texts = [(context, question) if on_left else (question, context) for question, context in pairs]
        rows, ranks = [], []
        for (_, context), row in zip(pairs, self.tokenizer.encode_batch(texts, max_length=None), strict=True):
            spans = zip(row.offsets, row.sequence_ids, strict=True)
            if not any(
                own == (not on_left) and context[slice(*span)].strip() for span, own in spans if own is not None
            ):
                raise InputError(f"the context {context[:60]!r} has no tokens", "give a context with words")
            pieces = list(_cut(row, int(not on_left), size, stride))
            rows.append(replace(pieces[0][0], overflow=tuple(piece for piece, _ in pieces[1:])))
            ranks += [rank for _, rank in pieces]
        several = tuple(len(questions) if is_list else None for questions, _, is_list in asked)
        return Questions(tuple(context for _, context in pairs), tuple(ranks), several, self.tokenizer.pad(rows))

    def predict(self, encoded: Questions) -> Tensor:
        """Start and end logits of all windows, (N, T, 2)."""
        return self.logits_of(encoded.batch)

    def decode(
        self,
        encoded: Questions,
        predicted: Tensor,
        *,
        top_k: int = 1,
        max_answer_tokens: int | None = None,
        scoring: str = "probability",
        align: str | None = None,
        no_answer: bool | float = False,
    ) -> list[Answer | tuple[Answer, ...]]:
        """
        Args:
            top_k: how many spans an answer names, fewer where there are fewer.
            max_answer_tokens: the longest span; default: 15 with scoring="probability", 30 with "squad".
            scoring: what a span's score is. "probability": P(start) * P(end) within its window, where the context's
                tokens and the class token share the probability; spans of the same text in any case are one, and their
                scores add up, over windows too, so that the sum may exceed 1. What adds up are the best spans of each
                window: 2 * top_k + 10 of them with align="words", else top_k; so `top_k` may change a score. "squad":
                the probability within the list of the 20 best spans by start + end logit over all windows, each token
                counting in the window where it has most context; its `top_k` names at most these.
            align: "words" extends an answer to whole words, as the tokenizer cuts them; "tokens" does not. Default:
                "words" with scoring="probability", "tokens" with "squad".
            no_answer: whether the answer may be that there is none: text "", start 0, end 0. True: where "no answer",
                the class token's span, scores higher than the best span. A number: by more than that, in the unit of
                `Answer.no_answer_score` (`null_score_diff_threshold` of run_squad.py); negative ones favour "no answer".
        Raises:
            UsageError: a value out of range; `no_answer` of a tokenizer that has no class token.

        Results are those of transformers 4.57 (removed in 5), with the options' names there: the pipeline with max_seq_len
        (window), doc_stride (stride), max_answer_len, align_to_words and handle_impossible_answer; and, for "squad",
        `compute_predictions_logits`. The differences:

        - Spans are of the context alone, never white space, and without white space at their ends. The pipeline may
          name spans of probability 0 (too long, backwards, or from the class token) where `top_k` is high; and where
          padding is on the left it takes the question's tokens for the context's.
        - Words of scripts without spaces (Chinese, Japanese, Thai...) are not extended: to some tokenizers they are whole
          sentences.
        - "squad": the text is the context's own; the scripts rebuild it from normalised words. They tokenize word by
          word and cut questions after 64 tokens, we tokenize the text and cut none. Padding cannot be among the best
          tokens. Where none of these makes a span, the scripts answer "empty", we with the best span.
        """
        top_k = check_top_k(top_k, predicted.size(1) ** 2)
        longest, align = _decoding(scoring, max_answer_tokens, align)
        threshold = self._threshold(no_answer)
        every = self._windows(encoded, predicted)
        answers = []
        for count in encoded.batch.counts:
            own = [next(every) for _ in range(count)]
            if scoring == "squad":
                ranking = by_squad(own, longest=longest, align=align, with_null=threshold is not None)
            else:
                ranking = by_probability(own, top_k=top_k, longest=longest, align=align)
            answers.append(ranking.answer(top_k, threshold))
        rest = iter(answers)
        return [next(rest) if n is None else tuple(next(rest) for _ in range(n)) for n in encoded.several]

    def _windows(self, encoded: Questions, predicted: Tensor) -> Iterator[Window]:
        """Every window with its logits."""
        batch = encoded.batch
        contexts = (context for context, n in zip(encoded.contexts, batch.counts, strict=True) for _ in range(n))
        logits = (row[real] for row, real in zip(predicted.double(), batch.attention_mask.bool(), strict=True))
        sequence, class_id = int(self.tokenizer.padding_side != "left"), self.tokenizer.cls_id
        for context, row, own, rank in zip(contexts, batch.encodings, logits, encoded.ranks, strict=True):
            yield Window(context, row, own.numpy(), sequence, class_id, rank)

    def _questions(self, item: Any) -> tuple[tuple[str, ...], str, bool]:
        """An input's questions, their context, and whether they came as a list."""
        if isinstance(item, Mapping) and set(item) == {"question", "context"}:
            question = item["question"]
            item = (list(question) if isinstance(question, tuple) else question, item["context"])
        if isinstance(item, Mapping) or not self.is_one(item):
            raise InputError(
                f"{str(item)[:60]!r} is not a question with its context",
                'give a (question, context) tuple, or {"question": ..., "context": ...}',
            )
        question, context = item
        questions = tuple(question) if isinstance(question, list) else (question,)
        if not questions:
            raise InputError("the list of questions is empty", "ask at least one")
        for name, text in (*(("question", text) for text in questions), ("context", context)):
            if not text.strip():
                raise InputError(f"the {name} is empty", f"give a {name} with words")
        return questions, context, isinstance(question, list)

    def _window(self, window: int | None) -> int:
        """The size of windows in tokens."""
        limit = text_limit(self.config, self.tokenizer)
        if window is None:
            return WINDOW if limit is None else min(limit, WINDOW)
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise UsageError(f"window={window!r} is not a count of tokens", "give window=256, say")
        if limit is not None and window > limit:
            raise UsageError(f"window={window} is more than this model's limit of {limit} tokens", "give less")
        return window

    def _threshold(self, no_answer: bool | float) -> float | None:
        """By how much "no answer" has to outscore the best span; None: whatever it scores, it is no answer."""
        if no_answer is False:
            return None
        if not isinstance(no_answer, int | float) or math.isnan(no_answer):
            raise UsageError(
                f"no_answer={no_answer!r} is neither True nor False nor a threshold", "give True, or 0.5, say"
            )
        if self.tokenizer.cls_id is None:
            raise UsageError(
                "this model's tokenizer has no class token, which stands for 'no answer'", "leave no_answer out"
            )
        return 0.0 if no_answer is True else float(no_answer)


def _check_stride(stride: int | None, window: int) -> None:
    if stride is None:
        return
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
        raise UsageError(f"stride={stride!r} is not a count of tokens", "give stride=64, say")
    if stride >= window:
        raise UsageError(
            f"windows of {window} tokens cannot share stride={stride} of them",
            "give a smaller stride, or a longer window",
        )


def _cut(row: Encoding, sequence: int, window: int, stride: int | None) -> Iterator[tuple[Encoding, int]]:
    """The windows over a row, whose text `sequence` (0 or 1) slides, each with the rank of its first token there."""
    if len(row) <= window:
        yield row, 0
        return
    asked, own = row.sequence_ids.count(1 - sequence), row.sequence_ids.count(sequence)
    special = len(row) - asked - own
    room = window - asked - special
    taken = f"the question's {asked} tokens and {special} special ones"
    if room < 1:
        raise InputError(f"a window of {window} tokens has no room for the context: {taken}", "ask in fewer words")
    if stride is None:
        stride = min(STRIDE, window // 2)
        stride = stride if stride < room else room // 2
    if stride >= room:
        raise InputError(
            f"stride={stride} leaves windows nothing new to read: beside {taken} there is room for {room}",
            f"give a stride of less than {room}, a longer window, or ask in fewer words",
        )
    # The second text is the one that slides in `windows`: where ours is the first, they change their names.
    names = [i if i is None or sequence == 1 else 1 - i for i in row.sequence_ids]
    for number, places in enumerate(windows(names, window, stride)):
        yield row.select(places), number * (room - stride)


def _decoding(scoring: str, longest: int | None, align: str | None) -> tuple[int, str]:
    """The longest span and the alignment, after checking them."""
    if scoring not in ALIGN:
        raise UsageError(f"scoring={scoring!r} is unknown", did_you_mean(str(scoring), ALIGN))
    if longest is None:
        longest = MAX_ANSWER_TOKENS[scoring]
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise UsageError(f"max_answer_tokens={longest!r} is not a count of at least 1", "give 15, say")
    align = ALIGN[scoring] if align is None else align
    if align not in ("words", "tokens"):
        raise UsageError(f"align={align!r} is unknown", did_you_mean(str(align), ("words", "tokens")))
    return longest, align
