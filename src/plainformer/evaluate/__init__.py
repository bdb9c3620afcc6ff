"""Scores of a task's answers against the right ones, equal to the field's official scripts, and how sure they are."""

from plainformer.evaluate.base import Metric, Scorer, Table
from plainformer.evaluate.intervals import Interval, bootstrap
from plainformer.evaluate.scorers import SCORERS, make_scorer
from plainformer.evaluate.squad import evaluate_squad, exact_match, f1

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
