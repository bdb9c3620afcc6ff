"""`plainformer.train` is a function for those who call it, and a package for those who import from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import plainformer as pf
from plainformer.config.building import as_config

Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    "before", ["", "import plainformer.train.plan", "from plainformer.train.draws import generator"]
)
def test_the_package_is_called(before: str) -> None:
    code = f"import plainformer as pf\n{before}\ntry: pf.train(3)\nexcept pf.UsageError as error: print(error)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("a configuration is not of type int")


def test_a_run_in_python(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping, a TrainConfig and a YAML file are the same run; Ctrl-C, events and the result are those of `training`."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"the cat {n}"}) + "\n" for n in range(9)))
    config = {
        "objective": "causal-lm",
        "folder": "a",
        "model": {"ref": str(tiny("text-generation"))},
        "data": {"train": {"path": "rows.jsonl"}},
        "batches": {"size": 4, "packed": False},
        "length": {"steps": 2},
    }
    kinds: list[str] = []
    found = pf.train(config, on_event=lambda event: kinds.append(event.kind))
    assert isinstance(found, pf.TrainResult) and found.ended == "done" and kinds[0] == "started"
    assert isinstance(as_config(config), pf.TrainConfig)
    pf.train(as_config({**config, "folder": "b"}))
    Path("run.yaml").write_text(json.dumps({**config, "folder": "c"}))  # JSON is YAML
    pf.train("run.yaml")
    weights = [(tmp_path / folder / "last" / "model.safetensors").read_bytes() for folder in "abc"]
    assert weights[0] == weights[1] == weights[2]
