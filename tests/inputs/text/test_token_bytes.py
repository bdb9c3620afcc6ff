"""The bytes of tokens, against what the tokenizer decodes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

import pytest

from plainformer.errors import UsageError
from plainformer.inputs.text.token_bytes import TokenBytes, token_bytes
from plainformer.inputs.text.tokenizer import Tokenizer
from tests.support.sentencepiece import TEXTS
from tests.support.tokenizers import byte_level, minilm, sentencepiece, smollm2, unigram

ALL = [byte_level, sentencepiece, unigram, minilm, smollm2]


@lru_cache
def spelled(make: Callable[[], Tokenizer]) -> TokenBytes:
    return token_bytes(make())


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("text", [text for text in TEXTS if text.strip()])
def test_tokens_write_the_text(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer, table = make(), spelled(make)
    ids = [i for i in tokenizer.encode(text, add_special_tokens=False).input_ids if i not in tokenizer.special_ids]
    written = b"".join(table.tokens[i] for i in ids).decode()
    assert written.removeprefix(table.lead) == tokenizer.decode(ids)
    before = tokenizer.encode("the", add_special_tokens=False).input_ids
    assert tokenizer.decode([*before, *ids])[len(tokenizer.decode(before)) :] == written


@pytest.mark.parametrize("make", [byte_level, minilm, unigram, smollm2])
def test_any_tokens_in_any_order(make: Callable[[], Tokenizer]) -> None:
    tokenizer, table, chance = make(), spelled(make), random.Random(0)
    plain = [i for i, text in enumerate(table.tokens) if text and i not in table.special_ids]
    for _ in range(300):
        ids = chance.choices(plain, k=8)
        written = b"".join(table.tokens[i] for i in ids).decode(errors="replace")
        # A first word piece keeps its ##, which no text begins with.
        assert written.removeprefix(table.lead) == tokenizer.decode(ids).removeprefix("##")


def test_special_tokens_and_bytes() -> None:
    table, tokenizer = spelled(sentencepiece), sentencepiece()
    assert table.lead == " " and spelled(minilm).lead == " " and spelled(unigram).lead == " "
    assert spelled(byte_level).lead == ""
    assert table.tokens[2] == b"</s>" and {0, 1, 2} <= table.special_ids
    assert table.tokens[tokenizer.token_to_id("<0xE9>")] == b"\xe9"  # type: ignore[index]
    assert table.tokens[tokenizer.token_to_id("▁the")] == b" the"  # type: ignore[index]
    assert spelled(minilm).tokens[minilm().token_to_id("##s")] == b"s"  # type: ignore[index]
    assert {bytes([byte]) for byte in range(256)} <= set(spelled(byte_level).tokens)
    assert len(table.tokens) == tokenizer.vocab_size


def test_a_decoder_that_looks_at_several_tokens_has_no_table() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.WordLevel({"a": 0, "|": 1}, "a"))
    assert token_bytes(Tokenizer(backend)).tokens == (b" a", b" |")
    backend.decoder = decoders.CTC()
    with pytest.raises(UsageError, match="CTC"):
        token_bytes(Tokenizer(backend))
