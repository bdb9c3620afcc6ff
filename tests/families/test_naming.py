"""What a folder's config.json leaves out, contradicts or changes: the family, the labels, the direction of attention."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import model_type_to_module_name

import plainformer
from plainformer.errors import CheckpointError, UsageError
from plainformer.families import FAMILIES, HEADS_BY_SUFFIX, completed, config_from_dict
from plainformer.families.naming import is_own_class
from plainformer.info import inspect_checkpoint
from plainformer.loading import load_model
from plainformer.tasks import default_task
from tests.support import models
from tests.support.cli import Cli, done, refused
from tests.support.configs import tiny


def change(folder: Path, **values: Any) -> Path:
    """Change a folder's config.json; None takes a field away."""
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
    return folder


# ---- the class name -----------------------------------------------------------------------------------------------


def classes(model_type: str) -> list[str]:
    name = model_type_to_module_name(model_type)
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    return [
        c for c in module.__all__ if not c.endswith("PreTrainedModel") and any(c.endswith(s) for s in HEADS_BY_SUFFIX)
    ]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_references_classes_are_a_familys_own(model_type: str) -> None:
    wrong_way_round = {"BartPretrainedModel", "PretrainedBartModel"}
    for name in set(classes(model_type)) - wrong_way_round:
        assert any(is_own_class(name, each) for each in FAMILIES), name


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("LlamaEncoderModel", "llama"),
        ("LlamaBiModel", "llama"),
        ("JinaBertForMaskedLM", "bert"),
        ("BidirectionalMistralModel", "mistral"),
        ("Qwen2ForProcessRewardModel", "qwen2"),
    ],
)
def test_code_of_a_checkpoints_own_is_refused(name: str, model_type: str, tmp_path: Path) -> None:
    """As LLM2Vec's decoders, which see both directions: by its name such a class is only a Llama with another ending."""
    path = tmp_path / "config.json"
    for raw in (
        {**tiny(model_type), "architectures": [name]},
        {**tiny(model_type), "architectures": [], "auto_map": {"AutoModel": f"o/r--modeling_x.{name}"}},
    ):
        path.write_text(json.dumps(raw))
        for reads in (load_model, inspect_checkpoint):
            with pytest.raises(
                CheckpointError, match=rf"config\.json: class '{name}' is not of the '{model_type}' family"
            ) as caught:
                reads(tmp_path)
            assert f"family='{model_type}'" in caught.value.fix


def test_family_reads_it_all_the_same(tmp_path: Path, cli: Cli) -> None:
    models.save("embedding", tmp_path)
    expected = plainformer.load(tmp_path)("good")
    change(tmp_path, architectures=["MyBertModel"], auto_map={"AutoModel": "modeling_my.MyBertModel"})
    assert torch.equal(plainformer.load(tmp_path, family="bert")("good").vector, expected.vector)
    refused(cli("run", tmp_path, "good"), "class 'MyBertModel'", "pass --family 'bert'", code=1)
    assert len(done(cli("run", tmp_path, "good", "--family", "bert")).lines) == 1
    assert done(cli("info", tmp_path, "--family", "bert", "--json")).json()[0]["family"] == "bert"


def test_auto_map_to_the_familys_own_class_is_no_matter(tmp_path: Path) -> None:
    """Phi-3 and gte-Qwen2 came with code before transformers had it."""
    models.save("embedding", tmp_path)
    change(tmp_path, auto_map={"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_bert.BertModel"})
    load_model(tmp_path)


# ---- no model_type ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_class_implies_the_family(model_type: str) -> None:
    own = [name for name in classes(model_type) if name not in ("BartPretrainedModel", "PretrainedBartModel")]
    inner = {"text_config": {}} if model_type == "gemma3" else {}
    for name in own:
        found = completed({"architectures": [name], **inner})["model_type"]
        assert found == model_type or {found, model_type} <= {"gemma3", "gemma3_text"}
    if model_type == "gemma3_text":
        assert completed({"architectures": ["Gemma3ForCausalLM"]})["model_type"] == model_type


def test_a_missing_model_type(tmp_path: Path, cli: Cli) -> None:
    models.save("embedding", tmp_path)
    expected = plainformer.load(tmp_path)("good").vector
    change(tmp_path, model_type=None)
    assert torch.equal(plainformer.load(tmp_path)("good").vector, expected)
    assert inspect_checkpoint(tmp_path).family == "bert"
    change(tmp_path, architectures=None)
    with pytest.raises(
        CheckpointError, match=r"config\.json: 'model_type' is missing.*\n.*family=\.\.\.: albert, bart, bert"
    ):
        plainformer.load(tmp_path)
    refused(cli("run", tmp_path, "good"), "'model_type' is missing", "--family", code=1)
    assert torch.equal(plainformer.load(tmp_path, family="bert")("good").vector, expected)
    done(cli("run", tmp_path, "good", "--family", "bert"))
    with pytest.raises(UsageError, match="family='bret' is unknown") as caught:
        plainformer.load(tmp_path, family="bret")
    assert "'bert'" in caught.value.fix


# ---- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 3},
        {"num_labels": 2},
        {},
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 3},
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 2},
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 1},
    ],
)
def test_the_number_of_labels_wins(fields: dict[str, Any]) -> None:
    theirs = transformers.BertConfig.from_dict(dict(fields)).id2label
    ours = config_from_dict({**tiny("bert"), **fields}, "sequence")
    assert dict(enumerate(ours.labels)) == theirs and ours.head.out_size == len(theirs)


# ---- the direction of attention ---------------------------------------------------------------------------------------


def test_a_decoder_that_sees_both_directions_makes_vectors(tmp_path: Path) -> None:
    """gte-Qwen2 is published as a causal language model with `is_causal: false`. (tests/parity has the numbers.)"""
    models.save("chat", tmp_path)
    causal = load_model(tmp_path)
    change(tmp_path, is_causal=False)
    ids = torch.arange(5, 14)[None]
    embed = plainformer.load(tmp_path)
    assert embed.name == "feature-extraction" and embed.config.head.kind == "none"
    assert inspect_checkpoint(tmp_path).task == "feature-extraction"
    with_words = load_model(tmp_path, head="causal_lm")
    changed = ids.clone()
    changed[0, -1] = 20
    first = [model(each).logits[0, 0] for model in (causal, with_words) for each in (ids, changed)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[2], first[3])
    with pytest.raises(UsageError, match="cannot do 'text-generation': as loaded, it does 'feature-extraction'"):
        plainformer.load(tmp_path, task="text-generation")
    with pytest.raises(UsageError, match="sees later positions too and cannot generate"):
        plainformer.generate(with_words, ids, max_new_tokens=2)


@pytest.mark.parametrize("direction", [{"use_bidirectional_attention": True}, {"is_causal": False}])
def test_the_same_rule_holds_for_gemma(direction: dict[str, object]) -> None:
    raw = {**tiny("gemma3_text", "Gemma3ForCausalLM"), **direction}
    found = config_from_dict(raw)
    assert found.head.kind == "none" and found.main_stack.direction == "both"
    assert default_task(found).name == "feature-extraction"
    assert config_from_dict(raw, "causal_lm").head.kind == "causal_lm"


@pytest.mark.parametrize("model_type", ["bart", "marian", "m2m_100", "pegasus", "t5", "whisper"])
def test_a_decoder_after_an_encoder_is_causal(model_type: str) -> None:
    with pytest.raises(CheckpointError, match="is_causal=False is not supported"):
        config_from_dict({**tiny(model_type), "is_causal": False})


@pytest.mark.parametrize("place", ["top", "inside"])
def test_layers_of_different_sizes_are_refused(place: str) -> None:
    fields = {"per_layer_config": {"0": {"intermediate_size": 8}}}
    raw = tiny("gemma3" if place == "inside" else "llama")
    raw = {**raw, "text_config": {**raw["text_config"], **fields}} if place == "inside" else {**raw, **fields}  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="per_layer_config="):
        config_from_dict(raw)
