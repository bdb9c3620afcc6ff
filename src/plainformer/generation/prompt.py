"""What generation starts from: a decoder's prompts, or the start of an encoder-decoder's output and its encoder's states.

Shapes: B prompts, T positions, S encoder positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError, a_type, nth, opt
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer

X = TypeVar("X", Tensor, Tensor | None)


def take_rows(x: X, index: Any) -> X:
    """Return rows of a tensor, where there is one: those of a slice, or of a tensor of row numbers."""
    return x[index] if x is not None else None


def take_encoded(encoded: StackOutput, index: Any) -> StackOutput:
    """Return rows of an encoder's output."""
    return StackOutput(encoded.last_hidden_state[index], take_rows(encoded.real_BT, index))


@dataclass(frozen=True)
class Prompt:
    """A batch to continue.

    Attributes:
        ids: (B, T) what the decoder has before its first new token, padding on the left.
        real: (B, T), 0 for padding; None where nothing is padded.
        encoder_output: the encoder's output. encoder_ids, encoder_real: what it was made from, where that was tokens; (B, S).
    """

    ids: Tensor
    real: Tensor | None = None
    encoder_output: StackOutput | None = None
    encoder_ids: Tensor | None = None
    encoder_real: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> list[int]:
        """Return how many real tokens each prompt has."""
        if self.real is None:
            return [self.ids.size(1)] * len(self.ids)
        return [int(count) for count in self.real.sum(-1).tolist()]

    def row(self, index: int) -> Prompt:
        """Return one prompt alone, without padding."""
        one, encoded = slice(index, index + 1), self.encoder_output
        ids = self.ids[one] if self.real is None else self.ids[one, self.real[index].bool()]
        encoded = take_encoded(encoded, one) if encoded is not None else None
        return Prompt(ids, None, encoded, take_rows(self.encoder_ids, one), take_rows(self.encoder_real, one))


def make_prompt(
    model: Transformer,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    decoder_input_ids: Tensor | None,
    encoder_output: StackOutput | None,
    encoder_inputs: dict[str, Tensor],
) -> Prompt:
    """Check what was given against the model, and run its encoder."""
    config = model.config
    if config.head.kind not in ("causal_lm", "seq2seq_lm"):
        raise UsageError(
            f"this model has a {config.head.kind!r} head and cannot generate", "load a causal or seq2seq language model"
        )
    if config.main_stack.direction != "causal":
        raise UsageError("this model sees later positions too and cannot generate", "load a causal language model")
    if config.encoder is None:
        if input_ids is None or decoder_input_ids is not None or encoder_output is not None or encoder_inputs:
            raise UsageError("a decoder generates from input_ids alone", "pass input_ids and attention_mask")
        return Prompt(*left_align(input_ids, attention_mask))
    if encoder_output is not None and (input_ids is not None or attention_mask is not None or encoder_inputs):
        raise UsageError("encoder_output and inputs of the encoder exclude each other", "pass one of them")
    with torch.no_grad():
        encoded = encoder_output or model.encode(input_ids, attention_mask, **encoder_inputs)
    start = _decoder_start(model, decoder_input_ids, encoded.last_hidden_state)
    return Prompt(start, None, encoded, input_ids, attention_mask.bool() if attention_mask is not None else None)


def _decoder_start(model: Transformer, decoder_input_ids: Tensor | None, encoder_BSD: Tensor) -> Tensor:
    """Return what an encoder-decoder's output begins with, (B, T)."""
    batch, start = len(encoder_BSD), model.config.decoder_start_id
    if decoder_input_ids is None:
        if start is None:
            raise UsageError("config.json names no decoder_start_token_id", "pass decoder_input_ids")
        return torch.full((batch, 1), start, device=encoder_BSD.device)
    check_tensor("decoder_input_ids", decoder_input_ids)
    if decoder_input_ids.dim() != 2 or len(decoder_input_ids) != batch or not decoder_input_ids.numel():
        raise UsageError(
            f"decoder_input_ids of shape {tuple(decoder_input_ids.shape)} for a batch of {batch}",
            "it has one row for each input",
        )
    return decoder_input_ids


def check_tensor(name: str, value: object) -> None:
    """Refuse what is neither None nor a tensor."""
    if value is not None and not isinstance(value, Tensor):
        raise UsageError(f"{opt(name)} is {a_type(value)}, not a tensor", f"torch.tensor({name})")


def left_align(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Move each row's padding to its left, so that new tokens directly follow the prompt. (B, T) → (B, T' ≤ T).

    Columns that are padding in every row are dropped.
    """
    check_tensor("input_ids", input_ids)
    check_tensor("attention_mask", attention_mask)
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
        empty = attention_mask.any(-1).tolist().index(False)
        raise InputError(f"{nth(empty)} has no real token", "leave empty prompts out")
    # Sorting by (is real, place) is stable: padding first, real tokens in their order.
    real = attention_mask.bool().long()
    order = real.argsort(dim=-1, stable=True)[:, -int(real.sum(-1).max()) :]
    ids, mask = input_ids.gather(1, order), real.gather(1, order)
    return ids, None if bool(mask.all()) else mask
