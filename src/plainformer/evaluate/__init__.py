"""Scores of a task's answers against the right ones, equal to the field's official scripts."""

from plainformer.evaluate.squad import evaluate_squad, exact_match, f1

__all__ = ["evaluate_squad", "exact_match", "f1"]
