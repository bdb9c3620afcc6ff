"""Scores of a task's answers against the right ones, equal to the field's official scripts, and how sure they are.

`plainformer.evaluate(ref, data)` evaluates: Python gives the name `evaluate` to this package as soon as a part of it is
imported, so the package itself is what is called. See `plainformer.evaluation.evaluate`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from plainformer.evaluate.base import Metric, Scorer, Table
from plainformer.evaluate.intervals import Interval, bootstrap
from plainformer.evaluate.scorers import SCORERS, make_scorer
from plainformer.evaluate.squad import evaluate_squad, exact_match, f1

if TYPE_CHECKING:
    from plainformer.evaluation import Evaluation

__all__ = [
    "SCORERS",
    "Interval",
    "Metric",
    "Scorer",
    "Table",
    "bootstrap",
    "evaluate_squad",
    "exact_match",
    "f1",
    "make_scorer",
]


class _Called(ModuleType):
    def __call__(self, ref: Any, data: Any = None, **options: Any) -> Evaluation:
        """Return the metrics of a checkpoint's answers to rows: `plainformer.evaluation.evaluate`."""
        from plainformer.evaluation import evaluate

        return evaluate(ref, data, **options)


sys.modules[__name__].__class__ = _Called
