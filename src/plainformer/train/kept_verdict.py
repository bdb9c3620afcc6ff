"""RUN/verdict.json: the verdict on overfitting of a run that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plainformer.errors import CheckpointError

VERDICT = "verdict.json"


def kept_verdict(folder: Path) -> dict[str, Any] | None:
    """Return what `Verdict.to_dict` gave when the run ended; None where there is none. Raises CheckpointError."""
    path = folder / VERDICT
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (OSError, ValueError, TypeError) as error:
        what = f"{path} cannot be read: {error}"
        raise CheckpointError(what, "`plainformer train --verdict RUN` finds it anew") from None
