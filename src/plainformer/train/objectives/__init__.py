"""The objectives, by the name that a configuration gives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from plainformer.config.training import OBJECTIVES

if TYPE_CHECKING:
    from plainformer.train.objectives.base import Objective


def objective_class(name: str) -> type[Objective]:
    """Return the class of an objective of `config.training.OBJECTIVES`."""
    module, _, kind = OBJECTIVES[name].partition(":")
    found: type[Objective] = getattr(importlib.import_module(f"plainformer.train.objectives.{module}"), kind)
    return found
