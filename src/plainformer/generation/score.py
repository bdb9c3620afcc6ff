"""How likely a text is, token by token: the last linear's distribution over the vocabulary, at the tokens that came.

The negative mean of these log-probabilities is the training loss; its exponential the perplexity (Jelinek et al. 1977).

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plainformer.config.values import check_whole
from plainformer.errors import InputError, UsageError, nth, opt
from plainformer.generation.prompt import left_align
from plainformer.model.transformer import Transformer


@dataclass(frozen=True)
class TokenScores:
    """The scores of one row's real tokens from the second on; the first has nothing before it that could predict it.

    Attributes:
        log_probabilities: natural logarithms of each token's probability after all tokens before it.
        ranks: 1 where the token was the likeliest of the vocabulary, 2 the second likeliest, and so on.
    """

    log_probabilities: tuple[float, ...]
    ranks: tuple[int, ...]

    @property
    def total(self) -> float:
        """The log-probability of the row: the sum."""
        return math.fsum(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss: among how many equally likely tokens the model would have had to choose, on average."""
        mean_loss = -self.total / len(self.log_probabilities)
        return math.exp(mean_loss) if mean_loss < 700 else math.inf  # exp(710) overflows a float


@torch.inference_mode()
def score_tokens(
    model: Transformer,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_length: int | None = None,
    stride: int | None = None,
) -> list[TokenScores]:
    """Score every token of every row with a decoder.

    With `stride`, a row of n tokens is read in 1 + ceil((n - max_length) / stride) windows of at most `max_length` tokens,
    each of which begins `stride` tokens after the last. A token is scored in the first window that holds it, so once:
    the token at place p (from 0) after all p tokens before it where p < max_length, and after at least
    max_length - stride of them otherwise. A smaller stride gives each token more to go by, and costs more windows.

    Args:
        model: with a causal language-model head.
        input_ids: (B, T).
        attention_mask: (B, T), 1 for real, padding on either side; None where nothing is padded.
        max_length: of a window; with `stride` alone. Default: the model's learned positions.
        stride: 1 to max_length - 1. None reads each row whole.
    Raises:
        UsageError: another kind of model; a stride or length that cannot be. InputError: a row of fewer than two real
            tokens.
    """
    if model.config.head.kind != "causal_lm":
        raise UsageError(
            f"this model has a {model.config.head.kind!r} head, which predicts no next token",
            "load a causal language model",
        )
    ids, mask = left_align(input_ids, attention_mask)
    counts = [ids.size(1)] * len(ids) if mask is None else mask.sum(-1).tolist()
    if min(counts) < 2:
        raise InputError(
            f"{nth(counts.index(min(counts)))} has one token, and nothing before it to predict it from",
            "give a longer text",
        )
    length = _window(model, max_length, stride)
    if length is not None and stride is not None and max(counts) > length:
        return [_slide(model, row[-count:], length, stride) for row, count in zip(ids, counts, strict=True)]
    logits_BTV: Tensor = model(ids, mask).logits
    rows = zip(logits_BTV, ids, counts, strict=True)  # a row at a time: the fp32 copy is V numbers a token
    return [_score_row(logits_TV[-count:-1], row[-count + 1 :]) for logits_TV, row, count in rows]


def _window(model: Transformer, max_length: int | None, stride: int | None) -> int | None:
    """Return the length of a window, checked; None where rows are read whole."""
    for name, value in (("stride", stride), ("max_length", max_length)):
        if value is not None:
            check_whole(name, value, fix=f"for example {opt(name, 256)}")
    if stride is None:
        if max_length is not None:
            raise UsageError(
                f"{opt('max_length', max_length)} has no effect without {opt('stride')}", f"give {opt('stride')} too"
            )
        return None
    most = model.config.main_stack.max_positions
    length = max_length or most
    if length is None:
        raise UsageError(
            f"{opt('stride')} needs a window length, and this model sets no limit", f"give {opt('max_length')} too"
        )
    if most is not None and length > most:
        raise UsageError(
            f"{opt('max_length', length)} is more than the {most} positions this model has learned", "lower it"
        )
    if stride >= length:
        raise UsageError(
            f"{opt('stride', stride)} of windows of {length} tokens would leave tokens with nothing before them",
            f"give at most {length - 1}",
        )
    return length


def _slide(model: Transformer, ids_T: Tensor, length: int, stride: int) -> TokenScores:
    """Return the scores of one row, window by window."""
    chances: list[float] = []
    ranks: list[int] = []
    scored = 1  # the first token has no score
    for start in range(0, len(ids_T), stride):
        end = min(start + length, len(ids_T))
        new = end - scored
        logits_TV: Tensor = model(ids_T[None, start:end], logits_to_keep=new + 1).logits[0]
        part = _score_row(logits_TV[:-1], ids_T[scored:end])
        chances += part.log_probabilities
        ranks += part.ranks
        scored = end
        if end == len(ids_T):
            break
    return TokenScores(tuple(chances), tuple(ranks))


def _score_row(logits_TV: Tensor, next_ids_T: Tensor) -> TokenScores:
    logits_TV = logits_TV.float()
    chosen_T1 = logits_TV.gather(-1, next_ids_T[:, None])
    log_probabilities = chosen_T1[:, 0] - logits_TV.logsumexp(-1)
    ranks = (logits_TV > chosen_T1).sum(-1) + 1
    return TokenScores(tuple(log_probabilities.tolist()), tuple(ranks.tolist()))
