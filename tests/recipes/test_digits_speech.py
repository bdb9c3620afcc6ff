"""Utterances of digits: each clip is used equally often, a speaker is held out, and a run reads what is written."""

from __future__ import annotations

import csv
import sys
import wave
from collections import Counter
from pathlib import Path

import digits_speech
import numpy as np
import pytest

import plainformer as pf


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clips = tmp_path / "clips"
    clips.mkdir()
    for speaker in ("ann", "theo"):
        for digit in range(10):
            for number in range(4):
                samples = np.full(200 + digit, 100 * digit + number, np.int16)
                with wave.open(str(clips / f"{digit}_{speaker}_{number}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, len(samples), "NONE", ""))
                    file.writeframes(samples.tobytes())
    monkeypatch.setattr(sys, "argv", ["digits_speech", str(clips), str(tmp_path / "made")])
    digits_speech.main()
    return tmp_path / "made"


def listed(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_sides_speakers_and_words(made: Path) -> None:
    sides = {side: listed(made / side) for side in ("train", "validation", "test")}
    assert {row["speaker"] for row in sides["train"] + sides["validation"]} == {"ann"}
    assert {row["speaker"] for row in sides["test"]} == {"theo"}
    counts = Counter(word for row in sides["train"] for word in row["text"].split())
    # 30 clips, each four times, less what was left over at the end of each time.
    assert set(counts) <= set("0123456789") and 4 * 30 - 4 * 2 <= counts.total() <= 4 * 30
    assert all(3 <= len(row["text"].split()) <= 5 for rows in sides.values() for row in rows)


def test_an_utterance_holds_its_clips_and_pauses(made: Path) -> None:
    row = listed(made / "train")[0]
    with wave.open(str(made / "train" / row["file"])) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    words = row["text"].split()
    expected = [int(word) for word in words]
    spoken = sum(200 + digit for digit in expected)
    low, high = (8000 * seconds * (len(words) + 1) for seconds in digits_speech.PAUSE)
    assert low - len(words) <= len(samples) - spoken <= high


def test_a_run_reads_it(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    model = {
        "model_type": "wav2vec2",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model |= {
        "conv_dim": [8, 8],
        "conv_kernel": [10, 8],
        "conv_stride": [5, 8],
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    config = {
        "objective": "ctc",
        "folder": str(tmp_path / "run"),
        "model": {"config": model, "tokenizer": str(made / "wav2vec2")},
        "data": {"train": {"path": str(made / "train")}, "cache": str(tmp_path / "cache")},
        "length": {"steps": 1},
        "batches": {"size": 2},
    }
    assert pf.train(config).ended == "done"
