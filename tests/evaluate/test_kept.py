"""A kept evaluation gives back what was put in, and is complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plainformer.errors import InputError, UsageError
from plainformer.evaluate.base import plain_values
from plainformer.evaluate.kept import Keeper, Kept, is_kept
from plainformer.evaluate.scorers import make_scorer
from tests.support import ROOT
from tests.support.kept import keep as keep_pairs

KEYS = [bytes([n]) * 16 for n in (3, 1, 2, 1)]


def keep(folder: Path, units: list[bytes | None] | None = None) -> Kept:
    with Keeper(folder, 2) as keeper:
        for number, key in enumerate(KEYS):
            unit = None if units is None else units[number]
            keeper.add({"place": f"line {number + 1}", "answer": "é\ud800"}, (number, 0.5), key, unit)
        return keeper.finish({"task": "text-classification"}, keeper.units(own=units is None))


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    kept = keep(tmp_path / "deep" / "one")
    assert len(kept) == 4 and kept.info["n"] == 4 and kept.info["task"] == "text-classification"
    assert kept.rows.tolist() == [[0, 0.5], [1, 0.5], [2, 0.5], [3, 0.5]]
    assert np.load(kept.folder / "rows.npy").shape == (4, 2)
    lines = list(kept.predictions())
    assert [line["place"] for line in lines] == ["line 1", "line 2", "line 3", "line 4"]
    assert lines[0]["answer"] == "é\ud800" and lines[0]["key"] == KEYS[0].hex()
    assert kept.keys[0].tolist() == [int.from_bytes(KEYS[0][:8], "big"), int.from_bytes(KEYS[0][8:], "big")]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one"]


def test_units_are_numbered_by_their_hashes_and_copies_are_units_of_their_own(tmp_path: Path) -> None:
    assert keep(tmp_path / "rows").units.tolist() == [3, 0, 2, 1]
    by_unit = keep(tmp_path / "units", [b"b" * 16, b"a" * 16, b"b" * 16, b"c" * 16])
    assert by_unit.units.tolist() == [1, 0, 1, 2]


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Keeper(tmp_path / "one", 1) as keeper:
        keeper.add({}, [1.0], KEYS[0])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_earlier_one_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    keep(tmp_path / "one")
    assert len(keep(tmp_path / "one")) == 4 and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="is not an evaluation"):
        keep(tmp_path / "mine")


def test_damage_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        Kept(tmp_path)
    kept = keep(tmp_path / "one")
    assert is_kept(kept.folder) and not is_kept("x" * 300) and not is_kept("a\0b")
    info = kept.folder / "evaluation.json"
    text = info.read_text()
    info.write_text(json.dumps({**json.loads(text), "version": 99}))
    with pytest.raises(InputError, match="version 99"):
        Kept(kept.folder)
    for damaged in ("{", "", "[]", "null", '{"version": 1}', text.replace("classification", "regression")):
        info.write_text(damaged)
        with pytest.raises(InputError, match=r"evaluation.json is damaged"):
            Kept(kept.folder)
    info.write_text(text)
    assert len(Kept(kept.folder)) == 4


@pytest.mark.parametrize("name", ["predictions.jsonl", "rows.npy", "units.npy", "keys.npy"])
def test_files_are_those_that_were_written(tmp_path: Path, name: str) -> None:
    kept = keep(tmp_path / "one")
    path = kept.folder / name
    written = path.read_bytes()

    def read() -> int:
        again = Kept(kept.folder)
        readers = {"rows.npy": lambda: again.rows, "units.npy": lambda: again.units, "keys.npy": lambda: again.keys}
        return len(readers.get(name, lambda: list(again.predictions()))())

    for damaged in (b"", b"garbage", written[: len(written) // 2], written * 2, b"5\n" * 4):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged: it was changed after it was written") as caught:
            read()
        assert name in caught.value.what and "--again" in caught.value.fix
    path.unlink()
    with pytest.raises(InputError, match="is damaged: No such file"):
        read()
    path.write_bytes(written)
    assert read() == 4


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    with Keeper(tmp_path / "one", 1) as keeper:
        keeper.add({}, [1.0], KEYS[0])
        kept = keeper.finish({"data": {"name": "b\udcff \ud83d"}}, keeper.units(own=True))
    assert kept.info["data"]["name"] == "b\udcff \ud83d"


@pytest.mark.parametrize("kept_bytes", [0, 40, -9])
def test_an_array_that_was_cut_off_is_said(kept_bytes: int, tmp_path: Path) -> None:
    kept = keep(tmp_path / "one")
    path = kept.folder / "rows.npy"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(InputError, match=r"rows\.npy is damaged"):
        _ = Kept(kept.folder).rows


def test_values_become_json() -> None:
    found = plain_values({"a": np.float64(2), "b": (float("nan"), np.arange(2)), 3: np.True_})
    assert found == {"a": 2.0, "b": [None, [0, 1]], "3": True}


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from plainformer.evaluate.intervals import bootstrap
from plainformer.evaluate.kept import Keeper
from plainformer.evaluate.scorers import make_scorer
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
scorer, random = make_scorer("single-label", labels=list("abcde")), np.random.default_rng(0)
def evaluate(count):
    with Keeper(Path(sys.argv[1]) / str(count), columns=len(scorer.columns)) as keeper:
        for place in range(count):
            chances = random.dirichlet(np.ones(5))
            answer = {"label": "abcde"[int(chances.argmax())], "probabilities": chances}
            row = scorer.row("abcde"[place % 5], answer)
            keeper.add({"place": place}, row, place.to_bytes(16, "big"), (place // 3).to_bytes(16, "big"))
        bootstrap(keeper.numbers(), scorer.measure, keeper.units(own=False), resamples=20)
evaluate(1000)
Path("/proc/self/clear_refs").write_text("5")
first = peak()
evaluate(100_000)
print((peak() - first) / 2**10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_flat_with_intervals(tmp_path: Path) -> None:
    """100,000 answers with their probabilities, kept and drawn from: less than 20 MB more than 1,000."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20


def test_two_that_write_to_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer("single-label", labels=["bad", "good"], probabilities=False)
    rename, times = os.rename, 0

    def raced(old: Path, new: Path) -> None:
        """Between one's look and its rename the other has finished."""
        nonlocal times
        if Path(new) == tmp_path / "one" and times < 3:
            times += 1
            shutil.copytree(tmp_path / "other", new)
        rename(old, new)

    keep_pairs(tmp_path / "other", scorer, [("bad", {"label": "bad"})] * 2)
    monkeypatch.setattr(os, "rename", raced)
    assert len(keep_pairs(tmp_path / "one", scorer, [("bad", {"label": "bad"})] * 3)) == 3 and times == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]
