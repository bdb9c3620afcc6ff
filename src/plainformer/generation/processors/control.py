"""Controls: processors that decide where tokens may or must occur.

Lengths and positions count real tokens, so that a row's padding moves nothing. Tokens that are forced get a logit of 0
and all others -inf, as in transformers. `Suppress`, `MinLength` and the like may ban all that was left of a row, and leave it
banned: the search decides what that means; `AllowedTokens` forces what it allows.

Shapes: R rows, P positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from plainformer.config.options import number, whole
from plainformer.config.values import check_whole
from plainformer.errors import UsageError, opt
from plainformer.generation.processors.base import Configured, Ids, as_option, as_token_ids, parameter
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.id_tensors import Constant, TokenIds, ban, check_inside, only, row_lengths


class AllowedTokens(Configured, name="allowed_tokens"):
    """Ban all tokens but those that a function allows after a row so far (De Cao et al. 2021, arXiv 2010.00904).

    Args:
        allowed: a row's real token ids, prompt included → the ids that may come next. On a GPU each step waits for it.
        rows_per_prompt: how many rows, one after the other, belong to a prompt: the beams; 1 if not given. Where all that
            is allowed to them was banned before, it is forced; a beam that alone has nothing left stays banned.
    Raises (when called):
        UsageError: nothing is allowed, or an id outside the vocabulary.
    """

    allowed: Callable[[list[int]], Iterable[int]] = as_option("allowed_tokens")
    rows_per_prompt: int = parameter(whole(1), default=1)

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


class MinLength(Configured, name="min_length"):
    """Ban the end-of-sequence tokens `eos_ids` while a row, prompt included, has fewer than `min_length` tokens."""

    min_length: int = as_option("min_length")
    eos_ids: Ids = Ids()

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        short_R1 = (row_lengths(context) < self.min_length)[:, None]
        without_RV = logits_RV.index_fill(1, self.eos_ids.known(logits_RV), -math.inf)
        return torch.where(short_R1, without_RV, logits_RV)


class MinNewTokens(Configured, name="min_new_tokens"):
    """Ban the end-of-sequence tokens `eos_ids` until `min_new_tokens` have been generated."""

    min_new_tokens: int = as_option("min_new_tokens")
    eos_ids: Ids = Ids()

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        if context.step >= self.min_new_tokens:
            return logits_RV.clone()
        return logits_RV.index_fill(1, self.eos_ids.known(logits_RV), -math.inf)


class ForcedBos(Configured, name="forced_bos_id"):
    """Force `bos_id` after a row's first token: what follows an encoder-decoder's start token (mBART's language)."""

    bos_id: int = as_option("forced_bos_id")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        check_inside("bos_id", (self.bos_id,), logits_RV.size(-1))
        forced_RV = torch.full_like(logits_RV, -math.inf)
        forced_RV[:, self.bos_id] = 0.0
        return torch.where((row_lengths(context) == 1)[:, None], forced_RV, logits_RV)


class ForcedEos(Configured, name="forced_eos_id"):
    """Force one of `eos_ids` as the last token that there is room for.

    Args:
        eos_ids: they get equal logits.
        max_length: of a row, prompt included; or
        max_new_tokens: of the generated tokens. Exactly one of the two is given.
    """

    eos_ids: Ids = Ids()
    max_length: int | None = as_option("max_length", default=None)
    max_new_tokens: int | None = as_option("max_new_tokens", default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = [limit for limit in (self.max_length, self.max_new_tokens) if limit is not None]
        if len(limits) != 1:
            raise UsageError(
                f"{len(limits)} limits say where the end is forced",
                f"give {opt('max_length')} or {opt('max_new_tokens')}",
            )

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        forced_RV = only(logits_RV, self.eos_ids.checked(logits_RV))
        if self.max_length is not None:
            return torch.where((row_lengths(context) == self.max_length - 1)[:, None], forced_RV, logits_RV)
        return forced_RV if context.step + 1 == self.max_new_tokens else logits_RV.clone()


MAX_POSITION = 1 << 24  # a table has an entry for each position up to the last that is forced


class Forced(Configured, name="forced"):
    """Force tokens at positions of a row: {1: 50259} makes 50259 the row's second token, prompt included.

    Args:
        tokens: position → token id, or pairs of the two as in Whisper's forced_decoder_ids; None leaves a position free.
    """

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
            check_whole("position", position, 0, MAX_POSITION)
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


class Suppress(Configured, name="suppress"):
    """Ban tokens, always. Raises UsageError, when called, for an id outside the vocabulary, and where none is left."""

    ids: Ids = Ids()

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return _suppressed(logits_RV, self.ids)


def _suppressed(logits_RV: Tensor, ids: TokenIds) -> Tensor:
    index = ids.checked(logits_RV)
    if len(ids) == logits_RV.size(-1):
        raise UsageError(f"{opt('ids')}: every token of the vocabulary is suppressed", "leave at least one")
    return logits_RV.index_fill(1, index, -math.inf)


class SuppressFirst(Configured, name="suppress_first"):
    """Ban tokens at one step: the first, or where a token is forced there the second, `step` 1.

    Raises UsageError, when called, for an id outside the vocabulary, and where none is left.
    """

    ids: Ids = Ids()
    step: int = parameter(whole(0), default=0)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        banned_RV = _suppressed(logits_RV, self.ids)
        return banned_RV if context.step == self.step else logits_RV.clone()


class ExponentialDecay(Configured, name="exponential_decay"):
    """Raise the logits of `eos_ids`, more and more after `start` generated tokens, so that rows come to an end.

    After n more tokens each gains |logit| * (factor ** n - 1); a banned one stays banned. Source: the pair (start,
    factor) of exponential_decay_length_penalty in transformers.
    """

    start: int = parameter(whole(0))
    factor: float = parameter(number("(0, inf)", fix="give more than 1 to end earlier"))
    eos_ids: Ids = Ids()

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        after = context.step - self.start
        if after <= 0:
            return logits_RV.clone()
        index, largest = self.eos_ids.known(logits_RV), torch.finfo(logits_RV.dtype).max
        ends_RE = logits_RV[:, index]
        gain_RE = (ends_RE.abs() * (self._growth(after) - 1)).clamp(max=largest / 2)  # inf would be NaN in a softmax
        return logits_RV.index_add(1, index, gain_RE.where(ends_RE.isfinite(), 0.0))

    def _growth(self, steps: int) -> float:
        try:
            return min(self.factor**steps, torch.finfo(torch.float32).max)
        except OverflowError:
            return torch.finfo(torch.float32).max


class RemoveInvalid(Configured, name="remove_invalid"):
    """Put 0 for NaN, and the largest and least finite numbers for inf and -inf: what was banned can then be picked."""

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return logits_RV.nan_to_num()


class Renormalize(Configured, name="renormalize"):
    """Log-probabilities in place of logits: beams compare sums of them, and earlier processors took some away."""

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return logits_RV.log_softmax(-1)
