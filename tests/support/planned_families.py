"""Models of ten families, of a size at which what a step allocates is more than what each call costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plainformer.config import (
    HeadConfig,
    MelFrontend,
    ModelConfig,
    NormConfig,
    PatchFrontend,
    RelativeBias,
    RopeConfig,
    StackConfig,
    TokenFrontend,
    WaveFrontend,
)
from plainformer.plan.result import AVERAGE, OPTIMIZER, WEIGHTS, Phase

ROWS, LENGTH, TARGET, WORDS = 2, 128, 96, 1003
LAYER, RMS = NormConfig(eps=1e-5), NormConfig("rms", 1e-6)


def stack_of(layers: int = 4, **changes: Any) -> StackConfig:
    usual: dict[str, Any] = dict(
        frontend=TokenFrontend(vocab_size=WORDS, embedding_size=64), hidden_size=64, num_layers=layers, num_heads=4,
        ffn_size=256, norm=LAYER, norm_place="pre", final_norm="norm",
    )  # fmt: skip
    return StackConfig(**{**usual, **changes})


def decoder(**changes: Any) -> ModelConfig:
    stack = stack_of(direction="causal", **changes)
    tied = (("head.out.weight", "decoder.frontend.tokens.weight"),)
    return ModelConfig(
        "decoder", decoder=stack, head=HeadConfig("causal_lm", out_size=WORDS, out_bias=False), tied=tied
    )


def llama(**changes: Any) -> ModelConfig:
    rope = (RopeConfig(1e4, 8),) * 4
    return decoder(num_heads=8, num_kv_heads=2, ffn_size=176, ffn="gated", activation="silu", norm=RMS, rope=rope,
                   qkv_bias=False, out_bias=False, ffn_bias=False, **changes)  # fmt: skip


def gpt2() -> ModelConfig:
    tokens = TokenFrontend(vocab_size=WORDS, embedding_size=64, positions="learned", max_positions=LENGTH)
    return decoder(frontend=tokens, activation="gelu_tanh")


def bert(**changes: Any) -> ModelConfig:
    tokens = TokenFrontend(
        vocab_size=WORDS, embedding_size=64, positions="learned", max_positions=LENGTH, token_types=2, norm=LAYER
    )
    stack = stack_of(frontend=tokens, norm_place="post", final_norm="none", **changes)
    head = HeadConfig("masked_lm", transform_size=64, transform_activation="gelu", transform_norm=LAYER, out_size=WORDS)
    return ModelConfig("bert", encoder=stack, head=head, tied=(("head.out.weight", "encoder.frontend.tokens.weight"),))


def t5() -> ModelConfig:
    usual: dict[str, Any] = dict(
        layers=2, attention_scale=1.0, ffn_size=96, ffn="gated", norm=RMS, relative_bias=RelativeBias(),
        qkv_bias=False, out_bias=False, ffn_bias=False,
    )  # fmt: skip
    table = "encoder.frontend.tokens.weight"
    return ModelConfig(
        "t5", encoder=stack_of(**usual), decoder=stack_of(**usual, direction="causal", cross_attention=True),
        head=HeadConfig("seq2seq_lm", out_size=WORDS, out_bias=False, scale=0.125), decoder_start_id=0,
        tied=(("decoder.frontend.tokens.weight", table), ("head.out.weight", table)),
    )  # fmt: skip


def whisper() -> ModelConfig:
    tokens = TokenFrontend(vocab_size=WORDS, embedding_size=64, positions="learned", max_positions=TARGET)
    return ModelConfig(
        "whisper", encoder=stack_of(3, frontend=MelFrontend(mels=40, max_positions=100)),
        decoder=stack_of(3, frontend=tokens, direction="causal", cross_attention=True), decoder_start_id=1,
        head=HeadConfig("seq2seq_lm", out_size=WORDS, out_bias=False),
        tied=(("head.out.weight", "decoder.frontend.tokens.weight"),),
    )  # fmt: skip


def vit() -> ModelConfig:
    stack = stack_of(frontend=PatchFrontend(image_size=(96, 96), patch_size=(8, 8)))
    return ModelConfig("vit", encoder=stack, head=HeadConfig("image", pick="first", out_size=10))


def wav2vec2() -> ModelConfig:
    frontend = WaveFrontend(
        channels=(32,) * 4,
        kernels=(10, 3, 3, 2),
        strides=(5, 2, 2, 2),
        position_kernel=16,
        position_groups=4,
        norm=LAYER,
    )
    stack = stack_of(frontend=frontend, norm_place="post", final_norm="none")
    return ModelConfig("wav2vec2", encoder=stack, head=HeadConfig("ctc", out_size=32))


FAMILIES: dict[str, Callable[[], ModelConfig]] = {
    "llama": llama, "gpt2": gpt2, "bert": bert, "albert": lambda: bert(layer_ids=(0,) * 4), "t5": t5,
    "qwen3": lambda: llama(qk_norm="head"), "olmo2": lambda: llama(qk_norm="all", norm_place="branch"),
    "whisper": whisper, "vit": vit, "wav2vec2": wav2vec2,
}  # fmt: skip


def beyond(one: Phase) -> int:
    """Return the bytes of a phase beside weights and optimizer, which are there before a step."""
    return sum(item.bytes for item in one.items if item.name not in (WEIGHTS, OPTIMIZER, AVERAGE))
