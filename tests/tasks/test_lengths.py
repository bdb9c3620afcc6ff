"""A limit binds where it is one: a table of positions, not what a tokenizer's files state; messages name what a task has."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import plainformer as pf
from plainformer.config.options import specs
from plainformer.errors import InputError, UsageError
from plainformer.info import inspect_checkpoint
from plainformer.inputs.text.lengths import TooLongError, remedies
from plainformer.tasks import option_classes
from plainformer.tasks.lengths import offering
from tests.support import models as make
from tests.support.models import save

LONG = "the cat sat on the mat " * 12


def stating(folder: Path, **entries: Any) -> Path:
    """Change a folder's tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder


def t5(folder: Path) -> Path:
    make.t5(folder)
    return folder


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_stated_length_does_not_bind_computed_positions(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = t5(tmp_path) if name == "t5" else save("chat", tmp_path, max_position_embeddings=4096)
    whole = make.load(folder)(LONG, max_new_tokens=3)
    stating(folder, model_max_length=16)
    task = make.load(folder)
    with caplog.at_level(logging.WARNING):
        assert task(LONG, max_new_tokens=3) == whole and task(LONG, max_new_tokens=3) == whole
    assert [message for message in caplog.messages if "files state 16" in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert len(task.tokenizer.encode(LONG)) > 16
    cut = task(LONG, truncate=True, max_new_tokens=3)
    assert getattr(cut, "prompt_tokens", None) == 16 or getattr(cut, "input_tokens", None) == 16
    info = inspect_checkpoint(folder)
    assert info.longest_text is None and info.max_positions is None
    assert info.tokenizer is not None and info.tokenizer["stated length"] == 16


def test_windows_are_as_long_as_stated_and_may_be_longer(tmp_path: Path) -> None:
    import transformers

    config = transformers.ModernBertConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, num_labels=3,
        vocab_size=len(make.WORDPIECE),
        pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, max_position_embeddings=512,
    )  # fmt: skip
    make.save_model(tmp_path, "ModernBertForTokenClassification", config)
    make.save_wordpiece(tmp_path)
    task = make.load(stating(tmp_path, model_max_length=16))
    assert len(task(LONG)) == len(task(LONG, window=40)) == len(LONG.split())
    whole = make.load(stating(tmp_path, model_max_length=400))
    assert [one.score for one in whole(LONG)] == pytest.approx([one.score for one in task(LONG, window=200)], rel=1e-4)


def test_learned_positions_bind_and_max_length_moves_within_them(tmp_path: Path) -> None:
    folder = save("text-classification", tmp_path)
    task = make.load(folder)
    with pytest.raises(InputError, match="the limit is 40") as caught:
        task(LONG)
    assert caught.value.fix == "pass truncate=True to cut it, or split it into shorter ones"
    assert task(LONG, truncate=True) == task(LONG, truncate=True, max_length=40)
    assert task(LONG, truncate=True, max_length=5) == task("the cat sat", max_length=5)
    with pytest.raises(InputError, match="the limit is 5") as caught:
        task("the cat sat on", max_length=5)
    assert "a larger max_length" in caught.value.fix
    with pytest.raises(UsageError, match="max_length=41 is more than this model's limit of 40 tokens"):
        task("the cat", max_length=41)
    with pytest.raises(InputError, match="input 1 has"):
        task(["the cat", LONG])


def test_vectors_are_limited_by_what_they_were_made_for_until_max_length_says_otherwise(tmp_path: Path) -> None:
    folder = save("embedding", tmp_path)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    task = make.load(folder)
    text = "the cat sat on the mat the cat sat on the mat"
    with pytest.raises(InputError, match="14 tokens; the limit is 10"):
        task(text)
    assert len(task.encode([text], task.make_options({"max_length": 40})).encodings[0]) == 14
    assert len(task.encode([text], task.make_options({"truncate": True})).encodings[0]) == 10
    assert inspect_checkpoint(folder).longest_text == 10


def test_the_checkpoint_says_which_side_is_cut(tmp_path: Path) -> None:
    folder = stating(save("text-classification", tmp_path), truncation_side="left")
    task, reference = make.load(folder), make.reference_tokenizer(folder)
    for text in (LONG, "dog " + LONG):
        row = task.encode([text], task.make_options({"truncate": True})).encodings[0]
        assert row.input_ids == reference(text, truncation=True, max_length=40)["input_ids"]
    task.tokenizer.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/tokenizer_config.json").read_text())["truncation_side"] == "left"


def test_remedies_are_options_of_the_task() -> None:
    for kind in option_classes():
        with pytest.raises(TooLongError) as caught, offering(kind, movable=True):
            raise TooLongError("too long", remedies(("truncate", "stride", "max_length")))
        for name in ("truncate", "stride", "max_length"):
            assert (name in caught.value.fix) == (name in specs(kind)), kind


def test_a_negative_prompt_is_cut_where_the_prompt_is(tmp_path: Path) -> None:
    task = make.load(save("text-generation", tmp_path))
    options = {"guidance_scale": 1.5, "negative_prompt": LONG * 3, "max_new_tokens": 2}
    with pytest.raises(InputError, match="tokens; the limit is 48"):
        task("hi", **options)
    with pytest.raises(pf.InputError, match="of 48 tokens"):
        task("hi", truncate=True, **options)  # cut to all positions, so that nothing is left for an answer
