"""What a run writes down: bytes that do not depend on interruptions, curves, TensorBoard, how often examples were seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from plainformer.config.training import BatchConfig, LengthConfig
from plainformer.errors import CheckpointError, PlainformerError, UsageError
from plainformer.train import plots, record
from plainformer.train.plan import make_plan
from plainformer.train.plots import curves_of, draw_plots
from plainformer.train.record import METRICS, TIMING, Lines, Record, evaluations, read_lines
from plainformer.train.seen import seen
from tests.support.processes import modules_after

pytestmark = pytest.mark.usefixtures("pictures")


def trained(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 8, "loss": 1 / (1 + step), "learning_rate": 1e-5 * step, "tokens": 31 * step}


def tell(told: Record, steps: range) -> None:
    for step in steps:
        told.learnt(trained(step))
        told.timed(step, 31 * step, 0.001 * step)
        if step % 4 == 0:
            told.evaluated({"step": step, "epoch": step / 8, "loss": 2 / step, "accuracy": 0.5, "best": step == 4})


def test_lines_of_a_run(tmp_path: Path) -> None:
    told = Record(tmp_path)
    tell(told, range(1, 9))
    size = told.sync()
    told.close()
    text = (tmp_path / METRICS).read_text()
    assert size == len(text)
    assert text.splitlines()[0] == ('{"step": 1, "epoch": 0.125, "loss": 0.5, "learning_rate": 1e-05, "tokens": 31}')
    assert text.splitlines()[4] == (
        '{"step": 4, "epoch": 0.5, "best": true, "validation": {"loss": 0.5, "accuracy": 0.5}}'
    )
    assert [line["step"] for line in evaluations(tmp_path)] == [4, 8]
    timing = read_lines(tmp_path / TIMING)
    assert [line["step"] for line in timing] == list(range(1, 9))
    assert all(line["seconds"] > 0 and line["tokens_per_second"] > 0 and line["memory_bytes"] > 1e6 for line in timing)
    assert timing[0]["waiting"] == pytest.approx(0.001 / timing[0]["seconds"], rel=0.01)
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"loss.png", "learning_rate.png", "accuracy.png"}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5), st.integers(0, 40)), max_size=3))
def test_an_interrupted_run_writes_the_same_bytes(tmp_path_factory: Any, stops: list[tuple[int, int, int]]) -> None:
    """Saved after `saved` steps, killed some steps later in the middle of a line, gone on; several times."""
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    metrics = Lines(whole / METRICS, 0)
    for step in range(1, 13):
        metrics.write(trained(step))
    kept = done = 0
    for saved, further, torn in sorted(stops):
        if saved < done:
            continue
        metrics = Lines(broken / METRICS, kept)
        for step in range(done + 1, saved + 1):
            metrics.write(trained(step))
        kept, done = metrics.sync(), saved
        for step in range(done + 1, min(done + further, 12) + 1):
            metrics.write(trained(step))
        metrics.close()
        with (broken / METRICS).open("ab") as file:
            file.write(b'{"step": 99, "epoch": 12.3, "loss": 0.12'[:torn])
        read_lines(broken / METRICS)
    metrics = Lines(broken / METRICS, kept)
    for step in range(done + 1, 13):
        metrics.write(trained(step))
    assert (whole / METRICS).read_bytes() == (broken / METRICS).read_bytes()


def test_a_run_that_goes_on_keeps_its_timing_and_says_so(tmp_path: Path) -> None:
    told = Record(tmp_path)
    tell(told, range(1, 4))
    size = told.sync()
    tell(told, range(4, 6))
    told.close()
    again = Record(tmp_path, metrics_bytes=size, step=3, tokens=93)
    tell(again, range(4, 6))
    again.close()
    assert [line["step"] for line in read_lines(tmp_path / TIMING)] == [1, 2, 3, 4, 5, 3, 4, 5]
    assert {"step": 3, "resumed": True} in read_lines(tmp_path / TIMING)
    assert [line["step"] for line in read_lines(tmp_path / METRICS)] == [1, 2, 3, 4, 4, 5]
    new = Record(tmp_path)
    assert new.sync() == 0 == (tmp_path / TIMING).stat().st_size
    new.close()


def test_a_file_that_was_shortened_is_named(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text("x")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl has 1 bytes, and had 70"):
        Record(tmp_path, metrics_bytes=70, step=3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(PlainformerError, match="/dev/full cannot be written: No space left"):
        Lines(Path("/dev/full")).write({"step": 1})


def test_a_line_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import resource; from pathlib import Path; from plainformer.train.record import Lines\n"
        f"lines = Lines(Path({str(tmp_path / 'x.jsonl')!r}), 0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (110, 110))\n"
        "for step in range(99): lines.write({'step': step, 'loss': 0.5})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot be written: File too large" in ended.stderr
    assert (tmp_path / "x.jsonl").read_text() == "".join(f'{{"step": {k}, "loss": 0.5}}\n' for k in range(4))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlainformerError, match=r"nowhere.metrics.jsonl cannot be written: No such file"):
        Record(tmp_path / "nowhere")


def test_numbers_that_json_lacks_are_texts(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "x.jsonl", 0)
    lines.write({"step": 1, "loss": float("nan"), "validation": {"loss": float("-inf")}})
    assert json.loads((tmp_path / "x.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": "nan",
        "validation": {"loss": "-inf"},
    }


@settings(max_examples=100, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back_as_they_were(tmp_path_factory: Any, value: float) -> None:
    path = tmp_path_factory.mktemp("floats") / "x.jsonl"
    Lines(path, 0).write({"loss": value})
    assert read_lines(path)[0]["loss"].hex() == value.hex()


def test_time_that_is_not_learning_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(record.time, "monotonic", lambda: now[0])
    told = Record(tmp_path)
    now[0] = 2.0
    with told.paused():
        now[0] = 50.0
    now[0] = 52.0
    told.timed(10, 400, 1.0)
    line = read_lines(tmp_path / TIMING)[0]
    assert (line["seconds"], line["tokens_per_second"], line["waiting"]) == (4.0, 100.0, 0.25)


# ---- curves


LINES = [
    {"step": 0, "epoch": 0.0, "best": False, "validation": {"loss": 2.0, "f1": 0.1}},
    {"step": 5, "epoch": 0.5, "loss": 1.0, "learning_rate": 0.1, "gradient_norm": "inf", "tokens": 7},
    {"step": 10, "epoch": 1.0, "best": True, "validation": {"loss": 1.5, "f1": 0.4}},
]


def test_curves_are_those_of_the_lines() -> None:
    assert curves_of(LINES) == {
        "loss": {"validation": [(0, 2.0), (10, 1.5)], "train": [(5, 1.0)]},
        "f1": {"validation": [(0, 0.1), (10, 0.4)]},
        "learning_rate": {"train": [(5, 0.1)]},
    }


def test_plots_are_pictures_and_always_the_same(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 11, "lo')
    drawn = draw_plots(tmp_path)
    assert [path.name for path in drawn] == ["loss.png", "f1.png", "learning_rate.png"]
    first = [path.read_bytes() for path in drawn]
    with Image.open(drawn[0]) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
        assert picture.size == (840, 480)
    assert {(0x48, 0x78, 0xA8), (0xC4, 0x4E, 0x52)} <= colours
    code = (
        f"from pathlib import Path; from plainformer.train.plots import draw_plots; draw_plots(Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, "MPLBACKEND": "svg"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert [path.read_bytes() for path in drawn] == first
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in drawn)


def test_without_the_packages_a_run_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for module in (plots, record):
        monkeypatch.setattr(module, "can_plot", lambda: False)
    with caplog.at_level("INFO"):
        told = Record(tmp_path)
        tell(told, range(1, 9))
        told.close()
    said = [each.getMessage() for each in caplog.records if each.name == "plainformer.train.record"]
    assert len(said) == 2 and "tensorboardX" in said[0] and "matplotlib" in said[1]
    assert {path.name for path in tmp_path.iterdir()} == {METRICS, TIMING}


# ---- TensorBoard


def events(folder: Path) -> list[Event]:
    """Events of TensorBoard's files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    told = Record(tmp_path)
    tell(told, range(1, 5))
    told.close()
    found = {(v.tag, e.step): v.simple_value for e in events(tmp_path / "tensorboard") for v in e.summary.value}
    assert found["train/loss", 3] == pytest.approx(0.25)
    assert found["validation/accuracy", 4] == 0.5
    assert ("timing/tokens_per_second", 2) in found and ("validation/best", 4) not in found


# ---- how often examples were seen


@pytest.mark.parametrize("packs", [False, True])
def test_seen_is_what_the_steps_had(packs: bool, tmp_path: Path) -> None:
    lengths = [3, 40, 5, 1, 7, 16, 2]
    plan = make_plan(lengths, BatchConfig(size=2), LengthConfig(epochs=3), 0, packs=packs, row_length=16)
    plan.save(tmp_path)
    assert seen(tmp_path).step == 0 and seen(tmp_path).histogram == {0: 7}
    (tmp_path / METRICS).write_text('{"step": 3, "loss": 1.0}\n')
    assert seen(tmp_path).step == 3
    (tmp_path / "last.json").write_text('{"step": 6}')
    counts = [[0] * n for n in lengths]
    for k in range(6):
        for piece in (piece for micro in plan.step(k).micro for row in micro for piece in row):
            for t in range(piece.start, lengths[piece.example] if piece.stop is None else piece.stop):
                counts[piece.example][t] += 1
    found = seen(tmp_path)
    assert found.times.tolist() == [min(each) for each in counts]
    assert found.tokens == sum(map(sum, counts)) and found.partly == sum(max(each) > min(each) for each in counts)
    assert sum(found.histogram.values()) == 7 and f"After step 6 of {plan.total_steps}" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["examples"] == 7
    done = seen(tmp_path, plan.total_steps)
    assert done.histogram == {3: 7} and "seen 3 times: 7 (100.0%)" in str(done) and done.tokens == 3 * sum(lengths)


def test_seen_needs_no_torch() -> None:
    assert "torch" not in modules_after("import plainformer.train.seen")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder of a training run"):
        seen(tmp_path)
