"""Type checkers know a user's script: names of tasks, options, answers of one, of many and of streams."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_overloads

import pytest

from plainformer.checkpoint.bundled import BUNDLED, is_installed
from plainformer.loading import load, pipeline
from plainformer.tasks import ALIASES, TASKS, task_class
from plainformer.tasks.writing.chat import OF_THE_SESSION
from plainformer.tasks.writing.chat_args import ChatArgs
from plainformer.tasks.writing.options import TextGenerationOptions

# What a type checker calls each expression; an expression with a mistake is followed by the word that its message has.
RIGHT = {
    'embed("a")': "Embedding",
    'embed(["a"])': "Embeddings",
    'embed(["a"])[1:]': "Embeddings",
    'embed(["a"])[0].vector': "Tensor",
    'embed({"a": 1}.keys())': "Embeddings",
    'embed(iter(["a"]))': "Iterator[Embedding]",
    'embed(["a"]).vectors': "Tensor",
    'embed.similarity("a", "b")': "float",
    'embed.similarity(["a"], embed(["b"]))': "Tensor",
    'embed.search("a", ["b"])': "Hits",
    'embed.search("a", ["b"])[0].score': "float",
    'embed.search(["a"], ["b"], 3)': "list[Hits]",
    'pf.load("all-minilm-l6-v2")': "FeatureExtraction",
    'pf.load("smollm2-135m-instruct")("a").text': "str",
    'chat([{"role": "user", "content": "a"}], max_new_tokens=5)': "GeneratedText",
    'chat("a", do_sample=True, top_p=0.9).text': "str",
    'chat(["a", "b"])': "Results[GeneratedText]",
    'chat.stream("a", max_new_tokens=5)': "AnswerStream[GeneratedText]",
    'chat.stream("a").result.stop_reason': "str",
    'chat.prepare("a", max_new_tokens=5)': "Prepared",
    'chat.score("a")': "ScoredText",
    'chat.score(["a"])': "Results[ScoredText]",
    'pf.load("x", task="ner")("a")[0].label': "str",
    'pf.load("x", task="ner")(["a"])': "Results[Spans]",
    'pf.pipeline("ner", "x")(["a"])[0]': "Spans",
    'pf.load("x", task="fill-mask")("a")': "tuple[FilledMask, ...]",
    'pf.load("x", task="question-answering")(("a", "b"), top_k=3).alternatives': "tuple[Span, ...]",
    'pf.load("x", task="image-classification")(["a.png"])': "Results[Classification]",
    'pf.load("x", task="image-feature-extraction")("a.png")': "Embedding",
    'pf.load("x", task="asr")("a.wav", truncate=True).text': "str",
    'pf.load("x", task="translation").stream("a")': "AnswerStream[TransformedText]",
    'pf.explain(chat, "a")': "Explanation",
    'pf.explain_steps(chat, pf.Request("a"), steps=2)': "ExplainedSteps",
    'pf.generate(chat.model, chat.tokenizer("a").input_ids).token_ids': "tuple[tuple[int, ...], ...]",
    'pf.ChatSession(chat).send("a")': "Iterator[str]",
    'pf.ChatSession(chat, system="a", max_new_tokens=5, do_sample=True)': "ChatSession",
    "pf.ChatSession(chat).set(top_p=0.9, do_sample=None)": "None",
    'pf.TASKS["text-generation"]': "TaskInfo",
}
WRONG = [
    'chat("a", max_new_tokens="five")',
    'chat.stream("a", max_new_tokens="five")',
    'chat.prepare("a", max_new_token=5)',
    'embed("a", nonsense=3)',
    'embed("a").vectr',
    'embed(["a"]).vector',
    'pf.load("x", task="ner")("a")[0].lable',
    'pf.load("x", dtyp="fp32")',
    'pf.pipeline("asr", "x", device=0)',
    'pf.GenerationOptions(max_new_tokens="five")',
    'pf.ChatSession(chat, max_new_tokens="five")',
    "pf.ChatSession(chat, num_return_sequences=2)",
    "pf.ChatSession(chat).set(nonsense=3)",
    "pf.TASKZ",
]
START = """import plainformer as pf

embed = pf.load("x", task="feature-extraction")
chat = pf.load("x", task="chat")
"""
SCRIPT = START + "".join(f"reveal_type({line})\n" for line in RIGHT) + "".join(f"{line}\n" for line in WRONG)
FIRST = START.count("\n") + 1
MISTAKES = set(range(FIRST + len(RIGHT), FIRST + len(RIGHT) + len(WRONG)))


def checked(path: Path, *command: str) -> str:
    path.write_text(SCRIPT, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", *command, str(path)], capture_output=True, text=True, cwd=path.parent
    ).stdout


def plain_type(name: str) -> str:
    return re.sub(r"[a-z_0-9]+\.", "", name)


@pytest.mark.slow
def test_mypy_knows_a_users_script(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    options = ("--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary")
    found = checked(tmp_path / "script.py", "mypy", *options)
    revealed = [plain_type(kind) for kind in re.findall(r'Revealed type is "(.*)"', found)]
    assert dict(zip(RIGHT, revealed, strict=True)) == RIGHT
    assert {int(line) for line in re.findall(r"py:(\d+): error", found)} == MISTAKES, found


@pytest.mark.slow
def test_pyright_knows_a_users_script(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    found = checked(tmp_path / "script.py", "pyright", "--pythonpath", sys.executable)
    if "No configuration file" not in found and "error" not in found:
        pytest.skip(f"pyright does not run here: {found[-200:]}")
    revealed = re.findall(r'Type of ".*" is "(.*)"', found)
    assert dict(zip(RIGHT, revealed, strict=True)) == RIGHT
    assert {int(line) for line in re.findall(r"py:(\d+):\d+ - error", found)} == MISTAKES, found


def test_options_of_a_chat_are_those_of_text_generation() -> None:
    """Said twice, since no type can be made of the dataclass: here they are held equal."""
    expected = {
        field.name: field.type if field.type == "Any" or str(field.type).endswith("| None") else f"{field.type} | None"
        for field in fields(TextGenerationOptions)
        if field.name not in OF_THE_SESSION
    }
    assert {name: kind.__forward_arg__ for name, kind in ChatArgs.__annotations__.items()} == expected


@pytest.mark.parametrize("function", [load, pipeline])
def test_every_name_of_a_task_has_its_class(function: Callable[..., Any]) -> None:
    """The overloads, read as they are written, say for each name and alias what `load` gives."""
    typed = {}
    for overload in get_overloads(function):
        notes = overload.__annotations__
        names = re.findall(r'"([^"]*)"|\'([^\']*)\'', notes["task"] if "Literal" in notes["task"] else "")
        typed |= {one or other: notes["return"] for one, other in names}
    expected = {**{name: name for name in TASKS}, **ALIASES}
    heads = {"automatic-speech-recognition": ("seq2seq_lm", "ctc")}
    classes = {
        name: " | ".join(task_class(TASKS[known], head).__name__ for head in heads.get(known, ("none",)))
        for name, known in expected.items()
    }
    assert typed == classes


def test_bundled_names_have_their_class() -> None:
    notes = [overload.__annotations__ for overload in get_overloads(load)]
    named = {
        re.findall(r"[\"'](.*)[\"']", note["ref"])[0]: note["return"] for note in notes if "Literal" in note["ref"]
    }
    assert set(named) == set(BUNDLED)
    there = [name for name in named if name != "smollm2-135m-instruct" and is_installed(name)]
    assert all(type(load(name)).__name__ == named[name] for name in there)
