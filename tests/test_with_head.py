"""A new head on a known backbone: what is initialised is what the reference calls newly initialised, and all else is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer as pf
from plainformer.errors import CheckpointError, PlainformerError, UsageError
from plainformer.families import heads_of
from plainformer.families.naming import class_name
from tests.support import models
from tests.support.close import close
from tests.support.gguf_files import write_gguf
from tests.support.models import CONVOLUTIONS, SEQ2SEQ, TINY

Folder = Callable[[str], Path]
TEXT = dict(TINY, vocab_size=61, max_position_embeddings=40, pad_token_id=1)
BOTH = dict(SEQ2SEQ, vocab_size=61, max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2)
T5 = dict(vocab_size=61, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0)
MEL = {name: value for name, value in BOTH.items() if name != "max_position_embeddings"}
V3 = dict(relative_attention=True, position_buckets=4, pos_att_type="p2c|c2p", share_att_key=True)
# Classes that a checkpoint is of, and their configuration: each gets every head of its family.
SOURCES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "Bert": (("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification"), TEXT),
    "Roberta": (("Model", "ForMaskedLM", "ForSequenceClassification"), TEXT),
    "XLMRoberta": (("ForMaskedLM",), TEXT),
    "MPNet": (("Model", "ForMaskedLM"), TEXT),
    "DistilBert": (("Model", "ForMaskedLM"), dict(TEXT, dim=32, n_layers=2, n_heads=4, hidden_dim=37)),
    "Albert": (("Model", "ForMaskedLM"), dict(TEXT, embedding_size=16)),
    "Electra": (("ForPreTraining", "ForMaskedLM"), dict(TEXT, embedding_size=16)),
    "ModernBert": (
        ("Model", "ForMaskedLM"),
        dict(TEXT, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2),
    ),
    "DebertaV2": (("Model", "ForMaskedLM"), dict(TEXT, **V3)),
    "GPT2": (("Model", "LMHeadModel"), TEXT),
    "GPTNeoX": (("Model", "ForCausalLM"), TEXT),
    "Llama": (("Model", "ForCausalLM"), TEXT),
    "Qwen2": (("ForCausalLM",), dict(TEXT, num_key_value_heads=2)),
    "Gemma2": (("ForCausalLM",), dict(TEXT, num_key_value_heads=2, head_dim=8)),
    "Bart": (("Model", "ForConditionalGeneration"), BOTH),
    "Marian": (("Model", "MTModel"), dict(BOTH, decoder_start_token_id=1)),
    "T5": (("Model", "ForConditionalGeneration"), T5),
    "ViT": (("Model", "ForImageClassification"), dict(TINY, image_size=32, patch_size=8)),
    "DeiT": (("Model", "ForImageClassificationWithTeacher"), dict(TINY, image_size=32, patch_size=8)),
    "Wav2Vec2": (("Model", "ForCTC", "ForSequenceClassification"), dict(TINY, vocab_size=23, **CONVOLUTIONS)),
    "Hubert": (("Model", "ForCTC"), dict(TINY, vocab_size=23, **CONVOLUTIONS)),
    "Whisper": (("Model", "ForConditionalGeneration"), dict(MEL, num_mel_bins=8, max_source_positions=20)),
}
LABELLED = ("sequence", "token", "image", "audio")
LABELS = ["a", "b", "c", "d", "e"]
# transformers 5.23 does not find the backbone of a decoder for question answering, which it calls by another name there.
LOST = ("Llama", "Qwen2")


def sources() -> Iterator[tuple[str, str]]:
    for prefix, (endings, _) in SOURCES.items():
        for ending in endings:
            yield prefix, ending


@pytest.mark.parametrize(("prefix", "ending"), sources())
def test_what_is_new_is_what_the_reference_initialises(prefix: str, ending: str, tmp_path: Path) -> None:
    values = SOURCES[prefix][1]
    config = getattr(transformers, f"{prefix}Config")(**values, num_labels=3)
    reference = models.reference(prefix + ending, config)
    reference.save_pretrained(tmp_path)
    kept = reference.state_dict()
    for head in heads_of(config.model_type):
        kind = class_name(config.model_type, head)
        if head == "none" or not hasattr(transformers, kind) or (head == "span" and prefix in LOST):
            continue
        labels = LABELS if head in LABELLED else None
        new = pf.with_head(tmp_path, head, labels=labels)
        changes = {"num_labels": 5} if labels else {"num_labels": 2} if head == "span" else {}
        _, info = getattr(transformers, kind).from_pretrained(
            tmp_path, output_loading_info=True, ignore_mismatched_sizes=True, **changes
        )
        theirs = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
        renamed = {name.replace("embed_out.", "lm_head.") for name in new.initialised}  # GPT-NeoX's, as it is saved
        assert renamed == theirs, (prefix + ending, head)
        assert len(new.initialised) == len(set(new.initialised))
        assert not set(new.dropped) - set(kept) - {"lm_head.weight", "embed_out.weight"}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("embedding", "token"),
        ("fill-mask", "sequence"),
        ("fill-mask", "span"),
        ("fill-mask", "choice"),
        ("text-generation", "sequence"),
        ("text2text", "sequence"),
        ("image-embedding", "image"),
        ("audio-embedding", "ctc"),
        ("speech", "audio"),
    ],
)
def test_the_backbone_is_the_checkpoints(tiny: Folder, tmp_path: Path, name: str, head: str) -> None:
    """Every layer's numbers are the file's, the model learns, and what is saved is read again by both libraries."""
    labels = LABELS if head in LABELLED else None
    new = pf.with_head(tiny(name), head, labels=labels)
    base = pf.load_model(tiny(name), head="none", prepare=False)
    for key, value in base.named_parameters():
        if not key.startswith("head."):
            assert torch.equal(new.model.get_parameter(key), value), key
    assert new.model.training
    assert all(p.requires_grad and not p.is_meta and p.dtype == torch.float32 for p in new.model.parameters())
    assert all(p.data_ptr() % 64 == 0 for p in new.model.parameters())
    pf.save(new.model, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == [class_name(raw["model_type"], head)]
    if labels:
        assert raw["id2label"] == {str(number): label for number, label in enumerate(LABELS)}
        assert raw["label2id"] == {label: number for number, label in enumerate(LABELS)}
        assert raw["num_labels"] == 5
    else:
        assert not {"id2label", "label2id", "num_labels", "problem_type"} & raw.keys()
    again = pf.load_model(tmp_path, prepare=False)
    assert again.config.head == new.model.config.head
    for (key, one), other in zip(again.named_parameters(), new.model.parameters(), strict=True):
        assert torch.equal(one, other), key
    _, info = getattr(transformers, raw["architectures"][0]).from_pretrained(tmp_path, output_loading_info=True)
    assert {name for name in info["missing_keys"] if not name.endswith("masked_spec_embed")} == set()
    assert not info["unexpected_keys"]


def test_a_head_that_is_all_there_is_kept(tiny: Folder) -> None:
    before = pf.load_model(tiny("text-classification"), prepare=False)
    for labels in (None, ["negative", "neutral", "positive"]):
        new = pf.with_head(tiny("text-classification"), "sequence", labels=labels)
        assert new.initialised == new.dropped == ()
        assert torch.equal(new.model.head.out.weight, before.head.out.weight)
    assert new.model.config.labels == ("negative", "neutral", "positive")


def test_an_old_head_is_dropped_loudly(tiny: Folder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plainformer.starting")
    new = pf.with_head(tiny("text-classification"), "sequence", labels=["yes", "no"])
    assert set(new.initialised) == set(new.dropped) == {"classifier.weight", "classifier.bias"}
    said = [record.getMessage() for record in caplog.records]
    assert any("of another shape" in line and "classifier.weight (3, 32)" in line for line in said), said
    assert any("newly initialised" in line and "classifier.bias" in line for line in said), said
    assert {record.levelno for record in caplog.records} == {logging.WARNING, logging.INFO}


def test_as_many_other_labels_are_another_head(tiny: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Row 0 was trained for "negative": for "good" it would start from the opposite."""
    before = pf.load_model(tiny("text-classification"), prepare=False)
    new = pf.with_head(tiny("text-classification"), "sequence", labels=["good", "bad", "other"])
    assert set(new.initialised) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(new.model.head.dense.weight, before.head.dense.weight), "the layer before is kept"
    assert not torch.equal(new.model.head.out.weight, before.head.out.weight)
    assert "trained for other labels: negative, neutral, positive" in caplog.text


def test_another_kind_of_head_is_dropped_where_the_names_are_the_same(tiny: Folder) -> None:
    new = pf.with_head(tiny("token-classification"), "sequence", labels=["x", "y", "z"])
    assert {"classifier.weight", "classifier.bias"} <= set(new.initialised)
    words = pf.with_head(tiny("fill-mask"), "token", labels=["x", "y"])
    assert "cls.predictions.transform.dense.weight" in words.dropped
    assert not any("embeddings" in name for name in words.dropped)


def test_seeds_and_first_weights(tiny: Folder) -> None:
    one, same, other = (pf.with_head(tiny("embedding"), "token", labels=LABELS, seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(one.head.out.weight, same.head.out.weight)
    assert not torch.equal(one.head.out.weight, other.head.out.weight)
    assert one.head.out.bias.abs().max() == 0
    assert one.head.out.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_fields_of_the_configuration(tiny: Folder, tmp_path: Path) -> None:
    new = pf.with_head(tiny("speech"), "ctc", config={"vocab_size": 12, "pad_token_id": 11})
    assert new.model.config.head.out_size == 12
    assert new.model.config.pad_id == 11
    assert set(new.initialised) == {"lm_head.weight", "lm_head.bias"}
    pf.save(new.model, tmp_path)
    reference = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()
    wave = torch.randn(1, 900, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = new.model.eval()(input_values=wave).logits
        assert found is not None
        close(found, reference(wave).logits, "logits")
    with pytest.raises(UsageError, match=r"(?s)no field 'vocab_sise'.*did you mean 'vocab_size'"):
        pf.with_head(tiny("speech"), "ctc", config={"vocab_sise": 12})


def test_problems(tiny: Folder) -> None:
    assert pf.with_head(tiny("embedding"), "sequence", problem="regression").model.config.head.out_size == 1
    many = pf.with_head(tiny("embedding"), "sequence", labels=LABELS, problem="multi_label").model
    assert many.config.head.problem == "multi_label"
    assert many.config.source["problem_type"] == "multi_label_classification"
    one = pf.with_head(tiny("embedding"), "sequence", labels=LABELS).model
    assert one.config.source["problem_type"] == "single_label_classification"


def test_a_gguf_file_gets_a_head(tmp_path: Path) -> None:
    single = write_gguf(tmp_path / "model.gguf")
    new = pf.with_head(single, "sequence", labels=["a", "b"])
    assert new.initialised == ("score.weight",)
    base = pf.load_model(single, head="none", prepare=False)
    for key, value in base.named_parameters():
        assert torch.equal(new.model.get_parameter(key), value), key
    words = pf.with_head(single, "causal_lm")
    assert words.initialised == ()
    pf.save(new.model, tmp_path / "saved")
    _, info = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("name", "head", "options", "message"),
    [
        ("embedding", "causal_lm", {}, "head='causal_lm': bert models have no such head"),
        ("embedding", "none", {}, "head='none' is a model without a head"),
        ("embedding", "token", {}, "a new head needs to know its labels"),
        ("embedding", "token", {"labels": ["O", "O"]}, "label 'O' is there twice"),
        ("embedding", "span", {"labels": ["O"]}, "labels: a 'span' head of bert has none"),
        ("speech", "ctc", {"labels": ["a"]}, "labels: a 'ctc' head of wav2vec2 has none.*vocab_size"),
        (
            "embedding",
            "token",
            {"labels": ["a", "b"], "purpose": "infer"},
            "purpose='infer': a new head is there to be",
        ),
        ("embedding", "token", {"labels": ["a", "b"], "dtype": "bf16"}, "dtype='bf16' with purpose='train'"),
        ("embedding", "token", {"labels": ["a", "b"], "quantize": "int8"}, "quantize='int8' is for inference"),
        ("embedding", "token", {"labels": ["a", "b"], "colour": "red"}, "colour"),
        ("embedding", "token", {"labels": ["a", "b"], "seed": 1.5}, "seed=1.5 is not a whole number"),
        ("embedding", "masked_lm", {"config": {"num_hidden_layers": 3}}, "weights are missing.*layers.2"),
    ],
)
def test_mistakes(tiny: Folder, name: str, head: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlainformerError, match=f"(?s){message}"):
        pf.with_head(tiny(name), head, **options)


def test_a_backbone_must_be_whole(tmp_path: Path) -> None:
    """An encoder alone gives no encoder-decoder: half of it at random would not be a known backbone."""
    models.reference("T5EncoderModel", transformers.T5Config(**T5)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is_encoder_decoder=False is not supported"):
        pf.with_head(tmp_path, "seq2seq_lm")
    assert pf.with_head(tmp_path, "token", labels=LABELS).initialised == ("classifier.weight", "classifier.bias")
