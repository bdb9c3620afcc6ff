"""Question answering: the span of a context that answers a question (Rajpurkar et al. 2016, Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.tasks.base import BATCH_SIZE, Result, Task, check_top_k, text_limit

if TYPE_CHECKING:
    from plainformer.inputs.text import Encoding, TextBatch


@dataclass(frozen=True)
class Span(Result):
    """`text` is `context[start:end]`; `score` is P(start) * P(end) among the context's tokens."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer(Span):
    """The best span; `alternatives` are the next ones, `top_k - 1` of them."""

    alternatives: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Questions:
    """Encoded questions: `contexts` of each, `counts` of windows of each, and all windows as one batch."""

    contexts: tuple[str, ...]
    counts: tuple[int, ...]
    batch: TextBatch


class QuestionAnswering(Task):
    """A (question, context) tuple, or a dict with these two → the best answer in the context.

    A context that is too long is read in overlapping windows. Probabilities are those of the reference's pipeline
    (transformers 4.57): within a window, over the context's tokens and the class token, which stands for "no answer".
    """

    def is_one(self, inputs: Any) -> bool:
        pair = isinstance(inputs, tuple) and len(inputs) == 2 and all(isinstance(part, str) for part in inputs)
        return isinstance(inputs, Mapping) or pair

    def encode(self, inputs: Sequence[Any], *, stride: int = 64) -> Questions:
        """`stride`: tokens that neighbouring windows over a context share."""
        pairs = [self._pair(item) for item in inputs]
        limit = text_limit(self.config, self.tokenizer)
        rows = self.tokenizer.encode_batch(pairs, stride=None if limit is None else stride, window=limit)
        for (_, context), row in zip(pairs, rows, strict=True):
            if 1 not in row.sequence_ids:
                raise InputError(f"the context {context[:60]!r} has no tokens", "give a context with words")
        counts = tuple(len(row.windows()) for row in rows)
        return Questions(tuple(context for _, context in pairs), counts, self.tokenizer.pad(rows))

    def _pair(self, item: Any) -> tuple[str, str]:
        if isinstance(item, Mapping) and set(item) == {"question", "context"}:
            item = (item["question"], item["context"])
        if not self.is_one(item) or isinstance(item, Mapping):
            raise InputError(
                f"{str(item)[:60]!r} is not a question with its context",
                'give a (question, context) tuple, or {"question": ..., "context": ...}',
            )
        for name, text in zip(("question", "context"), item, strict=True):
            if not text.strip():
                raise InputError(f"the {name} is empty", f"give a {name} with words")
        return item[0], item[1]

    def predict(self, encoded: Questions) -> Tensor:
        """Start and end logits of all windows, (N, T, 2); a long context's windows are many, so not all at once."""
        inputs = self.model_inputs(encoded.batch)
        parts = zip(*(value.split(BATCH_SIZE) for value in inputs.values()), strict=True)
        outputs = [self.model(**dict(zip(inputs, part, strict=True))).logits for part in parts]
        return torch.cat(outputs).float()

    def decode(
        self, encoded: Questions, predicted: Tensor, *, top_k: int = 1, max_answer_tokens: int = 15
    ) -> list[Answer]:
        """`top_k`: how many spans an answer names. `max_answer_tokens`: the longest span."""
        top_k = check_top_k(top_k, predicted.size(1) ** 2)
        if isinstance(max_answer_tokens, bool) or not isinstance(max_answer_tokens, int) or max_answer_tokens < 1:
            raise UsageError(f"max_answer_tokens={max_answer_tokens!r} is not a count of at least 1")
        logits = (row[real] for row, real in zip(predicted.cpu(), encoded.batch.attention_mask.bool(), strict=True))
        windows = zip(encoded.batch.encodings, logits, strict=True)
        answers = []
        for context, count in zip(encoded.contexts, encoded.counts, strict=True):
            best: dict[tuple[int, int], float] = {}
            for _ in range(count):
                for start, end, score in self._spans(*next(windows), top_k, max_answer_tokens):
                    best[start, end] = max(score, best.get((start, end), 0.0))  # windows overlap: one span, two scores
            ranked = sorted(best.items(), key=lambda item: -item[1])[:top_k]
            first, *others = [Span(context[start:end], start, end, score) for (start, end), score in ranked]
            answers.append(Answer(first.text, first.start, first.end, first.score, tuple(others)))
        return answers

    def _spans(self, row: Encoding, logits_T2: Tensor, top_k: int, longest: int) -> Iterator[tuple[int, int, float]]:
        """The best spans of one window as characters of the context, with their probabilities."""
        in_context = torch.tensor([sequence == 1 for sequence in row.sequence_ids])
        class_id = self.tokenizer.cls_id if self.tokenizer.cls_id is not None else -1
        counted = in_context | (torch.tensor(row.input_ids) == class_id)
        start_T, end_T = logits_T2.masked_fill(~counted[:, None], float("-inf")).softmax(0).unbind(-1)
        pairs_TT = start_T[:, None] * end_T
        allowed_TT = (in_context[:, None] & in_context).triu().tril(longest - 1)
        pairs_TT = torch.where(allowed_TT, pairs_TT, -1.0)
        best = pairs_TT.flatten().topk(min(top_k, int(allowed_TT.sum())))
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            first, last = divmod(place, len(row))
            yield row.offsets[first][0], row.offsets[last][1], score
