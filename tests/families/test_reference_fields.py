"""Every field of transformers' configuration classes is read here, or listed as without effect on an answer, with the reason.

What is read is seen by recording which names the families ask config.json for. A field that is neither read nor listed fails,
and so does one that is listed and read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from plainformer.config.fields import noting
from plainformer.families import FAMILIES, config_from_dict, family_module, heads_of, table_for
from tests.support.configs import tiny

WHY: dict[str, str] = {
    "what training does besides dropout: losses, augmentation, pre-training of other kinds": """
        apply_spec_augment contrastive_logits_temperature ctc_loss_reduction ctc_zero_infinity diversity_loss_weight
        feat_quantizer_dropout mask_feature_length mask_feature_min_masks mask_feature_prob mask_time_length
        mask_time_min_masks mask_time_prob num_negatives sparse_pred_ignore_index sparse_prediction
    """,
    "how it is computed, and the numbers are the same": """
        chunk_size_feed_forward deterministic_flash_attn dtype pretraining_tp reorder_and_upcast_attn use_cache
    """,
    "what a call returns": "output_hidden_states return_dict",
    "records": "label2id transformers_version",
    "defaults of generation, which generation settings are read for": """
        begin_suppress_tokens forced_eos_token_id median_filter_width suppress_tokens
    """,
    "the tokenizer's": "cls_token_id sep_token_id",
    "a head or model of its own that is not supported: pre-training, x-vectors, images, two heads": """
        boi_token_index codevector_dim encoder_stride eoi_token_index image_token_index mm_tokens_per_image
        num_codevector_groups num_codevectors_per_group proj_codevector_dim tdnn_dilation tdnn_dim tdnn_kernel vision_config
        xvector_output_dim
    """,
    "only with another field, which is refused": """
        adapter_kernel_size adapter_stride num_adapter_layers output_hidden_size
    """,
    "whether it is an encoder-decoder follows from the family": "is_encoder_decoder",
}
REASON = {name: why for why, names in WHY.items() for name in names.split()}
# What one family's class has and none of its models uses; and what is another thing in other families.
CROSS = {"add_cross_attention": "only with is_decoder, which is refused"}
HALVES = {"is_decoder": "set by the model itself, for its two halves"}
OWN: dict[str, dict[str, str]] = {
    "bart": HALVES,
    "bert": CROSS,
    "camembert": CROSS,
    "electra": CROSS,
    "gemma3_text": {"attn_logit_softcapping": "transformers 5.23 does not pass it to Gemma 3's attention"},
    "gpt2": {
        f"summary_{name}": "GPT2DoubleHeadsModel, which is not supported"
        for name in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")
    },
    "gpt_neox": {"is_decoder": "transformers 5.23 reads it nowhere"},
    "marian": HALVES,
    "mbart": HALVES,
    "mt5": HALVES,
    "pegasus": HALVES,
    "phi3": {"embd_pdrop": "transformers 5.23 drops nothing of Phi-3's embeddings"},
    "roberta": CROSS,
    "t5": HALVES,
    "xlm-roberta": CROSS,
    "whisper": {"scale_embedding": "transformers 5.23 does not apply it"},
}
# Fields that are read only beside another one.
ALSO: dict[str, dict[str, Any]] = {
    "deberta-v2": {"relative_attention": True},
    "marian": {"share_encoder_decoder_embeddings": False},
    "qwen2": {"use_sliding_window": True},
    "qwen3": {"use_sliding_window": True},
    "smollm3": {"use_sliding_window": True, "sliding_window": 3},
}


@pytest.fixture
def asked() -> Iterator[set[str]]:
    with noting() as noted:
        yield noted


def read_by(model_type: str, asked: set[str]) -> set[str]:
    """Return the names that a family reads, with any head."""
    for head in heads_of(model_type):
        for more in ({}, ALSO.get(model_type, {})):
            table_for(config_from_dict({**tiny(model_type), **more}, head))
    return set(asked)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_is_read_or_has_no_effect(model_type: str, asked: set[str]) -> None:
    theirs = {field.name for field in dataclasses.fields(CONFIG_MAPPING[model_type]) if not field.name.startswith("_")}
    read, own = read_by(model_type, asked), OWN.get(model_type, {})
    unread = theirs - read - {"architectures", "text_config"}  # read where the class is chosen
    if not {"sequence", "token", "image", "audio"}.intersection(heads_of(model_type)):
        unread -= {"id2label", "problem_type"}  # no model of it classifies
    assert not unread - set(REASON) - set(own), "obey these, refuse them by name, or say why they have no effect"
    assert not set(own) & read, "these are read now"
    assert set(own) <= theirs, "transformers has no such fields"


def test_nothing_is_listed_that_any_family_reads(asked: set[str]) -> None:
    """Two are other things elsewhere: a window's cousin of the classifier, and the encoder-decoder flag that T5 refuses.

    Two decide whether a model of waves has a vector for what training hides; those of spectrograms have none.
    """
    read = set().union(*(read_by(model_type, asked) for model_type in FAMILIES))
    assert set(REASON) & read <= {"is_encoder_decoder", "dtype", "mask_time_prob", "mask_feature_prob"}


def test_every_listed_field_is_a_field() -> None:
    known = {f.name for name in FAMILIES for f in dataclasses.fields(CONFIG_MAPPING[name])}
    assert set(REASON) <= known


@pytest.mark.parametrize("model_type", FAMILIES)
def test_other_names_of_fields_are_the_references(model_type: str) -> None:
    """`num_hidden_layers` is BART's `encoder_layers`; where a file has both, the other name wins, as in transformers."""
    theirs = dict(CONFIG_MAPPING[model_type].attribute_map)
    known = {other: name for other, name in theirs.items() if not name.endswith("_index")}  # of images
    assert getattr(family_module(model_type), "ALIASES", {}) == known


def test_the_other_name_wins() -> None:
    raw = {**tiny("bart"), "encoder_layers": 4, "num_hidden_layers": 3}
    encoder = config_from_dict(raw).encoder
    assert encoder is not None
    assert encoder.num_layers == transformers.BartConfig.from_dict(dict(raw)).encoder_layers == 3
