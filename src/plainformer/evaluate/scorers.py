"""The table of scorers: the metrics of each kind of task."""

from __future__ import annotations

import inspect
from typing import Any

from plainformer.config.values import check_choice
from plainformer.errors import UsageError
from plainformer.evaluate.base import Scorer
from plainformer.evaluate.entities import Entities
from plainformer.evaluate.labels import Choice, SingleLabel
from plainformer.evaluate.language import Language
from plainformer.evaluate.masked import Masked
from plainformer.evaluate.questions import Squad
from plainformer.evaluate.regression import Regression
from plainformer.evaluate.several import MultiLabel
from plainformer.evaluate.speech import Speech
from plainformer.evaluate.tags import Tags
from plainformer.evaluate.text import Text

_ALL = (SingleLabel, MultiLabel, Regression, Entities, Squad, Choice, Text, Speech, Language, Masked, Tags)
SCORERS: dict[str, type[Scorer]] = {each.name: each for each in _ALL}


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
