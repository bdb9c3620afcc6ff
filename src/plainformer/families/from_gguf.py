"""GGUF files: their metadata as a Hugging Face config, their tensor names as rows.

llama.cpp's converters rename tensors, reorder llama's q and k for neighbour-pair rotation, and add Gemma's 1 to its norms;
each is undone by a row. Source: the `gguf` package's constants and llama.cpp's conversion scripts (read, not copied).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.rows import SAME, Add, Op, Row, Split, Unpermute, WeightTable, fused, ignore, linear, row
from plainformer.config import HeadConfig, ModelConfig
from plainformer.config.checks import MAX_LAYERS, MAX_WIDTH, reading, require, require_size, shown
from plainformer.errors import CheckpointError, UsageError, opt, spelling_of
from plainformer.families import config_from_dict
from plainformer.families.hf_config import HfConfig

if TYPE_CHECKING:
    from plainformer.checkpoint.formats.source import TensorSource

WHERE = "GGUF metadata"  # what messages call it
QKV = "decoder.layers.{}.attention.qkv"


# What llama.cpp would compute with and this library would not, unless it has one of these values.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "use_parallel_residual": (False,),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.alpha": (0,),
}


class Metadata(HfConfig):
    """An architecture's fields: `attention.head_count` is `llama.attention.head_count`.

    Attributes:
        all: every field of the file. tensors: the names of its tensors.
    """

    def __init__(self, file: TensorSource) -> None:
        self.all, self.tensors = file.metadata, set(file.names())
        self.architecture = str(self.all.get("general.architecture", ""))
        prefix = f"{self.architecture}."
        super().__init__({key.removeprefix(prefix): value for key, value in self.all.items() if key.startswith(prefix)})

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the first field that is there; a list with one entry for each layer must repeat one value."""
        value = super().get(*names, default=default)
        if not isinstance(value, list):
            return value
        if not value or any(entry != value[0] for entry in value):
            raise CheckpointError(
                f"'{self.architecture}.{names[0]}' differs from layer to layer",
                "such pruned architectures are not supported",
            )
        return value[0]

    def size(self, name: str) -> int:
        """Return a whole number from 1 that the file must state."""
        if self.get(name) is None:
            raise CheckpointError(f"'{self.architecture}.{name}' is missing", "convert the model again")
        value = self.integer(name)
        require(value > 0, f"{name}={value} is not positive")
        return value

    @property
    def head_dim(self) -> int:
        """Stated, or the width divided among the heads."""
        if self.get("attention.key_length") is not None:
            return self.integer("attention.key_length")
        hidden, heads = self.size("embedding_length"), self.size("attention.head_count")
        require(hidden % heads == 0, f"embedding_length {hidden} is not a multiple of {heads} attention heads")
        return hidden // heads


def config_json(file: TensorSource) -> dict[str, Any]:
    """Return what the model's `config.json` would hold, from a file's metadata and the names of its tensors."""
    with reading(WHERE):
        meta = Metadata(file)
        if meta.all.get("general.type") == "adapter":
            what = "it is an adapter (LoRA), not a model of its own, and adapters are not loaded yet"
            raise CheckpointError(
                what, "merge it into its base model with llama.cpp's llama-export-lora, and load that"
            )
        architecture = _architecture(meta.architecture)
        if not meta.tensors:
            raise CheckpointError("it holds no tensors, only a vocabulary", "choose the file with the weights")
        for name, harmless in HARMLESS.items():
            meta.refuse(name, *harmless, why="this variant of the architecture is not known here")
        return {**_shared(meta, file), **architecture.describe(meta, file)}


def model_config(raw: dict[str, Any], name: str, head: str | None) -> ModelConfig:
    """Return the configuration of an architecture's model, from what `config_json` gave."""
    usual = _architecture(name).head
    if head not in (None, "none", usual):
        raise UsageError(f"a GGUF file has no {head!r} head", f"it holds {usual!r}: leave out {opt('task', ...)}")
    config = config_from_dict(raw, head or usual, WHERE)
    return replace(config, head=HeadConfig()) if config.head.kind == "none" else config  # converters drop the pooler


def table_for(config: ModelConfig, name: str) -> WeightTable:
    """Return the weight rows of an architecture's model."""
    own = config.head.out_size > 0 and config.head.kind == _architecture(name).head  # else without, or a new one
    rows = _architecture(name).rows(config)
    kept = [r for r in rows if own or not any(ours.startswith("head.") for ours in r.ours)]
    return WeightTable((*kept, *ignore("output.weight", "cls.*", "rope_freqs.weight", "rope_factors_*.weight")))


def _architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"architecture {name[:80]!r} is not supported",
            spelling_of(name[:80], ARCHITECTURES) or "supported: " + ", ".join(ARCHITECTURES),
        )
    return ARCHITECTURES[name]


def _shared(meta: Metadata, file: TensorSource) -> dict[str, Any]:
    """Return the fields that all architectures share, under config.json's names."""
    if "token_embd.weight" not in meta.tensors:
        raise CheckpointError("there is no tensor 'token_embd.weight'", "choose the file with the whole model")
    shape, hidden = file.shape("token_embd.weight"), meta.size("embedding_length")
    require(
        len(shape) == 2 and shape[1] == hidden,
        f"tensor 'token_embd.weight' has shape {shape} where embedding_length is {hidden}",
        "the metadata and the weights are not of the same model",
    )
    heads, head_dim = meta.size("attention.head_count"), meta.head_dim
    same = meta.integer("attention.value_length", default=head_dim) == head_dim
    require(same, "attention.value_length differs from attention.key_length", "such models are not supported")
    ids = {
        f"{name}_token_id": meta.all.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "vocab_size": shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": meta.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.integer("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "intermediate_size": meta.size("feed_forward_length"),
        "max_position_embeddings": meta.size("context_length"),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon", default=1e-6),
        "layer_norm_eps": meta.number("attention.layer_norm_epsilon", default=1e-12),
        "tie_word_embeddings": "output.weight" not in meta.tensors,
        **ids,  # None too: else a reader of the saved model would take its family's usual ids
    }


def _rope(meta: Metadata, file: TensorSource) -> dict[str, Any]:
    """Return the rotary positions: a base, a scaling, or llama.cpp's tensors with a divisor for each frequency."""
    head_dim, length = meta.head_dim, meta.size("context_length")
    base: dict[str, Any] = {"rope_type": "default", "rope_theta": meta.number("rope.freq_base", default=10000.0)}
    turned = meta.integer("rope.dimension_count", default=head_dim)
    if turned != head_dim:
        require(0 < turned < head_dim, f"rope.dimension_count={turned} for heads of {head_dim} channels")
        # The rows of q and k would have to be reordered by another rule.
        require(meta.architecture != "llama", "rope.dimension_count is not the head size", "not known for llama files")
        base["partial_rotary_factor"] = turned / head_dim
    scaled = {**base, "original_max_position_embeddings": length}
    if (stated := meta.get("rope.scaling.original_context_length")) is not None:
        scaled["original_max_position_embeddings"] = stated
    amplitude = meta.number("rope.scaling.attn_factor", default=1.0)
    short, long = ("rope_factors_short.weight", "rope_factors_long.weight")
    if "rope_freqs.weight" in meta.tensors:
        short = long = "rope_freqs.weight"
    if short in meta.tensors or long in meta.tensors:
        factors = {f"{name}_factor": _factors(file, tensor) for name, tensor in (("short", short), ("long", long))}
        return {**scaled, "rope_type": "longrope", **factors, "attention_factor": amplitude}
    kind = meta.text("rope.scaling.type", default="linear")
    # An absent factor, or 0, means that nothing is scaled. The second name is that of files from before August 2023.
    factor = meta.number("rope.scaling.factor", "rope.scale_linear", default=0.0)
    require(kind in ("none", "linear", "yarn", "longrope"), f"rope.scaling.type={shown(kind)} is not supported")
    require(kind != "longrope", "rope.scaling.type is 'longrope', and there are no tensors rope_factors_*.weight")
    if kind == "yarn" and factor:
        return {**scaled, "rope_type": "yarn", "factor": factor, **_yarn(meta, factor, amplitude)}
    require(amplitude == 1, f"rope.scaling.attn_factor={amplitude} without 'yarn' or factors is not supported")
    return {**base, "rope_type": "linear", "factor": factor} if kind == "linear" and factor else base


def _factors(file: TensorSource, name: str) -> list[float]:
    shape = file.shape(name)
    require(len(shape) == 1 and shape[0] <= MAX_WIDTH, f"tensor {name!r} has shape {shape}, not one axis")
    return [float(value) for value in file.read(name).float().tolist()]


def _yarn(meta: Metadata, factor: float, amplitude: float) -> dict[str, Any]:
    """llama.cpp multiplies the paper's amplitude by the file's own."""
    require(factor > 0, f"rope.scaling.factor={factor} is not positive")
    return {
        "beta_fast": meta.number("rope.scaling.yarn_beta_fast", default=32.0),
        "beta_slow": meta.number("rope.scaling.yarn_beta_slow", default=1.0),
        "attention_factor": amplitude * (1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0),
    }


def _decoder(model_type: str, architecture: str, **fields: Any) -> Callable[[Metadata, TensorSource], dict[str, Any]]:
    def describe(meta: Metadata, file: TensorSource) -> dict[str, Any]:
        return {
            "model_type": model_type,
            "architectures": [architecture],
            "rope_parameters": _rope(meta, file),
            **fields,
        }

    return describe


def _llama(meta: Metadata, file: TensorSource) -> dict[str, Any]:
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_down.bias"}
    found = {name: tensor in meta.tensors for name, tensor in biases.items()}
    return {**_decoder("llama", "LlamaForCausalLM")(meta, file), **found}


def _phi3(meta: Metadata, file: TensorSource) -> dict[str, Any]:
    window = meta.integer("attention.sliding_window", default=0) or None
    made = _decoder("phi3", "Phi3ForCausalLM")(meta, file)
    # This family keeps the length beside the rope's own fields too, and reads it there first.
    original = made["rope_parameters"].get("original_max_position_embeddings", meta.size("context_length"))
    return {**made, "sliding_window": window, "original_max_position_embeddings": original}


def _gemma2(meta: Metadata, file: TensorSource) -> dict[str, Any]:
    return {
        **_decoder("gemma2", "Gemma2ForCausalLM")(meta, file),
        **_sliding(meta, 4096, every=2),
        "attn_logit_softcapping": meta.number("attn_logit_softcapping", default=50.0),
        "final_logit_softcapping": meta.number("final_logit_softcapping", default=30.0),
        "query_pre_attn_scalar": _query_scalar(meta, big=46),
    }


def _gemma3(meta: Metadata, file: TensorSource) -> dict[str, Any]:
    wide = {**_rope(meta, file), "rope_theta": meta.number("rope.freq_base", default=1_000_000.0)}
    near = {"rope_type": "default", "rope_theta": meta.number("rope.freq_base_swa", default=10_000.0)}
    cap = meta.get("final_logit_softcapping")
    return {
        **_decoder("gemma3_text", "Gemma3ForCausalLM")(meta, file),
        **_sliding(meta, 1024, every=6),
        "rope_parameters": {"full_attention": wide, "sliding_attention": near},
        "final_logit_softcapping": None if cap is None else meta.number("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scalar(meta, big=62),
    }


def _sliding(meta: Metadata, window: int, every: int) -> dict[str, Any]:
    """Return the window, and which layers have it: all but every n-th, or those listed."""
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        meta.refuse(f"{name}_swa", meta.get(name), why="layers with a window would have other sizes")
    pattern, layers = meta.raw.get("attention.sliding_window_pattern", every), meta.size("block_count")
    if isinstance(pattern, list):
        slides = [bool(entry) for entry in pattern]
    else:
        require_size("attention.sliding_window_pattern", pattern, MAX_LAYERS)
        slides = [bool((index + 1) % pattern) for index in range(min(layers, MAX_LAYERS))]
    kinds = ["sliding_attention" if each else "full_attention" for each in slides]
    return {"sliding_window": meta.integer("attention.sliding_window", default=window), "layer_types": kinds}


def _query_scalar(meta: Metadata, big: int) -> int:
    """Return what the file does not state: head_dim, but width / heads in the 27B models, known by their count of layers."""
    width = meta.size("embedding_length") // meta.size("attention.head_count")
    return max(width, 1) if meta.size("block_count") == big else meta.head_dim


def _gpt2(meta: Metadata, _: TensorSource) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": meta.size("embedding_length"),
        "n_layer": meta.size("block_count"),
        "n_head": meta.size("attention.head_count"),
        "n_positions": meta.size("context_length"),
        "n_inner": meta.size("feed_forward_length"),
        "layer_norm_epsilon": meta.number("attention.layer_norm_epsilon", default=1e-5),
    }


def _bert(meta: Metadata, file: TensorSource) -> dict[str, Any]:
    meta.refuse("attention.causal", False, why="an encoder sees both directions")
    shape = file.shape("token_types.weight") if "token_types.weight" in meta.tensors else (0, 0)
    require(len(shape) == 2, f"tensor 'token_types.weight' has shape {shape}, not two axes")
    names = {1: "mean", 2: "cls", 3: "last"}  # llama.cpp's numbers; 0 is none
    kind = meta.integer("pooling_type", default=0)
    pooling = {"gguf_pooling": names[kind]} if kind in names else {}
    return {"model_type": "bert", "architectures": ["BertModel"], "type_vocab_size": shape[0], **pooling}


# One scheme of names serves all architectures; a row of a part that a model lacks is passed over.
AROUND = {
    "token_embd": "frontend.tokens",
    "position_embd": "frontend.positions",
    "token_types": "frontend.token_types",
    "token_embd_norm": "frontend.norm",
    "output_norm": "norm",
}
LAYER = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.qkv.q",
    "attn_k": "attention.qkv.k",
    "attn_v": "attention.qkv.v",
    "attn_q_norm": "attention.q_norm",
    "attn_k_norm": "attention.k_norm",
    "attn_output": "attention.out",
    "attn_output_norm": "attention_norm",
    "post_attention_norm": "attention_after_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn.gate_up.gate",
    "ffn_down": "ffn.down",
    "layer_output_norm": "ffn_norm",
    "post_ffw_norm": "ffn_after_norm",
}


def _rows(config: ModelConfig, norm: Op = SAME) -> list[Row]:
    """Return the rows of a model; `norm` is what its norms' weights go through."""
    side, gated = "encoder" if config.decoder is None else "decoder", config.main_stack.ffn == "gated"
    layer = {**LAYER, "ffn_up": "ffn.gate_up.up" if gated else "ffn.up"}
    names = {f"blk.{{}}.{theirs}": f"{side}.layers.{{}}.{ours}" for theirs, ours in layer.items()}
    names |= {theirs: f"{side}.{ours}" for theirs, ours in AROUND.items()}
    rows = [linear(theirs, ours, norm if theirs.endswith("norm") else SAME) for theirs, ours in names.items()]
    return [row("output.weight", "head.out.weight"), *(r for pair in rows for r in pair)]


def _llama_rows(config: ModelConfig) -> list[Row]:
    heads = {"q": config.main_stack.num_heads, "k": config.main_stack.num_kv_heads}
    turned = [fused(f"blk.{{}}.attn_{n}", [f"{QKV}.{n}"], Unpermute(count)) for n, count in heads.items()]
    return [*(r for pair in turned for r in pair), *_rows(config)]


def _gemma_rows(config: ModelConfig) -> list[Row]:
    return _rows(config, norm=Add(-1.0))


def _fused_rows(config: ModelConfig) -> list[Row]:
    """Return the rows of a decoder that fuses q, k and v; its gate and up projections too, where it has a gate."""
    stack = config.main_stack
    q, kv = stack.num_heads * stack.head_dim, stack.num_kv_heads * stack.head_dim
    gate_up = [f"decoder.layers.{{}}.ffn.gate_up.{name}" for name in ("gate", "up")]
    return [
        *fused("blk.{}.attn_qkv", [f"{QKV}.{name}" for name in "qkv"], Split((q, kv, kv))),
        *(fused("blk.{}.ffn_up", gate_up, Split((stack.ffn_size,) * 2)) if stack.ffn == "gated" else ()),
        *_rows(config),
    ]


@dataclass(frozen=True)
class Architecture:
    """A GGUF architecture: its metadata as config.json's fields, its rows, and the head that it comes with."""

    describe: Callable[[Metadata, TensorSource], dict[str, Any]]
    rows: Callable[[ModelConfig], list[Row]]
    head: str = "causal_lm"


ARCHITECTURES = {
    "llama": Architecture(_llama, _llama_rows),
    "qwen2": Architecture(_decoder("qwen2", "Qwen2ForCausalLM"), _rows),
    "qwen3": Architecture(_decoder("qwen3", "Qwen3ForCausalLM"), _rows),
    "gemma": Architecture(_decoder("gemma", "GemmaForCausalLM"), _gemma_rows),
    "gemma2": Architecture(_gemma2, _gemma_rows),
    "gemma3": Architecture(_gemma3, _gemma_rows),
    "phi3": Architecture(_phi3, _fused_rows),
    "gpt2": Architecture(_gpt2, _fused_rows),
    "bert": Architecture(_bert, _rows, "none"),
}
