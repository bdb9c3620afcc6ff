"""What generation gives: tokens of each row, why each ended, and what they scored."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.stopping import StopReason

# What a stream yields: each row's next token (None for a row that has ended or has none settled yet), and why rows ended.
Step = tuple[list[int | None], list[StopReason | None]]


@dataclass(frozen=True)
class Generation:
    """What was generated: a row for each prompt, or `num_return_sequences` rows for each, best first, prompt after prompt.

    Attributes:
        token_ids: new tokens of each row; the end-of-sequence token that stopped it is included.
        stop_reasons: "eos", "stop_string", "callback", "length" (a limit cut it off), "time", or
            "exhausted": a beam search whose processors left fewer answers than were asked for; the row is empty, its
            score -inf.
        log_probabilities: with `output_scores=True`, of each new token: how likely it was in the distribution that it was
            picked from, after all processors. None otherwise.
        scores: of beams, what ranks them: the sum of their tokens' scores over length ** length_penalty, where a token's score
            is its log-probability, which processors may have changed. None in other modes.
        cache: keys and values of all tokens but the last, to continue from with the next turn; for one prompt with one row.
        accepted: of speculative decoding, how many drafted tokens stayed, and how many were drafted. None otherwise.
    """

    token_ids: tuple[tuple[int, ...], ...]
    stop_reasons: tuple[StopReason, ...]
    log_probabilities: tuple[tuple[float, ...], ...] | None = None
    scores: tuple[float, ...] | None = None
    cache: KeyValueCache | None = field(default=None, repr=False, compare=False)
    accepted: tuple[int, int] | None = None


def joined(parts: list[Generation]) -> Generation:
    """Join generations of single prompts into one of all of them."""
    drafted = [part.accepted for part in parts if part.accepted is not None]
    return Generation(
        tuple(row for part in parts for row in part.token_ids),
        tuple(reason for part in parts for reason in part.stop_reasons),
        tuple(row for part in parts for row in part.log_probabilities or ())
        if parts[0].log_probabilities is not None
        else None,
        tuple(s for part in parts for s in part.scores or ()) if parts[0].scores is not None else None,
        accepted=(sum(kept for kept, _ in drafted), sum(all_ for _, all_ in drafted)) if drafted else None,
    )


# What every mode's search is: it yields steps, and returns the whole at its end.
Search = Generator[Step, None, Generation]
