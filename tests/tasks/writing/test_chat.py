"""A chat session: each turn answers as the whole conversation would, and runs what is new; stopping, resetting, limits."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plainformer.errors import InputError, UsageError
from plainformer.generation.search import generate
from plainformer.tasks.writing.chat import ChatSession
from tests.support import models as make
from tests.support.models import save

WORD = {"regex": "[a-z]{8}"}  # an answer that is cut into the same tokens when it is read as when it was written


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make.load(save("chat", tmp_path_factory.mktemp("chat")))


def count_positions(task: Any) -> list[int]:
    """The lengths of all inputs that the model is run on from here on."""
    seen: list[int] = []
    task.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).size(1)), with_kwargs=True
    )
    return seen


def say(session: ChatSession, text: str) -> str:
    return "".join(session.send(text))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_by_themselves(copied: Callable[[Any], Any], tiny: Callable[[str], Path]) -> None:
    """Also one of a session that is in the middle of an answer, with a grammar and stop strings: it has the turns before."""
    task = make.load(tiny("chat"))
    session = ChatSession(task, regex="[a-z]{4}", stop="q")
    list(session.send("hi"))
    before = list(session.messages)
    pieces = session.send("you")
    next(pieces)
    other = copied(session)
    assert not other.answering and other.messages == before
    written = list(other.send("and"))
    list(pieces)
    assert len(written) > 0 and len(session.messages) == len(other.messages) == 4
    again = ChatSession(task, regex="[a-z]{4}", stop="q")
    again.messages = before
    assert "".join(again.send("and")) == "".join(written)
    prepared = task.prepare("a", regex="[a-z]{3}", heal=True, stop="q", max_new_tokens=3)
    moved = copied(prepared)
    found = generate(task.model, **prepared.inputs, options=prepared.options).token_ids
    assert generate(task.model, **moved.inputs, options=moved.options).token_ids == found


@pytest.mark.parametrize(
    "options",
    [
        WORD,
        {**WORD, "do_sample": True, "seed": 3},
        {**WORD, "num_beams": 2},
        {**WORD, "cache_kind": "int8"},
        {"stop": "e", "max_new_tokens": 20},
        {"answer_prefix": "Well, ", **WORD},
    ],
)
def test_turns_equal_the_whole_conversation(task: Any, options: dict[str, Any]) -> None:
    session = ChatSession(task, system="be good", **options)
    messages = [{"role": "system", "content": "be good"}]
    for text in ("hi", "and then?", "why?"):
        messages.append({"role": "user", "content": text})
        expected = task(messages, **{"max_new_tokens": 512, **options})
        assert say(session, text) == expected.text
        messages.append({"role": "assistant", "content": expected.text})
        assert session.messages == messages and session.result == expected


def test_a_turn_runs_only_what_is_new(tmp_path: Path) -> None:
    task = make.load(save("chat", tmp_path))
    seen = count_positions(task)
    session = ChatSession(task, **WORD)
    for turn, text in enumerate(("hello there", "go on", "more")):
        before = len(task.row_of(session.messages, task.Options())) if turn else 0
        seen.clear()
        say(session, text)
        whole = len(task.row_of(session.messages[:-1], task.Options()))
        if turn:
            assert seen[0] < 40 < before + 20 < whole + 20  # the message and the words around it, not the conversation
        else:
            assert seen[0] == whole
        assert set(seen[1:]) == {1}


def test_what_was_changed_behind_its_back_is_run_anew(task: Any) -> None:
    session = ChatSession(task, **WORD)
    say(session, "hi")
    session.messages[0]["content"] = "ho"
    session.set_system("be bad")
    expected = task([*session.messages, {"role": "user", "content": "and?"}], **WORD)
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant"]
    assert say(session, "and?") == expected.text
    session.set_system(None)
    assert session.messages[0]["role"] == "user"


def test_stopping_keeps_what_was_said(task: Any) -> None:
    session = ChatSession(task, regex="[a-z]{40}")
    pieces = session.send("hi")
    said = [next(pieces), next(pieces)]
    assert session.answering
    session.stop()
    said += pieces
    assert session.result is not None and session.result.stop_reason == "callback"
    assert 2 <= len("".join(said)) < 40 and session.messages[-1] == {"role": "assistant", "content": "".join(said)}
    assert not session.answering
    expected = task([*session.messages, {"role": "user", "content": "go on"}], regex="[a-z]{40}")
    assert say(session, "go on") == expected.text and len(expected.text) == 40


def test_closing_the_iterator_keeps_what_was_said(task: Any) -> None:
    session = ChatSession(task, **WORD)
    pieces: Any = session.send("hi")
    first = next(pieces)
    with pytest.raises(UsageError, match="still being written"):
        session.send("and?")
    pieces.close()
    assert session.messages[-1] == {"role": "assistant", "content": first}
    expected = task([*session.messages, {"role": "user", "content": "and?"}], **WORD)
    assert say(session, "and?") == expected.text


def test_an_error_leaves_the_conversation_as_it_was(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ChatSession(task, **WORD)
    first = say(session, "hi")
    before = list(session.messages)
    with monkeypatch.context() as patch:
        patch.setattr(task.model.main, "forward", lambda *args, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            say(session, "and?")
    assert session.messages == before and not session.answering
    session.reset()
    assert session.messages == [] and say(session, "hi") == first


def test_a_conversation_that_has_become_too_long(tmp_path: Path) -> None:
    task = make.load(save("chat", tmp_path, max_position_embeddings=120))
    session = ChatSession(task)
    assert session.set(max_new_tokens=500) is None
    said = say(session, "hi")
    assert session.result is not None and session.result.prompt_tokens + session.result.new_tokens <= 120
    with pytest.raises(InputError, match="/reset"):
        session.send("x" * 120)
    assert session.messages[-1]["content"] == said
    session.reset()
    assert say(session, "hi") == said


def test_options(task: Any) -> None:
    session = ChatSession(task, temperature=0.5, do_sample=True)
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        session.set(temprature=1)
    with pytest.raises(UsageError, match="has no effect in greedy mode"):
        session.set(do_sample=None)
    assert session.options == {"temperature": 0.5, "do_sample": True}
    session.set(do_sample=None, temperature=None)
    assert session.options == {}
    with pytest.raises(UsageError, match="no option 'num_return_sequences'"):
        ChatSession(task, num_return_sequences=2)
    session.set(max_new_tokens=4)
    say(session, "hi")
    assert session.result is not None and session.result.new_tokens <= 4
    saved = json.loads(json.dumps(session.to_dict()))
    assert saved["options"] == {"max_new_tokens": 4} and saved["messages"] == session.messages


def test_who_cannot_chat(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        ChatSession(make.load(tiny("text-generation")))
    with pytest.raises(UsageError, match="cannot chat"):
        ChatSession(make.load(tiny("text2text")))
    with pytest.raises(InputError, match="not a message"):
        ChatSession(make.load(tiny("chat"))).send(3)  # type: ignore[arg-type]
