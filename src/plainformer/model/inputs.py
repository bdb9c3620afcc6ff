"""What a call gives a stack, and what follows from it without any weight: lengths, positions, which of them are real.

A stage of a pipeline that does not have the frontend knows all this as well, from the same inputs.

Shapes: B batch, T positions of this call, S positions in all (cached ones and T), D hidden size, W width of the token
vectors, C channels, M mel channels, N samples or frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from plainformer.config import MelFrontend, ModelConfig, PatchFrontend, StackConfig, TokenFrontend, WaveFrontend
from plainformer.errors import InputError, UsageError, a_type, opt
from plainformer.model.documents import Documents, documents_of
from plainformer.model.frontend import frames_of, may_look, require, samples_for_one_frame
from plainformer.model.heads import last_true
from plainformer.model.position import positions_from_mask

ID_TYPES = (torch.int64, torch.int32)  # what an embedding can look up
# What each kind of frontend reads of a `StackInput`; every stack takes a head mask as well.
READS = {
    "tokens": ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "document_ids"),
    "patches": ("pixel_values",),
    "wave": ("input_values", "attention_mask", "hidden_frames", "hidden_features"),
    "mel": ("input_features",),
}


@dataclass
class StackInput:
    """One call's inputs; exactly one of the first four that fits the frontend.

    `attention_mask` covers what a cache already holds too: (B, S), 1 for real and 0 for padding. `document_ids`, (B, T),
    are for rows of several documents (see `documents.py`); padding has -1. `hidden_frames`, (B, T), and `hidden_features`,
    (B, D), are what is hidden of waves in training.
    """

    input_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    pixel_values: Tensor | None = None
    input_values: Tensor | None = None
    input_features: Tensor | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None
    document_ids: Tensor | None = None
    head_mask: Tensor | None = None
    cross_head_mask: Tensor | None = None
    hidden_frames: Tensor | None = None
    hidden_features: Tensor | None = None


class Reading(NamedTuple):
    """What inputs say of the vectors that a frontend makes of them.

    Attributes:
        size: (B, T). positions_BT: each vector's position, (1, T) where all rows have the same.
        real_BS: which of all S positions are real; None: all.
        documents: of packed rows; None where a row is one.
    """

    size: tuple[int, int]
    positions_BT: Tensor
    real_BS: Tensor | None = None
    documents: Documents | None = None

    def real_BT(self) -> Tensor | None:
        """Return which of this call's positions are real; None: all."""
        return None if self.real_BS is None else self.real_BS[:, -self.size[1] :]


def size_of(config: StackConfig, inputs: StackInput) -> tuple[int, int]:
    """Return how many rows and positions, (B, T), inputs become that `read` accepts."""
    frontend = config.frontend
    if isinstance(frontend, TokenFrontend):
        given = inputs.input_ids if inputs.input_ids is not None else _given("inputs_embeds", inputs.inputs_embeds)
        return given.size(0), given.size(1)
    if isinstance(frontend, WaveFrontend):
        wave_BN = _given("input_values", inputs.input_values)
        return len(wave_BN), frames_of(frontend, wave_BN.size(1))
    if isinstance(frontend, PatchFrontend):
        pixels = _given("pixel_values", inputs.pixel_values)
        height, width = (side // patch for side, patch in zip(pixels.shape[-2:], frontend.patch_size, strict=True))
        return len(pixels), height * width + frontend.class_tokens
    mels_BMN = _given("input_features", inputs.input_features)
    return len(mels_BMN), (mels_BMN.size(2) + 1) // 2  # the second convolution takes every other frame


def read(config: StackConfig, inputs: StackInput, past: int, training: bool) -> Reading:
    """Check a call's inputs, which follow `past` cached positions, and return what they say.

    Raises:
        UsageError, InputError: what the model does not read, or of a shape or with values that it cannot take.
    """
    frontend, real_BT = config.frontend, None
    if isinstance(frontend, TokenFrontend):
        return _read_tokens(config, frontend, inputs, past, training)
    if isinstance(frontend, WaveFrontend):
        values = _given("input_values", inputs.input_values)
        _check_wave(frontend, values)
        size = size_of(config, inputs)
        if inputs.attention_mask is not None:
            real_BT = _real_frames(frontend, values, inputs.attention_mask, size[1], training)
    elif isinstance(frontend, PatchFrontend):
        values = _given("pixel_values", inputs.pixel_values)
        _check_pixels(frontend, values)
        size = size_of(config, inputs)
    else:
        values = _given("input_features", inputs.input_features)
        _check_mels(frontend, values)
        size = size_of(config, inputs)
    return Reading(size, torch.arange(size[1], device=values.device)[None], real_BT)


def _read_tokens(
    config: StackConfig, frontend: TokenFrontend, inputs: StackInput, past: int, training: bool
) -> Reading:
    if (inputs.input_ids is None) == (inputs.inputs_embeds is None):
        raise UsageError("exactly one of input_ids and inputs_embeds is needed", "give the one that you have")
    if inputs.input_ids is not None:
        given = inputs.input_ids
        check_ids(given, frontend, past, training)
    else:
        given = _given("inputs_embeds", inputs.inputs_embeds)
        _check_embeds(given, frontend)
    batch, length = given.shape[:2]
    for name in ("position_ids", "token_type_ids", "document_ids"):
        if getattr(inputs, name) is not None:
            _check_places(name, getattr(inputs, name), batch, length)
    if inputs.document_ids is not None:
        return _read_documents(config, inputs, inputs.document_ids.expand(batch, length), training)
    _check_length(config, past + length)
    real_BS = _real(inputs.attention_mask, batch, past + length)
    positions_BT = _positions(config, inputs.position_ids, real_BS, (past, length), given.device, training)
    return Reading((batch, length), positions_BT, real_BS)


def _read_documents(config: StackConfig, inputs: StackInput, ids_BT: Tensor, training: bool) -> Reading:
    for name in ("attention_mask", "position_ids"):
        if getattr(inputs, name) is not None:
            what = f"{name} and document_ids: the latter count positions in each document, and are -1 on padding"
            raise UsageError(what, f"leave out {name}")
    documents = documents_of(ids_BT)
    if config.max_positions is not None and may_look(ids_BT, training):
        _check_length(config, int(documents.positions_BT.max()) + 1)
    size = ids_BT.size(0), ids_BT.size(1)
    return Reading(size, documents.positions_BT, documents.real_BT, documents)


def _check_length(config: StackConfig, length: int) -> None:
    limit = config.max_positions
    if limit is not None and length > limit:
        raise InputError(
            f"an input of {length} tokens is longer than the {limit} positions this model has learned",
            f"have the tokenizer cut it ({opt('truncate', True)}), or split it into windows ({opt('stride', ...)})",
        )


def _real(attention_mask: Tensor | None, batch: int, total: int) -> Tensor | None:
    if attention_mask is None:
        return None
    fix = "it has one row for each input and one column for each position, cached ones included"
    require(attention_mask.shape == (batch, total), "attention_mask", attention_mask, f"({batch}, {total})", fix)
    # Asking a GPU whether anything is masked would wait for it; on a CPU the answer costs nothing and saves a mask.
    if attention_mask.device.type == "cpu" and bool(attention_mask.all()):
        return None
    return attention_mask.bool()


def _positions(
    config: StackConfig,
    given: Tensor | None,
    real_BS: Tensor | None,
    span: tuple[int, int],
    device: torch.device,
    training: bool,
) -> Tensor:
    """Return the positions of a call; `span`: how many came before, and its own length."""
    past, length = span
    if given is not None:
        limit = config.max_positions if may_look(given, training) else None
        if limit is not None and (int(given.max()) >= limit or int(given.min()) < 0):
            raise InputError(f"position_ids outside 0..{limit - 1}", "this model has learned no others")
        return given
    if real_BS is None:
        return torch.arange(past, past + length, device=device)[None]
    return positions_from_mask(real_BS, past)


def check_ids(input_ids: Tensor, frontend: object, past: int, training: bool) -> None:
    """Refuse ids that are not whole numbers, (B, T), within the vocabulary; on a GPU only a prompt's are looked at.

    A prompt's are not either in training: see `may_look`.
    """
    assert isinstance(frontend, TokenFrontend)
    fits, fix = (
        input_ids.dim() == 2 and input_ids.dtype in ID_TYPES,
        "give one row of token ids for each input, as torch.long",
    )
    require(fits, "input_ids", input_ids, "whole numbers in (B, T)", fix)
    if input_ids.numel() == 0:
        raise InputError(f"input_ids of shape {tuple(input_ids.shape)} are empty", "give at least one token")
    if not may_look(input_ids, training or past > 0):
        return
    low, high = (int(bound) for bound in input_ids.aminmax())
    if low < 0 or high >= frontend.vocab_size:
        bad = low if low < 0 else high
        raise InputError(
            f"token id {bad} is outside this model's vocabulary, 0 to {frontend.vocab_size - 1}",
            "is the tokenizer that of another model?",
        )


def _check_embeds(embeds: Tensor, frontend: TokenFrontend) -> None:
    """Refuse what is not a replacement for ids: vectors, (B, T, W), with at least one position."""
    size = frontend.embedding_size
    fits, fix = embeds.dim() == 3 and embeds.size(-1) == size, "give one vector for each token, as embed_tokens does"
    require(fits and embeds.numel() > 0, "inputs_embeds", embeds, f"(B, T, {size}) with B and T at least 1", fix)


def _check_places(name: str, value: Tensor, batch: int, length: int) -> None:
    """Refuse what is not whole numbers, one for each position: (B, T), or (1, T) if all rows have the same."""
    fits = value.dim() == 2 and value.size(0) in (1, batch) and value.size(1) == length and value.dtype in ID_TYPES
    wanted = f"whole numbers in ({batch}, {length})"
    require(fits, name, value, wanted, "it has one entry for each token, of type torch.long")


def _check_pixels(frontend: PatchFrontend, pixels: Tensor) -> None:
    channels, fix = frontend.channels, "stack images with their channels before height and width"
    fits = pixels.dim() == 4 and pixels.size(1) == channels
    require(fits, "pixel_values", pixels, f"(B, {channels}, H, W)", fix)
    if any(i < p for i, p in zip(pixels.shape[-2:], frontend.patch_size, strict=True)):
        raise InputError(
            f"an image of {tuple(pixels.shape[-2:])} pixels is smaller than a patch {frontend.patch_size}",
            "resize it first",
        )


def _check_mels(frontend: MelFrontend, mels_BMN: Tensor) -> None:
    expected = 2 * frontend.max_positions
    fits = mels_BMN.dim() == 3 and mels_BMN.size(1) == frontend.mels and 0 < mels_BMN.size(2) <= expected
    fix = "make them with the checkpoint's own feature extractor, which pads and cuts to its length"
    require(fits, "input_features", mels_BMN, f"(B, {frontend.mels}, 1 to {expected})", fix)


def _check_wave(frontend: WaveFrontend, wave_BN: Tensor) -> None:
    needed = samples_for_one_frame(frontend)
    fits = wave_BN.dim() == 2 and wave_BN.size(1) >= needed
    require(fits, "input_values", wave_BN, f"(B, N) with at least N = {needed} samples", "give longer audio, or pad it")


def _real_frames(
    frontend: WaveFrontend, wave_BN: Tensor, mask_BN: Tensor, length: int, training: bool
) -> Tensor | None:
    """Return which frames are real, (B, T); None if all are, and if it costs nothing to know."""
    lengths = frames_of(frontend, _samples(frontend, mask_BN, wave_BN, training))
    if may_look(lengths, training) and int(lengths.min()) >= length:
        return None
    return torch.arange(length, device=wave_BN.device)[None] < lengths[:, None]


def _samples(frontend: WaveFrontend, mask_BN: Tensor, wave_BN: Tensor, training: bool) -> Tensor:
    """Return how many samples of each row are real, (B,); they come first, since frames are counted from the start."""
    fits, wanted = mask_BN.shape == wave_BN.shape, f"{tuple(wave_BN.shape)}"
    require(fits, "attention_mask", mask_BN, wanted, "it has one column for each sample")
    real_BN = mask_BN.bool()
    if not may_look(mask_BN, training):
        return real_BN.sum(-1)
    if bool((real_BN[:, 1:] & ~real_BN[:, :-1]).any()):
        raise InputError("attention_mask hides samples before real ones", "pad audio at its end")
    lengths, needed = real_BN.sum(-1), samples_for_one_frame(frontend)
    if int(lengths.min()) < needed:
        raise InputError(
            f"a row has {int(lengths.min())} real samples, and one frame takes {needed}",
            "leave it out, or pad it with silence that counts as real",
        )
    return lengths


def _given(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise UsageError(f"this model reads {name}, and none was given", f"pass {name}=...")
    return value


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(f"{name} is {a_type(value)}, not a tensor", f"torch.tensor({name})")


def checked_token_types(frontend: TokenFrontend, token_type_ids: Tensor, training: bool) -> Tensor | None:
    """Return the ids if the model has token types; without, zeros are accepted, because tokenizers give them."""
    count = frontend.token_types
    if not may_look(token_type_ids, training):
        return token_type_ids if count else None
    low, high = (int(bound) for bound in token_type_ids.aminmax()) if token_type_ids.numel() else (0, 0)
    if low < 0 or high >= max(count, 1):
        raise UsageError(
            f"token_type_ids from {low} to {high}: this model has {count or 'no'} token types",
            "leave them out" if count < 2 else f"they are 0 to {count - 1}",
        )
    return token_type_ids if count else None


def flatten_choices(inputs: dict[str, Tensor | None]) -> int:
    """(B, choices, T) → (B * choices, T), in place; return the number of choices."""
    first = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
    if first is None or first.dim() != (3 if first is inputs.get("input_ids") else 4):
        raise UsageError("multiple choice takes (B, choices, T) ids", "stack the encoded choices of each question")
    for name, value in inputs.items():
        if value is not None and name != "head_mask":
            inputs[name] = value.flatten(0, 1)
    return first.size(1)


def shift_right(target_ids: Tensor, config: ModelConfig, mask: Tensor | None = None) -> Tensor:
    """Return a target, (B, T), as the decoder's input: one place to the right, after the token that `decoder_shift` names.

    `mask`, (B, T), says which ids are real, so that padding may be on either side; without it, a row starts in its first
    column, and its last token is the last one that is not padding.
    """
    shifted = torch.cat((target_ids[:, :1], target_ids[:, :-1]), dim=1)
    first_B1 = torch.zeros_like(target_ids[:, :1]) if mask is None else mask.int().argmax(-1, keepdim=True)
    if config.decoder_shift == "start_id":
        if config.decoder_start_id is None:
            raise UsageError("config.json names no decoder_start_token_id", "pass decoder_input_ids")
        return shifted.scatter(1, first_B1, config.decoder_start_id)
    pad_id = config.pad_id if config.pad_id is not None else -1
    real_BT = mask if mask is not None else target_ids != pad_id
    return shifted.scatter(1, first_B1, target_ids.gather(1, last_true(real_BT)[:, None]))


def check_rows(decoder: StackInput, encoded: int, copies: int) -> None:
    """Refuse sides that do not match: equally many rows, one that serves all, or one for the `copies` that a cache has."""
    given = decoder.input_ids if decoder.input_ids is not None else decoder.inputs_embeds
    rows = len(given) if given is not None and given.dim() else 0
    if rows != encoded * copies and (encoded != 1 or copies != 1):
        what = f"the decoder's input has {rows} rows, and the encoder's output {encoded}"
        raise UsageError(what, "they need the same number")
