"""What the evaluations of a run score: its validation rows, and the probe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plainformer.data.store import Store
from plainformer.data.survey import Hashes, Survey
from plainformer.train.draws import generator
from plainformer.train.example_losses import Integers, Scored, bytes_of, most_kept
from plainformer.train.feeder import VALIDATION, collated
from plainformer.train.plan import MicroBatch
from plainformer.training.prepared import Prepared

_DRAW = -2  # the "epoch" of the random choice of what is kept


def scored(prepared: Prepared, pin: bool = False) -> tuple[Scored, ...]:
    """Return what each evaluation scores; () without validation rows. `pin`: for a GPU."""
    if prepared.validation is None:
        return ()
    sides = [("validation", prepared.validation, prepared.evaluation)]
    if prepared.probe:
        sides.append(("probe", prepared.examples, prepared.probe))
    return tuple(_side(prepared, *side, pin) for side in sides)


def loss_bytes(prepared: Prepared) -> int:
    """Return the bytes that the losses of all evaluations will take."""
    return bytes_of(
        sum(len(examples_of(batches)) for batches in (prepared.evaluation, prepared.probe)), _count(prepared)
    )


def _count(prepared: Prepared) -> int:
    return prepared.plan.total_steps // prepared.evaluate_every + 2


def _side(prepared: Prepared, name: str, store: Store, batches: list[MicroBatch], pin: bool) -> Scored:
    seed, objective = prepared.config.seed, prepared.objective
    examples, most = examples_of(batches), most_kept(_count(prepared))
    kept = None
    if len(examples) > most:
        kept = np.sort(generator(seed, _DRAW).choice(len(examples), most, replace=False))
    return Scored(
        name,
        lambda number: collated(objective, store, batches[number], seed, VALIDATION, pin),
        len(batches),
        examples,
        units_of(_survey(prepared, "train" if name == "probe" else name), store.rows[examples]),
        kept,
    )


def examples_of(batches: list[MicroBatch]) -> Integers:
    """Return the numbers of the examples that batches have, in order."""
    return np.unique(np.array([row[0].example for batch in batches for row in batch], np.int64))


def _survey(prepared: Prepared, name: str) -> Survey:
    return next(survey for survey in prepared.rows.surveys if survey.name == name)


def units_of(survey: Survey, numbers: npt.NDArray[np.int64]) -> Hashes:
    """Return the group of each row of a source, where there are groups, else its key, (N, 2): copies are one unit."""
    hashes = survey.keys if survey.groups is None else survey.groups
    return hashes[np.searchsorted(survey.numbers, numbers)]
