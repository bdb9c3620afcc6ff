"""How likely a text is, token by token: the last linear's distribution over the vocabulary, at the tokens that came.

The negative mean of these log-probabilities is the training loss; its exponential the perplexity (Jelinek et al. 1977).

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.generate.prompt import left_align
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
        return math.exp(mean_loss) if mean_loss < 700 else math.inf  # exp(710) is no float any more


@torch.inference_mode()
def score_tokens(model: Transformer, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[TokenScores]:
    """Score every token of every row with a decoder.

    Args:
        model: with a causal language-model head.
        input_ids: (B, T).
        attention_mask: (B, T), 1 for real, padding on either side; None where nothing is padded.
    Raises:
        UsageError: another kind of model. InputError: a row of fewer than two real tokens.
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
            f"row {counts.index(min(counts))} has one token, and nothing stands before it to predict it from",
            "give a longer text",
        )
    logits_BTV: Tensor = model(ids, mask).logits
    rows = zip(logits_BTV, ids, counts, strict=True)  # a row at a time: the fp32 copy is V numbers a token
    return [_score_row(logits_TV[-count:-1].float(), row[-count + 1 :]) for logits_TV, row, count in rows]


def _score_row(logits_TV: Tensor, next_ids_T: Tensor) -> TokenScores:
    chosen_T1 = logits_TV.gather(-1, next_ids_T[:, None])
    log_probabilities = chosen_T1[:, 0] - logits_TV.logsumexp(-1)
    ranks = (logits_TV > chosen_T1).sum(-1) + 1
    return TokenScores(tuple(log_probabilities.tolist()), tuple(ranks.tolist()))
