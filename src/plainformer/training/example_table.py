"""RUN/examples.jsonl: a line for each example of train, of what learning from it gave; written when a run ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plainformer.replacing import replacing
from plainformer.train.history import History, learnt_below
from plainformer.training.prepared import Prepared

log = logging.getLogger(__name__)
NAME, MOST = "examples.jsonl", 1_000_000  # lines; a corpus of more is not listed


def history_of(prepared: Prepared) -> History:
    """Return what keeps the losses of examples; nothing where a row has several of them, or there are too many to list."""
    count, loss = len(prepared.examples), prepared.config.loss
    kept = prepared.plan.packing is None and count <= MOST
    numbers = getattr(prepared.objective, "problem", None) == "regression"
    return History(count if kept else 0, None if numbers else learnt_below(loss))


def write_examples(prepared: Prepared, history: History, step: int, folder: Path) -> None:
    """Write the table after that many steps."""
    count = len(prepared.examples)
    if count > MOST:
        log.warning("no %s: %d examples are more than %d", NAME, count, MOST)
        return
    history.settle()
    with replacing(folder / NAME) as path, path.open("w", encoding="utf-8") as file:
        for line in _lines(prepared, history, step):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(prepared: Prepared, history: History, step: int) -> Iterator[dict[str, Any]]:
    """Yield, of each example: number, hash of its row's input, place of the row, passes that had it, and its history.

    What is not known is null: losses of rows that have several examples, and what is learnt of numbers.
    """
    survey, store = prepared.rows.surveys[0], prepared.examples
    rows = np.searchsorted(survey.numbers, store.rows)
    times = prepared.plan.seen(step)
    kept, learns = len(history.last) > 0, history.learnt_below is not None
    for i, row in enumerate(rows.tolist()):
        first, second = survey.keys[row].tolist()
        known = kept and history.last[i] == history.last[i]
        yield {
            "index": i,
            "key": f"{first:016x}{second:016x}",
            "place": survey.places[row],
            "times": int(times[i]),
            "last_loss": float(history.last[i]) if known else None,
            "first_learnt": int(history.first[i]) or None if known and learns else None,
            "forgotten": int(history.forgotten[i]) if known and learns else None,
        }
