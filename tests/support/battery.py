"""What holds for every task, whatever it does: `check_task` runs one through all of it."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plainformer
from plainformer.errors import UsageError
from plainformer.tasks.results import Results
from tests.support.close import close


def same(found: Any, expected: Any, what: str) -> None:
    """Answers are equal: text, labels and numbers of tokens exactly, scores and vectors within rounding."""
    numbers: list[list[float]] = [[], []]
    rest = [_without_floats(_plain(each), floats) for each, floats in zip((found, expected), numbers, strict=True)]
    assert rest[0] == rest[1], what
    close(*numbers, what, rel=1e-4)


def _plain(answer: Any) -> Any:
    """What goes into JSON for an answer, or for a list of them (a fill-mask's gaps, a text's entities)."""
    return [_plain(each) for each in answer] if isinstance(answer, list | tuple) else _listed(answer.to_dict())


def _listed(value: Any) -> Any:
    """Tuples as lists, which is what JSON has."""
    if isinstance(value, dict):
        return {name: _listed(each) for name, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _without_floats(value: Any, floats: list[float]) -> Any:
    """The value with its floats taken out, and put in order into `floats`."""
    if isinstance(value, float):
        floats.append(value)
        return "a number"
    if isinstance(value, dict):
        return {name: _without_floats(each, floats) for name, each in value.items()}
    return [_without_floats(each, floats) for each in value] if isinstance(value, list | tuple) else value


def check_task(task: Any, items: list[Any], folder: Path, option: str, *, sides: bool = True, **options: Any) -> None:
    """Run a task on several inputs of unequal length, whose answers differ, in every way that must not matter.

    Args:
        folder: an empty one, to save the task in. option: a misspelt option, which its name is offered for.
        sides: whether the tokenizer's padding side changes nothing (of extractive answers it says what comes first).
        options: of every call.
    """
    assert len(items) >= 3
    expected = [task(item, **options) for item in items]
    assert len({json.dumps(_plain(answer)) for answer in expected}) > 1, "the answers do not tell the inputs apart"
    _check_forms(task, items, expected, options)
    _check_batches(task, items, expected, options, sides and task._tokenizer is not None)
    for answer in expected:
        plain = _plain(answer)
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain, "to_dict() is not what JSON gives back"
    with pytest.raises(UsageError, match="did you mean"):
        task(items[0], **{**options, option: 1})
    plainformer.save(task, folder)
    again = plainformer.load(str(folder), task=task.name, backend="plain")
    for found, answer in zip(again(items, **options), expected, strict=True):
        same(found, answer, "saved and loaded")


def _check_forms(task: Any, items: list[Any], expected: list[Any], options: dict[str, Any]) -> None:
    """One, a list and an iterator; nothing is read, and nothing run, before it is asked for."""
    found = task(items, **options)
    assert isinstance(found, Results) and task([], **options) == [] and list(task(iter([]), **options)) == []
    _check_list(found)
    check_completion(task)
    for one, answer in zip(found, expected, strict=True):
        same(one, answer, "a list")
    read: list[int] = []

    def source() -> Iterator[Any]:
        for place, item in enumerate(items):
            read.append(place)
            yield item

    lazy = task(source(), **options, batch_size=1)
    assert not isinstance(lazy, list) and read == []
    same(next(lazy), expected[0], "an iterator's first")
    assert read == [0]
    for one, answer in zip(lazy, expected[1:], strict=True):
        same(one, answer, "an iterator")


def _check_list(found: Any) -> None:
    """The answers to a list: a list in all that lists can do, a line of text, a table of a notebook and of pandas."""
    assert found == list(found) and type(found[1:]) is type(found) and found[1:] == list(found)[1:]
    again = pickle.loads(pickle.dumps(found))
    assert again == found and type(again) is type(found) and json.dumps(found.to_dict()) == json.dumps(_plain(found))
    for one in (found, *found):
        assert "\n" not in repr(one) and len(repr(one)) < 2000 and "object at" not in repr(one)
    frame = found.to_dataframe(index=[f"row {place}" for place in range(len(found))])
    assert set(frame.index) <= {f"row {place}" for place in range(len(found))} and len(frame) >= len(found)
    assert found._repr_html_().startswith(("<table>", "<ol")) and len(found[:0].to_dataframe()) == 0


# What people are offered of any task, and of some.
EVERY = {
    "Options",
    "adapter",
    "adapters",
    "checkpoint",
    "config",
    "decode",
    "encode",
    "folder",
    "model",
    "name",
    "options",
    "predict",
    "ref",
    "tokenizer",
    "use_adapter",
}
SOME = {
    "contradiction",
    "entailment",
    "files",
    "kind",
    "max_tokens",
    "measure",
    "normalized",
    "pooling",
    "prepare",
    "processor",
    "prompt",
    "purposes",
    "scores",
    "score",
    "search",
    "settings",
    "similarity",
    "stream",
    "vocabulary",
}


def check_completion(task: Any) -> None:
    """Completion offers what a task is for, and not what it is made of; `repr` and `help` say what it is."""
    names = {name for name in dir(task) if not name.startswith("_")}
    assert EVERY <= names <= EVERY | SOME, names - EVERY - SOME
    assert repr(task).startswith(f"{type(task).__name__}({task.ref!r}, ") and "\n" not in repr(task)
    for text in (type(task).__call__.__doc__, task.__call__.__doc__):
        assert all(f"{name}: " in text for name in task.options())
    assert list(inspect.signature(type(task).__call__).parameters) == ["self", "inputs", *task.options()]


def _check_batches(task: Any, items: list[Any], expected: list[Any], options: dict[str, Any], sides: bool) -> None:
    """Alone, in pairs, all together, in any order, padded on either side: each input has its own answer."""
    several = [*items, *reversed(items), items[0]]
    answers = [*expected, *reversed(expected), expected[0]]
    before = task.tokenizer.padding_side if sides else None
    for side in ("left", "right") if sides else (before,):
        if sides:
            task.tokenizer.padding_side = side
        for size in (1, 2, len(several)):
            for found, answer in zip(task(several, **options, batch_size=size), answers, strict=True):
                same(found, answer, f"batch_size={size}, padded on the {side}")
    if sides:
        task.tokenizer.padding_side = before
