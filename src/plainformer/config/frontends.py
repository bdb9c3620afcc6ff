"""What turns an input into a sequence of vectors: tokens, patches, a waveform, a spectrogram."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from plainformer.config.checks import (
    ACTIVATIONS,
    MAX_CONVOLUTIONS,
    MAX_PATCH,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    require,
    require_choice,
    require_size,
)
from plainformer.config.parts import NormConfig


@dataclass(frozen=True)
class TokenFrontend:
    """ids → embeddings (+ positions, + token types, norm, projection): (B, T) → (B, T, D).

    `max_positions` is the height of a learned table, a hard limit. Sinusoidal tables are computed for any length;
    `sinusoid_start` is the first row in use (fairseq starts after its padding row). A `projection` leads from
    `embedding_size` to the stack's width: "affine" with a bias, "linear" without, before or after the norm as published
    (`projection_place`).
    """

    kind: Literal["tokens"] = field(default="tokens", init=False)
    vocab_size: int
    embedding_size: int
    positions: Literal["none", "learned", "sinusoidal"] = "none"
    max_positions: int = 0
    sinusoid: Literal["paper", "tensor2tensor"] = "paper"
    sinusoid_start: int = 0
    token_types: int = 0
    norm: NormConfig | None = None
    scale: float = 1.0
    pad_id: int | None = None
    padding: Literal["kept", "zeroed"] = "kept"
    projection: Literal["none", "affine", "linear"] = "none"
    projection_place: Literal["before_norm", "after_norm"] = "after_norm"

    def __post_init__(self) -> None:
        require_size("vocab_size", self.vocab_size, MAX_VOCABULARY)
        require_size("embedding size", self.embedding_size, MAX_WIDTH)
        require_choice("position embedding", self.positions, ("none", "learned", "sinusoidal"))
        require_choice("embedding projection", self.projection, ("none", "affine", "linear"))
        require_size("type_vocab_size", self.token_types, 1 << 16, 0)
        if self.positions == "learned":
            require_size("max_position_embeddings", self.max_positions, MAX_POSITIONS)


@dataclass(frozen=True)
class PatchFrontend:
    """An image cut into patches, each a vector (Dosovitskiy et al. 2021): (B, C, H, W) → (B, 1 + patches, D).

    `class_tokens` vectors stand before the patches: 1 for ViT, 2 for a distilled DeiT.
    """

    kind: Literal["patches"] = field(default="patches", init=False)
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int = 3
    class_tokens: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        for name, (height, width) in (("image_size", self.image_size), ("patch_size", self.patch_size)):
            require_size(name, height, 1 << 16 if name == "image_size" else MAX_PATCH)
            require_size(name, width, 1 << 16 if name == "image_size" else MAX_PATCH)
        require_size("num_channels", self.channels, 1 << 12)
        fits = all(i >= p for i, p in zip(self.image_size, self.patch_size, strict=True))
        require(fits, f"patch_size {self.patch_size} is larger than image_size {self.image_size}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across at the size the model was trained with."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]


@dataclass(frozen=True)
class WaveFrontend:
    """A waveform through seven convolutions (Baevski et al. 2020): (B, samples) → (B, frames, D)."""

    kind: Literal["wave"] = field(default="wave", init=False)
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    conv_activation: str = "gelu"
    projection_norm: NormConfig | None = field(default_factory=lambda: NormConfig(eps=1e-5))
    position_kernel: int = 128
    position_groups: int = 16
    norm: NormConfig | None = None

    def __post_init__(self) -> None:
        same = len(self.channels) == len(self.kernels) == len(self.strides) > 0
        require(same, "conv_dim, conv_kernel and conv_stride differ in length")
        require_size("number of convolutions", len(self.channels), MAX_CONVOLUTIONS)
        for name, sizes in (("conv_dim", self.channels), ("conv_kernel", self.kernels), ("conv_stride", self.strides)):
            for size in sizes:
                require_size(name, size, MAX_WIDTH)
        require_size("num_conv_pos_embeddings", self.position_kernel, MAX_WIDTH)
        require_size("num_conv_pos_embedding_groups", self.position_groups, MAX_WIDTH)
        require_choice("feat_extract_norm", self.conv_norm, ("group", "layer"))
        require_choice("feat_extract_activation", self.conv_activation, ACTIVATIONS)


@dataclass(frozen=True)
class MelFrontend:
    """A log-mel spectrogram through two convolutions (Radford et al. 2022): (B, mels, frames) → (B, frames/2, D)."""

    kind: Literal["mel"] = field(default="mel", init=False)
    mels: int
    max_positions: int
    activation: str = "gelu"

    def __post_init__(self) -> None:
        require_size("num_mel_bins", self.mels, 1 << 12)
        require_size("max_source_positions", self.max_positions, MAX_POSITIONS)


Frontend = TokenFrontend | PatchFrontend | WaveFrontend | MelFrontend
