"""RUN/verdict.json: the verdict on overfitting of a run that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VERDICT = "verdict.json"


def kept_verdict(folder: Path) -> dict[str, Any] | None:
    """Return what `Verdict.to_dict` gave when the run ended; None where there is none."""
    path = folder / VERDICT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
