"""Pooling by its formulas, and the files that sentence-transformers writes beside a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import plainformer
from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.tasks.text.options import POOLINGS
from plainformer.tasks.text.pooling import pool
from tests.support import models as make
from tests.support.close import close

TEXTS = ["the cat sat on the mat.", "paris", "is the dog good, or bad? who is in france!"]
PREFIX = "sentence_transformers.models."


def by_hand(name: str, hidden_TD: torch.Tensor) -> torch.Tensor:
    """One text's tokens as one vector, number by number."""
    length, size = hidden_TD.shape
    rows = hidden_TD.tolist()
    if name in ("cls", "last"):
        return torch.tensor(rows[0 if name == "cls" else -1])
    columns = [[row[d] for row in rows] for d in range(size)]
    ways: dict[str, Callable[[list[float]], float]] = {
        "max": max,
        "mean": lambda values: sum(values) / length,
        "mean_sqrt_len": lambda values: sum(values) / length**0.5,
        "weightedmean": lambda values: sum(v * (t + 1) for t, v in enumerate(values)) / (length * (length + 1) / 2),
    }
    return torch.tensor([ways[name](values) for values in columns])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pooling")
    make.bert(path, "BertModel")
    return path


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_pooling_by_hand(folder: Path, side: str) -> None:
    task = make.load(folder)
    task.tokenizer.padding_side = side
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = make.reference_tokenizer(folder)
    for text in TEXTS:
        output = model(**tokenizer(text, return_tensors="pt"))
        expected = {name: by_hand(name, output.last_hidden_state[0]) for name in POOLINGS if name != "pooler"}
        expected["pooler"] = output.pooler_output[0]
        for name in POOLINGS:
            close(task(text, pooling=name).vector, expected[name])
            close(task(TEXTS, pooling=name)[TEXTS.index(text)].vector, expected[name])
        for several in ("cls+mean", "mean+cls", "max+pooler+last"):
            result = task(TEXTS, pooling=several, normalize=True)[TEXTS.index(text)]
            joined = torch.cat([expected[name] for name in several.split("+")])
            close(result.vector, joined / joined.norm())
            assert result.pooling == several


def test_padding_between_does_not_count() -> None:
    """Whatever stands at masked positions, even what is not a number in effect."""
    generator = torch.Generator().manual_seed(0)
    hidden_BTD = torch.randn(2, 5, 3, generator=generator)
    real_BT = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()
    hidden_BTD[~real_BT] = 1e6
    for name in ("max", "mean", "mean_sqrt_len", "weightedmean", "cls", "last"):
        found = pool([name], hidden_BTD, real_BT, None)
        close(found, torch.stack([by_hand(name, row[real]) for row, real in zip(hidden_BTD, real_BT, strict=True)]))


def test_unknown_poolings(folder: Path, tmp_path: Path) -> None:
    task = make.load(folder)
    for wrong, hint in (("meen", "did you mean 'mean'"), ("cls+", "'cls'"), ("", "known: "), (3, "known: ")):
        with pytest.raises(UsageError, match=hint):
            task("paris", pooling=wrong)
    make.bert(tmp_path, "BertForMaskedLM")
    with pytest.raises(UsageError, match="no pooler"):
        make.load(tmp_path, task="feature-extraction")("paris", pooling="pooler")
    make.t5(tmp_path / "t5")
    with pytest.raises(UsageError, match="no pooler"):
        make.load(tmp_path / "t5", task="feature-extraction")("paris", pooling="pooler")


# ---- files --------------------------------------------------------------------------------------------------------


def write_files(
    folder: Path, pooling: dict[str, Any], *kinds: str, dense: dict[str, Any] | None = None, **prompts: Any
) -> None:
    """modules.json with the modules between the transformer and the end, their configurations, a dense layer."""
    paths = {"Pooling": "1_Pooling", "Dense": "2_Dense"}
    steps = [("Transformer", ""), *((kind, paths.get(kind, "")) for kind in kinds)]
    listed = [{"idx": i, "name": str(i), "path": path, "type": PREFIX + kind} for i, (kind, path) in enumerate(steps)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    if dense is not None:
        (folder / "2_Dense").mkdir(exist_ok=True)
        (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))


def dense_weights(inputs: int, outputs: int, *, bias: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = {"linear.weight": torch.randn(outputs, inputs, generator=generator)}
    return {**weights, "linear.bias": torch.randn(outputs, generator=generator)} if bias else weights


MEAN = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False}, "weightedmean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        # Flags are concatenated in one order, whichever they stand in; names in theirs.
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),
        ({"pooling_mode": ["mean", "cls"], "embedding_dimension": 32}, "mean+cls"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 32}, "last"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt_len"),
        ({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False}, "mean"),
    ],
)
def test_the_checkpoint_says_how_to_pool(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    make.bert(tmp_path, "BertModel")
    write_files(tmp_path, settings, "Pooling")
    task = make.load(tmp_path)
    assert task.pooling == expected
    close(task("paris").vector, task("paris", pooling=expected).vector)


@pytest.mark.parametrize("wrong", ["no", [], ["mean", "no"], 3, ["mean", 3], {"mean": True}])
def test_poolings_that_nobody_knows(tmp_path: Path, wrong: Any) -> None:
    make.bert(tmp_path, "BertModel")
    write_files(tmp_path, {"pooling_mode": wrong}, "Pooling")
    with pytest.raises(CheckpointError, match="asks for"):
        make.load(tmp_path)


@pytest.mark.parametrize("fmt", ["safetensors", "bin"])
@pytest.mark.parametrize("activation", ["activation.Tanh", "linear.Identity"])
def test_a_dense_layer(tmp_path: Path, fmt: str, activation: str) -> None:
    make.bert(tmp_path / "it", "BertModel")
    bias = fmt == "safetensors"
    dense = {
        "in_features": 32,
        "out_features": 5,
        "bias": bias,
        "activation_function": f"torch.nn.modules.{activation}",
    }
    write_files(tmp_path / "it", MEAN, "Pooling", "Dense", "Normalize", dense=dense)
    weights = dense_weights(32, 5, bias=bias)
    if fmt == "bin":
        torch.save(weights, tmp_path / "it" / "2_Dense" / "pytorch_model.bin")
    else:
        save_file(weights, tmp_path / "it" / "2_Dense" / "model.safetensors")
    task = make.load(tmp_path / "it")
    plain = make.load(tmp_path / "it")
    plain.files = type(plain.files)()
    mean = plain(TEXTS[0], normalize=False).vector
    expected = weights["linear.weight"] @ mean + weights.get("linear.bias", torch.zeros(5))
    expected = expected.tanh() if activation.endswith("Tanh") else expected
    close(task(TEXTS[0], normalize=False).vector, expected)
    close(task(TEXTS)[0].vector, expected / expected.norm())
    with pytest.raises(UsageError, match="gives 64 numbers, and the checkpoint's dense layer takes 32"):
        task("paris", pooling="cls+mean")
    plainformer.save(task, tmp_path / "copy")
    assert torch.equal(make.load(tmp_path / "copy")(TEXTS[0]).vector, task(TEXTS[0]).vector)


@pytest.mark.parametrize(
    ("dense", "weights", "message"),
    [
        ({"activation_function": "evil.Thing"}, dense_weights(32, 5), "'Thing'"),
        ({"use_residual": True}, dense_weights(32, 5), "not supported"),
        ({"module_input_name": "token_embeddings"}, dense_weights(32, 5), "not supported"),
        ({"bias": False}, dense_weights(32, 5), r"holds linear\.weight, this one"),
        ({}, {"linear.weight": torch.ones(5, 32)}, r"holds linear\.weight, linear\.bias"),
        ({}, {"linear.weight": torch.ones(5, 32), "linear.bias": torch.ones(4)}, "does not fit"),
        ({}, {"linear.weight": torch.ones(5), "linear.bias": torch.ones(5)}, "this one"),
        ({}, None, "2_Dense"),
    ],
)
def test_dense_layers_that_cannot_work(tmp_path: Path, dense: dict[str, Any], weights: Any, message: str) -> None:
    make.bert(tmp_path, "BertModel")
    write_files(tmp_path, MEAN, "Pooling", "Dense", dense=dense)
    if weights is not None:
        save_file(weights, tmp_path / "2_Dense" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        make.load(tmp_path)


def test_steps_that_are_not_supported(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    for kinds in (("Pooling", "Normalize", "Dense"), ("WeightedLayerPooling",), ("CNN", "Pooling")):
        write_files(tmp_path, MEAN, *kinds)
        with pytest.raises(CheckpointError, match="is not supported"):
            make.load(tmp_path)
    for path in ("../1_Pooling", "/tmp/1_Pooling", "a/../../b"):
        (tmp_path / "modules.json").write_text(json.dumps([{"type": "Pooling", "path": path}]))
        with pytest.raises(CheckpointError, match="leaves the folder"):
            make.load(tmp_path)


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_prompts(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    prompts = {"query": "who is: ", "document": "", "other": "the "}
    write_files(tmp_path, MEAN, "Pooling", prompts=prompts, default_prompt_name="query")
    task = make.load(tmp_path)
    bare = task("paris", prompt="").vector
    close(task("who is: paris", prompt="").vector, task("paris").vector)
    close(task("paris", prompt_name="query").vector, task("paris").vector)
    close(task("paris", prompt_name="document").vector, bare)
    assert not torch.allclose(task("paris").vector, bare)
    with pytest.raises(UsageError, match="did you mean 'query'"):
        task("paris", prompt_name="quer")
    for wrong in ({"prompts": ["a"]}, {"prompts": {"a": 3}}, {"prompts": {"a": "b"}, "default_prompt_name": "c"}):
        write_files(tmp_path, MEAN, "Pooling", **wrong)
        with pytest.raises(CheckpointError, match="prompt"):
            make.load(tmp_path)
    write_files(tmp_path, MEAN, "Pooling")
    with pytest.raises(UsageError, match="no prompts"):
        make.load(tmp_path)("paris", prompt_name="query")


@torch.no_grad()
def test_prompts_that_are_read_and_not_pooled(tmp_path: Path) -> None:
    """INSTRUCTOR's: the class token and the prompt's own tokens are left out of the mean."""
    model = make.bert(tmp_path, "BertModel")
    write_files(tmp_path, {**MEAN, "include_prompt": False}, "Pooling", prompts={"query": "who is: "})
    task = make.load(tmp_path)
    tokenizer = make.reference_tokenizer(tmp_path)
    before = len(tokenizer("who is: ")["input_ids"]) - 1
    for text, result in zip(TEXTS, task(TEXTS, prompt_name="query"), strict=True):
        hidden = model(**tokenizer("who is: " + text, return_tensors="pt")).last_hidden_state[0]
        close(result.vector, hidden[before:].mean(0))
        close(task(text).vector, model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0))


# ---- similarity ---------------------------------------------------------------------------------------------------


def test_similarity_of_lists(folder: Path) -> None:
    task = make.load(folder)
    a, b = TEXTS, ["good", "the dog"]
    found = task.similarity(a, b)
    assert found.shape == (3, 2)
    for i, text in enumerate(a):
        for j, other in enumerate(b):
            close(found[i, j].item(), task.similarity(text, other))
    own = task.similarity(a)
    assert own.shape == (3, 3)
    close(own.diagonal(), torch.ones(3))
    close(own, own.T)
    assert task.similarity([], []).shape == (0, 0) and task.similarity(a, []).shape == (3, 0)
    close(task.similarity("a", b), task.similarity(["a"], b)[0])
    close(task.similarity(a, "b"), task.similarity(a, ["b"])[:, 0])
    for wrong, message in (
        (("a", None), "one input alone"),
        ((3, 4), "cannot compare an int"),
        (("a", None, {}), "one"),
    ):
        with pytest.raises(UsageError, match=message):
            task.similarity(*wrong[:2])
    with pytest.raises(InputError, match="input 1, None, is missing"):
        task.similarity(["a", None])


def test_the_checkpoint_says_how_to_compare(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    vectors = torch.stack([result.vector for result in make.load(tmp_path)(TEXTS)])
    expected = {
        "dot": vectors @ vectors.T,
        "euclidean": -(vectors[:, None] - vectors[None]).square().sum(-1).sqrt(),
        "manhattan": -(vectors[:, None] - vectors[None]).abs().sum(-1),
    }
    for name, numbers in expected.items():
        write_files(tmp_path, MEAN, "Pooling", similarity_fn_name=name)
        task = make.load(tmp_path)
        close(task.similarity(TEXTS), numbers)
        close(task.similarity(TEXTS[0], TEXTS[1]), numbers[0, 1].item())
    for absent in ({}, {"similarity_fn_name": None}):
        write_files(tmp_path, MEAN, "Pooling", **absent)
        close(make.load(tmp_path).similarity(TEXTS).diagonal(), torch.ones(3))
    write_files(tmp_path, MEAN, "Pooling", similarity_fn_name="maxsim")
    with pytest.raises(CheckpointError, match=r"config_sentence_transformers\.json: similarity_fn_name='maxsim'"):
        make.load(tmp_path)
