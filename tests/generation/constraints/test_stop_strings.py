"""Stop strings against brute force: the whole text decoded at every step, and every end looked at."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import UsageError
from plainformer.generation.constraints.stop_strings import Scan, Shown, StopMatch, StopStrings, first_stop
from plainformer.inputs.text.tokenizer import Tokenizer
from tests.support.tokenizers import byte_level, minilm, sentencepiece

ALPHABET = "ab é日本😀👩‍👧ß\n"


def lossy(pieces: Sequence[bytes]) -> Callable[[Sequence[int]], str]:
    return lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")


def first_match(text: str, strings: Sequence[str]) -> StopMatch | None:
    """The match that ends first; of those, the longest."""
    for end in range(1, len(text) + 1):
        ending = [string for string in strings if text[:end].endswith(string)]
        if ending:
            longest = max(ending, key=len)
            return StopMatch(longest, end - len(longest))
    return None


def brute(ids: Sequence[int], strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> list[StopMatch | None]:
    """What should be found after each token. The last characters count once they are whole."""
    found: list[StopMatch | None] = []
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count]).rstrip("\N{REPLACEMENT CHARACTER}")
        found.append(found[-1] if found and found[-1] else first_match(text, strings))
    return found


def check(ids: Sequence[int], strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
    stops = StopStrings(strings, decode)
    assert [stops.find(ids[:count]) for count in range(1, len(ids) + 1)] == brute(ids, strings, decode)


TEXTS = st.text(st.sampled_from(ALPHABET), min_size=1, max_size=30)
STOPS = st.lists(st.text(st.sampled_from(ALPHABET), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=400, deadline=None)
@given(TEXTS, STOPS, st.randoms(use_true_random=False))
def test_any_cut_into_byte_tokens(text: str, strings: list[str], chance: random.Random) -> None:
    data, pieces = text.encode(), []
    while data:
        length = chance.randint(1, 6)
        pieces.append(data[:length])
        data = data[length:]
    check(range(len(pieces)), strings, lossy(pieces))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=20), STOPS)
def test_bytes_that_are_no_text(pieces: list[bytes], strings: list[str]) -> None:
    check(range(len(pieces)), [*strings, "\N{REPLACEMENT CHARACTER}a"], lossy(pieces))


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("the wordHello日本é\n 😀."), min_size=1, max_size=40), STOPS, st.data())
@pytest.mark.parametrize("make", [byte_level, sentencepiece, minilm])
def test_tokenizers(make: Callable[[], Tokenizer], text: str, strings: list[str], data: st.DataObject) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids
    shown = tokenizer.decode(ids)
    if shown:  # strings that do occur, too
        start = data.draw(st.integers(0, len(shown) - 1))
        strings = [*strings, shown[start : start + 3]]
    check(ids, strings, lambda some: tokenizer.decode(some))


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("the wordHello日本é\n 😀."), min_size=1, max_size=40), STOPS)
def test_after_a_prompt_the_first_space_stays(text: str, strings: list[str]) -> None:
    tokenizer = sentencepiece()
    prompt = tokenizer.encode("the cat").input_ids
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    stops = StopStrings(strings, lambda some: tokenizer.decode(some, skip_special_tokens=True), after=prompt[-1:])
    found = [stops.find(ids[:count]) for count in range(1, len(ids) + 1)]
    whole = lambda some: tokenizer.decode([*prompt, *some], skip_special_tokens=True)[len(before) :]  # noqa: E731
    assert found == brute(ids, strings, whole)


@settings(max_examples=100, deadline=None)
@given(STOPS, st.randoms(use_true_random=False))
def test_rows_may_be_reordered_shared_and_dropped(strings: list[str], chance: random.Random) -> None:
    pieces = [bytes([byte]) for byte in set("".join(ALPHABET).encode())]
    decode = lossy(pieces)
    stops = StopStrings(strings, decode)
    rows: list[list[int]] = [[] for _ in range(4)]
    for _ in range(12):
        rows = [[*chance.choice(rows), chance.randrange(len(pieces))] for _ in range(chance.randint(1, 5))]
        assert [stops.find(row) for row in rows] == [brute(row, strings, decode)[-1] for row in rows]


@settings(max_examples=100, deadline=None)
@given(TEXTS, STOPS, st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_rows_may_grow_by_several_tokens_and_shrink(text: str, strings: list[str], lengths: list[int]) -> None:
    pieces = [bytes([byte]) for byte in text.encode()]
    ids, decode = range(len(pieces)), lossy(pieces)
    stops, found = StopStrings(strings, decode), [None, *brute(ids, strings, decode)]
    for length in lengths:
        assert stops.find(ids[:length]) == found[min(length, len(ids))]


def test_what_is_found() -> None:
    pieces = [b"Hello", b" wor", b"ld. User", b": hi", b"\xf0\x9f", b"\x98\x80!"]
    stops = StopStrings(["User:", "\N{GRINNING FACE}", "world"], lossy(pieces))
    assert stops.find([0, 1]) is None and stops.find([0, 1, 2]) == StopMatch("world", 6)
    assert stops.find([0, 2]) is None
    assert stops.find([0, 2, 3]) == StopMatch("User:", 9)
    assert stops.find([0, 4]) is None and stops.find([0, 4, 5]) == StopMatch("\N{GRINNING FACE}", 5)
    overlapping = StopStrings(["abcd", "bc", "c"], lossy([b"a", b"b", b"c", b"d"]))
    assert overlapping.find([0, 1, 2, 3]) == StopMatch("bc", 1)


def in_pieces(text: str, chance: random.Random) -> list[str]:
    cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randint(0, 6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(max_examples=400, deadline=None)
@given(TEXTS, STOPS, st.integers(0, 6), st.randoms(use_true_random=False))
def test_a_text_that_grows(text: str, strings: list[str], skip: int, chance: random.Random) -> None:
    """At every piece: the match is the whole text's, and what is held back is what may begin a stop string, no more."""
    scan, read = Scan(tuple(strings), skip), ""
    for piece in in_pieces(text, chance):
        scan, read = scan.fed(piece), read + piece
        match = first_match(read[skip:], strings)
        assert scan.match == (match and StopMatch(match.string, match.start + skip))
        if match:
            assert scan.safe == scan.match.start  # type: ignore[union-attr]
            continue
        ends = [n for n in range(1, len(read[skip:]) + 1) if any(s.startswith(read[-n:]) for s in strings)]
        assert (scan.length, scan.safe) == (len(read), len(read) - max(ends, default=0))
    assert first_stop(text, strings, skip=skip) == (first_match(read[skip:], strings) and scan.match)


@settings(max_examples=400, deadline=None)
@given(TEXTS, STOPS | st.just([]), st.integers(0, 6), st.randoms(use_true_random=False))
def test_what_is_shown_is_never_taken_back(text: str, strings: list[str], skip: int, chance: random.Random) -> None:
    parts = in_pieces(text, chance)
    match = first_match(text[skip:], strings)
    expected = text[skip:] if match is None else text[skip : skip + match.start]
    written, found = Shown(strings, skip=skip), ""
    for part in parts:
        found += written.push(part)
        assert expected.startswith(found)
    assert found + written.end() == expected


@settings(max_examples=200, deadline=None)
@given(TEXTS, STOPS, st.integers(0, 6))
def test_no_stop_string_is_found_where_a_row_begins(text: str, strings: list[str], skip: int) -> None:
    pieces = [character.encode() for character in text]
    match = first_match(text[skip:], strings)
    found = StopStrings(strings, lossy(pieces), skip=skip).find(range(len(pieces)))
    assert found == (match and StopMatch(match.string, match.start + skip))


@pytest.mark.parametrize("token", [b"x", b"\xff", b"\xf0", b""], ids=str)
def test_long_rows_are_not_decoded_again_and_again(token: bytes) -> None:
    decoded = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return lossy([token, b"end"])(ids)

    stops = StopStrings(["end"], decode)
    row: list[int] = []
    for _ in range(2000):
        row.append(0)
        assert stops.find(row) is None
    row += [1]
    text = lossy([token, b"end"])(row)
    assert stops.find(row) == StopMatch("end", len(text) - 3)
    assert decoded < 2000 * 150


def test_many_rows_asked_for_one_by_one_stay_quick() -> None:
    read = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal read
        read += len(ids)
        return "x" * len(ids)

    stops = StopStrings(["end"], decode)
    for count in range(1, 101):
        for row in range(300):
            assert stops.find([row] * count) is None
    assert read < 300 * 100 * 5


def test_wrong_strings() -> None:
    wrong = {
        "a str, not a list": "end",
        "no stop strings": [],
        "'' is not": ["a", ""],
        "3 is not": [3],
        "None, not": None,
    }
    for message, strings in wrong.items():
        with pytest.raises(UsageError, match=message):
            StopStrings(strings, lossy([]))  # type: ignore[arg-type]
