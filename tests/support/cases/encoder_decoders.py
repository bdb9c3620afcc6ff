"""Encoder-decoder text families: each head, and each value that changes the computation."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.support.parity import PAD, VOCABULARY, Case

EOS = 2
TINY: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=32,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=2,
    encoder_ffn_dim=37,
    decoder_ffn_dim=41,
    max_position_embeddings=64,
    pad_token_id=PAD,
    bos_token_id=0,
    eos_token_id=EOS,
    decoder_start_token_id=EOS,
    num_labels=3,
)
TINY_T5: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=32,
    d_kv=6,
    d_ff=37,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=12,
    pad_token_id=PAD,
    eos_token_id=EOS,
    decoder_start_token_id=PAD,
    num_labels=3,
)


def config(name: str, **changes: Any) -> Any:
    base = TINY_T5 if "T5" in name else TINY
    return lambda: getattr(transformers, name)(**{**base, **changes})


def case(name: str, model_class: str, config_class: str, change: Any = None, length: int = 9, **changes: Any) -> Case:
    eos = model_class.endswith("ForSequenceClassification")
    kind = "text" if model_class.endswith(("EncoderModel", "ForTokenClassification")) else "seq2seq"
    if model_class.endswith("ForQuestionAnswering"):
        changes["num_labels"] = 2  # T5's span head sizes itself by num_labels
    extra = {"change": change} if change is not None else {}
    return Case(name, model_class, config(config_class, **changes), kind, eos_in_input=eos, length=length, extra=extra)


def untie_head(model: Any) -> None:
    """As in T5 1.1 and mT5: the reference's config ties always, and uses what the file holds where it differs."""
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)


def heads(prefix: str, *names: str, **changes: Any) -> list[Case]:
    return [case(prefix.lower(), prefix + name, f"{prefix}Config", **changes) for name in names]


LM = "ForConditionalGeneration"
BART = [
    *heads("Bart", "Model", LM, "ForSequenceClassification", "ForQuestionAnswering"),
    case("bart-scaled", f"Bart{LM}", "BartConfig", scale_embedding=True),
    case("bart-relu", f"Bart{LM}", "BartConfig", activation_function="relu"),
    case("bart-untied", f"Bart{LM}", "BartConfig", tie_word_embeddings=False),
    case("bart-untied", "BartModel", "BartConfig", tie_word_embeddings=False),
    case("bart-head-untied", f"Bart{LM}", "BartConfig", change=untie_head),
    case("bart-symmetric", f"Bart{LM}", "BartConfig", decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=37),
    *heads("MBart", "Model", LM, "ForSequenceClassification", "ForQuestionAnswering"),
    case("mbart-start", f"MBart{LM}", "MBartConfig", decoder_start_token_id=7, scale_embedding=True),
    case("mbart-relu", f"MBart{LM}", "MBartConfig", activation_function="relu"),
    case("mbart-untied", f"MBart{LM}", "MBartConfig", tie_word_embeddings=False),
]
SINUSOIDAL = [
    *heads("Pegasus", "Model", LM),
    case("pegasus-scaled", f"Pegasus{LM}", "PegasusConfig", scale_embedding=True, activation_function="relu"),
    case("pegasus-pad-0", f"Pegasus{LM}", "PegasusConfig", pad_token_id=0, decoder_start_token_id=0),
    case("pegasus-untied", f"Pegasus{LM}", "PegasusConfig", tie_word_embeddings=False),
    *heads("Marian", "Model", "MTModel"),
    case("marian-swish", "MarianMTModel", "MarianConfig", scale_embedding=True, activation_function="swish"),
    case(
        "marian-odd", "MarianMTModel", "MarianConfig", d_model=33, encoder_attention_heads=3, decoder_attention_heads=1
    ),
    case(
        "marian-two-vocabularies",
        "MarianMTModel",
        "MarianConfig",
        share_encoder_decoder_embeddings=False,
        decoder_vocab_size=120,
    ),
    case(
        "marian-two-vocabularies",
        "MarianModel",
        "MarianConfig",
        share_encoder_decoder_embeddings=False,
        decoder_vocab_size=120,
    ),
    case(
        "marian-separate-untied",
        "MarianMTModel",
        "MarianConfig",
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
    ),
    case("marian-untied", "MarianMTModel", "MarianConfig", tie_word_embeddings=False),
    *heads("M2M100", "Model", LM),
    case("m2m-unscaled", f"M2M100{LM}", "M2M100Config", scale_embedding=False, activation_function="gelu"),
    case("m2m-pad-3", f"M2M100{LM}", "M2M100Config", pad_token_id=3),
    case("m2m-untied", f"M2M100{LM}", "M2M100Config", tie_word_embeddings=False),
    # Past max_position_embeddings the reference extends its table here (Marian's and Pegasus's fail): any length.
    case("m2m-long", f"M2M100{LM}", "M2M100Config", length=30, max_position_embeddings=16),
]
T5_HEADS = (
    "Model",
    LM,
    "EncoderModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
GATED = {"feed_forward_proj": "gated-gelu"}
T5 = [
    *heads("T5", *T5_HEADS),
    # Version 1.1: no scaling of the decoder's output, which a false tie_word_embeddings means.
    case("t5-v1.1", f"T5{LM}", "T5Config", change=untie_head, tie_word_embeddings=False, **GATED),
    case("t5-v1.1-tied", f"T5{LM}", "T5Config", tie_word_embeddings=False, **GATED),
    case("t5-untied-scaled", f"T5{LM}", "T5Config", change=untie_head),
    case("t5-gated-silu", f"T5{LM}", "T5Config", feed_forward_proj="gated-silu"),
    case("t5-gelu", f"T5{LM}", "T5Config", feed_forward_proj="gelu"),
    case("t5-square", f"T5{LM}", "T5Config", d_kv=8, num_decoder_layers=None),
    case("t5-buckets", f"T5{LM}", "T5Config", relative_attention_num_buckets=32, relative_attention_max_distance=128),
    case("t5-far", f"T5{LM}", "T5Config", length=45),
    case("t5-epsilon", "T5Model", "T5Config", layer_norm_epsilon=1e-3),
    *heads("MT5", *T5_HEADS),
    case("mt5-untied", f"MT5{LM}", "MT5Config", change=untie_head),
    case("mt5-relu", f"MT5{LM}", "MT5Config", feed_forward_proj="relu", length=45),
]
ONE_OF_EACH = [
    case("bart", f"Bart{LM}", "BartConfig", scale_embedding=True),
    case("mbart", f"MBart{LM}", "MBartConfig", scale_embedding=True),
    case("pegasus", f"Pegasus{LM}", "PegasusConfig", scale_embedding=True),
    case("marian", "MarianMTModel", "MarianConfig", scale_embedding=True),
    case("m2m", f"M2M100{LM}", "M2M100Config"),
    case("t5", f"T5{LM}", "T5Config"),
    case("mt5", f"MT5{LM}", "MT5Config"),
]
