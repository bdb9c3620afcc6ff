"""Tokenizers that are trained here: transformers loads the same folder to the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import plainformer as pf
from plainformer.errors import InputError, UsageError
from plainformer.inputs.text.tokenizer_training import LAYOUTS, USUAL, train_tokenizer
from tests.support import ROOT

TEXTS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("how-to-*.md"))]
HARD = ["Hello world, naïve 東京 🙂  two  spaces\n\tx", "", " ", "def f(x):\n    return x", "Ｆｕｌｌ ﬁ e\u0301 İ"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", USUAL)
def test_both_libraries_read_the_folder_to_the_same_ids(kind: str, layout: str, tmp_path: Path) -> None:
    made = train_tokenizer(TEXTS, kind=kind, vocab_size=1000, layout=layout, max_length=512)
    made.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), pf.load_tokenizer(str(tmp_path))
    for text in HARD:
        assert made.encode(text).input_ids == theirs(text)["input_ids"] == again.encode(text).input_ids
        pair = made.encode(text, "b c").input_ids
        assert pair == theirs(text, "b c")["input_ids"] == again.encode(text, "b c").input_ids
        assert again.decode(pair, skip_special_tokens=True) == theirs.decode(pair, skip_special_tokens=True)
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert getattr(again, f"{role}_id") == getattr(theirs, f"{role}_token_id") == getattr(made, f"{role}_id")
    assert again.max_length == theirs.model_max_length == 512
    assert made.vocab_size == len(theirs) == 1000


BYTES = train_tokenizer(TEXTS, kind="bpe", vocab_size=600)


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_byte_level_bpe_gives_every_text_back(text: str) -> None:
    row = BYTES.encode(text, add_special_tokens=False)
    assert BYTES.decode(row.input_ids, skip_special_tokens=True) == text
    assert BYTES.unk_id not in row.input_ids


def test_special_tokens_in_their_places() -> None:
    bert = train_tokenizer(TEXTS, kind="wordpiece", vocab_size=600)
    ids = bert.encode("a", "b").input_ids
    assert (ids[0], ids[-1]) == (bert.cls_id, bert.sep_id) and ids.count(bert.sep_id) == 2
    assert bert.encode("a", "b").token_type_ids == [0] * (ids.index(bert.sep_id) + 1) + [1] * 2
    t5 = train_tokenizer(TEXTS, kind="unigram", vocab_size=600)
    assert t5.encode("a").input_ids[-1] == t5.eos_id
    assert all(t5.token_to_id(f"<extra_id_{number}>") in t5.special_ids for number in range(100))


def test_lowercase_changes_only_case() -> None:
    for kind in USUAL:
        lower = train_tokenizer(TEXTS, kind=kind, vocab_size=600, lowercase=True)
        assert lower.encode("TABLE of Rows").input_ids == lower.encode("table of rows").input_ids
        plain = train_tokenizer(TEXTS, kind=kind, vocab_size=600)
        assert plain.encode("TABLE").input_ids != plain.encode("table").input_ids


def test_frequent_pairs_become_tokens() -> None:
    made = train_tokenizer(["low lower lowest low"] * 9, kind="bpe", vocab_size=262, min_frequency=9)
    pieces = [made.id_to_token(i) for i in made.encode("low", add_special_tokens=False).input_ids]
    assert pieces == ["low"]
    rare = train_tokenizer(["low lower lowest low"] * 9, kind="bpe", vocab_size=300, min_frequency=99)
    assert len(rare.encode("low", add_special_tokens=False).input_ids) == 3


@pytest.mark.parametrize("kind", USUAL)
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    first, second = (train_tokenizer(iter(TEXTS), kind=kind, vocab_size=700) for _ in range(2))
    if kind == "unigram":  # its scores are added up in no fixed order
        assert first.backend.get_vocab().keys() == second.backend.get_vocab().keys()
    else:
        assert first.backend.to_str() == second.backend.to_str()


def test_fewer_tokens_than_asked_for_are_said(caplog: pytest.LogCaptureFixture) -> None:
    train_tokenizer(["abc abc"], kind="bpe", vocab_size=5000)
    assert "fewer than the 5,000 asked for" in caplog.text


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match="no text to learn from"):
        train_tokenizer([], vocab_size=1000)
    with pytest.raises(InputError, match="no text to learn from"):
        train_tokenizer([" ", "\n"], vocab_size=1000)
    with pytest.raises(InputError, match="input 2 is an int, not a str"):
        train_tokenizer(["a", "b", 3], vocab_size=1000)  # type: ignore[list-item]
    with pytest.raises(InputError, match="half a surrogate pair"):
        train_tokenizer(["a\ud800"], vocab_size=1000)
    with pytest.raises(UsageError, match="texts is"):
        train_tokenizer("text", vocab_size=1000)
    with pytest.raises(UsageError, match="leaves no room"):
        train_tokenizer(TEXTS, kind="bpe", vocab_size=258)
    with pytest.raises(UsageError, match="no effect on a unigram"):
        train_tokenizer(TEXTS, kind="unigram", min_frequency=5)
    with pytest.raises(UsageError, match="did you mean 'wordpiece'"):
        train_tokenizer(TEXTS, kind="wordpeice")
    with pytest.raises(UsageError, match="has no option 'vocab'"):
        train_tokenizer(TEXTS, vocab=5)
