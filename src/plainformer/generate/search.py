"""The generation loop: prefill → [pick → stop? → decode_step]*.

Greedy decoding for decoders and encoder-decoders, for a batch of unequal prompts, streamed. A prompt alone gives the
same tokens as in any batch: padding is masked out and positions are counted over real tokens only.

Shapes: B batch, T prompt positions, S positions so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.generate.cache import KeyValueCache
from plainformer.generate.stopping import StopReason
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer

Step = tuple[list[int | None], list[StopReason | None]]


@dataclass(frozen=True)
class Generation:
    """What was generated for each row of a batch.

    Attributes:
        token_ids: new tokens of each row; the end-of-sequence token that stopped it is included.
        stop_reasons: "eos", or "length" where `max_new_tokens` (or the model's last position) cut it off.
    """

    token_ids: tuple[tuple[int, ...], ...]
    stop_reasons: tuple[StopReason, ...]


@dataclass
class _Rows:
    """Which rows of a batch have ended, and why."""

    reasons: list[StopReason | None]

    def done(self) -> bool:
        return all(reason is not None for reason in self.reasons)

    def record(self, picked: list[int], ends: set[int], *, last: bool) -> Step:
        """Take a step's tokens; a row that had ended before gets None."""
        step: list[int | None] = []
        for index, token in enumerate(picked):
            running = self.reasons[index] is None
            step.append(token if running else None)
            if running:
                self.reasons[index] = "eos" if token in ends else "length" if last else None
        return step, list(self.reasons)


def generate(
    model: Transformer,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 64,
    eos_ids: Sequence[int] | None = None,
    suppress: Sequence[int] = (),
    suppress_first: Sequence[int] = (),
    decoder_input_ids: Tensor | None = None,
    encoder_output: StackOutput | None = None,
    **encoder_inputs: Tensor,
) -> Generation:
    """Continue prompts greedily, to the end.

    Args:
        model: with a language-model head.
        input_ids: (B, T) prompts of a decoder, or the encoder's input.
        attention_mask: (B, T), 1 for real; None where nothing is padded.
        max_new_tokens: at most so many; the model's own position limit may be lower.
        eos_ids: tokens that end a row; None takes the model's.
        suppress, suppress_first: tokens that are never picked, and those that are not picked first.
        decoder_input_ids: (B, T') forced start of an encoder-decoder's output, unpadded; None is its start token.
        encoder_output: what `model.encode` gave, in place of the encoder's inputs.
        encoder_inputs: input_features or inputs_embeds of the encoder in place of input_ids.
    Raises:
        UsageError, InputError: the model does not generate; a prompt is empty or leaves no room.
    """
    steps = stream(
        model,
        input_ids,
        attention_mask,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        suppress=suppress,
        suppress_first=suppress_first,
        decoder_input_ids=decoder_input_ids,
        encoder_output=encoder_output,
        **encoder_inputs,
    )
    tokens: list[list[int]] = []
    reasons: list[StopReason | None] = []
    for step_tokens, step_reasons in steps:
        tokens = tokens or [[] for _ in step_tokens]
        reasons = step_reasons
        for row, token in zip(tokens, step_tokens, strict=True):
            if token is not None:
                row.append(token)
    return Generation(tuple(tuple(row) for row in tokens), tuple(reason or "length" for reason in reasons))


@torch.inference_mode()
def stream(
    model: Transformer,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 64,
    eos_ids: Sequence[int] | None = None,
    suppress: Sequence[int] = (),
    suppress_first: Sequence[int] = (),
    decoder_input_ids: Tensor | None = None,
    encoder_output: StackOutput | None = None,
    **encoder_inputs: Tensor,
) -> Iterator[Step]:
    """`generate`, one token for each row at a time: yields (tokens, reasons); a finished row's token is None."""
    _check_count(max_new_tokens)
    options = {"eos_ids": eos_ids, "suppress": suppress, "suppress_first": suppress_first}
    prompt, mask, memory = _prepare(model, input_ids, attention_mask, decoder_input_ids, encoder_output, encoder_inputs)
    budget = _budget(model, prompt.size(1), max_new_tokens)
    if mask is not None and budget < max_new_tokens:
        yield from _one_by_one(model, prompt, mask, max_new_tokens, options)
        return
    ends = set(model.config.eos_ids if eos_ids is None else _listed("eos_ids", eos_ids))
    always, first = _listed("suppress", suppress), _listed("suppress_first", suppress_first)
    never, not_first = (_as_ids(model, ids, prompt.device) for ids in (always, [*always, *first]))
    cache = KeyValueCache(
        model.config, len(prompt), prompt.size(1) + min(budget, 256), dtype=model.dtype, device=prompt.device
    )
    rows = _Rows([None] * len(prompt))
    logits_BV = decode_step(model, prompt, mask, cache, memory)  # prefill: the whole prompt is one step
    for count in range(1, budget + 1):
        picked_B = pick(logits_BV, not_first if count == 1 else never)
        yield rows.record(picked_B.tolist(), ends, last=count == budget)
        if rows.done():
            return
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        logits_BV = decode_step(model, picked_B[:, None], mask, cache, memory)


def pick(logits_BV: Tensor, suppressed: Tensor | None = None) -> Tensor:
    """The most likely token of each row, (B,), apart from the suppressed ids."""
    if suppressed is not None:
        logits_BV = logits_BV.index_fill(-1, suppressed, float("-inf"))
    return logits_BV.argmax(-1)


def _one_by_one(
    model: Transformer, prompt: Tensor, mask: Tensor, max_new_tokens: int, options: dict[str, Any]
) -> Iterator[Step]:
    """Each row by itself, in step: a batch as wide as its longest prompt would cut a short prompt's answer early."""
    rows = [ids[real.bool()][None] for ids, real in zip(prompt, mask, strict=True)]
    streams = [stream(model, ids, max_new_tokens=max_new_tokens, **options) for ids in rows]
    reasons: list[StopReason | None] = [None] * len(rows)
    while any(reason is None for reason in reasons):
        tokens: list[int | None] = [None] * len(rows)
        for index, steps in enumerate(streams):
            if reasons[index] is None:
                (tokens[index],), (reasons[index],) = next(steps)
        yield tokens, list(reasons)


def _check_count(max_new_tokens: int) -> None:
    whole = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool)
    if not whole or max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens!r} leaves nothing to generate", "ask for at least 1")


def _listed(name: str, ids: Any) -> list[int]:
    """The ids as a list of whole numbers."""
    listed = list(ids) if hasattr(ids, "__iter__") else None
    if listed is None or not all(hasattr(i, "__index__") for i in listed):
        raise UsageError(f"{name}={ids!r} is not a list of token ids", f"write {name}=[...]")
    return [int(i) for i in listed]


def _as_ids(model: Transformer, ids: list[int], device: torch.device) -> Tensor | None:
    """Ids as a tensor, all inside the vocabulary; None where there are none."""
    size = model.config.head.out_size
    if outside := [i for i in ids if not 0 <= i < size]:
        raise UsageError(f"suppressed ids {outside[:5]} are outside the vocabulary, 0 to {size - 1}", "leave them out")
    if len(set(ids)) == size:
        raise UsageError("every token of the vocabulary is suppressed", "leave at least one to pick")
    return torch.tensor(sorted(set(ids)), device=device) if ids else None


def decode_step(
    model: Transformer, tokens_BT: Tensor, mask_BS: Tensor | None, cache: KeyValueCache, memory: StackOutput | None
) -> Tensor:
    """Run the tokens behind the cache; the logits after the last one, (B, V)."""
    if memory is None:
        output = model(tokens_BT, mask_BS, cache=cache, logits_to_keep=1)
    else:
        output = model(
            decoder_input_ids=tokens_BT,
            decoder_attention_mask=mask_BS,
            encoder_output=memory,
            cache=cache,
            logits_to_keep=1,
        )
    logits: Tensor = output.logits[:, -1]
    return logits


def _prepare(
    model: Transformer,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    decoder_input_ids: Tensor | None,
    encoder_output: StackOutput | None,
    encoder_inputs: dict[str, Tensor],
) -> tuple[Tensor, Tensor | None, StackOutput | None]:
    """The decoder's prompt with its mask, padding on the left; and the encoder's output."""
    config = model.config
    if config.head.kind not in ("causal_lm", "seq2seq_lm"):
        raise UsageError(
            f"this model has a {config.head.kind!r} head and cannot generate", "load a causal or seq2seq language model"
        )
    if config.encoder is None:
        if input_ids is None or decoder_input_ids is not None or encoder_output is not None or encoder_inputs:
            raise UsageError("a decoder generates from input_ids alone", "pass input_ids and attention_mask")
        return (*left_align(input_ids, attention_mask), None)
    if encoder_output is not None and (input_ids is not None or encoder_inputs):
        raise UsageError("encoder_output and inputs of the encoder exclude each other", "pass one of them")
    memory = encoder_output or model.encode(input_ids, attention_mask, **encoder_inputs)
    return _decoder_start(model, decoder_input_ids, memory.last_hidden_state), None, memory


def _decoder_start(model: Transformer, decoder_input_ids: Tensor | None, memory_BSD: Tensor) -> Tensor:
    """What an encoder-decoder's output begins with, (B, T')."""
    batch, start = len(memory_BSD), model.config.decoder_start_id
    if decoder_input_ids is None:
        if start is None:
            raise UsageError("config.json names no decoder_start_token_id", "pass decoder_input_ids")
        return torch.full((batch, 1), start, device=memory_BSD.device)
    if decoder_input_ids.dim() != 2 or len(decoder_input_ids) != batch:
        raise UsageError(
            f"decoder_input_ids of shape {tuple(decoder_input_ids.shape)} for a batch of {batch}",
            "it has one row for each input",
        )
    return decoder_input_ids


def _budget(model: Transformer, prompt_length: int, max_new_tokens: int) -> int:
    """New tokens that fit: the last one is never fed back, so it needs no position."""
    stack = model.config.decoder
    assert stack is not None
    if stack.max_positions is None:
        return max_new_tokens
    room = stack.max_positions - prompt_length + 1
    if room < 1:
        raise InputError(
            f"a prompt of {prompt_length} tokens fills the {stack.max_positions} positions this model has learned",
            "shorten it, or encode with truncate=True",
        )
    return min(max_new_tokens, room)


def left_align(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Move each row's padding to its left, so that new tokens stand right behind the prompt. (B, T) → (B, T' ≤ T).

    Columns that are padding in every row are dropped.
    """
    for name, value in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if value is not None and not isinstance(value, Tensor):
            raise UsageError(f"{name} is a {type(value).__name__}, not a tensor", f"torch.tensor({name})")
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise InputError(
            f"input_ids of shape {tuple(input_ids.shape)} are empty or not (B, T)", "give one row of ids for each input"
        )
    if attention_mask is None:
        return input_ids, None
    if attention_mask.shape != input_ids.shape:
        raise UsageError(
            f"attention_mask of shape {tuple(attention_mask.shape)} does not fit input_ids {tuple(input_ids.shape)}",
            "it has one entry for each token",
        )
    if bool(attention_mask.all()):
        return input_ids, None
    if not bool(attention_mask.any(-1).all()):
        raise InputError("a row of the batch has no real token", "leave empty prompts out")
    # Sorting by (is real, place) is stable: padding first, real tokens in their order.
    real = attention_mask.bool().long()
    order = real.argsort(dim=-1, stable=True)[:, -int(real.sum(-1).max()) :]
    ids, mask = input_ids.gather(1, order), real.gather(1, order)
    return ids, None if bool(mask.all()) else mask
