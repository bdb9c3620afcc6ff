"""The least config.json of every family."""

from __future__ import annotations

# The least that each family's config.json must state, and small sizes for the rest, under all their names.
TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "encoder_ffn_dim", "decoder_ffn_dim"), 16),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "embedding_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    "vocab_size": 9,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 1,
}


def tiny(model_type: str, architecture: str = "") -> dict[str, object]:
    named = {"architectures": [architecture]} if architecture else {}
    raw = {**TINY, "model_type": model_type, **named}
    return {**raw, "text_config": TINY} if model_type == "gemma3" else raw
