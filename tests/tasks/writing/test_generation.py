"""Text generation and text to text: the reference's greedy tokens, alone and in a batch; streamed text; chats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer
from plainformer.errors import InputError, UsageError, a_type
from plainformer.tasks.writing.detokenize import Detokenizer, continuation
from tests.support import models as make
from tests.support.sentencepiece import write_two_sides

PROMPTS = ["the cat", "a", "who is in france? not the dog"]


def greedy(model: Any, count: int, **inputs: Any) -> list[int]:
    """The reference's new tokens for one row."""
    found = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=count)[0].tolist()
    return found[len(inputs["input_ids"][0]) :] if not model.config.is_encoder_decoder else found


def ids_of(task: Any, text: str) -> torch.Tensor:
    return torch.tensor([task.tokenizer.encode(text).input_ids])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("gpt2")
    return make.gpt2(folder), folder


# ---- text generation ----------------------------------------------------------------------------------------------


def test_greedy_tokens_equal_the_references(gpt2: tuple[Any, Path]) -> None:
    model, folder = gpt2
    task = make.load(folder)
    assert task.name == "text-generation"
    results = task(PROMPTS, max_new_tokens=12)
    found = make.predicted(task, PROMPTS, max_new_tokens=12)
    for prompt, result, ids in zip(PROMPTS, results, found.token_ids, strict=True):
        expected = greedy(model, 12, input_ids=ids_of(task, prompt))
        assert list(ids) == expected
        assert result == task(prompt, max_new_tokens=12)
        assert result.prompt == prompt and result.new_tokens == len(expected)
        assert result.text == task.tokenizer.decode(expected, skip_special_tokens=True)
        assert "".join(task.stream(prompt, max_new_tokens=12)) == result.text


def test_text_equals_the_reference_pipeline(gpt2: tuple[Any, Path]) -> None:
    model, folder = gpt2
    theirs = transformers.pipeline("text-generation", model=model, tokenizer=make.reference_tokenizer(folder))
    task = make.load(folder)
    for prompt in PROMPTS:
        expected = theirs(prompt, do_sample=False, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
        assert task(prompt, max_new_tokens=8).text == expected


def test_prompts_that_cannot_be_continued(gpt2: tuple[Any, Path]) -> None:
    task = make.load(gpt2[1])
    for empty in ("", ["a", ""]):
        with pytest.raises(InputError, match="nothing to continue"):
            task(empty)
    with pytest.raises(InputError, match="limit is 48"):
        task("x" * 49)
    full = task("x" * 60, truncate=True)
    assert (full.prompt_tokens, full.new_tokens, full.stop_reason) == (48, 1, "length")
    assert task("x" * 50 + "the end", truncate=True).prompt == "x" * 41 + "the end"
    with pytest.raises(UsageError, match="max_new_tokens"):
        task("a", max_new_tokens=0)
    with pytest.raises(UsageError, match="no chat template"):
        task([{"role": "user", "content": "hello"}])
    with pytest.raises(UsageError, match="did you mean 'max_new_tokens'"):
        task("a", max_new_token=3)
    for wrong in (3, b"bytes", {"role": "user", "content": "x"}):
        with pytest.raises(InputError, match=f"{a_type(wrong)} is not an input for text-generation"):
            task(wrong)
    assert task([]) == []


def test_tokens_that_only_the_model_has(tmp_path: Path) -> None:
    """Embeddings that are padded to a round size: what has no token adds no text."""
    make.gpt2(tmp_path, vocab_size=make.BYTE_VOCABULARY + 4000)
    task = make.load(tmp_path)
    ids = make.predicted(task, ["the cat"], max_new_tokens=8).token_ids[0]
    assert max(ids) >= make.BYTE_VOCABULARY
    text = task("the cat", max_new_tokens=8).text
    assert "".join(task.stream("the cat", max_new_tokens=8)) == text
    assert text == task.tokenizer.decode(task.tokenizer.known(ids), skip_special_tokens=True)


def test_chats(tmp_path: Path) -> None:
    model = make.gpt2(tmp_path)
    template = "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<s>a:{% endif %}"
    make.save_bytes(tmp_path, chat_template=template)
    task = make.load(tmp_path)
    chat = [{"role": "user", "content": "hi"}]
    result = task(chat, max_new_tokens=6)
    assert result.prompt == "<s>user:hi<s>a:"
    ids = torch.tensor([task.tokenizer.encode("<s>user:hi<s>a:", add_special_tokens=False).input_ids])
    expected = greedy(model, 6, input_ids=ids)
    assert result.text == task.tokenizer.decode(expected, skip_special_tokens=True)
    assert task([chat, chat], max_new_tokens=6) == [result, result]
    for wrong in ([*chat, 5], [chat, [*chat, None]], [{"role": "user", "content": None}], [{"content": "hi"}]):
        with pytest.raises(UsageError, match=r"messages\[[01]\] (is|has)"):
            task(wrong)
    assert "".join(task.stream(chat, max_new_tokens=6)) == result.text


def test_generation_config_ends_and_bans(tmp_path: Path) -> None:
    """generation_config.json replaces config.json, as in the reference: further end tokens, banned words."""
    model = make.gpt2(tmp_path)
    task = make.load(tmp_path)
    first = make.predicted(task, ["the cat"], max_new_tokens=8).token_ids[0]
    banned, end = first[0], first[3]
    changes = {"eos_token_id": [2, end], "bad_words_ids": [[banned]], "suppress_tokens": [first[1]]}
    (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "pad_token_id": 0, **changes}))
    model.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    task = make.load(tmp_path)
    assert task.settings.eos_ids == (2, end)
    for prompt in PROMPTS:
        found = make.predicted(task, [prompt], max_new_tokens=20)
        expected = greedy(model, 20, input_ids=ids_of(task, prompt))
        assert list(found.token_ids[0]) == expected
        assert banned not in expected
    plainformer.save(task, tmp_path / "copy")
    assert make.load(tmp_path / "copy").settings == task.settings


def test_eos_ids_option(gpt2: tuple[Any, Path]) -> None:
    task = make.load(gpt2[1])
    ids = make.predicted(task, ["the cat"], max_new_tokens=8).token_ids[0]
    stopped = task("the cat", max_new_tokens=8, eos_ids=[ids[4]])
    assert stopped.stop_reason == "eos" and stopped.new_tokens == ids.index(ids[4]) + 1
    assert "".join(task.stream("the cat", max_new_tokens=8, eos_ids=[ids[4]])) == stopped.text


# ---- pieces -------------------------------------------------------------------------------------------------------


def pieces(tokenizer: Any, before: list[int], new: list[int], *, begun: list[int] | None = None) -> list[str]:
    """The pieces of a text whose tokens come one by one, after those that come at once; without empty ones."""
    text = Detokenizer(tokenizer, before)
    found = [text.push(*begun or ()), *(text.push(token) for token in new), text.end()]
    return [piece for piece in found if piece]


@pytest.mark.parametrize("text", ["plain", "naïve 🎉🎉 日本", "é", "", " a  b "])
def test_pieces_are_whole_characters(tmp_path: Path, text: str) -> None:
    """Each byte is a token here; a piece comes when its character is whole, and all pieces are the text."""
    make.save_bytes(tmp_path)
    tokenizer = plainformer.Tokenizer.from_folder(tmp_path, {})
    before, new = tokenizer.encode("x: ").input_ids, tokenizer.encode(text).input_ids
    found = pieces(tokenizer, before, new)
    assert "".join(found) == text == continuation(tokenizer, before, new)
    assert len(found) == len(text)
    split = pieces(tokenizer, before, new[3:], begun=new[:3])
    assert "".join(split) == text


def test_a_text_that_ends_in_half_a_character(tmp_path: Path) -> None:
    make.save_bytes(tmp_path)
    tokenizer = plainformer.Tokenizer.from_folder(tmp_path, {})
    half = tokenizer.encode("ab🎉").input_ids[:-1]
    assert "".join(pieces(tokenizer, [], half)) == continuation(tokenizer, [], half) == "ab\N{REPLACEMENT CHARACTER}"


def test_a_sentencepiece_word_keeps_its_space(tmp_path: Path) -> None:
    """Alone, the first word behind a prompt would be decoded without the space in front of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "▁cat": 2, "s": 3}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = plainformer.Tokenizer(backend)
    assert continuation(tokenizer, [1], [2, 3]) == " cats"
    assert pieces(tokenizer, [1], [2, 3]) == [" cat", "s"]
    assert pieces(tokenizer, [], [2, 3], begun=[1]) == ["a", " cat", "s"]


# ---- text to text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [make.t5, make.bart, make.marian], ids=lambda b: b.__name__)
def test_text_to_text_equals_the_reference(build: Callable[[Path], Any], tmp_path: Path) -> None:
    model = build(tmp_path)
    task = make.load(tmp_path)
    assert task.name == "text2text-generation"
    results = task(PROMPTS, max_new_tokens=14)
    found = make.predicted(task, PROMPTS, max_new_tokens=14)
    for prompt, result, ids in zip(PROMPTS, results, found.token_ids, strict=True):
        expected = greedy(model, 14, input_ids=ids_of(task, prompt))[1:]  # behind the start token
        assert list(ids) == expected
        assert result == task(prompt, max_new_tokens=14)
        assert result.text == task.tokenizer.decode(expected, skip_special_tokens=True)
        assert result.stop_reason == ("eos" if expected[-1] == 2 else "length")
        assert "".join(task.stream(prompt, max_new_tokens=14)) == result.text


def test_forced_beginnings(tmp_path: Path) -> None:
    model = make.bart(tmp_path, {"forced_bos_token_id": 1})
    task = make.load(tmp_path)
    assert task.start_of("") == ([2, 1], [])
    found = make.predicted(task, ["the cat"], max_new_tokens=9)
    assert [2, 1, *found.token_ids[0]] == greedy(model, 10, input_ids=ids_of(task, "the cat"))

    prefix = task.tokenizer.encode("so ", add_special_tokens=False).input_ids
    start = torch.tensor([[2, 1, *prefix]])
    expected = greedy(model, 9, input_ids=ids_of(task, "the cat"), decoder_input_ids=start)
    result = task("the cat", max_new_tokens=9, decoder_prefix="so ")
    assert result.text == task.tokenizer.decode(expected, skip_special_tokens=True)
    assert result.text.startswith("so ") and result.new_tokens == len(expected) - start.size(1)
    streamed = list(task.stream("the cat", max_new_tokens=9, decoder_prefix="so "))
    assert streamed[0] == "so " and "".join(streamed) == result.text
    # A prefix that begins with a special token, as languages are named, replaces the forced one.
    assert task.start_of("<unk>x")[0] == [2]
    with pytest.raises(UsageError, match="decoder_prefix"):
        task("the cat", decoder_prefix=3)


def test_marian_never_writes_its_padding(tmp_path: Path) -> None:
    """Published Marian checkpoints ban their pad token, which is also their start token."""
    model = make.marian(tmp_path, {"bad_words_ids": [[0]]})
    with torch.no_grad():
        model.final_logits_bias[0, 0] = 100.0
    model.save_pretrained(tmp_path)
    assert "bad_words_ids" in json.loads((tmp_path / "generation_config.json").read_text())
    task = make.load(tmp_path)
    found = make.predicted(task, ["the cat"], max_new_tokens=9)
    assert 0 not in found.token_ids[0]
    assert list(found.token_ids[0]) == greedy(model, 9, input_ids=ids_of(task, "the cat"))[1:]


def test_marian_with_a_vocabulary_for_each_side(tmp_path: Path) -> None:
    """A text is encoded by the source's vocabulary, what is written decoded by the target's, as by MarianTokenizer."""
    source, target = write_two_sides(tmp_path, separate_vocabs=True)
    ids = dict(pad_token_id=source["<pad>"], eos_token_id=0, decoder_start_token_id=target["<pad>"])
    sizes = dict(**make.SEQ2SEQ, max_position_embeddings=64, vocab_size=len(source), decoder_vocab_size=len(target))
    apart = dict(share_encoder_decoder_embeddings=False, forced_eos_token_id=None)
    config = transformers.MarianConfig(**sizes, **ids, **apart)
    model = make.save_model(tmp_path, "MarianMTModel", config)
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path)
    task = make.load(tmp_path)
    for text in ("the cat", "quoted lower caps", "hello world language"):
        found = greedy(model, 9, input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
        # Not the reference's own skipping, which goes by the ids of the source's special tokens.
        expected = tokenizer.decode([i for i in found if i not in (0, target["<pad>"], target["<unk>"])])
        assert task(text, max_new_tokens=9).text.strip() == expected
    word = next(piece for piece in target if piece.startswith("▁") and piece not in source)[1:]
    assert task("the cat", decoder_prefix=word, max_new_tokens=4).text.startswith(word)
    assert task("the cat", choices=[word, "the"], max_new_tokens=9).text in (word, "the")


def test_long_texts(tmp_path: Path) -> None:
    make.bart(tmp_path)
    task = make.load(tmp_path)
    with pytest.raises(InputError, match="limit is 64"):
        task("x" * 70)
    assert task("x" * 70, truncate=True, max_new_tokens=3).input_tokens == 64
    assert task("", max_new_tokens=3).input_tokens == 1
    assert json.dumps(task("a", max_new_tokens=3).to_dict())
    assert len(task(("a", "b"), max_new_tokens=2)) == 2
    for wrong, message in (([("a", "b")], "input 0, a tuple, is not an input"), (3, "an int is not an input")):
        with pytest.raises(InputError, match=message):
            task(wrong)
