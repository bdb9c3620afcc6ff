"""A model by its sizes: what a plan is made for, whatever it was named by. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plainformer.config import ModelConfig

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

Ref = str | os.PathLike[str]


@dataclass(frozen=True)
class Described:
    """A model by its sizes.

    Attributes:
        name: what it is called. stored: of a GGUF file, the dtype of each parameter by name.
        run: whose model it is, and which says what is asked of it. notes: where its sizes are from, where that has to be said.
    """

    name: str
    config: ModelConfig
    stored: Mapping[str, str] = field(default_factory=dict)
    run: TrainConfig | None = None
    notes: tuple[str, ...] = ()
