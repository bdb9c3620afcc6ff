"""An evaluation of several processes: what one finds, kept and looked at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plainformer.errors import PlainformerError
from plainformer.evaluate.kept import Kept
from plainformer.evaluate.ledger import Ledger
from plainformer.evaluation import Evaluation, evaluate
from plainformer.parallel.inference import ranks_for
from tests.support.battery_cases import BATTERY
from tests.support.models import save
from tests.support.ranks import run_ranks
from tests.support.runs import classified, write_rows

EVEN = {"intermediate_size": 36}
LAYOUTS: dict[str, dict[str, int]] = {"rows": {}, "heads": {"tp": 2}, "layers": {"pp": 2}}


def _evaluated(rank: int, ref: str, data: str, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, layout in LAYOUTS.items():
        mesh = ranks_for(layout.get("tp", 1), layout.get("pp", 1), "cpu")
        asked = {"output": f"{folder}/{kind}", "mesh": mesh, "batch_size": 3, "on_error": "skip", **layout}
        found[kind] = evaluate(ref, data, **asked)
        found[f"{kind} again"] = evaluate(ref, data, **asked).read
    looked = {"test": True, "mesh": ranks_for(1, 1, "cpu"), "output": f"{folder}/looked"}
    found["looked"] = evaluate(ref, data, **looked)
    try:
        evaluate(ref, data, **{**looked, "again": True, "max_length": 9, "truncate": True})
    except PlainformerError as error:
        found["refused"] = str(error)
    return found


def test_processes_find_what_one_finds(tmp_path: Path) -> None:
    kind, changes, *_ = BATTERY["text-classification"]
    ref = save(kind, tmp_path / "model", **EVEN, **changes)
    data = write_rows(tmp_path / "rows.jsonl", classified(41))
    alone = evaluate(ref, data, output=tmp_path / "alone", batch_size=3, on_error="skip")
    ranks = run_ranks(_evaluated, 2, str(ref), str(data), str(tmp_path))
    for found in ranks:
        for kind in LAYOUTS:
            same(found[kind], alone, kind)
            assert not found[kind].read and found[f"{kind} again"]
        assert found["looked"].looks is not None and "looked at" in found["refused"]
    for kind in LAYOUTS:
        own, one = (predictions(tmp_path / name) for name in (kind, "alone"))
        assert [line["place"] for line in own] == [line["place"] for line in one]
        assert [line["reference"] for line in own] == [line["reference"] for line in one]
    assert len(Ledger().looks(Kept(tmp_path / "looked").info["data"]["identity"]).all) == 1


def same(found: Evaluation, alone: Evaluation, kind: str) -> None:
    assert found.n == alone.n == 41 and found.metrics.keys() == alone.metrics.keys(), kind
    for name, value in alone.metrics.items():
        assert found.metrics[name].value == pytest.approx(value.value, rel=1e-5, nan_ok=True), (kind, name)


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
