"""What the options of all tasks have in common. Each room has its own file of options; none imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from plainformer.config.options import OptionSet, flag, option, whole

T = TypeVar("T", bound="TaskOptions")
BATCH_SIZE = 8  # on a CPU, more only need more memory: docs/decisions.md


@dataclass(frozen=True, kw_only=True)
class TaskOptions(OptionSet):
    """Options of every task."""

    batch_size: int = option(
        BATCH_SIZE, help="Inputs that run at once; with 1, each is answered as it is read.", check=whole(1)
    )

    @property
    def sorts(self) -> bool:
        """Whether inputs may run in another order than they came in."""
        return True

    def of_rows(self: T, places: Sequence[int]) -> T:
        """The options of the inputs at these places of the caller's list."""
        return self


@dataclass(frozen=True, kw_only=True)
class TextOptions(TaskOptions):
    """Options of tasks that read a text whole."""

    truncate: bool = option(False, help="Cut over-long inputs instead of refusing them.", check=flag())


__all__ = ["BATCH_SIZE", "TaskOptions", "TextOptions"]
