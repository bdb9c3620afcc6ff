"""A text with the score of each of its tokens: how likely the model found it, and how many it found likelier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plainformer.errors import InputError
from plainformer.generate.score import TokenScores, score_tokens
from plainformer.tasks.base import BATCH_SIZE, Result, Task

if TYPE_CHECKING:
    from plainformer.inputs.text import Encoding


@dataclass(frozen=True)
class ScoredToken:
    """`text` is the input's [start:end]; the first token has no log-probability and no rank: nothing predicts it."""

    text: str
    token_id: int
    start: int
    end: int
    log_probability: float | None
    rank: int | None


@dataclass(frozen=True)
class ScoredText(Result):
    """`log_probability`: the sum over the tokens; `perplexity`: exp of the mean loss."""

    log_probability: float
    perplexity: float
    tokens: tuple[ScoredToken, ...]


def score_texts(task: Task, texts: Sequence[str], *, truncate: bool = False) -> list[ScoredText]:
    """Score texts with a task whose model is a decoder; each as it would score alone."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a {type(text).__name__} is not a text to score", "give a str, or a list of them")
    results = []
    for start in range(0, len(texts), BATCH_SIZE):
        part = texts[start : start + BATCH_SIZE]
        batch = task.encode(part, truncate=truncate)  # type: ignore[call-arg]
        device = task.model.device
        scores = score_tokens(task.model, batch.input_ids.to(device), batch.attention_mask.to(device))
        results += [_scored(*row) for row in zip(part, batch.encodings, scores, strict=True)]
    return results


def _scored(text: str, row: Encoding, scores: TokenScores) -> ScoredText:
    tokens = zip(
        row.input_ids, row.offsets, (None, *scores.log_probabilities), (None, *scores.ranks), strict=True
    )  # fmt: skip
    return ScoredText(
        scores.total,
        scores.perplexity,
        tuple(ScoredToken(text[start:end], i, start, end, chance, rank) for i, (start, end), chance, rank in tokens),
    )
