"""Gemma 1-3 (Gemma Team 2024-2025): Llama with scaled embeddings and norms that store w for a scale of 1 + w.

Gemma 2 adds norms after each branch, soft caps and windows in every other layer; Gemma 3 adds norms on q and k, and
windows with rotary positions of their own in five layers of six. Of the multimodal Gemma 3 only the text model is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear, linears
from plainformer.config import HeadConfig, ModelConfig, NormConfig, RopeConfig, StackConfig, TokenFrontend
from plainformer.config.checks import MAX_LAYERS, require_size
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.decoder_line import ATTENTION, FEED_FORWARD, build, decoder, rows, sliding_layers, windows
from plainformer.families.decoder_line import HEADS as LINE_HEADS
from plainformer.families.decoder_line import table as line_table
from plainformer.families.heads import Head
from plainformer.families.hf_config import HfConfig, rope_from


def _words(source: HfConfig, stack: StackConfig) -> HeadConfig:
    """Return the line's output, with Gemma 2's soft cap."""
    text = HfConfig({**source.raw, **source.object("text_config")})
    cap = text.maybe_number("final_logit_softcapping") if text.get("model_type") != "gemma" else None
    if text.get("model_type") == "gemma2" and "final_logit_softcapping" not in text.raw:
        cap = 30.0  # absent is this default, null is none
    return replace(LINE_HEADS["causal_lm"].config(source, stack), softcap=cap)


def _word_rows(config: ModelConfig) -> list[Row]:
    return linear("language_model.lm_head" if config.source.get("model_type") == "gemma3" else "lm_head", "head.out")


HEADS = {**LINE_HEADS, "causal_lm": Head(_words, _word_rows)}
# The multimodal class of Gemma 3 generates as a decoder does.
ARCHITECTURES = {"ForConditionalGeneration": "causal_lm"}
ROLES = "bos_token=<bos> eos_token=<eos> unk_token=<unk> pad_token=<pad> mask_token=<mask>"
TOKENIZERS = dict.fromkeys(
    ("gemma", "gemma2", "gemma3", "gemma3text"), TokenizerConvention("SentencePiece", ROLES, add_bos=True)
)


def config(source: HfConfig, head: str) -> ModelConfig:
    kind = source.raw["model_type"]
    if kind == "gemma3":
        inner = source.object("text_config")
        source = HfConfig({"tie_word_embeddings": source.raw.get("tie_word_embeddings", True), **inner})
    if kind != "gemma3_text":
        source.refuse("use_bidirectional_attention", False, why="only the text model of Gemma 3 reads both ways")
    stack = _stack(source, kind)
    return build("gemma", source, head, stack, tie=True)


def _stack(source: HfConfig, kind: str) -> StackConfig:
    hidden = source.integer("hidden_size", default=2304)
    layers = source.integer("num_hidden_layers", default=26)
    frontend = TokenFrontend(vocab_size=source.integer("vocab_size"), embedding_size=hidden, scale=hidden**0.5)
    activation = _activation(source, kind)
    norm = NormConfig("rms", source.number("rms_norm_eps", default=1e-6), weight_offset=1.0, cast="last")
    head_dim = source.integer("head_dim", default=256)
    changes: dict[str, Any] = {"frontend": frontend, "norm": norm, "activation": activation, "head_dim": head_dim}
    changes["ffn_bias"] = False
    if kind != "gemma":
        window = source.integer("sliding_window", default=4096)
        if source.flag("use_bidirectional_attention", default=False):
            window = window // 2 + 1  # the width of the whole window is stored; half of it is on each side
            changes["direction"] = "both"
        pattern = source.integer("sliding_window_pattern", default=6) if kind != "gemma2" else 2
        require_size("sliding_window_pattern", pattern, MAX_LAYERS)
        sliding = sliding_layers(source, layers, window, lambda index: bool((index + 1) % pattern))
        changes.update(
            norm_place="both",
            attention_scale=source.positive("query_pre_attn_scalar", default=256) ** -0.5,
            windows=windows(sliding, window),
        )
        if kind == "gemma2":  # absent is its default, null is none; in Gemma 3 transformers 5.23 reads no cap of scores
            stated = "attn_logit_softcapping" in source.raw
            changes["score_softcap"] = source.maybe_number("attn_logit_softcapping") if stated else 50.0
        else:
            changes.update(qk_norm="head", rope=_two_ropes(source, sliding, head_dim))
    # Each of two ropes has its own name; the shared reader wants the global one.
    return decoder(HfConfig(_global_rope(source.raw)), **changes)


def _activation(source: HfConfig, kind: str) -> str:
    """Return the activation. The first Gemma's files say "gelu" and mean the tanh form that it was trained with."""
    name = "hidden_act" if kind == "gemma" else "hidden_activation"
    found = source.activation(name, default="gelu_pytorch_tanh")
    return "gelu_tanh" if kind == "gemma" and found == "gelu" else found


def _global_rope(raw: dict[str, Any]) -> dict[str, Any]:
    given = raw.get("rope_parameters")
    nested = isinstance(given, dict) and isinstance(given.get("full_attention"), dict)
    return {**raw, "rope_parameters": given["full_attention"]} if nested and given else raw


def _two_ropes(source: HfConfig, sliding: tuple[bool, ...], head_dim: int) -> tuple[RopeConfig, ...]:
    """Layers with a window keep the short base; the others have a long one, perhaps scaled."""
    raw, limit = source.raw, source.integer("max_position_embeddings", default=131072)
    given = raw.get("rope_parameters")
    if isinstance(given, dict) and isinstance(given.get("sliding_attention"), dict):
        wide = rope_from({"rope_parameters": given.get("full_attention") or {}}, head_dim, limit)
        near = rope_from({"rope_parameters": given["sliding_attention"]}, head_dim, limit)
    else:
        theta = source.number("rope_theta", default=1_000_000.0)
        wide = rope_from({"rope_scaling": raw.get("rope_scaling")}, head_dim, limit, theta)
        near = rope_from({}, head_dim, limit, source.number("rope_local_base_freq", default=10_000.0))
    return tuple(near if slides else wide for slides in sliding)


def table(config: ModelConfig) -> WeightTable:
    """Gemma 1 has the line's rows; 2 and 3 have four norms a layer; multimodal files put the text model deeper."""
    if config.main_stack.norm_place == "pre":
        return line_table(config)
    pairs = {
        **ATTENTION,
        **FEED_FORWARD,
        ".input_layernorm": ".attention_norm",
        ".post_attention_layernorm": ".attention_after_norm",
        ".pre_feedforward_layernorm": ".ffn_norm",
        ".post_feedforward_layernorm": ".ffn_after_norm",
    }
    made = rows(linears(pairs, "model.layers.{}", "decoder.layers.{}"))
    if config.source.get("model_type") != "gemma3":
        return made
    extras = ignore("*vision_tower.*", "*multi_modal_projector.*")
    text = tuple(
        replace(r, theirs=f"language_model.{r.theirs}") if r.theirs.startswith(("model.", "lm_head")) else r
        for r in made.rows
    )
    spellings = ((r"^model\.language_model\.", "language_model.model."), (r"^lm_head\.", "language_model.lm_head."))
    return WeightTable((*text, *extras), prefix="", aliases=spellings)
