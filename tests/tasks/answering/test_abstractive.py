"""Abstractive question answering: what the writing task is given, and what it may not lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plainformer
from plainformer.errors import InputError, UsageError
from tests.support import models as make

TASK = "abstractive-question-answering"
QUESTION, CONTEXT = "who sat?", "the cat sat on the mat"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("abstractive")
    make.t5(root / "t5")
    make.bart(root / "bart")
    make.gpt2(root / "gpt2", n_positions=160)
    make.gpt2(root / "chat", n_positions=260)
    make.save_bytes(root / "chat", chat_template=CHAT)
    return {name: root / name for name in ("t5", "bart", "gpt2", "chat")}


PROMPTS: dict[str, Any] = {
    "t5": f"question: {QUESTION} context: {CONTEXT}",
    "bart": f"question: {QUESTION} context: {CONTEXT}",
    "gpt2": f"{CONTEXT}\n\nQuestion: {QUESTION}\nAnswer:",
    "chat": [
        {
            "role": "user",
            "content": f"Answer the question from the document alone.\n\nDocument:\n{CONTEXT}\n\nQuestion: {QUESTION}",
        }
    ],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_it_is_the_writing_task_on_a_prompt(folders: dict[str, Path], name: str) -> None:
    task, writer = make.load(folders[name], task=TASK), make.load(folders[name])
    assert task.name == TASK and writer.name in ("text2text-generation", "text-generation")
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "seed": 3}, {"stop": ["a"], "num_return_sequences": 1}):
        expected = writer(PROMPTS[name], max_new_tokens=5, **options)
        assert task((QUESTION, CONTEXT), max_new_tokens=5, **options) == expected
    as_dict = {"question": QUESTION, "context": CONTEXT}
    several = task([(QUESTION, CONTEXT), as_dict, ("is it?", CONTEXT)], max_new_tokens=5)
    assert [r.text for r in several[:2]] == [writer(PROMPTS[name], max_new_tokens=5).text] * 2
    assert json.dumps(several[2].to_dict())
    stream = task.stream((QUESTION, CONTEXT), max_new_tokens=5)
    assert "".join(stream) == stream.result.text == several[0].text
    assert {"template", "truncate", "max_new_tokens", "num_beams"} <= set(task.options())


def test_templates(folders: dict[str, Path]) -> None:
    task, writer = make.load(folders["t5"], task=TASK), make.load(folders["t5"])
    template = "{context} | {question} | {question}"
    odd = "the {context}?"  # a question is never itself a template
    expected = writer(f"{CONTEXT} | {odd} | {odd}", max_new_tokens=4)
    assert task((odd, CONTEXT), template=template, max_new_tokens=4) == expected
    for wrong in ("", "{question}", "{context}", 3):
        with pytest.raises(UsageError, match="no place for both"):
            task((QUESTION, CONTEXT), template=wrong)
    chat = make.load(folders["chat"], task=TASK)
    result = chat((QUESTION, CONTEXT), template="{question} {context}", max_new_tokens=2)
    assert result.prompt == f"<user>{QUESTION} {CONTEXT}<a>"


@pytest.mark.parametrize("name", ["bart", "gpt2", "chat"])
def test_truncation_shortens_the_context_alone(folders: dict[str, Path], name: str) -> None:
    task = make.load(folders[name], task=TASK)
    context = " ".join(f"sentence {i}." for i in range(60))
    with pytest.raises(InputError, match="limit is"):
        task((QUESTION, context), max_new_tokens=4)
    batch = make.encoded(task, [(QUESTION, context), (QUESTION, "short")], truncate=True, max_new_tokens=10)
    long, short = (task.tokenizer.decode(row.input_ids) for row in batch.encodings)
    assert QUESTION in long and "sentence 0." in long and "sentence 59" not in long
    assert "short" in short
    room = {"bart": 64, "gpt2": 150, "chat": 250}[name]
    assert len(batch.encodings[0]) == room
    assert task((QUESTION, context), truncate=True, max_new_tokens=10).new_tokens >= 1
    with pytest.raises(InputError, match="no room for the context"):
        task(("who? " * 60, context), truncate=True)


def test_where_nothing_limits(folders: dict[str, Path]) -> None:
    task = make.load(folders["t5"], task=TASK)
    long = (QUESTION, "a " * 400)
    assert task(long, truncate=True, max_new_tokens=2) == task(long, max_new_tokens=2)


def test_what_is_no_question(folders: dict[str, Path]) -> None:
    task = make.load(folders["t5"], task=TASK)
    wrong: list[Any] = ["who?", ("who?",), 3, None, {"question": "who?"}, ("", CONTEXT), ("who?", " "), ("who?", 3)]
    for item in wrong:
        with pytest.raises(
            InputError, match=r"is not a question (with its|and a) context|is not an input for|is empty"
        ):
            list(task(item))
    with pytest.raises(UsageError, match="did you mean 'template'"):
        task((QUESTION, CONTEXT), templat="x")


def test_which_checkpoints_can(folders: dict[str, Path], tmp_path: Path) -> None:
    assert make.load(folders["t5"], task="abstractive-qa").name == TASK
    assert make.load(folders["t5"]).name == "text2text-generation"
    assert make.load(folders["gpt2"]).name == "text-generation"
    make.bert(tmp_path / "span", "BertForQuestionAnswering")
    with pytest.raises(UsageError, match="does 'question-answering'"):
        make.load(tmp_path / "span", task=TASK)
    with pytest.raises(UsageError, match=f"does 'text2text-generation', '{TASK}' or 'feature-extraction'"):
        make.load(folders["t5"], task="question-answering")
    task = make.load(folders["chat"], task=TASK)
    plainformer.save(task, tmp_path / "copy")
    again = make.load(tmp_path / "copy", task=TASK)
    assert again((QUESTION, CONTEXT), max_new_tokens=4) == task((QUESTION, CONTEXT), max_new_tokens=4)


def test_its_steps_are_those_of_the_writing_task(folders: dict[str, Path]) -> None:
    from plainformer.explanation import Request, explain_steps

    task = make.load(folders["t5"], task=TASK)
    with pytest.raises(InputError, match="not a question and a context"):
        explain_steps(task, Request("who sat?"), steps=2)
    found = explain_steps(task, Request((QUESTION, CONTEXT)), steps=3)
    assert found.texts[0] == task((QUESTION, CONTEXT), max_new_tokens=3).text
    prepared, written = task.prepare((QUESTION, CONTEXT)), make.load(folders["t5"]).prepare(PROMPTS["t5"])
    assert prepared.before == written.before and prepared.options.eos_ids == written.options.eos_ids
    assert prepared.inputs["input_ids"].tolist() == written.inputs["input_ids"].tolist()


# ---- other names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["summarization", "translation"])
def test_other_names_of_text_to_text(folders: dict[str, Path], alias: str) -> None:
    for name in ("t5", "bart"):
        task = make.load(folders[name], task=alias)
        assert task.name == "text2text-generation"
        assert task(CONTEXT, max_new_tokens=4) == make.load(folders[name])(CONTEXT, max_new_tokens=4)


def test_other_names(folders: dict[str, Path], tmp_path: Path) -> None:
    assert make.load(folders["chat"], task="chat").name == "text-generation"
    answer = make.load(folders["chat"], task="chat")([{"role": "user", "content": "hi"}], max_new_tokens=3)
    assert answer.prompt == "<user>hi<a>"
    for alias, model, name in (
        ("sentiment-analysis", "BertForSequenceClassification", "text-classification"),
        ("ner", "BertForTokenClassification", "token-classification"),
        ("embedding", "BertModel", "feature-extraction"),
        ("sentence-embedding", "BertModel", "feature-extraction"),
    ):
        make.bert(tmp_path / alias, model)
        task = make.load(tmp_path / alias, task=alias)
        assert task.name == name
        task("the cat")
