"""Every task that reads text, on what is no text, or none to speak of: an answer, or an error that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plainformer.errors import CheckpointError, InputError, PlainformerError, UsageError
from tests.support import models as make

ENTAILMENT = ("contradiction", "neutral", "entailment")
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": (
        "BertForSequenceClassification",
        {"id2label": dict(enumerate(ENTAILMENT)), "label2id": {label: i for i, label in enumerate(ENTAILMENT)}},
    ),
    "score": ("BertForSequenceClassification", {"num_labels": 1}),
    "token": ("BertForTokenClassification", {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}}),
    "span": ("BertForQuestionAnswering", {}),
    "mask": ("BertForMaskedLM", {}),
    "choice": ("BertForMultipleChoice", {}),
    "base": ("BertModel", {}),
}
# Where a text stands in a task's input: the checkpoint, the task, the input around the text, options.
Wrap = Callable[[Any], Any]
SHORT = {"max_new_tokens": 2}
PLACES: dict[str, tuple[str, str | None, Wrap, dict[str, Any]]] = {
    "text-classification": ("labels", None, lambda x: x, {}),
    "text-classification, pair": ("labels", None, lambda x: ("who?", x), {}),
    "token-classification": ("token", None, lambda x: x, {}),
    "fill-mask": ("mask", None, lambda x: x, {}),
    "feature-extraction": ("base", None, lambda x: x, {}),
    "question-answering, question": ("span", None, lambda x: (x, "the cat"), {}),
    "question-answering, context": ("span", None, lambda x: ("who?", x), {}),
    "question-answering, dict": ("span", None, lambda x: {"question": "who?", "context": x}, {}),
    "multiple-choice, prompt": ("choice", None, lambda x: (x, ["cat", "dog"]), {}),
    "multiple-choice, choice": ("choice", None, lambda x: ("who?", ["cat", x]), {}),
    "zero-shot-classification": ("labels", "zero-shot-classification", lambda x: x, {"labels": ["cat", "dog"]}),
    "text-ranking, query": ("score", "text-ranking", lambda x: (x, ["cat"]), {}),
    "text-ranking, document": ("score", "text-ranking", lambda x: ("who?", ["cat", x]), {}),
    "text-ranking, dict": ("score", "text-ranking", lambda x: {"query": x, "documents": ["cat"]}, {}),
    "text-generation": ("gpt2", None, lambda x: x, SHORT),
    "text2text-generation": ("t5", None, lambda x: x, SHORT),
    "abstractive, question": ("t5", "abstractive-question-answering", lambda x: (x, "the cat"), SHORT),
    "abstractive, context": ("t5", "abstractive-question-answering", lambda x: ("who?", x), SHORT),
}
# A text without words: where it is an answer, and where an error. Models with special tokens read these alone.
ANSWERED_EMPTY = {
    "text-classification",
    "text-classification, pair",
    "token-classification",
    "feature-extraction",
    "multiple-choice, prompt",
    "multiple-choice, choice",
    "text-ranking, document",
    "text2text-generation",
}
# T5 has no limit of positions; labels and spans are found in windows.
UNLIMITED = {
    "token-classification",
    "question-answering, context",
    "question-answering, dict",
    "text2text-generation",
    "abstractive, question",
    "abstractive, context",
}
NO_TEXTS: list[Any] = [None, 3, 1.5, float("nan"), True, b"text", {"text": "x"}, Path("x"), np.zeros(2), torch.zeros(2)]
NOT_AN_INPUT = "is not an input for|is not a (question|prompt|query) and|neither text nor chat messages"
SURROGATES = ["a\ud800", "\udc00", "\udc00\ud800"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("bad")
    for name, (model, changes) in HEADS.items():
        make.bert(root / name, model, **changes)
    make.gpt2(root / "gpt2")
    make.t5(root / "t5")
    loaded = {(ref, task): make.load(root / ref, task=task) for ref, task, _, _ in PLACES.values()}
    return {place: loaded[ref, task] for place, (ref, task, _, _) in PLACES.items()}


def ask(task: Any, place: str, text: Any) -> Any:
    """The task's results for the text where it stands in its input; a stream is read to its end."""
    _, _, wrap, options = PLACES[place]
    found = task(wrap(text), **options)
    return list(found) if hasattr(found, "__next__") else found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wrong", NO_TEXTS, ids=lambda value: type(value).__name__)
def test_what_is_no_text(tasks: dict[str, Any], place: str, wrong: Any) -> None:
    with pytest.raises(InputError, match=NOT_AN_INPUT) as caught:
        ask(tasks[place], place, wrong)
    assert caught.value.fix


@pytest.mark.parametrize("place", PLACES)
def test_texts_in_texts(tasks: dict[str, Any], place: str) -> None:
    for wrong in ([["the cat"]], ["the cat", ["dog"]], [None], [[]]):
        with pytest.raises(InputError, match=NOT_AN_INPUT) as caught:
            ask(tasks[place], place, wrong)
        assert caught.value.fix


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", SURROGATES, ids=ascii)
def test_half_a_character(tasks: dict[str, Any], place: str, text: str) -> None:
    with pytest.raises(InputError, match="half a surrogate pair"):
        ask(tasks[place], place, "[MASK] " + text)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", ["", " ", "\n\t  ", "\u3000"], ids=ascii)
def test_texts_without_words(tasks: dict[str, Any], place: str, text: str) -> None:
    if place in ANSWERED_EMPTY or (place == "text-generation" and text):  # white space is tokens to a byte tokenizer
        result = ask(tasks[place], place, text)
        for part in result if isinstance(result, tuple) else (result,):
            json.dumps(part.to_dict(), allow_nan=False)  # fails where a score is none
    else:
        with pytest.raises(InputError, match=r"empty|no mask token|no tokens") as caught:
            ask(tasks[place], place, text)
        assert caught.value.fix


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "text", ["a\0b [MASK]", "\u200b [MASK]", "\ufeff[MASK]", "\U0010ffff [MASK]", "e\u0301" * 9 + "[MASK]"]
)
def test_odd_characters_are_text(tasks: dict[str, Any], place: str, text: str) -> None:
    ask(tasks[place], place, text)


@pytest.mark.parametrize("place", PLACES)
def test_one_bad_input_among_good_ones(tasks: dict[str, Any], place: str) -> None:
    """The whole call fails, and the task works as before."""
    _, _, wrap, options = PLACES[place]
    task, good = tasks[place], wrap("the [MASK] cat")
    before = task(good, **options)
    broken = wrap("the\ud800 [MASK]")
    for message, inputs in (
        (NOT_AN_INPUT, [good, None]),
        (NOT_AN_INPUT, [good] * 20 + [3]),
        ("surrogate", (broken, good)),
    ):
        for form in (list, iter):
            with pytest.raises(InputError, match=message):
                list(task(form(inputs), **options))
    if not isinstance(before, tuple):
        assert str(task(good, **options)) == str(before)
    assert task([], **options) == [] and list(task(iter(()), **options)) == []


@pytest.mark.parametrize("place", [place for place in PLACES if place not in UNLIMITED])
def test_texts_far_too_long(tasks: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError, match=r"the limit is|no room for the context") as caught:
        ask(tasks[place], place, "[MASK] the cat " * 3000)
    assert caught.value.fix


# ---- checkpoints --------------------------------------------------------------------------------------------------

DOES = {
    "labels": "'text-classification', 'zero-shot-classification' or 'feature-extraction'",
    "score": "'text-classification', 'text-ranking' or 'feature-extraction'",
    "token": "'token-classification' or 'feature-extraction'",
    "span": "'question-answering' or 'feature-extraction'",
    "mask": "'fill-mask' or 'feature-extraction'",
    "choice": "'multiple-choice' or 'feature-extraction'",
    "gpt2": "'text-generation', 'abstractive-question-answering' or 'feature-extraction'",
    "t5": "'text2text-generation', 'abstractive-question-answering' or 'feature-extraction'",
}


def test_a_task_that_the_checkpoint_does_not_have(tasks: dict[str, Any]) -> None:
    root = tasks["fill-mask"].folder.parent
    for name, does in DOES.items():
        wrong = "token-classification" if name != "token" else "fill-mask"
        with pytest.raises(PlainformerError, match=f"cannot do {wrong!r}") as caught:
            make.load(root / name, task=wrong)
        assert f"cannot do {wrong!r}" in caught.value.what and does in caught.value.what
    for wrong in ("image-classification", "automatic-speech-recognition", "audio-feature-extraction"):
        with pytest.raises(UsageError, match=f"cannot do {wrong!r}"):
            make.load(root / "mask", task=wrong)
    for wrong in ("", "nothing", None.__class__, 3, ["ner"]):
        with pytest.raises(UsageError, match="unknown"):
            make.load(root / "mask", task=wrong)


def test_no_labels_in_the_config(tmp_path: Path) -> None:
    make.bert(tmp_path, "BertForSequenceClassification", num_labels=3)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw.pop("id2label", None)
    raw.pop("label2id", None)
    path.write_text(json.dumps({**raw, "num_labels": 3}))
    assert {s.label for s in make.load(tmp_path)("the cat").scores} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    with pytest.raises(UsageError, match="no label that begins with 'entail': it has LABEL_0, LABEL_1, LABEL_2"):
        make.load(tmp_path, task="zero-shot-classification")("the cat", labels=["a"])
    with pytest.raises(UsageError, match="no single score"):
        make.load(tmp_path, task="text-ranking")
    for labels in ({}, {"a": "b"}, {"0": None}, ["x"], {"1": "x"}):
        path.write_text(json.dumps({**raw, "id2label": labels}))
        with pytest.raises(CheckpointError, match="id2label"):
            make.load(tmp_path)


def test_the_place_of_a_wrong_input_is_the_callers(tiny: Callable[[str], Path]) -> None:
    """Though inputs of like length run together, and one input makes several rows."""
    long = "the cat " * 60
    classify = make.load(tiny("text-classification"))
    for texts, place in (
        (["the", "the cat sat", 3, "the cat"], 2),
        (["a b c d", *["a"] * 9, long, "the cat sat on"], 10),
        (["a b c d", *["a"] * 9, "\udce9", "the cat sat on"], 10),
    ):
        with pytest.raises(InputError, match=f"input {place}[ ,:]"):
            classify(texts, batch_size=2)
        with pytest.raises(InputError, match=f"input {place}[ ,:]"):
            list(classify(iter(texts), batch_size=3))
    with pytest.raises(InputError, match="the input has 1"):
        classify(long)
    choose = make.load(tiny("multiple-choice"))
    with pytest.raises(InputError, match="input 2 has "):
        choose([("a", ["b"]), ("the cat", ["sat", "ran", "is"]), ("the", ["cat", long])], batch_size=2)
    ask = make.load(tiny("question-answering"))
    with pytest.raises(InputError, match="the question of input 1 is empty"):
        ask([("who", "the cat sat"), (["who", ""], "the cat sat on the mat")])
