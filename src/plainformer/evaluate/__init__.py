"""Scores of a task's answers against the right ones, equal to the field's official scripts."""
