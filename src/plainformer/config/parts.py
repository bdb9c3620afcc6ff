"""The parts that families choose between: norms, positions, and what turns an input into a sequence of vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from plainformer.config.checks import (
    ACTIVATIONS,
    MAX_CONVOLUTIONS,
    MAX_PATCH,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    is_number,
    require,
    require_choice,
    require_positive,
    require_probability,
    require_size,
    shown,
)


@dataclass(frozen=True)
class NormConfig:
    """Layer normalisation (Ba et al. 2016) or RMS normalisation (Zhang & Sennrich 2019).

    `weight_offset` is added to the stored weight (Gemma stores `w` and scales by `1 + w`).
    `cast` is the moment the result returns to the model's dtype: "last" multiplies by the weight in fp32 first
    (Gemma, OLMo2), "first" casts the normalised value and then multiplies (Llama). In fp32 they are the same.
    """

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-12
    bias: bool = True
    weight_offset: float = 0.0
    cast: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        require_choice("norm", self.kind, ("layer", "rms"))
        good = is_number(self.eps) and 0 <= self.eps < 1
        require(good, f"normalisation epsilon {shown(self.eps)} is not between 0 and 1")


@dataclass(frozen=True)
class Dropout:
    """What is set to zero at random in training, and with which probability (Srivastava et al. 2014), place by place.

    Attributes:
        embedding: the frontend's vectors, after their norm (before a projection that follows it).
        projection: the frames of a waveform, after their projection.
        attention: attention probabilities.
        attention_output, ffn_output: what attention (to itself, to the encoder) and the FFN add to their input.
        activation: within the FFN, what its last product reads.
        positions: DeBERTa's vectors of relative positions, and its convolution.
        final: the stack's output, after the final norm.
        layer: a whole layer, which is then left out (Fan et al. 2020).
    """

    embedding: float = 0.0
    projection: float = 0.0
    attention: float = 0.0
    attention_output: float = 0.0
    ffn_output: float = 0.0
    activation: float = 0.0
    positions: float = 0.0
    final: float = 0.0
    layer: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            require_probability(f"dropout of {name}", value)

    def everywhere(self, p: float) -> Dropout:
        """Return `p` in the four places of the first transformers, and in others that have a dropout now.

        Those are the embeddings, attention's probabilities, and both outputs. A layer is left out as often as before;
        0 turns all off.
        """
        if p == 0:
            return Dropout()
        usual = dict.fromkeys(("embedding", "attention", "attention_output", "ffn_output"), p)
        others = {name: p for name, value in asdict(self).items() if value > 0 and name not in usual}
        return Dropout(**{**usual, **others, "layer": self.layer})


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed to reach past the length a model was first trained on.

    linear: positions divided by `factor` (Chen et al. 2023). dynamic: the base grows with the length (NTK-aware).
    yarn: Peng et al. 2023. llama3: frequency bands, Llama 3.1. longrope: a factor for each frequency, Phi-3.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_choice("rope scaling type", self.kind, ("linear", "dynamic", "yarn", "llama3", "longrope"))
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"):
            require_positive(f"rope scaling's {name}", getattr(self, name))
        if self.kind != "linear":
            require_size("rope scaling's original length", self.original_max_positions, MAX_POSITIONS)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021), half-split layout: channel i turns together with channel i + dim/2.

    `dim` is how many channels of each head turn; fewer than head_dim for GPT-NeoX and Phi.
    """

    theta: float
    dim: int
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        require_positive("rope_theta", self.theta)
        require_size("rotary channels", self.dim, MAX_WIDTH, 2)
        require(self.dim % 2 == 0, f"{self.dim} rotary channels: must be even, because channels turn in pairs")
        kind = self.scaling.kind if self.scaling is not None else ""
        require(kind != "yarn" or self.theta > 1, f"rope_theta={self.theta} with yarn: channels would turn alike")
        require(kind != "dynamic" or self.dim > 2, "dynamic rope scaling of a single pair of channels has no base")
        if self.scaling is not None and self.scaling.kind == "longrope":
            for factors in (self.scaling.short_factors, self.scaling.long_factors):
                require(len(factors) == self.dim // 2, f"longrope has {len(factors)} factors for {self.dim // 2} pairs")


@dataclass(frozen=True)
class RelativeBias:
    """T5's learned bias for each bucket of distance, shared by the layers of a stack (Raffel et al. 2020)."""

    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        require_size("relative_attention_num_buckets", self.buckets, 1 << 16, 4)
        require_size("relative_attention_max_distance", self.max_distance, MAX_POSITIONS, 2)
        require(self.max_distance > self.buckets // 2, "relative_attention_max_distance must exceed half the buckets")


@dataclass(frozen=True)
class Disentangled:
    """DeBERTa's attention: content-to-position and position-to-content scores beside content-to-content (He et al. 2021).

    `buckets` 0 means raw distances up to `max_distance`, else logarithmic buckets.
    `shared_projection`: positions pass through the content's query and key projections.
    `conv_kernel` > 0 adds a convolution's output to the first layer's (DeBERTa-v2 xlarge).
    """

    max_distance: int
    buckets: int = 0
    terms: tuple[str, ...] = ("c2p", "p2c")
    shared_projection: bool = True
    norm: bool = False
    conv_kernel: int = 0
    conv_groups: int = 1
    conv_activation: str = "tanh"

    def __post_init__(self) -> None:
        require_size("max_relative_positions", self.max_distance, MAX_POSITIONS)
        require_size("position_buckets", self.buckets, MAX_POSITIONS, 0)
        spaced = self.buckets == 0 or (self.buckets > 3 and self.max_distance > self.buckets // 2 + 1)
        require(spaced, f"position_buckets={self.buckets} for distances up to {self.max_distance}")
        require_size("conv_kernel_size", self.conv_kernel, 1 << 10, 0)
        require_size("conv_groups", self.conv_groups, MAX_WIDTH)
        require_choice("conv_act", self.conv_activation, ACTIVATIONS)
        for term in self.terms:
            require_choice("pos_att_type", term, ("c2p", "p2c"))

    @property
    def span(self) -> int:
        """Half the height of the table of relative positions."""
        return self.buckets if self.buckets > 0 else self.max_distance


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

    `class_tokens` vectors come before the patches: 1 for ViT, 2 for a distilled DeiT.
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
    """A waveform through seven convolutions (Baevski et al. 2020): (B, samples) → (B, frames, D).

    `hidden_vector`: whether it has a vector of its own for frames that are hidden in training.
    """

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
    hidden_vector: bool = False

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

BILINEAR, BICUBIC = 2, 3  # Pillow's codes; 0..5 are nearest, lanczos, bilinear, bicubic, box, hamming


@dataclass(frozen=True)
class ImageDefaults:
    """What one kind of image processor does where its preprocessor_config.json says nothing.

    Attributes:
        kind: the beginning of its class's name in lower case ("vit" of ViTImageProcessor).
        size: pixels of both edges after resizing.
        crop: pixels of both edges that are cut from the centre; 0 for no crop.
        resample: Pillow's filter code.
    """

    kind: str
    size: int
    crop: int = 0
    resample: int = BILINEAR
