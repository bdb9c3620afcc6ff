"""What is asked of loading: its keywords, their checks, their types, and the command line's options are one list."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_overloads

import pytest

import plainformer as pf
from plainformer.cli.flags import LoadFlags
from plainformer.config.loading import BACKENDS, LoadArgs, LoadOptions
from plainformer.config.options import NotTyped, specs
from plainformer.errors import UsageError
from plainformer.loading import load
from plainformer.model.fast import prepare
from plainformer.tasks import _BY_HEAD, ALIASES, TASKS
from plainformer.tasks.speech.ctc import CtcSpeechRecognition
from plainformer.tasks.speech.whisper import SpeechRecognition
from plainformer.tasks.text.classification import TextClassification
from plainformer.tasks.text.fill_mask import FillMask

Folder = Callable[[str], Path]


def test_every_task_has_its_type() -> None:
    """`load` is overloaded by the name of the task; a task without an overload would be typed `Task`."""
    found: dict[str, set[str]] = {}
    for overload in get_overloads(load):
        asked = ast.parse(inspect.get_annotations(overload)["task"], mode="eval").body
        if isinstance(asked, ast.Subscript) and ast.unparse(asked.value) == "Literal":
            classes = set(inspect.get_annotations(overload)["return"].split(" | "))
            found |= {name.value: classes for name in ast.walk(asked) if isinstance(name, ast.Constant)}
    classes = {name: {info.class_name} for name, info in TASKS.items()}
    for (name, _), (_, class_name) in _BY_HEAD.items():
        classes[name].add(class_name)
    assert found == {**classes, **{alias: classes[name] for alias, name in ALIASES.items()}}


def test_keywords_options_and_flags_are_one_list() -> None:
    options = {field.name: field.type for field in fields(LoadOptions)}
    assert {name: kind.__forward_arg__ for name, kind in LoadArgs.__annotations__.items()} == options
    assert list(inspect.signature(load).parameters) == ["ref", "task", *options]
    typed = {name: spec for name, spec in specs(LoadOptions).items() if spec.typed is not NotTyped}
    flags = {field.name: field for field in fields(LoadFlags)}
    assert list(flags) == ["task", *typed]
    assert LoadFlags().options() == {}
    assert sorted(BACKENDS) == sorted(prepare.BACKENDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtyp": "fp32"}, "load has no option 'dtyp'\n  → did you mean 'dtype'"),
        ({"backend": "onednnn"}, "backend='onednnn' is unknown\n  → did you mean 'onednn'"),
        ({"quantize": "int3"}, "quantize='int3' is unknown"),
        ({"ffn_chunk_size": True}, "ffn_chunk_size=True is not a whole number"),
        ({"prepare": 1}, "prepare=1 is neither True nor False"),
        ({"allow_unused": None}, "allow_unused=None is neither True nor False"),
        ({"revision": 5}, "revision=5 is not a text"),
        ({"quantize": "int8", "prepare": False}, "leave out backend=... and prepare=..."),
    ],
)
def test_options_that_cannot_work(tiny: Folder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load(tiny("fill-mask"), **options)


def test_a_task_by_its_class(tiny: Folder) -> None:
    class Mine(TextClassification):
        pass

    assert type(load(tiny("fill-mask"), task=FillMask)) is FillMask
    mine = load(tiny("text-classification"), task=Mine)
    assert type(mine) is Mine and mine.name == "text-classification"
    with pytest.raises(UsageError, match="cannot do 'fill-mask'"):
        load(tiny("text-classification"), task=FillMask)
    with pytest.raises(UsageError, match="is unknown"):
        load(tiny("fill-mask"), task=int)  # type: ignore[type-var]


def test_one_task_may_have_two_classes(tiny: Folder) -> None:
    assert type(load(tiny("speech"), task=CtcSpeechRecognition)) is CtcSpeechRecognition
    with pytest.raises(UsageError, match="gives a CtcSpeechRecognition, not a SpeechRecognition"):
        load(tiny("speech"), task=SpeechRecognition)


def test_a_pipeline_is_the_same(tiny: Folder) -> None:
    assert type(pf.pipeline("fill-mask", tiny("fill-mask"), dtype="bf16")) is FillMask
