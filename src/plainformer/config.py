"""The configuration of ANY transformer, as frozen dataclasses. All validation is here; torch is not.

A family file (`families/<name>.py`) turns a Hugging Face `config.json` into a `ModelConfig`. A model is built from a
`ModelConfig` alone, so two families that end in equal configurations are the same model.
Differences are *values* (`norm_place="post"`), not switches (`use_post_norm=True`).
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from plainformer.errors import CheckpointError, did_you_mean

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "tanh", "sigmoid", "identity")

# Sizes past these bounds are lies or typing errors, not models; they are refused before anything is allocated.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 10
MAX_VOCABULARY = 1 << 24
MAX_POSITIONS = 1 << 27
MAX_PATCH = 1 << 12
MAX_CONVOLUTIONS = 64

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """A value for a message: its repr, cut where it is long or deep, since a forged one may be megabytes."""
    return _short.repr(value)


def is_number(value: object) -> bool:
    """A finite number; true and false are none, though Python counts with them."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1 << 53
    return whole or (isinstance(value, float) and math.isfinite(value))


def require(condition: bool, what: str, fix: str = "check config.json against the model card") -> None:
    """Raise CheckpointError(what, fix) unless `condition` holds."""
    if not condition:
        raise CheckpointError(f"config.json: {what}", fix)


def require_size(name: str, value: object, upper: int, lower: int = 1) -> None:
    """A whole number between `lower` and `upper`, or a CheckpointError that names the field."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and lower <= value <= upper, f"{name}={shown(value)} is not a whole number from {lower} to {upper}")  # type: ignore[operator]


def require_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    """One of `options`, or a CheckpointError that offers the closest ones."""
    if value not in options:
        raise CheckpointError(f"config.json: {name}={shown(value)} is not supported", did_you_mean(str(value), options))


def require_positive(name: str, value: object) -> None:
    """A finite number above zero, or a CheckpointError that names the field."""
    require(is_number(value) and value > 0, f"{name}={shown(value)} is not a positive number")  # type: ignore[operator]


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


@dataclass(frozen=True)
class StackConfig:
    """A stack of equal layers with its frontend. What may differ from layer to layer is a tuple with one entry a layer.

    Attributes:
        norm_place: where the norm of a sub-layer f stands. "pre": x + f(norm(x)); "post": norm(x + f(x));
            "both": x + norm(f(norm(x))); "branch": x + norm(f(x)).
        residual: "sequential" (attention, then feed-forward) or "parallel" (both read the same x; GPT-NeoX).
        first_norm: "identity" leaves out the norm before the first layer's attention (ModernBERT).
        windows: for each layer, how many neighbouring positions attention sees (itself included), None for all. A causal
            layer sees `window` positions back; a bidirectional one |i - j| < window.
        rope: for each layer, its rotary positions; None for none.
        layer_ids: which set of parameters each layer uses; ALBERT shares one.
        qk_norm: none, "head" (over each head's channels; Qwen3, Gemma3), "all" (over the whole projection; OLMo2).
        score_softcap: scores become cap * tanh(scores / cap) (Gemma2).
    """

    frontend: Frontend
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    num_kv_heads: int = 0
    head_dim: int = 0
    attention_scale: float = 0.0
    activation: str = "gelu"
    ffn: Literal["plain", "gated"] = "plain"
    norm: NormConfig = field(default_factory=NormConfig)
    norm_place: Literal["pre", "post", "both", "branch"] = "post"
    residual: Literal["sequential", "parallel"] = "sequential"
    first_norm: Literal["norm", "identity"] = "norm"
    final_norm: Literal["none", "norm"] = "none"
    direction: Literal["both", "causal"] = "both"
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    qk_norm: Literal["none", "head", "all"] = "none"
    score_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    rope: tuple[RopeConfig | None, ...] = ()
    relative_bias: RelativeBias | None = None
    disentangled: Disentangled | None = None
    cross_attention: bool = False
    layer_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_size("hidden size", self.hidden_size, MAX_WIDTH)
        require_size("number of layers", self.num_layers, MAX_LAYERS)
        require_size("number of attention heads", self.num_heads, MAX_WIDTH)
        self._fill_defaults()
        require_size("number of key-value heads", self.num_kv_heads, MAX_WIDTH)
        require_size("head_dim", self.head_dim, MAX_WIDTH)
        require_size("feed-forward size", self.ffn_size, MAX_WIDTH * 4)
        divides = self.num_heads % self.num_kv_heads == 0
        require(divides, f"{self.num_heads} heads cannot share {self.num_kv_heads} key-value heads evenly")
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("norm_place", self.norm_place, ("pre", "post", "both", "branch"))
        if isinstance(self.frontend, TokenFrontend) and self.frontend.projection == "none":
            size = self.frontend.embedding_size
            require(size == self.hidden_size, f"embedding size {size} is not the hidden size {self.hidden_size}")
        require_positive("scale of attention scores", self.attention_scale)
        if self.score_softcap is not None:
            require_positive("soft cap of attention scores", self.score_softcap)
        groups = self.disentangled.conv_groups if self.disentangled is not None else 1
        require(self.hidden_size % groups == 0, f"conv_groups={groups} do not divide hidden size {self.hidden_size}")
        for name in ("windows", "rope", "layer_ids"):
            length = len(getattr(self, name))
            require(length == self.num_layers, f"{name} has {length} entries for {self.num_layers} layers")
        for window in self.windows:
            if window is not None:
                require_size("sliding window", window, MAX_POSITIONS)
        used = sorted(set(self.layer_ids))
        require(used == list(range(len(used))), f"layer_ids {self.layer_ids} leave out a set of parameters")

    def _fill_defaults(self) -> None:
        """Zero or empty stands for the usual value; the dataclass is frozen, hence object.__setattr__."""
        put = object.__setattr__
        if self.num_kv_heads == 0:
            put(self, "num_kv_heads", self.num_heads)
        if self.head_dim == 0:
            divides = self.hidden_size % self.num_heads == 0
            require(divides, f"hidden size {self.hidden_size} is not a multiple of {self.num_heads} attention heads")
            put(self, "head_dim", self.hidden_size // self.num_heads)
        if self.attention_scale == 0.0:
            put(self, "attention_scale", self.head_dim**-0.5)
        if not self.windows:
            put(self, "windows", (None,) * self.num_layers)
        if not self.rope:
            put(self, "rope", (None,) * self.num_layers)
        if not self.layer_ids:
            put(self, "layer_ids", tuple(range(self.num_layers)))

    @property
    def max_positions(self) -> int | None:
        """The longest input in positions, where a learned table sets a hard limit; None where there is none."""
        if isinstance(self.frontend, TokenFrontend):
            return self.frontend.max_positions if self.frontend.positions == "learned" else None
        return self.frontend.max_positions if isinstance(self.frontend, MelFrontend) else None


HEAD_KINDS = (
    "none", "causal_lm", "seq2seq_lm", "masked_lm", "sequence", "token", "span", "choice", "ctc", "image", "audio",
)  # fmt: skip


@dataclass(frozen=True)
class HeadConfig:
    """hidden states → [transform: dense, activation, norm] → pick → out: logits.

    Attributes:
        pick: which vectors are scored: "all" (B,T,D), "first" token, "last" real token, "eos" (the last end-of-sequence
            token), "mean" over real positions, "first_two" (class and distillation token, two outputs averaged).
        transform_size: width after the dense layer; 0 for no transform.
        out_size: classes or vocabulary; 0 for no output layer (a base model with a pooler).
        softcap: logits become cap * tanh(logits / cap) (Gemma2). scale: multiplies the hidden states (tied T5).
        mixed_states: how many hidden states, the embeddings' and every layer's, a learned weighted sum mixes before
            `pick` (SUPERB, Yang et al. 2021); 0 reads the last alone.
    """

    kind: str = "none"
    pick: Literal["all", "first", "last", "eos", "mean", "first_two"] = "all"
    transform_size: int = 0
    transform_bias: bool = True
    transform_activation: str = "tanh"
    transform_norm: NormConfig | None = None
    out_size: int = 0
    out_bias: bool = True
    softcap: float | None = None
    scale: float = 1.0
    problem: Literal["", "single_label", "multi_label", "regression"] = ""
    mixed_states: int = 0

    def __post_init__(self) -> None:
        require_choice("head", self.kind, HEAD_KINDS)
        require_choice("head activation", self.transform_activation, ACTIVATIONS)
        require_size("number of labels or words", self.out_size, MAX_VOCABULARY, 0)
        require_size("head width", self.transform_size, MAX_WIDTH, 0)
        if self.softcap is not None:
            require_positive("soft cap of logits", self.softcap)
        require_size("number of hidden states that the head mixes", self.mixed_states, MAX_LAYERS + 1, 0)


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: an encoder, a decoder, or both, and one head.

    `source` is the Hugging Face `config.json` it came from, kept so that saving can write it back; `tied` lists pairs of
    parameter names that are one tensor. Ids that a tokenizer or generation needs stand here because `config.json` is
    where checkpoints keep them. `decoder_shift` is what stands before a target when it becomes the decoder's input: the
    start id, or the target's own last token (mBART's language code).
    """

    family: str
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    tied: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()
    pad_id: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    decoder_start_id: int | None = None
    decoder_shift: Literal["start_id", "last_token"] = "start_id"
    max_length: int | None = None
    architecture: str = ""
    source: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        require(self.encoder is not None or self.decoder is not None, "no encoder and no decoder")
        if self.encoder is not None and self.decoder is not None:
            same = self.encoder.hidden_size == self.decoder.hidden_size
            require(
                same, f"encoder ({self.encoder.hidden_size}) and decoder ({self.decoder.hidden_size}) differ in width"
            )

    @property
    def kind(self) -> Literal["encoder", "decoder", "encoder-decoder"]:
        """Which stacks there are."""
        if self.encoder is not None and self.decoder is not None:
            return "encoder-decoder"
        return "encoder" if self.encoder is not None else "decoder"

    @property
    def main_stack(self) -> StackConfig:
        """The stack whose output the head reads."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None
        return stack

    @property
    def vocab_size(self) -> int | None:
        """Rows of the main stack's token embeddings; None for images and speech."""
        for stack in (self.main_stack, self.encoder):
            if stack is not None and isinstance(stack.frontend, TokenFrontend):
                return stack.frontend.vocab_size
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without `source`."""
        plain = asdict(self)
        del plain["source"]
        return plain
