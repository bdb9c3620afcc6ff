"""What a terminal, and a pipe, show of a run."""

from __future__ import annotations

import re

import pytest

from plainformer.cli.training_line import TrainingLine, memory_in_use, size


def at(step: int, tokens: int, loss: float = 2.5) -> dict[str, float]:
    return {"step": step, "tokens": tokens, "loss": loss, "learning_rate": 4.5e-5}


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_line_says_where_a_run_is(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    line = TrainingLine(100, clock=clock)
    assert re.fullmatch(r"step 0 of 100, [\d.]+ [MG]B", str(line))
    clock.now = 5
    line.learnt(at(10, 5000))
    assert re.fullmatch(r"step 10 of 100, loss 2.5, 1,000 tokens/s, 45 s left, [\d.]+ [MG]B, rate 4.50e-05", str(line))
    clock.now = 10  # the time that is left runs on between two measurements
    assert "40 s left" in str(line)
    line.evaluated({"step": 10, "epoch": 0.5, "loss": 0.4, "accuracy": 0.85123, "best": True})
    clock.now = 15  # half as fast; what the evaluation took is not a step's
    line.evaluated({"step": 10, "loss": 0.4})
    clock.now = 25
    line.learnt(at(20, 10000))
    assert "900 tokens/s" in str(line)  # 0.8 of 1,000 and 0.2 of 500
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == "step 10: validation loss 0.4, accuracy 0.8512, the best so far"
    assert len(lines) == 3 and lines[2].startswith("step 20 of 100, ")  # every ten seconds


def test_a_run_that_goes_on_does_not_count_what_was_before(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    line = TrainingLine(1000, 900, clock)
    clock.now = 1
    line.learnt(at(910, 10**9))
    assert "tokens/s" not in str(line) and " 9 s left" in str(line)
    clock.now = 2
    line.learnt(at(920, 10**9 + 700))
    assert "700 tokens/s" in str(line)
    clock.now = 10
    line.learnt(at(1000, 10**9 + 6300))
    assert " left" not in str(line)
    assert capsys.readouterr().err.startswith("step 1,000 of 1,000, loss 2.5")


def test_sizes_in_words() -> None:
    assert [size(n) for n in (0, 999, 1000, 812_400_000, 1_340_000_000, 2.5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "812 MB",
        "1.3 GB",
        "2,500.0 GB",
    ]
    assert 10_000_000 < memory_in_use() < 100_000_000_000
