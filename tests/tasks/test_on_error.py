"""`on_error="skip"`: an input without an answer does not cost the others theirs, and is named by its place."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plainformer as pf
from plainformer.errors import InputError, UsageError
from tests.support.battery import same

LONG = "the cat " * 40
TEXTS = ["the cat", LONG, "a dog sat", "half of \ud83d", "the mat", None, "bad dog"]
GOOD = [0, 2, 4, 6]


@pytest.fixture(scope="module")
def classify(tiny: Callable[[str], Path]) -> Any:
    return pf.load(str(tiny("text-classification")), backend="plain")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_others_have_their_answers(classify: Any, size: int) -> None:
    alone = [classify(TEXTS[place]) for place in GOOD]
    found = classify(TEXTS, on_error="skip", batch_size=size)
    streamed = classify(iter(TEXTS), on_error="skip", batch_size=size)
    assert isinstance(streamed, Iterator)
    for results in (found, list(streamed)):
        assert len(results) == len(TEXTS)
        for place, expected in zip(GOOD, alone, strict=True):
            same(results[place], expected, f"input {place}")
        skipped = [result for result in results if isinstance(result, pf.Skipped)]
        assert [one.place for one in skipped] == [1, 3, 5]
        assert all(f"input {one.place}" in str(one.error) and isinstance(one.error, InputError) for one in skipped)
        assert skipped[0].to_dict() == {"place": 1, "skipped": skipped[0].error.what}
        assert skipped[0].lines() == [f"skipped: {skipped[0].error.what}"]
    assert "the limit is" in str(skipped[0].error) and "None, is missing" in str(skipped[2].error)
    assert str(pickle.loads(pickle.dumps(skipped[0])).error) == str(skipped[0].error)


def test_by_default_it_stops(classify: Any) -> None:
    with pytest.raises(InputError, match=r"input 1 has .* the limit is"):
        classify(["the cat", LONG])
    with pytest.raises(InputError, match="input 1 has"):
        list(classify(iter(["the cat", LONG]), on_error="stop"))
    with pytest.raises(UsageError, match="did you mean 'skip'"):
        classify("the cat", on_error="skp")


def test_tables_have_a_row_for_it(classify: Any, tiny: Callable[[str], Path]) -> None:
    frame = classify(TEXTS, on_error="skip").to_dataframe()
    assert list(frame.index) == list(range(7)) and frame.skipped.notna().tolist() == [False, True] * 3 + [False]
    embed = pf.load(str(tiny("embedding")), backend="plain")
    found = embed(["the cat", None], on_error="skip")  # not one array: it has a gap
    assert not hasattr(found, "vectors") and "Skipped" in repr(found) and len(found) == 2


def test_one_input(classify: Any) -> None:
    found = classify(LONG, on_error="skip")
    assert isinstance(found, pf.Skipped) and found.place == 0 and "the input has" in str(found.error)
    same(classify("the cat", on_error="skip"), classify("the cat"), "one")


def test_many_that_all_fail(classify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the time nor the stack grows with the square of a batch."""
    runs: list[int] = []
    monkeypatch.setattr(classify, "run", counted(classify.run, runs))
    found = classify([LONG] * 200, on_error="skip", batch_size=200)
    assert [one.place for one in found] == list(range(200)) and sum(runs) < 200 * 10


def counted(run: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def counts(inputs: Any, options: Any) -> Any:
        sizes.append(len(inputs))
        return run(inputs, options)

    return counts


def test_an_error_that_names_no_input_is_found_by_halves(classify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, runs = classify.encode, []

    def fails(inputs: Any, options: Any) -> Any:
        runs.append(len(inputs))
        if "bad" in inputs:
            raise InputError("something is wrong")
        return encode(inputs, options)

    monkeypatch.setattr(classify, "encode", fails)
    texts = ["the cat"] * 13 + ["bad"] + ["a dog"] * 18
    found = classify(texts, on_error="skip", batch_size=32)
    assert [place for place, one in enumerate(found) if isinstance(one, pf.Skipped)] == [13]
    assert found[13].place == 13 and len(runs) <= 12  # not each by itself


def test_what_is_wrong_with_the_call_is_raised(tiny: Callable[[str], Path]) -> None:
    write = pf.load(str(tiny("text-generation")), backend="plain")
    with pytest.raises(UsageError, match="no chat template"):
        write([[{"role": "user", "content": "hi"}], "the cat"], on_error="skip")
    with pytest.raises(UsageError, match="on_error has no effect in a stream"):
        write.stream("hi", on_error="skip")
    with pytest.raises(UsageError, match="on_error"):
        pf.ChatSession(pf.load(str(tiny("chat")), backend="plain"), on_error="skip")


def test_seeds_stay_with_their_inputs(tiny: Callable[[str], Path]) -> None:
    write = pf.load(str(tiny("text-generation")), backend="plain")
    texts, options = ["the", "", "cat", "dog"], {"do_sample": True, "max_new_tokens": 8}
    found = write(texts, on_error="skip", seed=[5, 6, 7, 8], **options)
    assert isinstance(found[1], pf.Skipped)
    for place in (0, 2, 3):
        assert found[place].text == write(texts[place], seed=5 + place, **options).text


def test_sounds(tiny: Callable[[str], Path]) -> None:
    task = pf.load(str(tiny("speech")), backend="plain")
    sounds = [np.zeros(4000, np.float32), np.zeros(0, np.float32), "no.wav", np.ones(5000, np.float32)]
    given = [{"array": sound, "sampling_rate": 16000} if isinstance(sound, np.ndarray) else sound for sound in sounds]
    found = task(given, on_error="skip")
    assert [isinstance(one, pf.Skipped) for one in found] == [False, True, True, False]
    assert "'no.wav' is not a file" in str(found[2].error)
    same(found[3], task(given[3]), "a sound")


def test_who_waits_is_told(classify: Any) -> None:
    told: list[int] = []
    options = classify.make_options({"on_error": "skip", "batch_size": 3})
    assert len(classify.answer(TEXTS, options, done=told.append)) == 7 and told == [3, 3, 1]


def test_writing_reads_less_ahead(classify: Any, tiny: Callable[[str], Path]) -> None:
    """An answer does not wait until hundreds of others are written."""

    def read_before_the_last(task: Any, **options: Any) -> int:
        read = 0

        def texts() -> Iterator[str]:
            nonlocal read
            for _ in range(400):
                read += 1
                yield "the cat"

        answers = task(texts(), batch_size=2, **options)
        return max(read - place for place, _ in enumerate(answers))

    assert read_before_the_last(classify) == 64
    write = pf.load(str(tiny("text-generation")), backend="plain")
    assert read_before_the_last(write, max_new_tokens=1) == 8
