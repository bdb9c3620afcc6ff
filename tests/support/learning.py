"""Something to learn for each objective: rows in a folder, as a run reads them, and the run itself.

`even` rows are equally long in tokens, clips equally long in samples: a batch then has no padding.
"""

from __future__ import annotations

import random
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

import plainformer.train.record as record
from plainformer.config.building import build
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.training import train
from tests.support.runs import WORDS, write_rows

STEPS, ROWS, BATCH = 20, 48, 6  # 2.5 passes over the rows
LABELS = ("negative", "neutral", "positive")
TAGS = ("O", "B-LOC", "B-PER", "I-PER")
LETTERS = "ETAOINHSRDLU"  # of the vocabulary for CTC

Rows = list[dict[str, Any]]


def _words(draw: random.Random, even: bool, least: int = 3, most: int = 9) -> list[str]:
    return draw.choices(WORDS, k=(least + most) // 2 if even else draw.randint(least, most))


def _line(draw: random.Random, even: bool, size: int = 23) -> str:
    """Words for a tokenizer of single characters; even ones have as many of those."""
    return " ".join(_words(draw, False, 8, 9))[:size].replace(" ", "_") if even else " ".join(_words(draw, False))


def _labelled(draw: random.Random, even: bool) -> Mapping[str, Any]:
    words = _words(draw, even)
    return {"text": " ".join(words), "label": LABELS[len(words[0]) % 3]}


def _tagged(draw: random.Random, even: bool) -> Mapping[str, Any]:
    words = _words(draw, even)
    return {"tokens": words, "tags": [TAGS[len(word) % 4] for word in words]}


def _asked(draw: random.Random, even: bool) -> Mapping[str, Any]:
    words = _words(draw, even, 6, 12)
    first = draw.randrange(len(words) - 1)
    start = len(" ".join([*words[:first], ""]))
    answers = {"text": [" ".join(words[first : first + 2])], "answer_start": [start]}
    return {"question": f"where is {words[first]}", "context": " ".join(words), "answers": answers}


def _chosen(draw: random.Random, even: bool) -> Mapping[str, Any]:
    choices = [" ".join(_words(draw, even, 2, 4)) for _ in range(3 if even else draw.randint(2, 4))]
    return {"text": " ".join(_words(draw, even)), "choices": choices, "label": draw.randrange(len(choices))}


def _pair(draw: random.Random, even: bool) -> Mapping[str, Any]:
    if even:
        return {"source": _line(draw, even), "target": _line(draw, even, 12)}
    words = _words(draw, even)
    return {"source": " ".join(words), "target": " ".join(reversed(words[:4]))}


def _told(draw: random.Random, even: bool) -> Mapping[str, Any]:
    words = _words(draw, False, 2, 5)
    return {"prompt": " ".join(words), "response": " ".join(reversed(words))}


TEXTS: dict[str, Callable[[random.Random, bool], Mapping[str, Any]]] = {
    "causal-lm": lambda draw, even: {"text": _line(draw, even)},
    "masked-lm": lambda draw, even: {"text": " ".join(_words(draw, even))},
    "denoising": lambda draw, even: {"text": _line(draw, even)},
    "seq2seq": _pair,
    "instruction": _told,
    "text-classification": _labelled,
    "token-classification": _tagged,
    "question-answering": _asked,
    "multiple-choice": _chosen,
}


def _write_clip(path: Path, draw: np.random.Generator, samples: int) -> None:
    tone = 0.2 * np.sin(np.arange(samples) * draw.uniform(0.05, 0.5)) + 0.02 * draw.standard_normal(samples)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((tone * 32767).astype("<i2").tobytes())


def _clips(folder: Path, objective: str, even: bool) -> dict[str, Any]:
    """Tones, with letters to write or a label."""
    draw, rows, clips = np.random.default_rng(0), [], folder / "clips"
    clips.mkdir(parents=True)
    for number in range(ROWS):
        samples = 3200 if even else int(draw.integers(2600, 4200))
        _write_clip(clips / f"{number}.wav", draw, samples)
        size = 5 if even else int(draw.integers(2, 7))
        said = "".join(draw.choice(list(LETTERS), size, replace=False))
        rows.append({"file": f"{number}.wav", "text": said, "label": LABELS[number % 3]})
    keep = ("file", "label") if objective == "audio-classification" else ("file", "text")
    write_rows(clips / "metadata.jsonl", [{name: row[name] for name in keep} for row in rows])
    return {"path": str(clips), "format": "audio"}


def _images(folder: Path) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "images.npz", image=images, label=np.array(LABELS)[np.arange(ROWS) % 3])
    return {"path": str(folder / "images.npz")}


def rows_of(folder: Path, objective: str, *, even: bool = False, rows: Rows | None = None) -> dict[str, Any]:
    """Write rows; returns what `data.train` says of them."""
    if objective in ("ctc", "speech-to-text", "audio-classification"):
        return _clips(folder, objective, even)
    if objective == "image-classification":
        return _images(folder)
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    made = rows or [dict(TEXTS[objective](draw, even)) for _ in range(ROWS)]
    return {"path": str(write_rows(folder / "rows.jsonl", list(made)))}


def config_of(folder: Path, objective: str, source: Mapping[str, Any], **changes: Any) -> TrainConfig:
    """A run of 20 steps in which every step is written down; `changes` are sections or values."""
    found: dict[str, Any] = {
        "objective": objective,
        "folder": str(folder / "run"),
        "data": {"train": dict(source), "cache": str(folder / "cache")},
        "batches": {"size": BATCH},
        "length": {"steps": STEPS},
        "optimizer": {"learning_rate": 1e-3},
        "checkpoints": {"every": STEPS},
        "log_every": 1,
    }
    for name, value in changes.items():
        section = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = {**found[name], **value} if section else value
    return build(TrainConfig, Written(found))


def learnt(config: TrainConfig) -> list[dict[str, Any]]:
    """Make a run; returns the lines of its steps."""
    result = train(config)
    assert result.ended == "done"
    return record.read_lines(result.folder / record.METRICS)


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, by the names of its file."""
    return load_file(folder / "model.safetensors")
