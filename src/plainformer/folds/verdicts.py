"""Whether the folds' runs were overfitting: what they say together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plainformer.errors import CheckpointError
from plainformer.train.verdict import verdict


def over_all(folder: Path) -> Mapping[str, Any] | None:
    """Return what the runs `fold-1` ... of a folder say together; None where losses of single examples are missing."""
    try:
        found = verdict(folder).to_dict()
    except CheckpointError:
        return None
    found.pop("folds")  # each is with its fold
    return found
