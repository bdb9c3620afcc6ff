"""GGUF files: their metadata as a Hugging Face config, their tensor names as rows.

llama.cpp's converters rename tensors, reorder llama's q and k for neighbour-pair rotation, and add Gemma's 1 to its norms;
each is undone by a row. Source: the `gguf` package's constants and llama.cpp's conversion scripts (read, not copied).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config import HeadConfig, ModelConfig
from plainformer.errors import CheckpointError, UsageError, did_you_mean
from plainformer.families import config_from_dict
from plainformer.families.rules import Add, Op, Row, Split, Unpermute, WeightTable, fused, ignore, linear, row
from plainformer.families.source import Source

if TYPE_CHECKING:
    from plainformer.formats.gguf_file import GgufFile

OURS = "decoder.layers.{}"
NORM_PLUS_ONE = Add(-1.0)


class Metadata:
    """An architecture's fields: `attention.head_count` stands for `llama.attention.head_count`."""

    def __init__(self, raw: Mapping[str, Any], names: set[str]) -> None:
        self.raw, self.names = raw, names
        self.architecture = str(raw.get("general.architecture", ""))

    def get(self, name: str, default: Any = None) -> Any:
        return self.raw.get(f"{self.architecture}.{name}", default)

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise CheckpointError(f"GGUF field '{self.architecture}.{name}' is missing", "convert the model again")
        if isinstance(value, list):
            raise CheckpointError(
                f"GGUF field '{self.architecture}.{name}' differs from layer to layer",
                "such pruned architectures are not supported",
            )
        return value


def load_gguf_parts(path: Path, head: str | None) -> tuple[ModelConfig, WeightTable, GgufFile]:
    """Configuration, rows and tensors of a GGUF file."""
    from plainformer.formats import open_gguf

    file = open_gguf(path)
    try:
        config, table = parts(file, head)
    except BaseException:
        file.close()
        raise
    return config, table, file


def parts(file: GgufFile, head: str | None) -> tuple[ModelConfig, WeightTable]:
    """The configuration and rows for an opened file."""
    meta = Metadata(file.metadata, set(file.names()))
    if meta.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"GGUF architecture {meta.architecture!r} is not supported",
            did_you_mean(meta.architecture, ARCHITECTURES) or "supported: " + ", ".join(ARCHITECTURES),
        )
    if not meta.names:
        raise CheckpointError("the GGUF file holds no tensors, only a vocabulary", "choose the file with the weights")
    describe, make_rows, usual_head = ARCHITECTURES[meta.architecture]
    if head not in (None, "none", usual_head):
        raise UsageError(f"a GGUF file has no {head!r} head", f"it holds {usual_head!r}: leave out task=...")
    raw = {**_shared(meta, file), **describe(meta, file)}
    config = config_from_dict(raw, head or usual_head)
    if config.head.kind == "none":
        config = replace(config, head=HeadConfig())  # converters drop the pooler
    rows = [*make_rows(config), *ignore("output.weight", "rope_freqs.weight", "rope_factors_*.weight")]
    return config, WeightTable(tuple(rows))


def _shared(meta: Metadata, file: GgufFile) -> dict[str, Any]:
    """What all architectures state alike, under config.json's names."""
    hidden, heads = meta.need("embedding_length"), meta.need("attention.head_count")
    if "token_embd.weight" not in meta.names:
        raise CheckpointError("the GGUF file has no tensor 'token_embd.weight'", "download it again")
    ids = {
        f"{name}_token_id": meta.raw.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "vocab_size": file.shape("token_embd.weight")[0],
        "hidden_size": hidden,
        "num_hidden_layers": meta.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("attention.head_count_kv", heads),
        "head_dim": meta.get("attention.key_length", hidden // heads if isinstance(heads, int) and heads else hidden),
        "intermediate_size": meta.need("feed_forward_length"),
        "max_position_embeddings": meta.need("context_length"),
        "rms_norm_eps": meta.get("attention.layer_norm_rms_epsilon", 1e-6),
        "layer_norm_eps": meta.get("attention.layer_norm_epsilon", 1e-12),
        "tie_word_embeddings": "output.weight" not in meta.names,
        **{name: value for name, value in ids.items() if value is not None},
    }


def _rope(meta: Metadata, file: GgufFile) -> dict[str, Any]:
    """Rotary positions: a base, a scaling, or llama.cpp's tensor with a divisor for each frequency."""
    base: dict[str, Any] = {"rope_type": "default", "rope_theta": meta.get("rope.freq_base", 10000.0)}
    kind, factor = meta.get("rope.scaling.type"), meta.get("rope.scaling.factor")
    original = meta.get("rope.scaling.original_context_length", meta.need("context_length"))
    short, long = ("rope_factors_short.weight", "rope_factors_long.weight")
    if "rope_freqs.weight" in meta.names:
        short = long = "rope_freqs.weight"
    if short in meta.names and long in meta.names:
        return {
            **base,
            "rope_type": "longrope",
            "short_factor": file.read(short).float().tolist(),
            "long_factor": file.read(long).float().tolist(),
            "original_max_position_embeddings": original,
            "attention_factor": meta.get("rope.scaling.attn_factor", 1.0),
        }
    if kind in ("linear", "yarn") and factor:
        return {**base, "rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    return base


def _decoder(model_type: str, architecture: str, **fields: Any) -> Callable[[Metadata, GgufFile], dict[str, Any]]:
    def describe(meta: Metadata, file: GgufFile) -> dict[str, Any]:
        return {
            "model_type": model_type,
            "architectures": [architecture],
            "rope_parameters": _rope(meta, file),
            **fields,
        }

    return describe


def _llama(meta: Metadata, file: GgufFile) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in meta.names
    return {**_decoder("llama", "LlamaForCausalLM")(meta, file), "attention_bias": bias}


def _phi3(meta: Metadata, file: GgufFile) -> dict[str, Any]:
    dim, head_dim = meta.get("rope.dimension_count"), meta.need("embedding_length") // meta.need("attention.head_count")
    rope = {**_rope(meta, file), "partial_rotary_factor": (dim or head_dim) / head_dim}
    window = meta.get("attention.sliding_window") or None
    fields = {"rope_parameters": rope, "sliding_window": window}
    return {**_decoder("phi3", "Phi3ForCausalLM")(meta, file), **fields}


def _gemma2(meta: Metadata, file: GgufFile) -> dict[str, Any]:
    return {
        **_decoder("gemma2", "Gemma2ForCausalLM")(meta, file),
        "sliding_window": meta.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": meta.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.get("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(meta, big=46),
    }


def _gemma3(meta: Metadata, file: GgufFile) -> dict[str, Any]:
    wide = {**_rope(meta, file), "rope_theta": meta.get("rope.freq_base", 1_000_000.0)}
    near = {"rope_type": "default", "rope_theta": meta.get("rope.freq_base_swa", 10_000.0)}
    return {
        **_decoder("gemma3_text", "Gemma3ForCausalLM")(meta, file),
        "rope_parameters": {"full_attention": wide, "sliding_attention": near},
        "sliding_window": meta.get("attention.sliding_window", 1024),
        "final_logit_softcapping": meta.get("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scalar(meta, big=62),
    }


def _query_scalar(meta: Metadata, big: int) -> int:
    """The file does not state it: head_dim, but width / heads in the 27B models, known by their count of layers."""
    heads, width = meta.need("attention.head_count"), meta.need("embedding_length")
    return int(width // heads if meta.need("block_count") == big else meta.get("attention.key_length", width // heads))


def _gpt2(meta: Metadata, _: GgufFile) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": meta.need("embedding_length"),
        "n_layer": meta.need("block_count"),
        "n_head": meta.need("attention.head_count"),
        "n_positions": meta.need("context_length"),
        "n_inner": meta.need("feed_forward_length"),
        "layer_norm_epsilon": meta.get("attention.layer_norm_epsilon", 1e-5),
    }


def _bert(meta: Metadata, file: GgufFile) -> dict[str, Any]:
    types = file.shape("token_types.weight")[0] if "token_types.weight" in meta.names else 0
    return {"model_type": "bert", "architectures": ["BertModel"], "type_vocab_size": types}


def _llama_rows(config: ModelConfig) -> list[Row]:
    stack = config.main_stack
    return _decoder_rows(q=Unpermute(stack.num_heads), k=Unpermute(stack.num_kv_heads))


def _decoder_rows(q: Op | None = None, k: Op | None = None, norm: Op | None = None) -> list[Row]:
    """The names that llama, qwen2, qwen3 and gemma share."""
    same = Op()
    q, k, norm = q or same, k or same, norm or same
    return [
        row("token_embd.weight", "decoder.frontend.tokens.weight"),
        row("output_norm.weight", "decoder.norm.weight", op=norm),
        row("output.weight", "head.out.weight"),
        row("blk.{}.attn_norm.weight", f"{OURS}.attention_norm.weight", op=norm),
        row("blk.{}.ffn_norm.weight", f"{OURS}.ffn_norm.weight", op=norm),
        row("blk.{}.post_attention_norm.weight", f"{OURS}.attention_after_norm.weight", op=norm),
        row("blk.{}.post_ffw_norm.weight", f"{OURS}.ffn_after_norm.weight", op=norm),
        row("blk.{}.attn_q_norm.weight", f"{OURS}.attention.q_norm.weight", op=norm),
        row("blk.{}.attn_k_norm.weight", f"{OURS}.attention.k_norm.weight", op=norm),
        *(row(f"blk.{{}}.attn_q.{leaf}", f"{OURS}.attention.qkv.q.{leaf}", op=q) for leaf in ("weight", "bias")),
        *(row(f"blk.{{}}.attn_k.{leaf}", f"{OURS}.attention.qkv.k.{leaf}", op=k) for leaf in ("weight", "bias")),
        *linear("blk.{}.attn_v", f"{OURS}.attention.qkv.v"),
        *linear("blk.{}.attn_output", f"{OURS}.attention.out"),
        *linear("blk.{}.ffn_gate", f"{OURS}.ffn.gate_up.gate"),
        *linear("blk.{}.ffn_up", f"{OURS}.ffn.gate_up.up"),
        *linear("blk.{}.ffn_down", f"{OURS}.ffn.down"),
    ]


def _gemma_rows(_: ModelConfig) -> list[Row]:
    return _decoder_rows(norm=NORM_PLUS_ONE)


def _fused_qkv(config: ModelConfig) -> list[Row]:
    stack = config.main_stack
    q, kv = stack.num_heads * stack.head_dim, stack.num_kv_heads * stack.head_dim
    return fused("blk.{}.attn_qkv", [f"{OURS}.attention.qkv.{name}" for name in "qkv"], Split((q, kv, kv)))


def _phi3_rows(config: ModelConfig) -> list[Row]:
    size = config.main_stack.ffn_size
    gate_up = [f"{OURS}.ffn.gate_up.{name}" for name in ("gate", "up")]
    return [*_fused_qkv(config), *fused("blk.{}.ffn_up", gate_up, Split((size, size))), *_decoder_rows()]


def _gpt2_rows(config: ModelConfig) -> list[Row]:
    return [
        row("token_embd.weight", "decoder.frontend.tokens.weight"),
        row("position_embd.weight", "decoder.frontend.positions.weight"),
        *linear("output_norm", "decoder.norm"),
        row("output.weight", "head.out.weight"),
        *_fused_qkv(config),
        *linear("blk.{}.attn_norm", f"{OURS}.attention_norm"),
        *linear("blk.{}.attn_output", f"{OURS}.attention.out"),
        *linear("blk.{}.ffn_norm", f"{OURS}.ffn_norm"),
        *linear("blk.{}.ffn_up", f"{OURS}.ffn.up"),
        *linear("blk.{}.ffn_down", f"{OURS}.ffn.down"),
    ]


def _bert_rows(_: ModelConfig) -> list[Row]:
    ours = "encoder.layers.{}"
    return [
        row("token_embd.weight", "encoder.frontend.tokens.weight"),
        row("position_embd.weight", "encoder.frontend.positions.weight"),
        row("token_types.weight", "encoder.frontend.token_types.weight"),
        *linear("token_embd_norm", "encoder.frontend.norm"),
        *(r for name in "qkv" for r in linear(f"blk.{{}}.attn_{name}", f"{ours}.attention.qkv.{name}")),
        *linear("blk.{}.attn_output", f"{ours}.attention.out"),
        *linear("blk.{}.attn_output_norm", f"{ours}.attention_norm"),
        *linear("blk.{}.ffn_up", f"{ours}.ffn.up"),
        *linear("blk.{}.ffn_down", f"{ours}.ffn.down"),
        *linear("blk.{}.layer_output_norm", f"{ours}.ffn_norm"),
        *ignore("cls.*"),
    ]


Describe = Callable[[Metadata, "GgufFile"], dict[str, Any]]
MakeRows = Callable[[ModelConfig], list[Row]]
# GGUF architecture → (its fields as config.json's, its rows, the head it comes with).
ARCHITECTURES: dict[str, tuple[Describe, MakeRows, str]] = {
    "llama": (_llama, _llama_rows, "causal_lm"),
    "qwen2": (_decoder("qwen2", "Qwen2ForCausalLM"), lambda _: _decoder_rows(), "causal_lm"),
    "qwen3": (_decoder("qwen3", "Qwen3ForCausalLM"), lambda _: _decoder_rows(), "causal_lm"),
    "gemma": (_decoder("gemma", "GemmaForCausalLM"), _gemma_rows, "causal_lm"),
    "gemma2": (_gemma2, _gemma_rows, "causal_lm"),
    "gemma3": (_gemma3, _gemma_rows, "causal_lm"),
    "phi3": (_phi3, _phi3_rows, "causal_lm"),
    "gpt2": (_gpt2, _gpt2_rows, "causal_lm"),
    "bert": (_bert, _bert_rows, "none"),
}
