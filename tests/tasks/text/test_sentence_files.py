"""What sentence-transformers writes beside a model: it makes the task, and what is not supported is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import plainformer
from plainformer.errors import CheckpointError, UsageError
from plainformer.info import inspect_checkpoint
from tests.support import models as make
from tests.support.close import close

TEXTS = ["the cat sat on the mat.", "paris", "is the dog good, or bad? who is in france!"]
MEAN = {"pooling_mode_mean_tokens": True}
OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
PATHS = {"Pooling": "1_Pooling", "Dense": "2_Dense", "LayerNorm": "2_LayerNorm"}


def write_files(folder: Path, *types: str, pooling: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Write modules.json with steps of these types, the pooling's configuration, and the settings of all texts."""
    steps = [{"idx": i, "path": PATHS.get(kind.rpartition(".")[2], ""), "type": kind} for i, kind in enumerate(types)]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or MEAN))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


USUAL = (f"{OLD}Transformer", f"{OLD}Pooling")


def limits(folder: Path, name: str = "sentence_bert_config.json", **settings: Any) -> None:
    (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertForSequenceClassification", "BertModel"])
@pytest.mark.parametrize("types", [USUAL, tuple(NEW.values())])
def test_the_files_make_the_task(architecture: str, types: tuple[str, ...], tmp_path: Path) -> None:
    make.bert(tmp_path / "it", architecture)
    write_files(tmp_path / "it", *types)
    task = plainformer.load(tmp_path / "it")
    assert task.name == inspect_checkpoint(tmp_path / "it").task == "feature-extraction"
    assert task.normalized == (types != USUAL)
    plainformer.save(task, tmp_path / "copy")
    close(plainformer.load(tmp_path / "copy")("paris").vector, task("paris").vector)
    if architecture == "BertForMaskedLM":
        assert plainformer.load(tmp_path / "it", task="fill-mask").name == "fill-mask"


def test_a_cross_encoder_keeps_its_head(tmp_path: Path) -> None:
    """sentence-transformers 6 writes modules.json beside these, too."""
    make.bert(tmp_path, "BertForSequenceClassification", num_labels=1)
    write_files(tmp_path, NEW["Transformer"], model_type="CrossEncoder")
    assert plainformer.load(tmp_path).name == inspect_checkpoint(tmp_path).task == "text-classification"
    assert len(plainformer.load(tmp_path, task="text-ranking")(("a cat", ["paris", "the cat"])).documents) == 2


@pytest.mark.parametrize(
    ("types", "named"),
    [
        ((f"{OLD}CLIPModel",), "CLIPModel"),
        ((f"{OLD}StaticEmbedding",), "StaticEmbedding"),
        (("sentence_transformers.base.modules.router.Router",), "Router"),
        ((*USUAL, f"{OLD}LSTM"), "LSTM"),
        ((f"{OLD}Transformer", "sentence_transformers.sparse_encoder.modules.SpladePooling"), "SpladePooling"),
        # Code of its own, under the name of ours.
        (("custom_st.Transformer", f"{OLD}Pooling"), r"custom_st\.Transformer"),
        ((*USUAL, f"{OLD}Pooling"), "'Pooling' is not supported after Pooling"),
        ((f"{OLD}Pooling", f"{OLD}Transformer"), "'Transformer' is not supported after Pooling"),
        ((f"{OLD}Transformer", f"{OLD}Dense"), "no Pooling is listed"),
        ((f"{OLD}Pooling",), "no Transformer is listed"),
        ((), "no Transformer is listed"),
    ],
)
def test_other_steps_are_refused_by_name(types: tuple[str, ...], named: str, tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    write_files(tmp_path, *types)
    with pytest.raises(CheckpointError, match=f"modules.json: .*{named}"):
        plainformer.load(tmp_path)


def test_the_folder_itself_by_other_names(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    expected = make.load(write_files(tmp_path, *USUAL))("paris").vector
    for model, pooling in ((".", "1_Pooling"), ("./", "./1_Pooling/")):
        steps = [{"type": USUAL[0], "path": model}, {"type": USUAL[1], "path": pooling}]
        (tmp_path / "modules.json").write_text(json.dumps(steps))
        close(make.load(tmp_path)("paris").vector, expected)


def test_no_other_activation_is_suggested(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    write_files(tmp_path, *USUAL, f"{OLD}Dense")
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text('{"activation_function": "torch.nn.LeakyReLU"}')
    with pytest.raises(CheckpointError, match=r"'LeakyReLU' is not supported\n.*supported: Tanh"):
        make.load(tmp_path)


def test_dropout_has_no_effect(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    expected = make.load(write_files(tmp_path, *USUAL))("paris").vector
    close(make.load(write_files(tmp_path, *USUAL, f"{OLD}Dropout"))("paris").vector, expected)


def test_a_norm_is_torchs(tmp_path: Path) -> None:
    """As in sentence-transformers: `torch.nn.LayerNorm(dimension)` on the text's vector; Normalize may follow."""
    make.bert(tmp_path / "it", "BertModel")
    plain = make.load(write_files(tmp_path / "it", *USUAL))("paris").vector
    norm = torch.nn.LayerNorm(len(plain)).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    write_files(tmp_path / "it", *USUAL, f"{OLD}LayerNorm", f"{OLD}Normalize")
    part = tmp_path / "it" / "2_LayerNorm"
    part.mkdir()
    with pytest.raises(CheckpointError, match=r"there is no 2_LayerNorm/config\.json"):
        make.load(tmp_path / "it")
    (part / "config.json").write_text(json.dumps({"dimension": len(plain)}))
    torch.save({f"norm.{name}": value for name, value in norm.state_dict().items()}, part / "pytorch_model.bin")
    task = make.load(tmp_path / "it")
    expected = torch.nn.functional.normalize(norm(plain[None]), dim=-1)[0]
    close(task("paris").vector, expected)
    with pytest.raises(UsageError, match="gives 64 numbers, and the checkpoint's norm takes 32"):
        task("paris", pooling="cls+mean")
    plainformer.save(task, tmp_path / "copy")
    close(plainformer.load(tmp_path / "copy")("paris").vector, expected)
    (part / "config.json").write_text('{"dimension": 7}')
    with pytest.raises(CheckpointError, match="of 7 numbers, this one"):
        make.load(tmp_path / "it")


def test_files_that_cannot_be_obeyed(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    write_files(tmp_path, *USUAL)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": f"{OLD}Transformer", "path": "0_BERT"}]))
    with pytest.raises(CheckpointError, match="'0_BERT'"):
        plainformer.load(tmp_path)
    for wrong in ("{}", "[1]", "[{", '[{"type": 3}]', '[{"path": []}]'):
        (tmp_path / "modules.json").write_text(wrong)
        with pytest.raises(CheckpointError, match=r"modules\.json"):
            plainformer.load(tmp_path)
    write_files(tmp_path, *USUAL, f"{OLD}Normalize")
    (tmp_path / "2_Normalize").mkdir()
    (tmp_path / "2_Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}')
    with pytest.raises(CheckpointError, match="module_input_name='token_embeddings'"):
        plainformer.load(tmp_path)
    write_files(tmp_path, *USUAL)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no 1_Pooling/config\.json"):
        plainformer.load(tmp_path)
    write_files(tmp_path, *USUAL)
    for settings in (
        {"default_prompt_name": {}},
        {"truncate_dim": 0},
        {"truncate_dim": "all"},
        {"similarity_fn_name": 3},
        {"prompts": {"a": 1}},
    ):
        write_files(tmp_path, *USUAL, **settings)
        with pytest.raises(CheckpointError, match=r"config_sentence_transformers\.json: .*" + next(iter(settings))):
            plainformer.load(tmp_path)
    write_files(tmp_path, *USUAL)
    for wrong_limits in ({"max_seq_length": 0}, {"do_lower_case": "yes"}, {"transformer_task": "fill-mask"}):
        limits(tmp_path, **wrong_limits)
        with pytest.raises(CheckpointError, match=r"sentence_bert_config\.json: " + next(iter(wrong_limits))):
            plainformer.load(tmp_path)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
def test_the_longest_text(name: str, tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    limits(write_files(tmp_path, *USUAL), name, max_seq_length=7)
    assert make.load(tmp_path).max_tokens == 7


def test_texts_are_lower_cased_first(tmp_path: Path) -> None:
    make.bert(tmp_path / "it", "BertModel")
    (tmp_path / "it" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    write_files(tmp_path / "it", *USUAL)
    cased = make.load(tmp_path / "it")
    assert not torch.allclose(cased("Paris").vector, cased("paris").vector)
    limits(tmp_path / "it", do_lower_case=True)
    task = make.load(tmp_path / "it")
    for one in (task, _saved(task, tmp_path / "copy"), _saved(_saved(task, tmp_path / "a"), tmp_path / "b")):
        close(one("THE Cat").vector, cased("the cat").vector)
    steps = json.loads((tmp_path / "b" / "tokenizer.json").read_text())["normalizer"]
    assert json.dumps(steps).count("Lowercase") == 1


def _saved(task: Any, folder: Path) -> Any:
    plainformer.save(task, folder)
    return make.load(folder)


# ---- vectors that are cut -----------------------------------------------------------------------------------------


def test_the_first_numbers_of_a_vector(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    plain = make.load(write_files(tmp_path, *USUAL))
    whole = torch.stack([result.vector for result in plain(TEXTS)])
    found = torch.stack([result.vector for result in plain(TEXTS, truncate_dim=5)])
    close(found, whole[:, :5])
    close(plain(TEXTS[0], truncate_dim=5, normalize=True).vector, whole[0, :5] / whole[0, :5].norm())
    for wrong in (0, 33, 2.5, True, "5"):
        with pytest.raises(UsageError, match=f"truncate_dim={wrong!r}"):
            plain("paris", truncate_dim=wrong)
    cut = make.load(write_files(tmp_path, *USUAL, f"{OLD}Normalize", truncate_dim=4))
    close(cut(TEXTS[0]).vector, whole[0, :4] / whole[0, :4].norm())
    close(cut(TEXTS[0], truncate_dim=9).vector, whole[0, :9] / whole[0, :9].norm())
    close(cut.similarity(TEXTS), torch.nn.functional.cosine_similarity(whole[:, None, :4], whole[None, :, :4], dim=-1))
    far = make.load(write_files(tmp_path, *USUAL, truncate_dim=500))
    close(far(TEXTS[0]).vector, whole[0])


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_a_prompt_by_name_or_as_a_text(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    named = {"query": "who is: ", "document": None}
    task = make.load(write_files(tmp_path, *USUAL, prompts=named, default_prompt_name="document"))
    expected = task("who is: paris").vector
    close(task("paris", prompt="who is: ").vector, expected)
    close(task("paris", prompt_name="query").vector, expected)
    close(task("paris", prompt_name="document").vector, task("paris").vector)
    with pytest.raises(UsageError, match=r"is the name of a prompt, not its text\n.*prompt_name='query'"):
        task("paris", prompt="query")
    with pytest.raises(UsageError, match="prompt_name has no effect with prompt='a'"):
        task("paris", prompt="a", prompt_name="query")
    for wrong in ({"prompt": 3}, {"prompt_name": ["query"]}):
        with pytest.raises(UsageError, match="is not a text"):
            task("paris", **wrong)


@torch.no_grad()
def test_places_are_counted_from_the_prompts_beginning(tmp_path: Path) -> None:
    """As sentence-transformers 6.2 weighs: tokens of a prompt that do not count keep their places."""
    model = make.bert(tmp_path, "BertModel")
    pooling = {"pooling_mode_weightedmean_tokens": True, "include_prompt": False}
    write_files(tmp_path, *USUAL, pooling=pooling, prompts={"query": "who is: "})
    task, tokenizer = make.load(tmp_path), make.reference_tokenizer(tmp_path)
    before = len(tokenizer("who is: ")["input_ids"]) - 1
    for text, result in zip(TEXTS, task(TEXTS, prompt_name="query"), strict=True):
        hidden_TD = model(**tokenizer("who is: " + text, return_tensors="pt")).last_hidden_state[0]
        weights_T = torch.arange(1, len(hidden_TD) + 1.0)[before:]
        close(result.vector, weights_T @ hidden_TD[before:] / weights_T.sum())


def test_equal_texts_have_equal_vectors(tmp_path: Path) -> None:
    """Whichever batch they are in: of equal distances, the first one given comes first."""
    make.bert(tmp_path, "BertModel")
    task = make.load(write_files(tmp_path, *USUAL, similarity_fn_name="euclidean"))
    texts = [" ".join(["the cat"] * (1 + i % 7)) for i in range(40)]
    found = task.similarity(texts, texts)
    for i in range(40):
        assert torch.equal(found[i], found[i % 7]) and torch.equal(found[:, i], found[:, i % 7])
        assert found[i].argsort(descending=True, stable=True)[0] == i % 7
