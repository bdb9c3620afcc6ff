"""What a `config.json` that is written by hand may hold, must hold, and means where it is silent.

`unread` are fields of transformers' configuration classes that no family reads here, or beside another field alone. A
copied configuration has them, so they are accepted; any other field that is not read is a typing error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# A size under all the names that families have for it.
_SIZES = (
    ("vocab_size",),
    ("hidden_size", "d_model", "n_embd", "dim"),
    ("num_hidden_layers", "encoder_layers", "num_layers", "n_layer", "n_layers"),
    ("num_attention_heads", "encoder_attention_heads", "num_heads", "n_head", "n_heads"),
    ("intermediate_size", "encoder_ffn_dim", "d_ff", "hidden_dim"),
    ("decoder_layers",),
    ("decoder_attention_heads",),
    ("decoder_ffn_dim",),
)
# Small values for all of them: with these, every family can be asked which fields it reads.
PROBE = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "encoder_ffn_dim", "decoder_ffn_dim"), 16),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "embedding_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    "vocab_size": 9,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 1,
}
# The ids that transformers' configuration classes mean where a file names none.
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_USUAL_IDS: dict[str, tuple[int | None, ...]] = {
    "albert": (0, 2, 3),
    **dict.fromkeys(("bart", "m2m_100"), (1, 0, 2, 2)),
    **dict.fromkeys(("bert", "deberta-v2", "distilbert", "electra"), (0,)),
    **dict.fromkeys(("camembert", "mbart", "mpnet", "roberta", "xlm-roberta"), (1, 0, 2)),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), (0, 2, 1)),
    "gpt2": (None, 50256, 50256),
    "gpt_neox": (None, 0, 2),
    **dict.fromkeys(("hubert", "wav2vec2"), (0, 1, 2)),
    **dict.fromkeys(("llama", "mistral"), (None, 1, 2)),
    "marian": (58100, None, 0, 58100),
    "modernbert": (50283, 50281, 50282),
    **dict.fromkeys(("mt5", "t5"), (0, None, 1, 0)),
    "olmo2": (1, None, 50279),
    "pegasus": (0, None, 1, 0),
    "phi3": (32000, 1, 32000),
    "smollm3": (128004, 128000, 128001),
    "whisper": (50256, 50256, 50256, 50257),
}

_ALL = """
    chunk_size_feed_forward dtype torch_dtype is_encoder_decoder label2id output_attentions output_hidden_states return_dict
    gradient_checkpointing transformers_version use_cache id2label num_labels problem_type tokenizer_class task_specific_params
"""
_PLAIN = "attention_probs_dropout_prob hidden_dropout_prob"
_BERT = f"{_PLAIN} add_cross_attention classifier_dropout"
_LLAMA = "attention_dropout"
_BART = """
    activation_dropout attention_dropout classifier_dropout decoder_layerdrop dropout encoder_layerdrop
    forced_bos_token_id forced_eos_token_id is_decoder
"""
_MASKS = """
    apply_spec_augment mask_feature_length mask_feature_min_masks mask_feature_prob mask_time_length mask_time_min_masks
    mask_time_prob
"""
_WAVE = f"""
    {_MASKS} activation_dropout attention_dropout ctc_loss_reduction ctc_zero_infinity feat_proj_dropout final_dropout
    hidden_dropout layerdrop num_feat_extract_layers
"""
_T5 = "classifier_dropout dropout_rate is_decoder"
_OWN = {
    "albert": f"{_PLAIN} classifier_dropout_prob",
    "bart": _BART,
    "bert": _BERT,
    "camembert": _BERT,
    "deberta-v2": f"""
        {_PLAIN} pooler_dropout max_relative_positions position_buckets share_att_key norm_rel_ebd conv_groups conv_act
    """,
    "deit": f"{_PLAIN} encoder_stride",
    "distilbert": "attention_dropout dropout qa_dropout seq_classif_dropout",
    "electra": f"{_BERT} summary_last_dropout",
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3": """
        boi_token_index eoi_token_index image_token_index mm_tokens_per_image vision_config
    """,
    "gemma3_text": f"{_LLAMA} attn_logit_softcapping",
    "gpt2": """
        attn_pdrop embd_pdrop reorder_and_upcast_attn resid_pdrop summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj
    """,
    "gpt_neox": "attention_dropout classifier_dropout hidden_dropout is_decoder",
    "hubert": _WAVE,
    "llama": f"{_LLAMA} pretraining_tp",
    "m2m_100": _BART,
    "marian": f"{_BART} decoder_vocab_size",
    "mbart": _BART,
    "mistral": _LLAMA,
    "modernbert": """
        attention_dropout classifier_dropout cls_token_id deterministic_flash_attn embedding_dropout mlp_dropout
        sep_token_id sparse_pred_ignore_index sparse_prediction
    """,
    "mpnet": _PLAIN,
    "mt5": _T5,
    "olmo2": _LLAMA,
    "pegasus": _BART,
    "phi3": f"{_LLAMA} embd_pdrop resid_pdrop",
    "qwen2": f"{_LLAMA} max_window_layers sliding_window",
    "qwen3": f"{_LLAMA} max_window_layers sliding_window",
    "roberta": _BERT,
    "smollm3": f"{_LLAMA} sliding_window",
    "t5": _T5,
    "vit": f"{_PLAIN} encoder_stride",
    "wav2vec2": f"""
        {_WAVE} adapter_kernel_size adapter_stride codevector_dim contrastive_logits_temperature diversity_loss_weight
        feat_quantizer_dropout num_adapter_layers num_codevector_groups num_codevectors_per_group num_negatives
        output_hidden_size proj_codevector_dim tdnn_dilation tdnn_dim tdnn_kernel xvector_output_dim
    """,
    "whisper": f"""
        {_MASKS} activation_dropout attention_dropout begin_suppress_tokens decoder_layerdrop dropout encoder_layerdrop
        median_filter_width scale_embedding suppress_tokens
    """,
    "xlm-roberta": _BERT,
}


def unread(model_type: str) -> list[str]:
    """Return the fields of a family's `config.json` that change nothing here."""
    return f"{_ALL} {_OWN.get(model_type, '')}".split()


def missing_sizes(raw: Mapping[str, Any], read: Collection[str]) -> list[str]:
    """Return the sizes that a family reads (`read`) and `raw` does not name, each by the name that the family has for it."""
    groups = ([name for name in names if name in read] for names in _SIZES)
    return [names[-1] for names in groups if names and all(raw.get(name) is None for name in names)]


def with_ids(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same with its special tokens' ids said: the usual ones, null for those past the vocabulary's end.

    A reader that knows other ids by default would otherwise mean these.
    """
    usual, size = _USUAL_IDS.get(str(raw.get("model_type")), ()), raw.get("vocab_size")
    known = {name: value for name, value in zip(_IDS, usual, strict=False) if value is not None and name not in raw}
    fits = {name: value if not isinstance(size, int) or value < size else None for name, value in known.items()}
    return {**raw, **fits}


def with_tokens(raw: Mapping[str, Any], size: int, pad: int | None, bos: int | None, eos: int | None) -> dict[str, Any]:
    """Return the same with a tokenizer's `size` and special tokens, where they are not said.

    A decoder starts with the token that the family's published models start with: the end, the pad token or the beginning.
    """
    usual = _USUAL_IDS.get(str(raw.get("model_type")), ())
    ids = dict(zip(_IDS, (pad, bos, eos), strict=False))
    if len(usual) == len(_IDS):
        ids[_IDS[3]] = pad if usual[3] == usual[0] else eos if usual[3] == usual[2] else bos
    known = {name: ids[name] for name, value in zip(_IDS, usual, strict=False) if value is not None}
    return {"vocab_size": size, **known, **raw}
