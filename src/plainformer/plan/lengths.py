"""How many positions each stack has for what is asked. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from plainformer.config.model import ModelConfig, StackConfig
from plainformer.config.parts import MelFrontend, PatchFrontend, WaveFrontend
from plainformer.plan.workload import Workload

SAMPLES = 16_000  # a second: what every checkpoint of waveforms was trained on


@dataclass(frozen=True)
class Lengths:
    """Positions of a row.

    Attributes:
        encoder: positions of the encoder, 0 where there is none.
        decoder: those that the decoder reads at once: the prompt, or the row that is learnt from.
        new: those that follow one by one.
    """

    encoder: int
    decoder: int
    new: int


def lengths(config: ModelConfig, workload: Workload) -> Lengths:
    """Return the positions of a row, by the frontend: tokens as asked, images by their patches, sound by its frames."""
    tokens = workload.length if workload.training else workload.prompt
    encoder = 0 if config.encoder is None else _positions(config.encoder, workload, tokens)
    if config.decoder is None:
        return Lengths(encoder, 0, 0)
    if workload.training:
        return Lengths(encoder, workload.target_length if encoder else tokens, 0)
    return Lengths(encoder, 1 if encoder else tokens, workload.new)


def reads_text(config: ModelConfig) -> bool:
    """Return whether the length of the input is a number of tokens, which may be chosen."""
    return config.input_frontend.kind == "tokens"


def _positions(stack: StackConfig, workload: Workload, tokens: int) -> int:
    frontend = stack.frontend
    if isinstance(frontend, PatchFrontend):
        height, width = workload.pixels or frontend.image_size
        down, across = height // frontend.patch_size[0], width // frontend.patch_size[1]
        return frontend.class_tokens + down * across
    if isinstance(frontend, MelFrontend):
        return frontend.max_positions
    if isinstance(frontend, WaveFrontend):
        size = round(workload.seconds * SAMPLES)
        for kernel, stride in zip(frontend.kernels, frontend.strides, strict=True):
            size = max((size - kernel) // stride + 1, 0)
        return size
    return tokens
