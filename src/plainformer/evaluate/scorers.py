"""The table of scorers: the metrics of each kind of task."""

from __future__ import annotations

import inspect
from typing import Any

from plainformer.config.values import check_choice
from plainformer.errors import UsageError
from plainformer.evaluate.base import Scorer
from plainformer.evaluate.labels import Choice, SingleLabel

SCORERS: dict[str, type[Scorer]] = {each.name: each for each in (SingleLabel, Choice)}


def make_scorer(name: str, **settings: Any) -> Scorer:
    """Return what scores answers of one kind of task.

    Args:
        name: in `SCORERS`. settings: what the scorer asks for; `scorer.settings()` gives them back.
    Raises:
        UsageError: an unknown name, or settings that the scorer does not have.
    """
    check_choice("scorer", name, SCORERS)
    try:
        inspect.signature(SCORERS[name]).bind(**settings)
    except TypeError as error:
        known = ", ".join(inspect.signature(SCORERS[name]).parameters) or "none"
        raise UsageError(f"the scorer {name!r} cannot be made: {error}", f"its settings: {known}") from None
    return SCORERS[name](**settings)
