"""The likeliest next tokens, from logits.

Shapes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plainformer.tasks.base import Task, best, check_top_k


@dataclass(frozen=True)
class NextToken:
    """A candidate for the next token."""

    token: str
    token_id: int
    probability: float
    logit: float


def likeliest(task: Task, logits_V: Tensor, top_k: int) -> tuple[NextToken, ...]:
    """Return the `top_k` likeliest tokens, best first; of equal ones the lowest id."""
    scores_V = logits_V.float()
    places = best(scores_V, check_top_k(top_k, len(logits_V)))
    ids = places.tolist()
    tokens = [task.tokenizer.decode(task.tokenizer.known([token_id])) for token_id in ids]
    probabilities = scores_V.softmax(-1)[places].tolist()
    return tuple(map(NextToken, tokens, ids, probabilities, scores_V[places].tolist()))
