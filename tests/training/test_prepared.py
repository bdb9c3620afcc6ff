"""What chooses the best checkpoint, and what a model from scratch takes from its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plainformer.errors import UsageError
from plainformer.families.by_hand import with_tokens
from plainformer.training import prepare


def words(folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ada", "writes"]))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def test_the_metric_can_depend_on_the_labels(tmp_path: Path) -> None:
    """Tags of entities are measured by F1, tags of words by accuracy."""
    for tags, name in ((("B-PER", "O"), "f1"), (("noun", "verb"), "accuracy")):
        rows = tmp_path / f"{name}.conll"
        rows.write_text(f"ada\t{tags[0]}\nwrites\t{tags[1]}\n\n")
        sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        tokenizer = words(tmp_path / f"tokenizer-{name}")
        config = {
            "objective": "token-classification",
            "folder": str(tmp_path / "run"),
            "model": {"config": {"model_type": "bert", **sizes}, "tokenizer": str(tokenizer)},
            "data": {"train": {"path": str(rows)}, "cache": str(tmp_path / "cache")},
        }
        found = prepare(config)
        assert found.metric.name == name
        assert found.start.config.source["vocab_size"] == 7


def test_special_tokens_are_those_of_the_tokenizer() -> None:
    """What a decoder starts with is the token that the family's published models start with."""
    ids = dict(size=9, pad=5, bos=6, eos=7)
    t5, bart = (with_tokens({"model_type": kind}, **ids) for kind in ("t5", "bart"))
    assert t5 == {
        "model_type": "t5",
        "vocab_size": 9,
        "pad_token_id": 5,
        "eos_token_id": 7,
        "decoder_start_token_id": 5,
    }
    assert bart == {**t5, "model_type": "bart", "bos_token_id": 6, "decoder_start_token_id": 7}
    llama = with_tokens({"model_type": "llama", "eos_token_id": 3}, **ids)
    assert llama == {"model_type": "llama", "vocab_size": 9, "bos_token_id": 6, "eos_token_id": 3}


def classifies(folder: Path, rows: Path, **data: int) -> dict[str, Any]:
    """A run of a tiny BERT from scratch that learns the labels of texts."""
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return {
        "objective": "text-classification",
        "folder": str(folder / "run"),
        "model": {"config": {"model_type": "bert", **sizes}, "tokenizer": str(words(folder / "tokenizer"))},
        "data": {"train": {"path": str(rows)}, "cache": str(folder / "cache"), **data},
    }


def test_a_label_that_cannot_be_names_its_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "ada", "label": "x"}\n{"text": "writes", "label": {"a": 1}}\n')
    config = classifies(tmp_path, rows)
    with pytest.raises(UsageError, match=r"line 2: a label is a dict"):
        prepare(config)
    rows.write_text('{"text": "ada", "label": "x"}\n{"text": "writes", "label": "x"}\n')
    with pytest.raises(UsageError, match=r"^all rows that are learnt from have one label"):
        prepare(config)


def test_options_in_errors_have_their_sections(tmp_path: Path) -> None:
    """What encodes knows options by their own names: "max_length"."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "ada", "label": "x"}\n{"text": "writes", "label": "y"}\n')
    config = classifies(tmp_path, rows, max_length=1)
    with pytest.raises(UsageError) as caught:
        prepare(config)
    assert set(caught.value.options) == {"data.max_length"}
