"""One call of the whole model: which of its inputs each stack reads, and what does not fit the model or each other.

This follows from the configuration and the inputs, without any weight, so every stage of a pipeline knows it.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from torch import Tensor

from plainformer.config import ModelConfig, TokenFrontend
from plainformer.config.values import check_whole
from plainformer.errors import UsageError, a_type
from plainformer.model.flow import Cache
from plainformer.model.inputs import READS, StackInput, check_tensor, checked_token_types, flatten_choices, shift_right
from plainformer.model.stack import StackOutput

Given = dict[str, Tensor | None]  # a call's inputs by name

DECODER_NAMES = {
    "decoder_input_ids": "input_ids",
    "decoder_inputs_embeds": "inputs_embeds",
    "decoder_attention_mask": "attention_mask",
    "decoder_position_ids": "position_ids",
    "decoder_head_mask": "head_mask",
    "cross_head_mask": "cross_head_mask",
}
MAIN_NAMES = tuple(f.name for f in fields(StackInput) if f.name != "cross_head_mask")


def check_options(
    config: ModelConfig, cache: Cache | None, encoder_output: StackOutput | None, logits_to_keep: int
) -> None:
    """Refuse what a model of this configuration has no use for."""
    if cache is not None and config.decoder is None:
        raise UsageError("this model has no decoder, so it has no use for a cache", "leave out cache=...")
    if cache is not None and config.main_stack.direction != "causal":
        raise UsageError("each position of this model sees the later ones: it cannot be cached", "leave out cache=...")
    if cache is not None and not isinstance(cache, Cache):
        raise UsageError(f"cache is {a_type(cache)}", "pass KeyValueCache(model.config, rows)")
    if encoder_output is not None and not _has_both(config):
        raise UsageError("encoder_output is for an encoder-decoder, which this model is not", "leave it out")
    if encoder_output is not None and not isinstance(encoder_output, StackOutput):
        raise UsageError(
            f"encoder_output is {a_type(encoder_output)}, not an encoder's output",
            "pass what encode() gave, or .encoder of an earlier output",
        )
    check_whole("logits_to_keep", logits_to_keep, 0, fix="give 0 (all positions) or more")


def check_inputs(config: ModelConfig, inputs: Given, training: bool) -> int:
    """Refuse inputs that the model does not read, flatten choices into rows, and return how many there are; 0 if none."""
    check_names(config, inputs, training, DECODER_NAMES if _has_both(config) else ())
    return flatten_choices(inputs) if config.head.kind == "choice" else 0


def check_names(config: ModelConfig, inputs: Given, training: bool, decoder_names: Iterable[str] = ()) -> None:
    """Refuse inputs that are unknown, no tensors, or types of tokens that the model has none of."""
    known = {*READS[config.input_frontend.kind], "head_mask", *decoder_names}
    if _has_both(config):
        known -= {"document_ids"}  # each decoder row attends to one whole encoder row
    for name, value in inputs.items():
        if name not in known and (value is not None or name not in MAIN_NAMES):
            raise UsageError(f"{name!r} is not an input of this model", "it reads " + ", ".join(sorted(known)))
        if value is not None:
            check_tensor(name, value)
        if name == "token_type_ids" and value is not None:
            frontend = config.input_frontend
            assert isinstance(frontend, TokenFrontend)
            inputs[name] = checked_token_types(frontend, value, training)


def check_documents(config: ModelConfig, cache: Cache | None) -> None:
    """Refuse rows of several documents where one is expected."""
    if cache is not None:
        raise UsageError("a cache holds one document for each row", "leave out document_ids=..., or cache=...")
    if config.head.pick != "all":
        what = "document_ids put several documents into a row, and this model's head reads one vector for each row"
        raise UsageError(what, "give each document a row of its own, or call states()")


def main_input(inputs: Given) -> StackInput:
    """Return what the first stack reads."""
    return StackInput(**{name: inputs.get(name) for name in MAIN_NAMES})


def decoder_input(config: ModelConfig, inputs: Given) -> StackInput:
    """Return what an encoder-decoder's decoder reads: without ids of its own, the encoder's moved to the right."""
    given = {ours: inputs.get(theirs) for theirs, ours in DECODER_NAMES.items()}
    if given["input_ids"] is None and given["inputs_embeds"] is None:
        if inputs["input_ids"] is None:
            raise UsageError("an encoder-decoder needs decoder_input_ids", "start with config.decoder_start_id")
        mask = inputs["attention_mask"]
        given["input_ids"] = shift_right(inputs["input_ids"], config, mask)
        if given["attention_mask"] is None:
            given["attention_mask"] = mask
    return StackInput(**given)


def stack_inputs(config: ModelConfig, inputs: Given, training: bool) -> dict[str, StackInput]:
    """Check a call's inputs, and return what each stack reads of them."""
    inputs = {"input_ids": None, "attention_mask": None, **inputs}
    check_inputs(config, inputs, training)
    if not _has_both(config):
        return {"decoder" if config.encoder is None else "encoder": main_input(inputs)}
    return {"encoder": main_input(inputs), "decoder": decoder_input(config, inputs)}


def _has_both(config: ModelConfig) -> bool:
    return config.encoder is not None and config.decoder is not None
