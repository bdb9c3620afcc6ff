"""A stack, a head, and the whole model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from plainformer.config.checks import (
    ACTIVATIONS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    require,
    require_choice,
    require_positive,
    require_probability,
    require_size,
)
from plainformer.config.initial import FirstWeights
from plainformer.config.parts import (
    Disentangled,
    Dropout,
    Frontend,
    ImageDefaults,
    MelFrontend,
    NormConfig,
    RelativeBias,
    RopeConfig,
    TokenFrontend,
)
from plainformer.config.scaling import TARGETS, Scaling


@dataclass(frozen=True)
class StackConfig:
    """A stack of equal layers with its frontend. What may differ from layer to layer is a tuple with one entry a layer.

    Attributes:
        norm_place: where the norm of a sub-layer f is. "pre": x + f(norm(x)); "post": norm(x + f(x));
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
    dropout: Dropout = field(default_factory=Dropout)

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
        """Put the usual value where zero or empty was given; the dataclass is frozen, hence object.__setattr__."""
        divides = bool(self.head_dim) or self.hidden_size % self.num_heads == 0
        require(divides, f"hidden size {self.hidden_size} is not a multiple of {self.num_heads} attention heads")
        head_dim, every_layer = self.head_dim or self.hidden_size // self.num_heads, (None,) * self.num_layers
        usual = {
            "num_kv_heads": self.num_heads,
            "head_dim": head_dim,
            "attention_scale": head_dim**-0.5,
            "windows": every_layer,
            "rope": every_layer,
            "layer_ids": tuple(range(self.num_layers)),
        }
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def summary(self) -> str:
        """Return the stack's size in a few words."""
        return f"{self.num_layers} layers, {self.num_heads} heads, hidden size {self.hidden_size}"

    def __repr__(self) -> str:
        direction = "causal" if self.direction == "causal" else "bidirectional"
        details = f"feed-forward {self.ffn_size}, {self.norm_place}-norm, {direction}"
        return f"StackConfig({self.frontend.kind}; {self.summary}, {details})"

    @property
    def max_positions(self) -> int | None:
        """Return the longest input in positions, where a learned table sets a hard limit; None where there is none."""
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
        dropout, dense_dropout: in training, of what the output layer reads, and of what the dense layer reads.
        scaling: of a regression whose answers are in scaled units: what turns them back.
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
    dropout: float = 0.0
    dense_dropout: float = 0.0
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        require_choice("head", self.kind, HEAD_KINDS)
        require_choice("head activation", self.transform_activation, ACTIVATIONS)
        require_size("number of labels or words", self.out_size, MAX_VOCABULARY, 0)
        require_size("head width", self.transform_size, MAX_WIDTH, 0)
        if self.softcap is not None:
            require_positive("soft cap of logits", self.softcap)
        require_size("number of hidden states that the head mixes", self.mixed_states, MAX_LAYERS + 1, 0)
        require_probability("dropout before the output layer", self.dropout)
        require_probability("dropout before the dense layer", self.dense_dropout)
        if self.scaling is not None:
            fits = self.problem == "regression" and len(self.scaling.offset) == self.out_size
            require(
                fits,
                f"{TARGETS} has {len(self.scaling.offset)} numbers, and the head answers {self.out_size} ({self.problem})",
            )


def in_millions(count: int) -> str:
    """Return a number of parameters for people: "22.7M parameters"."""
    power, letter = next(((10**p, x) for p, x in ((9, "B"), (6, "M"), (3, "K")) if count >= 10**p), (1, ""))
    return f"{count / power:.1f}{letter} parameters" if letter else f"{count} parameters"


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: an encoder, a decoder, or both, and one head.

    `source` is the Hugging Face `config.json` it came from, kept so that saving can write it back; `tied` lists pairs of
    parameter names that are one tensor; `trained_positions` is the longest sequence that the model was trained on, where
    the checkpoint says, learned positions or not; `image_defaults` are those of the image processors that the family's
    checkpoints name. Ids that a tokenizer or generation needs are here because `config.json` is where checkpoints keep
    them. `fixed` are patterns of the names of parameters that training leaves as they are ("*" is anything).
    `decoder_shift` is what comes before a target when it becomes the decoder's input: the start id, or the
    target's own last token (mBART's language code). `first` says how weights start where no checkpoint fills them.
    """

    family: str
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    tied: tuple[tuple[str, str], ...] = ()
    fixed: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    pad_id: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    decoder_start_id: int | None = None
    decoder_shift: Literal["start_id", "last_token"] = "start_id"
    max_length: int | None = None
    trained_positions: int | None = None
    image_defaults: tuple[ImageDefaults, ...] = ()
    architecture: str = ""
    first: FirstWeights = field(default_factory=FirstWeights, compare=False, repr=False)
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
        """Return which stacks there are."""
        if self.encoder is not None and self.decoder is not None:
            return "encoder-decoder"
        return "encoder" if self.encoder is not None else "decoder"

    @property
    def main_stack(self) -> StackConfig:
        """Return the stack whose output the head reads."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None
        return stack

    @property
    def input_stack(self) -> StackConfig:
        """Return the stack that reads the input: the encoder where there is one."""
        return self.encoder if self.encoder is not None else self.main_stack

    @property
    def input_frontend(self) -> Frontend:
        """Return what turns an input into vectors: tokens, patches, a waveform, a spectrogram."""
        return self.input_stack.frontend

    @property
    def vocab_size(self) -> int | None:
        """Return the height of the main stack's token embeddings; None for images and speech."""
        for stack in (self.main_stack, self.encoder):
            if stack is not None and isinstance(stack.frontend, TokenFrontend):
                return stack.frontend.vocab_size
        return None

    @property
    def summary(self) -> str:
        """Return family, stacks and head in a line."""
        stacks = {"encoder": self.encoder, "decoder": self.decoder}
        parts = [f"{name} of {stack.summary}" for name, stack in stacks.items() if stack is not None]
        words = [] if self.vocab_size is None else [f"{self.vocab_size:,} tokens"]
        head = [] if self.head.kind == "none" else [f"{self.head.kind} head"]
        return ", ".join([self.family, *parts, *words, *head])

    def __repr__(self) -> str:
        return f"ModelConfig({self.summary})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without `source` and first weights."""
        plain = asdict(self)
        del plain["source"], plain["first"]
        return plain
