"""Extractive question answering: the first and the last token of the answer (Devlin et al. 2019, section 4.2).

Shapes: B batch, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plainformer.errors import UsageError, a_type, opt
from plainformer.inputs.text.pairs import encode_questions
from plainformer.inputs.text.words import trimmed
from plainformer.train.losses import label_losses, wide
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped, Encoded, Loss, Metric, Objective
from plainformer.train.objectives.reading import Reading, single, tokens_of
from plainformer.train.objectives.words import text_of
from plainformer.train.robust import Robust

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.inputs.text.encoding import Encoding
    from plainformer.model.transformer import Transformer

WINDOW = 384  # tokens, where neither data.max_length nor the model says less: SQuAD's usual one


class QuestionAnswering(Objective):
    """A question, a context and an answer that is in it. A long context is read in windows that overlap.

    In a window without the whole answer, the first token is what is to be found, as in SQuAD 2.0 where there is no answer.
    Padding never takes part: the probabilities of a window do not depend on its batch.
    """

    name = "question-answering"
    head = "span"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("question", ("query",), help="A question."),
        Column("context", ("passage", "document", "text"), help="The text that has the answer."),
        Column(
            "answers",
            ("answer",),
            help='{"text": [...], "answer_start": [...]}, or a list of {"text", "answer_start"}.',
            target=True,
        ),
    )
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("exact", "higher", evaluated="exact_match"),
        Metric("loss", "lower"),
    )

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        if self.too_long == "cut" and config.data.too_long is not None:
            what = f"{opt('data.too_long', 'cut')} would lose answers: long contexts are read in windows"
            raise UsageError(what, f"leave it out, or give {opt('data.too_long', 'drop')}")
        self.reading = Reading.of(config, model, processor)
        limit = self.reading.limit
        self.window = limit if config.data.max_length is not None else min(WINDOW, limit or WINDOW)

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return the windows over a context, each with the answer's first and last token, or 0 and 0."""
        question, context = text_of(row, "question"), text_of(row, "context")
        span = answer_span(row.get("answers"), context)
        stride = self.config.data.stride or None
        assert self.window is not None
        rows, _ = encode_questions(self.processor, [(question, context)], window=self.window, stride=stride)
        pieces = rows[0].windows()
        if self.too_long == "drop" and len(pieces) > 1:
            raise Dropped("longer than max_length")
        own = int(self.processor.padding_side != "left")
        places = [_places(piece, own, context, span) for piece in pieces]
        if span is not None and not any(places):
            raise Dropped("answer between windows")
        return Encoded(
            [
                {**self.reading.arrays(piece), "span": np.array(place or (0, 0), dtype=np.int64)}
                for piece, place in zip(pieces, places, strict=True)
            ]
        )

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return windows padded on the right, the places of their answers, and which positions are padding."""
        examples = single(rows)
        inputs = self.reading.inputs(examples)
        targets = {"spans": torch.from_numpy(np.stack([example["span"] for example in examples]))}
        return Batch(inputs, targets, len(examples), tokens_of(examples))

    def scores(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the scores of each position as the first and as the last of the answer, (B, 2, T); padding has the least."""
        logits_BTC = model(**batch.inputs).logits
        assert logits_BTC is not None
        scores = wide(logits_BTC).transpose(1, 2)
        real_BT = batch.inputs.get("attention_mask")
        return scores if real_BT is None else scores.masked_fill(real_BT[:, None] == 0, torch.finfo(torch.float32).min)

    def _losses(self, scores: Tensor, spans_B2: Tensor, robust: Robust | None = None) -> Tensor:
        """Return the mean loss of both ends, (B,)."""
        return label_losses(scores.flatten(0, 1), spans_B2.flatten(), robust=robust).view(-1, 2).mean(-1)

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        return Loss(self._losses(self.scores(model, batch), batch.targets["spans"], self.robust))

    @torch.no_grad()
    def statistics(self, model: Transformer, batch: Batch) -> npt.NDArray[np.float64]:
        """Return each window's loss, 1, and whether both ends are the likeliest."""
        scores, spans_B2 = self.scores(model, batch), batch.targets["spans"]
        losses_B = self._losses(scores, spans_B2).double()
        right_B = (scores.argmax(-1) == spans_B2).all(-1).double()
        return torch.stack((losses_B, torch.ones_like(losses_B), right_B), -1).cpu().numpy()

    def measured(self, sums: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return the mean loss of a window, and the share of windows of which both ends are found."""
        loss, windows, right = (float(value) for value in sums)
        return {"loss": loss / windows if windows else math.nan, "exact": right / windows if windows else math.nan}

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return each token; those of the answer are marked."""
        first, last = example["span"].tolist()
        tokens = self.reading.shown(example["input_ids"])
        inside = "answer" if last else "no answer"
        return [(token, inside if first <= place <= last else "") for place, token in enumerate(tokens)]


def answer_span(answers: Any, context: str) -> tuple[int, int] | None:
    """Return the characters of the first answer in the context, (start, end); None where there is no answer."""
    text, start = _first_answer(answers)
    if text is None:
        return None
    if start is None:
        start = context.find(text)
    if start < 0 or context[start : start + len(text)] != text:
        raise Dropped("answer not in its context")
    start, end = trimmed(context, start, start + len(text))
    if start >= end:
        raise Dropped("empty answer")
    return start, end


def _first_answer(answers: Any) -> tuple[str | None, int | None]:
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text", []), answers.get("answer_start")
        if isinstance(texts, str):
            return texts, starts
        return (texts[0], starts[0] if starts is not None and len(starts) else None) if len(texts) else (None, None)
    if answers is None or answers == "":
        return None, None
    if isinstance(answers, str):
        return answers, None
    if isinstance(answers, Sequence):
        return _first_answer(answers[0]) if len(answers) else (None, None)
    fix = 'give {"text", "answer_start"}, or a list of them; map the column: data.columns'
    raise UsageError(f"the column 'answers' holds {a_type(answers)}", fix)


def _places(row: Encoding, own: int, context: str, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the first and the last token of an answer in a window; None where it is not all there."""
    if span is None:
        return None
    start, end = span
    inside = [
        place
        for place, (offsets, sequence) in enumerate(zip(row.offsets, row.sequence_ids, strict=True))
        if sequence == own and offsets[0] < end and offsets[1] > start
    ]
    if not inside:
        return None
    first, last = inside[0], inside[-1]
    whole = trimmed(context, *row.offsets[first])[0] <= start and row.offsets[last][1] >= end
    return (first, last) if whole else None
