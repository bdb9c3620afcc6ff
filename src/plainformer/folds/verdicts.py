"""Whether the folds' runs were overfitting: one verdict of each, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def verdict_of(folder: Path) -> Mapping[str, Any] | None:
    """Return the verdict on a run; None where it kept no losses of single examples."""
    return None


def over_all(verdicts: Sequence[Mapping[str, Any] | None], folders: Sequence[Path]) -> Mapping[str, Any] | None:
    """Return what the verdicts say together; None where there is none."""
    return None
