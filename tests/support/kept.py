"""Kept evaluations made by hand, in folders as `evaluate` leaves them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plainformer.config.yaml import write_yaml
from plainformer.evaluate import make_scorer
from plainformer.evaluate.base import Scorer, plain_values
from plainformer.evaluate.kept import Keeper, Kept

LABELS = ("bad", "good")


def keep(
    folder: Path,
    scorer: Scorer,
    pairs: Sequence[tuple[Any, Any]],
    *,
    inputs: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    order: Sequence[int] | None = None,
    more: Mapping[str, Any] | None = None,
    **info: Any,
) -> Kept:
    """Write the evaluation of pairs (reference, answer). `order`: in which they are in the data. `more`: of each prediction."""
    texts = inputs or [f"text {number}" for number in range(len(pairs))]
    with Keeper(folder, len(scorer.columns)) as keeper:
        for number in range(len(pairs)) if order is None else order:
            reference, answer = pairs[number]
            line = {
                "place": f"data line {number + 1}",
                "input": texts[number],
                "reference": reference,
                "answer": answer,
            }
            unit = None if units is None else _hash(units[number])
            keeper.add(
                plain_values({**line, **(more or {})}), scorer.row(reference, answer), _hash(texts[number]), unit
            )
        about = {
            "task": "text-classification",
            "data": {"name": "dev.tsv", "side": "validation"},
            "unit": {"name": "row" if units is None else "document"},
            "scorer": plain_values({"name": scorer.name, "settings": dict(scorer.settings())}),
            "level": 0.95,
        }
        return keeper.finish({**about, **info}, keeper.units(own=units is None))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def labelled(right: Sequence[bool], references: Sequence[int] | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Return pairs for a classifier of two labels, right or wrong as given, sure by different degrees."""
    pairs = []
    for number, is_right in enumerate(right):
        reference = number % 2 if references is None else references[number]
        answer = reference if is_right else 1 - reference
        sure = 0.55 + 0.4 * ((number * 7919) % 97) / 97
        chances = [0.0, 0.0]
        chances[answer], chances[1 - answer] = sure, 1 - sure
        pairs.append((LABELS[reference], {"label": LABELS[answer], "probabilities": chances}))
    return pairs


def run(folder: Path, right: Sequence[bool], *, seed: int = 0, side: str = "validation", **more: Any) -> Path:
    """Make a run folder that keeps an evaluation of a classifier. `rate`: a learning rate for its configuration."""
    rate = more.pop("rate", 1e-4)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "objective": "text-classification",
        "folder": str(folder),
        "seed": seed,
        "optimizer": {"learning_rate": rate},
    }
    (folder / "config.yaml").write_text(write_yaml(config))
    data = {"name": "dev.tsv", "side": side}
    keep(
        folder / "evaluations" / f"{side}-best-1",
        make_scorer("single-label", labels=LABELS),
        labelled(right),
        data=data,
        **more,
    )
    return folder


def hits(count: int, share: float, seed: int) -> list[bool]:
    """Return which of `count` answers are right, drawn."""
    return (np.random.default_rng(seed).random(count) < share).tolist()
