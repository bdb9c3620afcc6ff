"""The model card: the Hub's own reader understands its front matter, and its example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from plainformer.config.building import flat
from plainformer.config.training import OBJECTIVES
from plainformer.tasks import TASKS
from plainformer.train.card import USES, Card, Side
from tests.support import models
from tests.support.cli import Cli
from tests.support.media import write_png, write_wav


def card_of(objective: str = "text-classification", **changes: Any) -> Card:
    evaluations = [
        {"step": step, "epoch": step / 10, "best": step == 1, "validation": {"loss": 1 / (step + 1), "accuracy": 0.5}}
        for step in range(20)
    ]
    values: dict[str, Any] = {
        "name": "sst2-minilm",
        "objective": objective,
        "model_type": "bert",
        "parameters": 22_000_000,
        "trained": 22_000_000,
        "data": [Side("train", "/home/somebody/secret/train.jsonl", 6920, 161_526, "f" * 64, {"text is empty": 1})],
        "options": {"folder": "/home/somebody/runs/x", "optimizer": {"eps": 1e-8}, "data": {"columns": {}}},
        "step": 19,
        "total_steps": 20,
        "epochs": 1.9,
        "tokens": 300_000,
        "evaluations": evaluations,
        "metric": "accuracy",
        "base": "sentence-transformers/all-MiniLM-L6-v2",
        "versions": {"plainformer": "0.1.0", "torch": "2.13.0"},
    }
    return Card(**{**values, **changes})


def test_the_hub_reads_it(tmp_path: Path) -> None:
    card_of(hub_data=["stanfordnlp/sst2"]).write(tmp_path)
    read = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert read == {
        "library_name": "plainformer",
        "pipeline_tag": "text-classification",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "datasets": ["stanfordnlp/sst2"],
        "metrics": ["accuracy"],
        "tags": ["plainformer", "bert", "text-classification"],
    }


def test_what_it_says() -> None:
    text = str(card_of())
    for part in (
        "# sst2-minilm\n",
        "A `bert` model for text classification. Fine-tuned from `sentence-transformers/all-MiniLM-L6-v2`. 22,000,000 parameters.",
        "| **1** | 0.10 | 0.5000 | 0.5000 |",
        "| 19 | 1.90 | 0.0500 | 0.5000 |",
        "| train | train.jsonl | 6,920 | 161,526 | `ffffffffffffffff` |",
        "- train: 1 row left out: text is empty",
        "Step 19 of 20: 1.90 epochs, 300,000 tokens. Made with plainformer 0.1.0, torch 2.13.0.",
        "| `optimizer.eps` | `1e-08` |",
        '| `folder` | `"x"` |',
    ):
        assert part in text, part
    assert "somebody" not in text and text == str(card_of())
    assert len(re.findall(r"^\| \**\d+\** \| \d\.", text, re.MULTILINE)) == 13


def test_what_it_says_of_other_starts() -> None:
    assert "Trained from scratch. " in str(card_of(base=None))
    some = str(card_of(base="/models/private/mini", method="head", trained=1000, evaluations=()))
    assert (
        "Fine-tuned from `mini`; the backbone was frozen. 22,000,000 parameters, of which 1,000 were trained." in some
    )
    assert "base_model" not in some and "## Results" not in some and "metrics" not in some
    assert "by low-rank adaptation" in str(card_of(method="lora"))


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    text = str(card_of(data=[Side("train", "a|b\nc", 1, 1, "0")]))
    assert "| train | a\\|b c | 1 | 1 | `0` |" in text


def test_every_objective_has_a_task() -> None:
    assert USES.keys() == OBJECTIVES.keys()
    assert {use.task for use in USES.values()} <= {info.name for info in TASKS.values()}


CHECKPOINTS = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "seq2seq": "text2text",
    "instruction": "chat",
    "text-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
    "ctc": "speech",
    "image-classification": "image-classification",
    "audio-classification": "audio-classification",
}


@pytest.mark.parametrize("objective", CHECKPOINTS)
def test_the_example_runs(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.save(CHECKPOINTS[objective], tmp_path / "model")
    write_png(tmp_path / "picture.png")
    for name in ("speech.wav", "sound.wav"):
        write_wav(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    card_of(objective).write(folder)
    code = re.search(r"```py\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("FOLDER", str(folder)), names)
    assert names["task"].name == USES[objective].task


@pytest.mark.parametrize(
    "objective", ["masked-lm", "instruction", "question-answering", "multiple-choice", "image-classification"]
)
def test_the_command_runs(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    folder = models.save(CHECKPOINTS[objective], tmp_path / "model")
    write_png(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```sh\nplainformer (.*?)\n```", str(card_of(objective)))
    assert code is not None
    assert cli(*shlex.split(code[1].replace("FOLDER", str(folder)))).code == 0


def test_nested_options_by_dotted_names() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": {}, "f": [1]}) == {"a.b": 1, "a.c.d": None, "e": {}, "f": [1]}
