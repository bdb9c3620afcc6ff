"""A text with the score of each of its tokens: how likely the model found it, and how many it found likelier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from plainformer.config.values import check_flag
from plainformer.errors import InputError, UsageError, a_type, nth, opt, placed
from plainformer.generation.score import TokenScores, score_tokens
from plainformer.tasks.base import Task
from plainformer.tasks.html import table
from plainformer.tasks.lengths import least
from plainformer.tasks.options import BATCH_SIZE
from plainformer.tasks.results import Result, Results

if TYPE_CHECKING:
    from plainformer.inputs.text.encoding import Encoding, TextBatch


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

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each token."""
        return [asdict(token) for token in self.tokens]

    def _repr_html_(self) -> str:
        return table(self.rows())


def score_texts(
    task: Task,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    stride: int | None = None,
    max_length: int | None = None,
) -> Results[ScoredText]:
    """Score texts with a task whose model is a decoder; each as it would score alone. See `TextGeneration.score`."""
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{nth(place)} is {a_type(text)}, not a text to score", "give a str, or a list of them")
    check_flag("truncate", truncate)
    if truncate and stride is not None:
        raise UsageError(f"{opt('truncate')} drops what {opt('stride')} would keep", "pass one of the two")
    own = task.config.main_stack.max_positions
    if truncate or stride is not None:
        own = least(own, task.tokenizer.max_length)
    limit = own if max_length is None else max_length
    results: Results[ScoredText] = Results()
    for start in range(0, len(texts), BATCH_SIZE):
        part = texts[start : start + BATCH_SIZE]
        batch = _encoded(task, part, start, truncate, None if stride is not None else limit)
        ids, mask = batch.input_ids.to(task.model.device), batch.attention_mask.to(task.model.device)
        scores = score_tokens(task.model, ids, mask, stride=stride, max_length=None if stride is None else limit)
        results += [_scored(*row) for row in zip(part, batch.encodings, scores, strict=True)]
    return results


def _encoded(task: Task, texts: Sequence[str], first: int, truncate: bool, limit: int | None) -> TextBatch:
    """Encode texts of at most `limit` tokens, padded; None is no limit. `first`: the place of the first one."""
    rows = []
    for place, text in enumerate(texts, first):
        with placed([place]):
            (row,) = task.tokenizer.encode_batch(
                [text], truncate=task.cut_side(truncate and limit is not None), max_length=limit
            )
        row = row.once(task.tokenizer.bos_id, task.tokenizer.eos_id)
        if not row.input_ids:
            raise InputError(f"{nth(place)} is an empty text: there is nothing to score", "give at least two tokens")
        rows.append(row)
    return task.tokenizer.pad(rows, side="left")


def _scored(text: str, row: Encoding, scores: TokenScores) -> ScoredText:
    rows = zip(row.input_ids, row.offsets, (None, *scores.log_probabilities), (None, *scores.ranks), strict=True)
    tokens = (ScoredToken(text[start:end], i, start, end, chance, rank) for i, (start, end), chance, rank in rows)
    return ScoredText(scores.total, scores.perplexity, tuple(tokens))
