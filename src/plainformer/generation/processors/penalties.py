"""Penalties: processors that look at the tokens a row has, and make some next tokens less likely, or impossible.

Padding never counts. `BadWords` and the n-gram processors may ban every token of a row, and leave it banned, as in
transformers: the search decides what that means.

Shapes: R rows, T positions, N sequences of equal length, M tokens of their prefix, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from plainformer.config.options import one_of, whole
from plainformer.config.values import check_number
from plainformer.errors import UsageError, opt
from plainformer.generation.processors.base import Configured, Ids, as_option, as_sequence, as_token_ids, parameter
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.id_tensors import (
    Constant,
    ban,
    check_inside,
    completions,
    counts,
    marked,
    new_tokens,
    seen,
    source_tokens,
)


class RepetitionPenalty(Configured, name="repetition_penalty"):
    """Divide positive logits of tokens that a row has by `penalty`, and multiply negative ones (Keskar et al. 2019).

    However often a token occurs, it is penalised once. Above 1 discourages repetition, below 1 encourages it.
    arXiv 1909.05858, where 1.2 is used.

    Args:
        penalty: more than 0.
        scope: "all" (if not given), prompt included; or "new", generated tokens only.
    """

    penalty: float = as_option("repetition_penalty")
    scope: Literal["all", "new"] = parameter(one_of("all", "new"), default="all")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        tokens_RT = marked(context.ids, context.real) if self.scope == "all" else new_tokens(context)
        return _scaled(logits_RV, seen(tokens_RT, logits_RV.size(-1)), self.penalty)


class EncoderRepetitionPenalty(Configured, name="encoder_repetition_penalty"):
    """The inverse for tokens of the encoder's input, or of the prompt of a decoder: above 1 encourages them.

    Against invention where an output should keep to its source. Source: transformers.
    """

    penalty: float = as_option("encoder_repetition_penalty")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return _scaled(logits_RV, seen(source_tokens(context), logits_RV.size(-1)), 1 / self.penalty)


class PresencePenalty(Configured, name="presence_penalty"):
    """Subtract `penalty` from logits of tokens generated before, once; negative encourages (OpenAI's API, vLLM).

    Generated tokens only: the prompt does not count. OpenAI takes -2 to 2.
    """

    penalty: float = as_option("presence_penalty")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        present_RV = seen(new_tokens(context), logits_RV.size(-1))
        return logits_RV - self.penalty * present_RV.to(logits_RV.dtype)


class FrequencyPenalty(Configured, name="frequency_penalty"):
    """Subtract `penalty` from a token's logit for each time it was generated before (OpenAI's API, vLLM).

    Generated tokens only: the prompt does not count. OpenAI takes -2 to 2.
    """

    penalty: float = as_option("frequency_penalty")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return logits_RV - self.penalty * counts(new_tokens(context), logits_RV.size(-1), logits_RV.dtype)


class NoRepeatNgram(Configured, name="no_repeat_ngram_size"):
    """Ban tokens that would complete a second occurrence of `size` tokens in a row, prompt included.

    Paulus et al. 2017, arXiv 1705.04304, section 2.5. A `size` of 1 bans every token that a row has.
    """

    size: int = as_option("no_repeat_ngram_size")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        tokens_RT = marked(context.ids, context.real)
        return ban(logits_RV, completions(tokens_RT, tokens_RT, self.size, logits_RV.size(-1)))


class EncoderNoRepeatNgram(Configured, name="encoder_no_repeat_ngram_size"):
    """Ban tokens that would complete `size` tokens of the encoder's input, or of a decoder's prompt.

    Source: transformers (so that a dialogue does not echo its input).
    """

    size: int = as_option("encoder_no_repeat_ngram_size")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        tokens_RT = marked(context.ids, context.real)
        return ban(logits_RV, completions(tokens_RT, source_tokens(context), self.size, logits_RV.size(-1)))


class SequenceBias(Configured, name="sequence_bias"):
    """Add a bias to the token that would complete a sequence; to a sequence of one token, always.

    Args:
        biases: sequence of token ids → bias, or pairs of the two, as generation_config.json has them. More than one
            that ends in the same token add up.
    Raises (when called):
        UsageError: an id outside the vocabulary.
    """

    biases: Mapping[Any, float] | Iterable[tuple[Sequence[int], float]]

    def __post_init__(self) -> None:
        pairs = self.biases.items() if isinstance(self.biases, Mapping) else self.biases
        try:
            listed = [(as_sequence("biases", sequence), bias) for sequence, bias in pairs]
        except UsageError:
            raise
        except (TypeError, ValueError):  # not iterable, or not of two
            listed = []
        if not listed:
            raise UsageError(f"{opt('biases', self.biases)} holds no pair of token ids and bias", "give {(5, 8): -1.5}")
        if len({sequence for sequence, _ in listed}) < len(listed):
            raise UsageError(f"{opt('biases', self.biases)} names a sequence twice", "give each sequence once")
        for _, bias in listed:
            check_number("bias", bias, "(-inf, inf)", fix="to ban a sequence, use BadWords")
        object.__setattr__(self, "biases", tuple(listed))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return self._table.add_to(logits_RV, context)

    @cached_property
    def _table(self) -> _BiasTable:
        assert isinstance(self.biases, tuple)
        return _BiasTable("biases", dict(self.biases))


class BadWords(Configured, name="bad_words_ids"):
    """Ban the token that would complete any of these sequences.

    Args:
        words: sequences of token ids. One that is nothing but an end-of-sequence token is left out, as in
            transformers: a row could not end.
        eos_ids: those tokens; none if not given.
    Raises (when called):
        UsageError: an id outside the vocabulary.
    """

    words: Sequence[Sequence[int]]
    eos_ids: Ids = Ids(least=0)

    def __post_init__(self) -> None:
        if not isinstance(self.words, Iterable) or not (listed := [as_sequence("words", word) for word in self.words]):
            raise UsageError(f"{opt('words', self.words)} holds no sequence of token ids", "give [[5, 8], [7]]")
        object.__setattr__(self, "words", tuple(dict.fromkeys(listed)))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return self._table.add_to(logits_RV, context)

    @cached_property
    def _table(self) -> _BiasTable:
        ends = {(token,) for token in self.eos_ids}
        return _BiasTable("words", {tuple(word): -math.inf for word in self.words if tuple(word) not in ends})


class Dry(Configured, name="dry"):
    """Don't repeat yourself: the longer a repetition that a token would lengthen, the lower its logit.

    Where the row's last n tokens also occur earlier in it, the token that followed there loses
    multiplier * base ** (n - allowed_length), for its longest n, if that is at least `allowed_length`. Unlike a ban of
    n-grams it never bans, and it can be outvoted. P. E. Weidmann 2024 (text-generation-webui, pull request 5677).

    Args:
        multiplier: 0.8 if not given. base: 1.75. allowed_length: 2.
        sequence_breakers: tokens that no repetition reaches across, and that are not penalised: newlines, quotes, a chat
            template's marks. None if not given.
        penalty_range: only this many of the last tokens are searched; None (if not given) is all, prompt included.
    """

    multiplier: float = as_option("dry_multiplier", default=0.8)
    base: float = as_option("dry_base", default=1.75)
    allowed_length: int = as_option("dry_allowed_length", default=2)
    sequence_breakers: Collection[int] = frozenset()
    penalty_range: int | None = parameter(whole(1), default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        breakers = as_token_ids("sequence_breakers", self.sequence_breakers, least=0)
        object.__setattr__(self, "sequence_breakers", frozenset(breakers))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        result_RV, vocabulary = logits_RV.clone(), logits_RV.size(-1)
        largest = torch.finfo(logits_RV.dtype).max
        for logits_V, row in zip(result_RV, context.rows, strict=True):
            lengths = {token: length for token, length in self.match_lengths(row).items() if token < vocabulary}
            losses = [min(self._loss(length), largest) for length in lengths.values()]
            index = torch.tensor(list(lengths), dtype=torch.long, device=logits_V.device)
            logits_V[index] -= torch.tensor(losses, dtype=logits_V.dtype, device=logits_V.device)
        return result_RV

    def match_lengths(self, row: Sequence[int]) -> dict[int, int]:
        """Map next tokens to the longest repetition each would lengthen, of at least `allowed_length`. `row`: real tokens."""
        tokens = np.asarray(row[-(self.penalty_range or len(row)) :], dtype=np.int64)
        found: dict[int, int] = {}
        if len(tokens) < 2 or tokens[-1] in self.sequence_breakers:
            return found
        ends = np.flatnonzero(tokens[:-1] == tokens[-1])  # where an earlier occurrence of the row's end ends
        ends = ends[~np.isin(tokens[ends + 1], list(self.sequence_breakers))]
        longest = self._longest
        for length in range(1, len(tokens)):
            if length >= self.allowed_length:
                found.update(dict.fromkeys(tokens[ends + 1].tolist(), length))
            before = tokens[-1 - length]
            ends = ends[ends >= length]
            ends = ends[tokens[ends - length] == before]
            if not ends.size or before in self.sequence_breakers or length >= longest:
                break
        return found

    def _loss(self, length: int) -> float:
        return self.multiplier * self.base ** (length - self.allowed_length)

    @property
    def _longest(self) -> float:
        """Longer matches lose no more: fp32 ends there, and a row of one token would else take T steps over T places."""
        growth = math.log(self.base)
        if growth == 0:
            return self.allowed_length
        return self.allowed_length + max(
            0.0, (math.log(torch.finfo(torch.float32).max) - math.log(self.multiplier)) / growth
        )


class _BiasTable:
    """Sequences and their biases, those of equal length together, so that they are compared at once."""

    def __init__(self, name: str, biases: dict[tuple[int, ...], float]) -> None:
        self._name = name
        self._ids = tuple(sorted({token for sequence in biases for token in sequence}))
        by_length: dict[int, list[tuple[int, ...]]] = {1: []}
        for sequence in biases:
            by_length.setdefault(len(sequence), []).append(sequence)
        self._groups = [
            (
                Constant([sequence[:-1] for sequence in group]),
                Constant([sequence[-1] for sequence in group]),
                Constant([biases[sequence] for sequence in group], torch.float32),
            )
            for group in by_length.values()
            if group
        ]

    def add_to(self, logits_RV: Tensor, context: Context) -> Tensor:
        check_inside(self._name, self._ids, logits_RV.size(-1))
        tokens_RT, device = marked(context.ids, context.real), logits_RV.device
        bias_RV = torch.zeros_like(logits_RV)
        for prefixes, last, biases in self._groups:
            prefix_NM = prefixes.on(device)
            length = prefix_NM.size(1)
            if length > tokens_RT.size(1):
                continue
            end_R1L = tokens_RT[:, None, tokens_RT.size(1) - length :]
            complete_RN = (end_R1L == prefix_NM).all(-1)  # nothing to compare, as for one token, is equal
            bias_RV.index_add_(1, last.on(device), biases.on(device).where(complete_RN, 0.0).to(bias_RV.dtype))
        return logits_RV + bias_RV


def _scaled(logits_RV: Tensor, chosen_RV: Tensor, penalty: float) -> Tensor:
    scaled_RV = torch.where(logits_RV < 0, logits_RV * penalty, logits_RV / penalty)
    return torch.where(chosen_RV, scaled_RV, logits_RV)
