"""A model by its sizes: what a plan is made for, whatever it was named by. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plainformer.config import ModelConfig
from plainformer.plan.stored import StoredFile

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

Ref = str | os.PathLike[str]


@dataclass(frozen=True)
class Described:
    """A model by its sizes.

    Attributes:
        name: what it is called.
        stored: the type of its weights in its file, or a GGUF file by its header; None where nothing is known of it.
        run: whose model it is, and which says what is asked of it. notes: where its sizes are from, where that has to be said.
    """

    name: str
    config: ModelConfig
    stored: str | StoredFile | None = None
    run: TrainConfig | None = None
    notes: tuple[str, ...] = ()
