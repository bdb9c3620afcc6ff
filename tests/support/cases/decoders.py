"""Decoder-only families: each head, and each value that changes the computation."""

from __future__ import annotations

from typing import Any

import transformers

from tests.support.parity import PAD, VOCABULARY, Case

TINY: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=37,
    max_position_embeddings=64,
    pad_token_id=PAD,
    bos_token_id=0,
    eos_token_id=2,
    num_labels=3,
)


def config(name: str, **changes: Any) -> Any:
    return lambda: getattr(transformers, name)(**{**TINY, **changes})


def scaled(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
MSCALE = {"mscale": 0.7, "mscale_all_dim": 1.1}
LONGROPE = {
    "long_factor": [1.0, 1.5, 3.0, 5.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "original_max_position_embeddings": 32,
}
WINDOW = {"sliding_window": 3}
HALF = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def heads(family: str, prefix: str, config_name: str, **changes: Any) -> list[Case]:
    """Every head that the reference has for a decoder."""
    made, spans = config(config_name, **changes), config(config_name, **{**changes, "num_labels": 2})
    names = (
        "ForCausalLM",
        "LMHeadModel",
        "Model",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
    )
    return [
        Case(family, prefix + name, spans if "Question" in name else made)
        for name in names
        if hasattr(transformers, prefix + name)
    ]


def both_ways(**changes: Any) -> Any:
    return config("Gemma3TextConfig", use_bidirectional_attention=True, head_dim=8, query_pre_attn_scalar=9, **changes)


LLAMA = [
    Case("llama", "LlamaForCausalLM", config("LlamaConfig")),
    Case("llama-tied", "LlamaForCausalLM", config("LlamaConfig", tie_word_embeddings=True)),
    Case("llama-biases", "LlamaForCausalLM", config("LlamaConfig", attention_bias=True, mlp_bias=True)),
    Case("llama-head-dim", "LlamaForCausalLM", config("LlamaConfig", head_dim=16)),
    Case("llama-mha", "LlamaForCausalLM", config("LlamaConfig", num_key_value_heads=4, hidden_act="gelu")),
    Case("llama-linear", "LlamaForCausalLM", config("LlamaConfig", **scaled("linear", factor=4.0))),
    Case("llama-dynamic", "LlamaForCausalLM", config("LlamaConfig", **scaled("dynamic", factor=2.0))),
    Case("llama-llama3", "LlamaForCausalLM", config("LlamaConfig", **scaled("llama3", **LLAMA3))),
    Case("llama-yarn", "LlamaForCausalLM", config("LlamaConfig", **scaled("yarn", **YARN))),
    Case("llama-yarn-exact", "LlamaForCausalLM", config("LlamaConfig", **scaled("yarn", truncate=False, **YARN))),
    Case("llama-yarn-mscale", "LlamaForCausalLM", config("LlamaConfig", **scaled("yarn", **MSCALE, **YARN))),
    Case("llama-base", "LlamaModel", config("LlamaConfig")),
    Case("llama-sequence", "LlamaForSequenceClassification", config("LlamaConfig")),
    Case("llama-token", "LlamaForTokenClassification", config("LlamaConfig")),
    Case("llama-span", "LlamaForQuestionAnswering", config("LlamaConfig")),
]

OTHERS = [
    *heads("gpt2", "GPT2", "GPT2Config", n_embd=32, n_head=4, n_layer=3, n_positions=64),
    Case("gpt2-inner", "GPT2LMHeadModel", config("GPT2Config", n_inner=50, activation_function="relu")),
    Case("gpt2-untied", "GPT2LMHeadModel", config("GPT2Config", tie_word_embeddings=False)),
    *heads("gpt_neox", "GPTNeoX", "GPTNeoXConfig"),
    Case("gpt_neox-sequential", "GPTNeoXForCausalLM", config("GPTNeoXConfig", use_parallel_residual=False)),
    Case("gpt_neox-full", "GPTNeoXForCausalLM", config("GPTNeoXConfig", rotary_pct=1.0, attention_bias=False)),
    *heads("mistral", "Mistral", "MistralConfig", **WINDOW),
    Case("mistral-global", "MistralForCausalLM", config("MistralConfig", sliding_window=None)),
    *heads("qwen2", "Qwen2", "Qwen2Config"),
    Case(
        "qwen2-window",
        "Qwen2ForCausalLM",
        config("Qwen2Config", use_sliding_window=True, max_window_layers=1, **WINDOW),
    ),
    *heads("qwen3", "Qwen3", "Qwen3Config", head_dim=16),
    Case("qwen3-bias", "Qwen3ForCausalLM", config("Qwen3Config", head_dim=8, attention_bias=True)),
    *heads("gemma", "Gemma", "GemmaConfig", head_dim=16),
    *heads("gemma2", "Gemma2", "Gemma2Config", head_dim=16, query_pre_attn_scalar=20, **WINDOW),
    Case("gemma2-uncapped", "Gemma2ForCausalLM", config("Gemma2Config", attn_logit_softcapping=None, head_dim=8)),
    *heads("gemma3", "Gemma3Text", "Gemma3TextConfig", head_dim=16, **WINDOW, **HALF),
    Case("gemma3", "Gemma3ForCausalLM", config("Gemma3TextConfig", head_dim=16, query_pre_attn_scalar=9, **WINDOW)),
    *heads(
        "gemma3-both-ways", "Gemma3Text", "Gemma3TextConfig", use_bidirectional_attention=True, head_dim=16, **WINDOW
    ),
    Case("gemma3-both-ways-wide", "Gemma3TextModel", both_ways(sliding_window=8)),
    Case("gemma3-both-ways-narrow", "Gemma3TextModel", both_ways(sliding_window=2), length=14),
    Case("gemma3-capped", "Gemma3ForCausalLM", config("Gemma3TextConfig", head_dim=8, final_logit_softcapping=3.0)),
    *heads("phi3", "Phi3", "Phi3Config", **WINDOW),
    Case("phi3-partial", "Phi3ForCausalLM", config("Phi3Config", partial_rotary_factor=0.5)),
    Case("phi3-long", "Phi3ForCausalLM", config("Phi3Config", rope_parameters={"rope_type": "longrope", **LONGROPE})),
    *heads("smollm3", "SmolLM3", "SmolLM3Config", no_rope_layer_interval=2),
    Case(
        "smollm3-window",
        "SmolLM3ForCausalLM",
        config("SmolLM3Config", no_rope_layer_interval=2, use_sliding_window=True, **WINDOW),
    ),
    *heads("olmo2", "Olmo2", "Olmo2Config"),
    Case("olmo2-bias", "Olmo2ForCausalLM", config("Olmo2Config", attention_bias=True)),
]
