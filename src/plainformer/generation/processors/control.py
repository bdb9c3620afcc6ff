"""Controls: processors that decide where tokens may or must occur.

Lengths and positions count real tokens, so that a row's padding moves nothing. Tokens that are forced get a logit of 0
and all others -inf, as in the reference library. `Suppress`, `MinLength` and the like may ban all that was left of a row,
and then leave it so: the pick says what it makes of that; `AllowedTokens` forces what it allows.

Shapes: R rows, P positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from plainformer.config.values import check_number, check_whole
from plainformer.errors import UsageError, opt
from plainformer.generation.processors.checks import as_token_ids
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.id_tensors import Constant, TokenIds, ban, check_inside, only, row_lengths


@dataclass(frozen=True)
class AllowedTokens:
    """Ban all tokens but those that a function allows after a row so far (De Cao et al. 2021, arXiv 2010.00904).

    Args:
        allowed: a row's real token ids, prompt included → the ids that may come next. On a GPU each step waits for it.
        rows_per_prompt: how many rows, one after the other, belong to a prompt: the beams; 1 if not given. Where all that
            is allowed to them was banned before, it is forced; a beam that alone has nothing left stays banned.
    Raises (when called):
        UsageError: nothing is allowed, or an id outside the vocabulary.
    """

    name: ClassVar[str] = "allowed_tokens"
    allowed: Callable[[list[int]], Iterable[int]]
    rows_per_prompt: int = 1

    def __post_init__(self) -> None:
        if not callable(self.allowed):
            raise UsageError(
                f"{opt('allowed', self.allowed)} is not callable",
                "give a function: a row's ids → the ids that may follow",
            )
        check_whole("rows_per_prompt", self.rows_per_prompt, 1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        if logits_RV.size(0) % self.rows_per_prompt:
            raise UsageError(
                f"{opt('rows_per_prompt', self.rows_per_prompt)} does not divide {logits_RV.size(0)} rows",
                "give the number of beams",
            )
        allowed_RV = torch.zeros_like(logits_RV, dtype=torch.bool)
        for index, (allowed_V, row) in enumerate(zip(allowed_RV, context.rows, strict=True)):
            if context.ended is not None and context.ended[index]:
                allowed_V[:] = True  # the function does not expect what follows an end
                continue
            ids = as_token_ids("allowed(row)", self.allowed(list(row)))
            check_inside("allowed(row)", ids, logits_RV.size(-1))
            allowed_V[list(ids)] = True
        kept_RV = ban(logits_RV, ~allowed_RV)
        dead_R = kept_RV.amax(-1).isneginf()
        dead_R = dead_R.view(-1, self.rows_per_prompt).all(-1).repeat_interleave(self.rows_per_prompt)
        return kept_RV.masked_fill(allowed_RV & dead_R[:, None], 0.0)


@dataclass(frozen=True)
class MinLength:
    """Ban the end-of-sequence tokens `eos_ids` while a row, prompt included, has fewer than `min_length` tokens."""

    name: ClassVar[str] = "min_length"
    min_length: int
    eos_ids: Sequence[int]

    def __post_init__(self) -> None:
        check_whole("min_length", self.min_length, 0)
        object.__setattr__(self, "eos_ids", as_token_ids("eos_ids", self.eos_ids))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        short_R1 = (row_lengths(context) < self.min_length)[:, None]
        without_RV = logits_RV.index_fill(1, self._ends.known(logits_RV), -math.inf)
        return torch.where(short_R1, without_RV, logits_RV)

    @cached_property
    def _ends(self) -> TokenIds:
        return TokenIds("eos_ids", tuple(self.eos_ids))


@dataclass(frozen=True)
class MinNewTokens:
    """Ban the end-of-sequence tokens `eos_ids` until `min_new_tokens` have been generated."""

    name: ClassVar[str] = "min_new_tokens"
    min_new_tokens: int
    eos_ids: Sequence[int]

    def __post_init__(self) -> None:
        check_whole("min_new_tokens", self.min_new_tokens, 0)
        object.__setattr__(self, "eos_ids", as_token_ids("eos_ids", self.eos_ids))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        if context.step >= self.min_new_tokens:
            return logits_RV.clone()
        return logits_RV.index_fill(1, self._ends.known(logits_RV), -math.inf)

    @cached_property
    def _ends(self) -> TokenIds:
        return TokenIds("eos_ids", tuple(self.eos_ids))


@dataclass(frozen=True)
class ForcedBos:
    """Force `bos_id` after a row's first token: what follows an encoder-decoder's start token (mBART's language)."""

    name: ClassVar[str] = "forced_bos_id"
    bos_id: int

    def __post_init__(self) -> None:
        check_whole("bos_id", self.bos_id, 0)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        forced_RV = only(logits_RV, self._first.checked(logits_RV))
        return torch.where((row_lengths(context) == 1)[:, None], forced_RV, logits_RV)

    @cached_property
    def _first(self) -> TokenIds:
        return TokenIds("bos_id", (self.bos_id,))


@dataclass(frozen=True)
class ForcedEos:
    """Force one of `eos_ids` as the last token that there is room for.

    Args:
        eos_ids: they get equal logits.
        max_length: of a row, prompt included; or
        max_new_tokens: of the generated tokens. Exactly one of the two is given.
    """

    name: ClassVar[str] = "forced_eos_id"
    eos_ids: Sequence[int]
    max_length: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_ids", as_token_ids("eos_ids", self.eos_ids))
        limits = {"max_length": self.max_length, "max_new_tokens": self.max_new_tokens}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(given) != 1:
            raise UsageError(f"{len(given)} limits tell where the end is forced", "give max_length or max_new_tokens")
        for name, limit in given.items():
            check_whole(name, limit, 1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        forced_RV = only(logits_RV, self._ends.checked(logits_RV))
        if self.max_length is not None:
            return torch.where((row_lengths(context) == self.max_length - 1)[:, None], forced_RV, logits_RV)
        return forced_RV if context.step + 1 == self.max_new_tokens else logits_RV.clone()

    @cached_property
    def _ends(self) -> TokenIds:
        return TokenIds("eos_ids", tuple(self.eos_ids))


@dataclass(frozen=True)
class Forced:
    """Force tokens at positions of a row: {1: 50259} makes 50259 the row's second token, prompt included.

    Args:
        tokens: position → token id, or pairs of the two as in Whisper's forced_decoder_ids; None leaves a position free.
    """

    name: ClassVar[str] = "forced"
    tokens: Mapping[int, int | None] | Iterable[tuple[int, int | None]]

    def __post_init__(self) -> None:
        pairs = self.tokens.items() if isinstance(self.tokens, Mapping) else self.tokens
        try:
            listed: list[tuple[int, int]] = [(place, token) for place, token in pairs if token is not None]
        except (TypeError, ValueError):
            raise UsageError(
                f"{opt('tokens', self.tokens)} holds no pairs of position and token", "give {1: 50259}"
            ) from None
        for position, token in listed:
            check_whole("position", position, 0)
            check_whole("token", token, 0)
        if len({position for position, _ in listed}) < len(listed):
            raise UsageError(f"{opt('tokens', self.tokens)} names a position twice", "give each position once")
        object.__setattr__(self, "tokens", tuple(sorted(listed)))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        forced = self._by_position
        check_inside("tokens", tuple(token for token in forced if token >= 0), logits_RV.size(-1))
        table_P = self._table.on(logits_RV.device)
        token_R1 = table_P[row_lengths(context).clamp(max=len(forced) - 1)][:, None]
        forced_RV = torch.full_like(logits_RV, -math.inf).scatter_(1, token_R1.clamp(min=0), 0.0)
        return torch.where(token_R1 >= 0, forced_RV, logits_RV)

    @cached_property
    def _by_position(self) -> list[int]:
        """The token forced at each position, -1 where none is: the last entry is that of all positions after."""
        assert isinstance(self.tokens, tuple)
        by_position: dict[int, int] = dict(self.tokens)
        return [by_position.get(position, -1) for position in range(max(by_position, default=-1) + 2)]

    @cached_property
    def _table(self) -> Constant:
        return Constant(self._by_position)


@dataclass(frozen=True)
class Suppress:
    """Ban tokens, always. Raises UsageError, when called, for an id outside the vocabulary, and where none is left."""

    name: ClassVar[str] = "suppress"
    ids: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", as_token_ids("ids", self.ids))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        index = _some_left(self._ids.checked(logits_RV), logits_RV)
        return logits_RV.index_fill(1, index, -math.inf)

    @cached_property
    def _ids(self) -> TokenIds:
        return TokenIds("ids", tuple(self.ids))


def _some_left(banned: Tensor, logits_RV: Tensor) -> Tensor:
    """Distinct ids, refused where they are the whole vocabulary."""
    if len(banned) == logits_RV.size(-1):
        raise UsageError("ids: every token of the vocabulary is suppressed", "leave at least one")
    return banned


@dataclass(frozen=True)
class SuppressFirst:
    """Ban tokens at one step: the first, or where a token is forced there the second, `step` 1.

    Raises UsageError, when called, for an id outside the vocabulary, and where none is left.
    """

    name: ClassVar[str] = "suppress_first"
    ids: Sequence[int]
    step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", as_token_ids("ids", self.ids))
        check_whole("step", self.step, 0)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        index = _some_left(self._ids.checked(logits_RV), logits_RV)
        return logits_RV.index_fill(1, index, -math.inf) if context.step == self.step else logits_RV.clone()

    @cached_property
    def _ids(self) -> TokenIds:
        return TokenIds("ids", tuple(self.ids))


@dataclass(frozen=True)
class ExponentialDecay:
    """Raise the logits of `eos_ids`, more and more after `start` generated tokens, so that rows come to an end.

    After n more tokens each gains |logit| * (factor ** n - 1); a banned one stays banned. Source: the reference library's
    exponential_decay_length_penalty, the pair (start, factor).
    """

    name: ClassVar[str] = "exponential_decay"
    start: int
    factor: float
    eos_ids: Sequence[int]

    def __post_init__(self) -> None:
        check_whole("start", self.start, 0)
        check_number("factor", self.factor, "(0, inf)", fix="give more than 1 to end earlier")
        object.__setattr__(self, "eos_ids", as_token_ids("eos_ids", self.eos_ids))

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        after = context.step - self.start
        if after <= 0:
            return logits_RV.clone()
        index, largest = self._ends.known(logits_RV), torch.finfo(logits_RV.dtype).max
        ends_RE = logits_RV[:, index]
        gain_RE = (ends_RE.abs() * (self._growth(after) - 1)).clamp(max=largest / 2)  # inf would be NaN in a softmax
        return logits_RV.index_add(1, index, gain_RE.where(ends_RE.isfinite(), 0.0))

    def _growth(self, steps: int) -> float:
        try:
            return min(self.factor**steps, torch.finfo(torch.float32).max)
        except OverflowError:
            return torch.finfo(torch.float32).max

    @cached_property
    def _ends(self) -> TokenIds:
        return TokenIds("eos_ids", tuple(self.eos_ids))


@dataclass(frozen=True)
class RemoveInvalid:
    """Put 0 for NaN, and the largest and least finite numbers for inf and -inf: what was banned can then be picked."""

    name: ClassVar[str] = "remove_invalid"

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return logits_RV.nan_to_num()


@dataclass(frozen=True)
class Renormalize:
    """Log-probabilities in place of logits: beams compare sums of them, and earlier processors took some away."""

    name: ClassVar[str] = "renormalize"

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return logits_RV.log_softmax(-1)
