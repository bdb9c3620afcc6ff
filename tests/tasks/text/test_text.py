"""Tasks that read text and score it, against the reference's pipelines, or its model on the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.tasks.base import best
from tests.support import models as make
from tests.support.close import close

TEXTS = ["the cat sat on the mat.", "paris", "is the dog good, or bad? who is in france!"]


@pytest.fixture(scope="module")
def bert_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bert")
    heads = {
        "mask": ("BertForMaskedLM", {}),
        "single": ("BertForSequenceClassification", {"num_labels": 3}),
        "several": ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}),
        "value": ("BertForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
        "one": ("BertForSequenceClassification", {"num_labels": 1}),
        "token": ("BertForTokenClassification", {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}}),
        "span": ("BertForQuestionAnswering", {}),
        "choice": ("BertForMultipleChoice", {}),
        "base": ("BertModel", {}),
    }
    for name, (model, changes) in heads.items():
        make.bert(root / name, model, **changes)
    return {name: root / name for name in heads}


def reference(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(folder).eval()


def pipeline(task: str, folder: Path, **options: Any) -> Any:
    tokenizer = make.reference_tokenizer(folder)
    return transformers.pipeline(task, model=reference(folder), tokenizer=tokenizer, device="cpu", **options)


# ---- text classification ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "several", "value", "one"])
def test_text_classification(bert_folders: dict[str, Path], kind: str) -> None:
    task = make.load(bert_folders[kind])
    theirs = pipeline("text-classification", bert_folders[kind])
    results = task(TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        expected = {entry["label"]: entry["score"] for entry in theirs(text, top_k=None)}
        assert {s.label for s in result.scores} == set(expected)
        close([s.score for s in result.scores], [expected[s.label] for s in result.scores])
        assert result.label == max(expected, key=expected.__getitem__)
        assert result.score == max(s.score for s in result.scores)
        close([s.score for s in task(text).scores], [s.score for s in result.scores])


@torch.no_grad()
def test_text_pairs(bert_folders: dict[str, Path]) -> None:
    task = make.load(bert_folders["single"])
    pair = ("the cat sat", "the dog is bad")
    ids = make.reference_tokenizer(bert_folders["single"])(*pair, return_tensors="pt")
    expected = reference(bert_folders["single"])(**ids).logits.softmax(-1)[0]
    close([s.score for s in task(pair).scores], expected)
    assert [r.label for r in task([pair, "paris", pair])] == [task(p).label for p in (pair, "paris", pair)]


# ---- long texts -----------------------------------------------------------------------------------------------------


def test_long_texts_are_an_error_unless_cut(bert_folders: dict[str, Path]) -> None:
    task = make.load(bert_folders["single"])
    long = "the cat " * 30
    with pytest.raises(InputError, match="limit is 40"):
        task(long)
    assert task(long, truncate=True) == task("the cat " * 19)


# ---- fill mask ----------------------------------------------------------------------------------------------------


def test_fill_mask(bert_folders: dict[str, Path]) -> None:
    task = make.load(bert_folders["mask"])
    theirs = pipeline("fill-mask", bert_folders["mask"], top_k=4)
    texts = ["the [MASK] sat on the mat.", "[MASK] is in [MASK]!", "who is [MASK]"]
    for text, result in zip(texts, task(texts, top_k=4), strict=True):
        expected = theirs(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert len(result) == len(expected)
        for gap, entries in zip(result, expected, strict=True):
            assert text[gap.start : gap.end] == "[MASK]"
            assert [c.token_id for c in gap.candidates] == [entry["token"] for entry in entries]
            close([c.score for c in gap.candidates], [entry["score"] for entry in entries])
            for candidate in gap.candidates:
                assert candidate.text == text[: gap.start] + candidate.token + text[gap.end :]
    with pytest.raises(InputError, match="no mask token"):
        task("the cat")
    with pytest.raises(InputError, match="cut off"):
        task("the cat " * 30 + "[MASK]", truncate=True)


def test_a_mask_that_takes_its_space_along(tmp_path: Path) -> None:
    """RoBERTa's mask token matches the space before it; the filled text keeps that space."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    config = transformers.RobertaConfig(**make.TINY, vocab_size=9, max_position_embeddings=20, pad_token_id=1)
    make.save_model(tmp_path, "RobertaForMaskedLM", config)
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "the": 2, "cat": 3, "sat": 4, "mat": 5}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>", "pad_token": "<pad>"}))
    (gap,) = make.load(tmp_path)("the <mask> sat", top_k=2)
    assert "the <mask> sat"[gap.start : gap.end] == "<mask>"
    assert all(c.text == f"the {c.token} sat" for c in gap.candidates)


# ---- multiple choice ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_multiple_choice(bert_folders: dict[str, Path]) -> None:
    folder = bert_folders["choice"]
    task, theirs, tokenizer = make.load(folder), reference(folder), make.reference_tokenizer(folder)
    items = [
        ("the cat", ["sat.", "is in france!", "good"]),
        ("who is", ["bad", "the dog on the mat"]),
        ("paris", ["is"]),
    ]
    for (prompt, choices), result in zip(items, task(items), strict=True):
        ids = tokenizer([prompt] * len(choices), choices, padding=True, return_tensors="pt")
        expected = theirs(**{name: value[None] for name, value in ids.items()}).logits[0].softmax(-1)
        close(result.scores, expected)
        assert result.index == int(expected.argmax()) and result.text == choices[result.index]
        close(task((prompt, choices)).scores, expected)
    assert task({"prompt": "the cat", "choices": ["sat.", "good"]}) == task(("the cat", ["sat.", "good"]))
    for wrong in (("the cat", []), ("the cat", [3]), {"prompt": "x"}, "the cat", 3):
        with pytest.raises(
            InputError, match=r"no choices|is not a prompt and choices|is not an input for multiple-choice"
        ):
            list(task(wrong))


# ---- feature extraction -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "mask"])
def test_feature_extraction(bert_folders: dict[str, Path], name: str) -> None:
    folder = bert_folders[name]
    task = make.load(folder, task="feature-extraction")
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = make.reference_tokenizer(folder)
    for text in TEXTS:
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        for pooling, expected in (("mean", hidden.mean(0)), ("cls", hidden[0]), ("last", hidden[-1])):
            close(task(text, pooling=pooling).vector, expected)
            close(task(TEXTS, pooling=pooling)[TEXTS.index(text)].vector, expected)
            unit = task(text, pooling=pooling, normalize=True)
            close(unit.vector, expected / expected.norm())
            assert unit.normalized and unit.pooling == pooling
    assert task("").vector.shape == (32,)
    close(task.similarity("paris", "paris"), 1.0)
    with pytest.raises(UsageError, match="did you mean 'mean'"):
        task("paris", pooling="meen")


def test_features_equal_the_reference_pipeline(bert_folders: dict[str, Path]) -> None:
    theirs = pipeline("feature-extraction", bert_folders["base"])
    task = make.load(bert_folders["base"])
    close(task(TEXTS[0]).vector, torch.tensor(theirs(TEXTS[0]))[0].mean(0))


@torch.no_grad()
def test_features_of_a_language_model(tmp_path: Path) -> None:
    model = make.gpt2(tmp_path)
    task = make.load(tmp_path, task="feature-extraction")
    assert task.name == "feature-extraction"
    texts = ["a cat", "a longer text"]
    for text, result in zip(texts, task(texts, pooling="last"), strict=True):
        ids = torch.tensor([task.tokenizer.encode(text).input_ids])
        close(result.vector, model.transformer(ids).last_hidden_state[0, -1])
    for empty in ("", ["a cat", ""]):
        with pytest.raises(InputError, match="no tokens"):
            task(empty)


@torch.no_grad()
def test_features_of_an_encoder_decoder_are_the_encoders(tmp_path: Path) -> None:
    model = make.t5(tmp_path)
    task = make.load(tmp_path, task="feature-extraction")
    ids = torch.tensor([task.tokenizer.encode("a cat").input_ids])
    close(task("a cat").vector, model.encoder(ids).last_hidden_state[0].mean(0))


def sentence_files(folder: Path, modules: list[str], pooling: dict[str, Any], **settings: Any) -> None:
    listed = [
        {"idx": i, "name": str(i), "path": "1_Pooling" if "Pooling" in kind else "", "type": kind}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


def test_sentence_transformers_files(tmp_path: Path) -> None:
    import plainformer

    make.bert(tmp_path / "it", "BertModel")
    prefix = "sentence_transformers.models."
    modules = [f"{prefix}Transformer", f"{prefix}Pooling", f"{prefix}Normalize"]
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    sentence_files(tmp_path / "it", modules, pooling, max_seq_length=12)
    task = make.load(tmp_path / "it")
    result = task("the cat")
    assert result.pooling == "cls" and result.normalized
    with pytest.raises(InputError, match="limit is 12"):
        task("the cat sat on " * 5)
    close(task("the cat sat on " * 5, truncate=True).vector.norm(), 1.0)
    plainformer.save(task, tmp_path / "copy")
    again = make.load(tmp_path / "copy")
    assert torch.equal(again("the cat").vector, result.vector) and again.max_tokens == 12

    sentence_files(tmp_path / "it", [*modules, f"{prefix}Dense"], pooling)
    with pytest.raises(CheckpointError, match="Dense"):
        make.load(tmp_path / "it")
    sentence_files(tmp_path / "it", modules, {"pooling_mode_of_a_later_day": True})
    with pytest.raises(CheckpointError, match="pooling_mode_of_a_later_day"):
        make.load(tmp_path / "it")
    (tmp_path / "it" / "modules.json").write_text("[{")
    with pytest.raises(CheckpointError, match="JSON"):
        make.load(tmp_path / "it")


def test_the_best_of_equal_ones_is_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores_V = torch.randint(0, 6, (200,), generator=generator).float()
        ranked = sorted(range(200), key=lambda place: -scores_V[place].item())
        for count in (1, 5, 40, 200):
            assert best(scores_V, count).tolist() == ranked[:count]


# ---- what every task promises -------------------------------------------------------------------------------------


def test_same_kind_of_input_same_type_of_output(bert_folders: dict[str, Path]) -> None:
    task = make.load(bert_folders["single"])
    texts = [("the cat " * (1 + i % 5)).strip() + str(i) for i in range(37)]
    results = task(texts)
    assert isinstance(results, list) and len(results) == 37
    for text, result in zip(texts, results, strict=True):
        close([s.score for s in task(text).scores], [s.score for s in result.scores])
    assert task(tuple(texts[:3])) == task(texts[:3])
    assert task([]) == [] and list(task(iter([]))) == []

    read = []

    def source() -> Any:
        for text in texts:
            read.append(text)
            yield text

    lazy = task(source())
    assert read == [] and not isinstance(lazy, list)
    close([s.score for s in next(lazy).scores], [s.score for s in results[0].scores])
    assert len(read) < len(texts)
    assert len([*lazy]) == 36 and read == texts


@pytest.mark.parametrize("wrong", [3, None, b"bytes", {"text": "x"}, Path("x"), np.zeros(3), [3], ["x", None]])
def test_wrong_types(bert_folders: dict[str, Path], wrong: Any) -> None:
    with pytest.raises(InputError, match="is not an input for text-classification"):
        make.load(bert_folders["single"])(wrong)


def test_unknown_options(bert_folders: dict[str, Path]) -> None:
    task = make.load(bert_folders["mask"])
    with pytest.raises(UsageError, match="did you mean 'top_k'"):
        task("[MASK]", topk=3)
    with pytest.raises(UsageError, match="top_k=0 is not a whole number of at least 1\n  → give 1 or more"):
        task("[MASK]", top_k=0)
    assert set(task.options()) == {"batch_size", "on_error", "truncate", "max_length", "top_k"}


def test_wrong_task_says_what_the_checkpoint_does(bert_folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="does 'fill-mask'"):
        make.load(bert_folders["mask"], task="text-classification")
    # The two have tensors of the same names, which would load.
    with pytest.raises(UsageError, match="does 'text-classification'"):
        make.load(bert_folders["single"], task="ner")
    with pytest.raises(UsageError, match="image"):
        make.load(bert_folders["mask"], task="image-feature-extraction")
    with pytest.raises(UsageError, match="did you mean 'fill-mask'"):
        make.load(bert_folders["mask"], task="fillmask")
    with pytest.raises(CheckpointError, match="no weights for this head"):
        make.load(bert_folders["base"], task="text-classification")


def test_missing_tokenizer(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertModel")
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        make.load(tmp_path)
