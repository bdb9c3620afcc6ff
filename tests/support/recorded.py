"""What an older reference release generated (`tests/record_old_generation.py`), and the models that it did so with."""

from __future__ import annotations

import json
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

from plainformer.loading import load_model
from plainformer.model.transformer import Transformer
from tests.support import ROOT
from tests.support.record_old_generation import make_model

FOLDER = ROOT / "tests/generation/vectors"
OURS = {"eos_token_id": "eos_ids"}


def cases(name: str) -> list[dict[str, Any]]:
    """The recorded cases; their options are called as ours are."""
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["cases"]
    for case in found:
        case["options"] = {OURS.get(key, key): value for key, value in case["options"].items()}
    return found


def label(case: dict[str, Any]) -> str:
    return f"{case['model']}-{case['seed']}-{len(case['prompt'])}"


@cache
def pair(name: str, seed: int) -> tuple[Any, Transformer]:
    """The reference's model of that name and seed, and ours of the same weights."""
    reference = make_model(name, seed)
    with TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        return reference, load_model(folder, backend="plain")


def model(name: str, seed: int) -> Transformer:
    return pair(name, seed)[1]
