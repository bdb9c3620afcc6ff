"""GGUF vocabularies give the ids that llama.cpp's own tests expect, made with the original tokenizers.

The files come from `python -m tests.support.fetch_golden_vocabularies`; without them these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plainformer.checkpoint.formats.gguf_file import open_gguf
from plainformer.inputs.text.tokenizer import Tokenizer
from tests.support import ROOT

FOLDER = ROOT / ".cache" / "golden_vocabularies"
SEPARATOR = "\n__ggml_vocab_test__\n"
# Every vocabulary with golden ids in llama-cpp-python 0.3.36; there are no exceptions.
NAMES = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
]
# These come without golden ids; they must load and round-trip.
UNCHECKED = ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"]

pytestmark = pytest.mark.skipif(
    not (FOLDER / "complete").is_file(), reason="run `python -m tests.support.fetch_golden_vocabularies` first"
)


def metadata(name: str) -> dict[str, Any]:
    return open_gguf(FOLDER / f"ggml-vocab-{name}.gguf").metadata


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_golden_ones(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    stem = FOLDER / f"ggml-vocab-{name}.gguf"
    texts = stem.with_name(stem.name + ".inp").read_bytes().decode("utf-8").split(SEPARATOR)
    lines = stem.with_name(stem.name + ".out").read_text(encoding="utf-8").split("\n")
    expected = [[int(word) for word in line.split()] for line in lines[: len(texts)]]
    assert len(texts) == len(expected) > 40
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).input_ids == ids, repr(text)
        if name not in ("bert-bge",):  # byte-level and byte-fallback tokenizers lose nothing
            assert tokenizer.decode(ids) == text, repr(text)


def test_every_vocabulary_of_the_package_is_listed() -> None:
    found = {path.name.removeprefix("ggml-vocab-").removesuffix(".gguf") for path in FOLDER.glob("*.gguf")}
    assert found == {*NAMES, *UNCHECKED}


@pytest.mark.parametrize("name", UNCHECKED)
def test_the_others_load_and_round_trip(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    text = "Hello world, 123 words."
    row = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(row.input_ids) == text
    assert tokenizer.unk_id not in row.input_ids or tokenizer.unk_id == tokenizer.bos_id


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "bert-bge"])
def test_a_gguf_tokenizer_survives_saving(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    for text in ("Hello  wörld 😀 12345\n", "", "<s> [CLS] <|begin_of_text|>"):
        assert again.encode(text).input_ids == tokenizer.encode(text).input_ids
    assert (again.bos_id, again.eos_id, again.unk_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id)
