"""A model from scratch: transformers reads what we save, means the same by it, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import plainformer as pf
from plainformer.errors import PlainformerError, UsageError
from plainformer.families import FAMILIES, config_from_dict, fields_of, heads_of
from plainformer.families.by_hand import PROBE, missing_sizes, unread
from plainformer.families.naming import class_name
from tests.support.close import close
from tests.support.parity import Case, make_inputs, reference_logits

WIDTH = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37)
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 37))
}
BOTH = dict(vocab_size=99, d_model=32, **SIDES)
IMAGE = dict(WIDTH, image_size=32, patch_size=8)
WAVE = dict(
    WIDTH,
    conv_dim=[16, 12, 16, 12, 16, 12, 20],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    mask_time_prob=0.0,
    mask_feature_prob=0.0,
)
T5 = dict(vocab_size=99, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
SPECIAL = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)
FRAGMENTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(sorted(FAMILIES), WIDTH),
    **dict.fromkeys(("bart", "mbart", "pegasus", "m2m_100"), BOTH),
    "marian": dict(BOTH, pad_token_id=1, decoder_start_token_id=1),
    **dict.fromkeys(("t5", "mt5"), T5),
    **{key: {name: value for name, value in IMAGE.items() if name != "vocab_size"} for key in ("vit", "deit")},
    **dict.fromkeys(("wav2vec2", "hubert"), WAVE),
    "whisper": dict(
        BOTH, **SPECIAL, decoder_start_token_id=3, num_mel_bins=8, max_source_positions=20, max_target_positions=24
    ),
    "albert": dict(WIDTH, embedding_size=16),
    "distilbert": dict(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=37),
    "gpt2": dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4),
    "modernbert": dict(WIDTH, **SPECIAL),
    **{key: dict(WIDTH, head_dim=8, num_key_value_heads=2) for key in ("gemma", "gemma2", "gemma3_text")},
    **{key: dict(WIDTH, num_key_value_heads=2) for key in ("mistral", "qwen2")},
    "qwen3": dict(WIDTH, num_key_value_heads=2, head_dim=8),
    "smollm3": dict(WIDTH, num_key_value_heads=2),
    "olmo2": dict(WIDTH, pad_token_id=None),
}
del FRAGMENTS["gemma3"]  # its text model is gemma3_text; the multimodal one needs a part that sees
KINDS = {"deit": "image", "vit": "image", "hubert": "wave", "wav2vec2": "wave", "whisper": "mel"}
LABELLED = ("sequence", "token", "image", "audio")


def cases() -> Iterator[tuple[str, str]]:
    """Every head that both libraries have."""
    for model_type in FRAGMENTS:
        for head in heads_of(model_type):
            if head != "none" and hasattr(transformers, class_name(model_type, head)):
                yield model_type, head


def scratch(model_type: str, head: str, **more: Any) -> pf.Transformer:
    labels = ["a", "b", "c"] if head in LABELLED else None
    return pf.from_fragment({"model_type": model_type, **FRAGMENTS[model_type], **more}, head, labels=labels, seed=1)


def inputs(model_type: str, head: str) -> dict[str, torch.Tensor]:
    """What both models read. A row ends with the token that a classifier of an encoder-decoder reads."""
    both = model_type in ("bart", "mbart", "t5", "mt5", "pegasus", "marian", "m2m_100")
    kind = "choice" if head == "choice" else KINDS.get(model_type, "seq2seq" if both and head != "token" else "text")
    extra = {"encoder_only": head == "audio"}
    made = make_inputs(Case(model_type, "", dict, kind, eos_in_input=both and head == "sequence", extra=extra))
    if both and head == "sequence" and "t5" in model_type:
        made["input_ids"][:, -1] = 1  # T5's end of a sequence
    return made


@pytest.mark.parametrize(("model_type", "head"), cases())
@torch.no_grad()
def test_both_libraries_compute_the_same(model_type: str, head: str, tmp_path: Path) -> None:
    padded = {"pad_token_id": 1} if head == "sequence" and KINDS.get(model_type) is None else {}
    model = scratch(model_type, head, **padded)  # without it the reference refuses to classify a batch
    assert model.training
    assert all(torch.isfinite(p).all() for p in model.parameters())
    pf.save(model, tmp_path)
    kind = getattr(transformers, class_name(model_type, head))
    reference, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] - {"masked_spec_embed", f"{model_type}.masked_spec_embed"} == set()
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    if head in LABELLED:
        assert reference.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert reference.config.label2id == {"a": 0, "b": 1, "c": 2}
    batch = inputs(model_type, head)
    theirs, ours = reference.eval()(**batch), model.eval()(**batch)
    assert ours.logits is not None
    close(ours.logits, reference_logits(theirs), "logits")
    again = pf.load_model(tmp_path)
    assert again.config.head == model.config.head
    assert again.config.labels == model.config.labels


@pytest.mark.parametrize("model_type", FRAGMENTS)
def test_what_is_left_out_means_the_same(model_type: str, tmp_path: Path) -> None:
    """The configuration that AutoConfig makes of our config.json, written in full, is ours again."""
    for head in heads_of(model_type):
        if head == "none":
            continue
        model = scratch(model_type, head)
        raw = {**model.config.source, "dtype": "float32"}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
        whole = json.loads(theirs.to_json_string(use_diff=False))
        read = config_from_dict(whole, head)
        for field in fields(read):
            if field.compare and field.name not in ("trained_positions", "architecture"):
                assert getattr(model.config, field.name) == getattr(read, field.name), (head, field.name)


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - {"gemma3"}))
def test_every_field_of_the_reference_is_a_field(model_type: str) -> None:
    """A configuration that was copied in full can be a fragment."""
    whole = json.loads(CONFIG_MAPPING[model_type](**FRAGMENTS[model_type]).to_json_string(use_diff=False))
    known = fields_of(whole, heads_of(model_type)) | set(unread(model_type))
    allowed = {"vocab_size"} if model_type in ("vit", "deit") else set()  # not theirs: the test gave it
    assert {name for name in whole if not name.startswith("_")} - known <= allowed


@pytest.mark.parametrize("model_type", FRAGMENTS)
def test_sizes_must_be_said(model_type: str) -> None:
    head = next(kind for kind in heads_of(model_type) if kind != "none")
    raw = {"model_type": model_type, **FRAGMENTS[model_type]}
    read = fields_of(raw, [head])
    assert missing_sizes(raw, read) == []
    sizes = set(missing_sizes({}, read))
    assert sizes <= set(FRAGMENTS[model_type])
    assert len(sizes) >= 3
    for name in sizes:
        less = {key: value for key, value in raw.items() if key != name}
        with pytest.raises(UsageError, match=f"model.config: {name} must be there"):
            pf.from_fragment(less, head, labels=["a", "b"] if head in LABELLED else None)


BERT = {"model_type": "bert", **WIDTH}


@pytest.mark.parametrize(
    ("fragment", "head", "options", "message"),
    [
        (
            {**BERT, "hiden_size": 16},
            "masked_lm",
            {},
            "bert models have no field 'hiden_size'.*did you mean 'hidden_size'",
        ),
        ({**BERT, "num_key_value_heads": 2}, "masked_lm", {}, "bert models have no field 'num_key_value_heads'"),
        (
            {**BERT, "intermediate_size": "many"},
            "masked_lm",
            {},
            "model.config: intermediate_size='many' is not a whole",
        ),
        ({**BERT, "num_attention_heads": 5}, "masked_lm", {}, "model.config: hidden size 32 is not a multiple of 5"),
        ({"model_type": "brt"}, "masked_lm", {}, "model_type 'brt' is not a family"),
        ({"hidden_size": 16}, "masked_lm", {}, "'model_type' is missing"),
        (["model_type"], "masked_lm", {}, "a list is not a fragment"),
        (
            {"model_type": "bert"},
            "masked_lm",
            {},
            "vocab_size, hidden_size, num_hidden_layers, num_attention_heads, interm",
        ),
        (BERT, "causal_lm", {}, "head='causal_lm': bert models have no such head"),
        (BERT, "sequnce", {}, "head='sequnce'.*did you mean 'sequence'"),
        (BERT, "none", {}, "head='none' is a model without a head"),
        (BERT, "sequence", {}, "a new head needs to know its labels"),
        (BERT, "sequence", {"labels": ["a"]}, "one label, 'a', makes every answer the same"),
        (BERT, "sequence", {"labels": ["a", "b", "a"]}, "label 'a' is there twice"),
        (BERT, "sequence", {"labels": ["a", 1]}, "label 1 is 1, not a name"),
        (BERT, "sequence", {"labels": "ab"}, "labels='ab' is not a list"),
        (BERT, "sequence", {"labels": []}, r"labels=\[\] is not a list"),
        (BERT, "sequence", {"labels": ["a", "b"], "problem": "multi"}, "problem='multi' is unknown"),
        (BERT, "token", {"labels": ["a", "b"], "problem": "regression"}, "problem='regression' has no effect"),
        (BERT, "span", {"labels": ["a", "b"]}, "labels: a 'span' head of bert has none"),
        (BERT, "masked_lm", {"seed": -1}, "seed=-1 is not a whole number"),
    ],
)
def test_mistakes(fragment: Any, head: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlainformerError, match=f"(?s){message}"):
        pf.from_fragment(fragment, head, **options)


def test_seeds_and_ids() -> None:
    one, same, other = (pf.from_fragment(BERT, "masked_lm", seed=seed) for seed in (1, 1, 2))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if a.dim() > 1:
            assert not torch.equal(a, c), name
    assert one.config.pad_id == 0
    assert pf.from_fragment({**BERT, "pad_token_id": 5}, "masked_lm").config.pad_id == 5
    assert pf.from_fragment({**BERT, "pad_token_id": None}, "masked_lm").config.pad_id is None
    phi = {**PROBE, "model_type": "phi3"}
    del phi["pad_token_id"]
    kept = {name: phi[name] for name in FRAGMENTS["phi3"]}
    assert pf.from_fragment({"model_type": "phi3", **kept}, "causal_lm").config.pad_id is None, "32000 is past the end"


def test_regression_needs_no_labels(tmp_path: Path) -> None:
    model = pf.from_fragment(BERT, "sequence", problem="regression")
    assert model.config.head.out_size == 1
    assert model.config.head.problem == "regression"
    pf.save(model, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == ["BertForSequenceClassification"]
    assert raw["problem_type"] == "regression"
    assert raw["num_labels"] == 1


def test_labels_may_be_in_the_fragment() -> None:
    given = {**BERT, "id2label": {"0": "no", "1": "yes"}}
    assert pf.from_fragment(given, "sequence").config.labels == ("no", "yes")
    assert pf.from_fragment({**BERT, "num_labels": 3}, "token").config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
