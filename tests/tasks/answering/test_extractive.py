"""Extractive question answering: against what an older reference release answered, and its own promises."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import InputError, UsageError
from plainformer.tasks.answering.extractive import Answer
from plainformer.tasks.answering.spans import N_BEST
from tests.support import models as make
from tests.support.close import close
from tests.support.record_old_question_answering import (
    LIMIT,
    LONG,
    MODELS,
    PIPELINE,
    SHORT,
    SQUAD,
    UNSPACED,
    save_folder,
)

RECORDED: list[dict[str, Any]] = json.loads(PIPELINE.read_text())
SQUAD_RECORDED: list[dict[str, Any]] = json.loads(SQUAD.read_text())
NAMES = {"max_seq_len": "window", "doc_stride": "stride", "max_answer_len": "max_answer_tokens"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The task of a recorded model and seed."""
    made: dict[tuple[str, int], Any] = {}

    def get(name: str, seed: int) -> Any:
        if (name, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{name}{seed}")
            save_folder(name, seed, folder)
            made[name, seed] = make.load(folder)
        return made[name, seed]

    return get


def ours(options: dict[str, Any]) -> dict[str, Any]:
    """The recorded options under their names here."""
    found = {NAMES.get(name, name): value for name, value in options.items()}
    if "align_to_words" in found:
        found["align"] = "words" if found.pop("align_to_words") else "tokens"
    if "handle_impossible_answer" in found:
        found["no_answer"] = found.pop("handle_impossible_answer")
    return found


def spans(answer: Answer) -> list[Any]:
    return [answer, *answer.alternatives]


def trim(context: str, start: int, end: int) -> tuple[int, int]:
    piece = context[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


# ---- the pipeline of transformers 4.57 --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(RECORDED)), ids=lambda n: f"{RECORDED[n]['model']}-{n}")
def test_the_old_pipeline(tasks: Any, number: int) -> None:
    case = RECORDED[number]
    task = tasks(case["model"], case["seed"])
    answers = task([tuple(item) for item in case["items"]], **ours(case["options"]))
    for (_, context), answer, expected in zip(case["items"], answers, case["answers"], strict=True):
        # The reference also names spans of white space, and ones that cannot be, with a probability of 0.
        is_null = [(start, end) == (0, 0) for start, end, _ in expected]
        known = [
            (*((start, end) if null else trim(context, start, end)), score)
            for (start, end, score), null in zip(expected, is_null, strict=True)
            if null or (score > 0 and context[start:end].strip())
        ]
        found = spans(answer)[: len(known)]
        assert [(s.start, s.end) for s in found] == [(start, end) for start, end, _ in known]
        close([s.score for s in found], [score for _, _, score in known])
        assert all(s.text == context[s.start : s.end] for s in spans(answer))


def test_the_recorded_cases_are_hard() -> None:
    """They hold answers that are none, and scores that several windows add up to."""
    every = [answer for case in RECORDED for answers in case["answers"] for answer in answers]
    assert sum(answer[:2] == [0, 0] for answer in every) >= 5
    assert {case["model"] for case in RECORDED} == set(MODELS) and len(every) > 900


# ---- run_squad --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(SQUAD_RECORDED)))
def test_run_squad(tasks: Any, number: int) -> None:
    case = SQUAD_RECORDED[number]
    options: dict[str, Any] = {"window": case["window"], "max_answer_tokens": case["max_answer_length"]}
    if case["stride"] >= 0:
        options["stride"] = case["stride"]
    if case["with_null"]:
        options["no_answer"] = case.get("threshold", True)
    context = case["context"]
    task = tasks("bert", case["seed"])
    answer = task((case["question"], context), scoring="squad", top_k=100, **options)
    assert answer.text == case["answer"]
    if case["with_null"]:
        close(answer.no_answer_score, case["null_odds"], rel=2e-5)
    found = sorted(((s.text, s.score) for s in spans(answer)), key=lambda item: -item[1])
    expected = [(text, score) for text, score in case["nbest"] if text != "empty"]
    close([score for _, score in found], [score for _, score in expected])
    # Spans whose scores are equal within rounding may change places.
    assert sorted(text for text, _ in found) == sorted(text for text, _ in expected)


def test_run_squad_without_a_good_start(tasks: Any) -> None:
    """Where the best tokens are all the question's, the best span of the context is the answer."""
    task = tasks("bert", 0)
    asked = ("where is the city of paris, the city of france, and who is in it today?", "the cat sat")
    options = task.Options(scoring="squad")
    encoded = task.encode([asked], options)
    logits = torch.zeros(1, encoded.batch.input_ids.size(1), 2)
    logits[0, 1 : N_BEST + 1] = 9.0
    logits[0, -3] = 1.0
    (answer,) = task.decode(encoded, logits, options)
    assert (answer.text, answer.start, answer.end) == ("cat", 4, 7)


# ---- no answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["probability", "squad"])
def test_no_answer(tasks: Any, scoring: str) -> None:
    task = tasks("bert", 1)
    for item in SHORT + LONG:
        plain = task(item, scoring=scoring, top_k=3)
        assert plain.text and plain.no_answer_score is None and "no_answer_score" not in plain.to_dict()
        # The reference looks at more candidates where more answers are wanted, so all of these want three.
        margin = task(item, scoring=scoring, no_answer=True, top_k=3).no_answer_score
        never = task(item, scoring=scoring, no_answer=margin, top_k=3)
        always = task(item, scoring=scoring, no_answer=margin - 1e-6, top_k=3)
        assert (never.text, never.start, never.end) == (plain.text, plain.start, plain.end)
        assert (always.text, always.start, always.end) == ("", 0, 0)
        assert always.alternatives[0].text == plain.text and always.to_dict()["no_answer_score"] == margin
        assert task(item, scoring=scoring, no_answer=True, top_k=3).text == ("" if margin > 0 else plain.text)


def test_no_answer_needs_a_class_token(tmp_path: Path) -> None:
    task = gpt2(tmp_path, "right")
    with pytest.raises(UsageError, match="no class token"):
        task(SHORT[0], no_answer=True)


# ---- padding on the left ----------------------------------------------------------------------------------------------


def gpt2(folder: Path, side: str) -> Any:
    import transformers

    sizes: dict[str, Any] = dict(n_embd=32, n_layer=2, n_head=4, n_positions=96, vocab_size=make.BYTE_VOCABULARY)
    make.save_model(folder, "GPT2ForQuestionAnswering", transformers.GPT2Config(**sizes))
    make.save_bytes(folder, padding_side=side)
    return make.load(folder)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_context_stands_first_where_padding_is_on_the_left(tmp_path: Path, side: str) -> None:
    import transformers

    task = gpt2(tmp_path, side)
    theirs = transformers.GPT2ForQuestionAnswering.from_pretrained(tmp_path).eval()
    question, context = "who?", "the cat sat, étés"
    first, second = (context, question) if side == "left" else (question, context)
    row = task.tokenizer.encode(first, second)
    with torch.no_grad():
        out = theirs(input_ids=torch.tensor([row.input_ids]))
    inside = [place for place, own in enumerate(row.sequence_ids) if own == int(side == "right")]
    start, end = (x[0, inside].double().softmax(-1) for x in (out.start_logits, out.end_logits))
    every = [(float(start[i] * end[j]), i, j) for i in range(len(inside)) for j in range(i, min(i + 5, len(inside)))]
    spans_of = {(i, j): (row.offsets[inside[i]][0], row.offsets[inside[j]][1]) for _, i, j in every}
    score, *tokens = max(each for each in every if context[slice(*spans_of[each[1:]])].strip())
    best = spans_of[tuple(tokens)]
    answer = task((question, context), max_answer_tokens=5, align="tokens")
    assert trim(context, *best) == (answer.start, answer.end)
    close(answer.score, score)
    long = "the cat sat. " * 20
    encoded = task.encode([(question, long)], task.Options(window=40, stride=8))
    for row, rank in zip(encoded.batch.encodings, encoded.ranks, strict=True):
        own = int(side == "right")
        places = [span for span, number in zip(row.offsets, row.sequence_ids, strict=True) if number == own]
        assert places[0] == (rank, rank + 1) and row.sequence_ids.count(1 - own) == len(question)
    both = task([(question, long), (question, context)], window=40, stride=8, top_k=3)
    for batched, alone in zip(
        both,
        [task((q, c), window=40, stride=8, top_k=3) for q, c in [(question, long), (question, context)]],
        strict=True,
    ):
        same(batched, alone)


# ---- inputs and windows -----------------------------------------------------------------------------------------------


def same(first: Answer, second: Answer) -> None:
    assert [(s.text, s.start, s.end) for s in spans(first)] == [(s.text, s.start, s.end) for s in spans(second)]
    close([s.score for s in spans(first)], [s.score for s in spans(second)])


def test_several_questions_about_one_context(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks("bert", 0)
    questions, context = ["who sat?", "where is the city?", "who?"], SHORT[0][1]
    passes = []
    predict = type(task).predict
    monkeypatch.setattr(
        type(task),
        "predict",
        lambda self, x, options: (passes.append(len(x.batch.encodings)), predict(self, x, options))[1],
    )
    several = task({"question": questions, "context": context}, top_k=2)
    assert passes == [3] and isinstance(several, tuple)
    for answer, question in zip(several, questions, strict=True):
        same(answer, task((question, context), top_k=2))
    assert (
        task((questions, context), top_k=2)
        == several
        == task({"question": tuple(questions), "context": context}, top_k=2)
    )
    mixed = task([("who?", context), (questions, context), (["who?"], context)])
    assert isinstance(mixed[0], Answer) and [len(part) for part in mixed[1:]] == [3, 1]
    same(mixed[0], mixed[2][0])


def test_inputs(tasks: Any) -> None:
    task = tasks("bert", 0)
    pair = ("who sat?", "the cat sat")
    as_dict = {"question": pair[0], "context": pair[1]}
    assert task(pair) == task(as_dict) == task([as_dict])[0]
    wrong: tuple[Any, ...] = (
        {"question": "who?"},
        "who?",
        ("who?",),
        3,
        ["who?"],
        [("who?", 3)],
        [(["who?", 3], "cat")],
    )
    for item in (*wrong, {"question": ["who?"], "context": ["cat"]}, {"question": None, "context": "cat"}):
        with pytest.raises(InputError, match=r"is not a question and a context|is not an input for"):
            list(task(item))
    for item in (
        ("", "the cat"),
        ("who?", "  "),
        ("who?", "\n\u3000"),
        ("who?", "\u200b"),
        (["who?", " "], "cat"),
        ([], "cat"),
    ):
        with pytest.raises(InputError, match=r"empty|no tokens"):
            task(item)
    assert task(("where is the dog sitting in this city of france?", "in")).text == "in"
    few = task(pair, top_k=1000, align="tokens")
    assert len(spans(few)) == 6 and sum(s.score for s in spans(few)) <= 1
    for options, message in (
        ({"max_answer_tokens": 0}, "max_answer_tokens"),
        ({"top_k": 0}, "top_k"),
        ({"scoring": "pipeline"}, "scoring"),
        ({"align": "letters"}, "align"),
        ({"no_answer": "yes"}, "no_answer"),
        ({"no_answer": float("nan")}, "no_answer"),
        ({"window": 0}, "window"),
        ({"window": LIMIT + 1}, f"limit of {LIMIT}"),
        ({"stride": -1}, "stride"),
        ({"window": 20, "stride": 20}, "cannot share"),
    ):
        with pytest.raises(UsageError, match=message):
            task(pair, **options)


def test_long_questions(tasks: Any) -> None:
    task = tasks("bert", 0)
    with pytest.raises(InputError, match="the question's 90 tokens and 3 special ones"):
        task(("who is cat " * 30, "the cat " * 30))
    question = "who " * 55  # leaves room for six tokens, less than the default stride
    assert task((question, "the cat sat on " * 4)).text
    with pytest.raises(InputError, match="nothing new to read"):
        task((question, "the cat sat on " * 4), stride=6)
    # A question and a context that fit need no windows, whatever the stride.
    assert task((question, "the cat"), stride=40).text


def test_windows(tasks: Any) -> None:
    task = tasks("bert", 2)
    question, context = LONG[0]
    encoded = task.encode([(question, context)], task.Options(window=40, stride=8))
    assert encoded.batch.counts[0] > 5
    read = [
        [span for span, own in zip(row.offsets, row.sequence_ids, strict=True) if own == 1]
        for row in encoded.batch.encodings
    ]
    whole = task.tokenizer.encode(context, add_special_tokens=False, max_length=10_000).offsets
    for spans_of, rank in zip(read, encoded.ranks, strict=True):
        assert spans_of == whole[rank : rank + len(spans_of)]
    assert all(first[-8:] == second[:8] for first, second in itertools.pairwise(read))
    assert read[-1][-1] == whole[-1]


def test_words_without_spaces_stay_as_they_are(tasks: Any) -> None:
    task = tasks("xlm-roberta", 3)
    question, context = UNSPACED[0]
    offsets = task.tokenizer.encode(context, add_special_tokens=False).offsets
    # Every span of one or two tokens is an answer of some rank; the words with spaces are a token each, with theirs.
    pairs = [*zip(offsets, offsets, strict=True), *itertools.pairwise(offsets)]
    texts = {context[start:end].strip() for (start, _), (_, end) in pairs} - {""}
    found = spans(task((question, context), top_k=1000, max_answer_tokens=2))
    assert {s.text for s in found} == texts
    assert all(context[s.start : s.end] == s.text for s in found)
    assert {s.text for s in spans(task(("who?", "the cat"), top_k=5))} == {"the", "cat", "the cat"}


# ---- properties -------------------------------------------------------------------------------------------------------

MIXED = st.lists(
    st.sampled_from(
        [
            "the cat",
            "Paris",
            "東京は",
            "é",
            "e\u0301",
            "🐱",
            "👨‍👩‍👧",
            "\r\n",
            "\n",
            " ",
            "\t",
            "\u00a0",
            "город",
            "هذا",
            "ก็",
            "...",
            "'s",
            "\ufeff",
            "ß",
        ]
    )
    | st.text(max_size=4),
    min_size=1,
    max_size=25,
).map("".join)


@settings(max_examples=25, deadline=None)
@given(
    contexts=st.lists(MIXED, min_size=1, max_size=3),
    scoring=st.sampled_from(["probability", "squad"]),
    align=st.sampled_from(["words", "tokens"]),
    top_k=st.integers(1, 30),
)
@pytest.mark.parametrize("name", MODELS)
def test_spans_are_verbatim(tasks: Any, name: str, contexts: list[str], scoring: str, align: str, top_k: int) -> None:
    task = tasks(name, list(MODELS).index(name))
    items = [("where is it?", f"{context} cat") for context in contexts]
    options: dict[str, Any] = dict(scoring=scoring, align=align, top_k=top_k, window=40, stride=5)
    answers = task(items, no_answer=True, **options)
    for item, answer in zip(items, answers, strict=True):
        found = spans(answer)
        assert len(found) <= top_k
        assert sum(not s.text for s in found) <= 1
        for s in found:
            assert item[1][s.start : s.end] == s.text == s.text.strip()
        scores = [s.score for s in found]
        assert scores == sorted(scores, reverse=True) and np.isfinite(scores).all() and min(scores) >= 0
        alone = task(item, no_answer=True, **options)
        # Random models have near ties, which rounding may decide the other way: compare the scores.
        close([s.score for s in spans(alone)], scores)
