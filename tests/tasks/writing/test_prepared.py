"""A task run by hand: `prepare`, `generate`, and the text of the new tokens are what calling it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.errors import InputError, UsageError
from plainformer.generation.options import GenerationOptions
from plainformer.generation.search import generate
from tests.support import models as make
from tests.support.media import RATE
from tests.support.models import save

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True, "seed": 5, "temperature": 1.5},
    {"num_beams": 3, "min_new_tokens": 2},
    {"stop": ["e"], "max_new_tokens": 4},
    {"choices": ["yes", "no"]},
    {"defaults": "checkpoint"},
)


def by_hand(of: Any, item: Any, /, **options: Any) -> str:
    """The text as it is before it is cut at a stop string."""
    prepared = of.prepare(item, **options)
    assert type(prepared.options) is GenerationOptions
    found = generate(of.model, **prepared.inputs, options=prepared.options)
    text: str = prepared.text(of.tokenizer, found.token_ids[0][prepared.uncounted :])
    return text


@pytest.fixture(scope="module", params=["text-generation", "chat", "bart"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bart":
        make.bart(folder, {"forced_bos_token_id": 1, "num_beams": 2, "max_length": 12})
    else:
        save(request.param, folder)
    return make.load(folder)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_text_by_hand(task: Any, options: dict[str, Any]) -> None:
    prefix = "decoder_prefix" if task.name == "text2text-generation" else "answer_prefix"
    for more in ({}, {prefix: "so "}, {prefix: "so ", "heal": True}):
        given = {**options, **more}
        assert by_hand(task, "the cat", **given).startswith(task("the cat", **given).text)


def test_what_the_answer_begins_with(task: Any) -> None:
    prefix = "decoder_prefix" if task.name == "text2text-generation" else "answer_prefix"
    prepared = task.prepare("the cat", **{prefix: "so "})
    ids = tuple(task.tokenizer.encode("so ", add_special_tokens=False).input_ids)
    assert prepared.begun == ids and prepared.text(task.tokenizer, ()) == "so "
    name = "decoder_input_ids" if task.name == "text2text-generation" else "input_ids"
    assert tuple(prepared.inputs[name][0].tolist()) == (*prepared.before, *prepared.begun)


def test_wrong_options_are_refused_before_anything_runs(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "encode", lambda *_: pytest.fail("it has been encoded"))
    for options, message in (({"temprature": 1}, "did you mean"), ({"temperature": 1.0}, "in greedy mode")):
        with pytest.raises(UsageError, match=message):
            task.prepare("the cat", **options)


def test_speech_by_hand(tmp_path: Path) -> None:
    make.whisper(tmp_path)
    task = make.load(tmp_path)
    clip = {"array": torch.randn(8000, generator=torch.Generator().manual_seed(3)).numpy(), "sampling_rate": RATE}
    for options in ({}, {"language": "en", "task": "translate"}, {"num_beams": 2}):
        own = {"max_new_tokens": 6, **options}
        assert by_hand(task, clip, **own).strip() == task(clip, **own).text
    prepared = task.prepare(clip)
    assert prepared.options.max_new_tokens == task.config.main_stack.max_positions
    (detected,) = task.detect_language(task.model.encode(input_features=prepared.inputs["input_features"]))
    assert prepared.before[1] == detected
    with pytest.raises(UsageError, match="timestamps is for reading window by window"):
        task.prepare(clip, timestamps=True)
    with pytest.raises(InputError, match="longer than one window"):
        task.prepare({"array": torch.zeros(31 * RATE).numpy(), "sampling_rate": RATE})
