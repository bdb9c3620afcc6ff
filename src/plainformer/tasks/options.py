"""What the options of all tasks have in common. Each room has its own file of options; none imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from plainformer.config.options import OptionSet, flag, one_of, opt, option, whole
from plainformer.errors import UsageError

T = TypeVar("T", bound="TaskOptions")
BATCH_SIZE = 8  # on a CPU, more only need more memory: docs/decisions.md
TEXTS = 64  # that are read at once; the model takes them by tokens, see tasks/rows.py
_TEXTS_HELP = "Texts that are read at once, to run with others of their length; 1 answers each as it is read."


@dataclass(frozen=True, kw_only=True)
class TaskOptions(OptionSet):
    """Options of every task.

    on_error: "skip" puts a `Skipped` in the place of an answer that an input of its own cannot have: too long, empty,
        unreadable. What is wrong with the call itself is raised all the same.
    """

    batch_size: int = option(BATCH_SIZE, help="Inputs that run at once; 1 answers each as it is read.", check=whole(1))
    on_error: str = option(
        "stop", help="An input that cannot be answered: stop, or skip it and go on.", check=one_of("stop", "skip")
    )

    @property
    def read_ahead(self) -> int:
        """Batches of a stream that are read ahead, among which inputs of similar length are found."""
        return min(max(256 // self.batch_size, 4), 32)

    @property
    def sorts(self) -> bool:
        """Whether inputs may run in another order than they came in."""
        return True

    def of_rows(self: T, places: Sequence[int]) -> T:
        """The options of the inputs at these places of the caller's list."""
        return self


@dataclass(frozen=True, kw_only=True)
class TextOptions(TaskOptions):
    """Options of tasks that read a text whole.

    max_length: what is longer is cut with `truncate`, and refused without. Default: what the model can read; with
        `truncate` also what the tokenizer's files state.
    """

    batch_size: int = option(TEXTS, help=_TEXTS_HELP, check=whole(1))
    truncate: bool = option(False, help="Cut over-long inputs instead of refusing them.", check=flag())
    max_length: int | None = option(None, help="Tokens of an input, at most.", check=whole(1))


@dataclass(frozen=True, kw_only=True)
class WindowOptions(TaskOptions):
    """Options of tasks that read a text of any length in overlapping windows.

    `window` counts all its tokens, special ones included. Without `stride`, the task chooses the overlap.
    """

    batch_size: int = option(TEXTS, help=_TEXTS_HELP, check=whole(1))
    window: int | None = option(None, help="Tokens of a long text that are read at once.", check=whole(1))
    stride: int | None = option(None, help="Tokens that neighbouring windows over a text share.", check=whole(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.stride is not None and self.stride >= self.window:
            what = f"windows of {self.window} tokens cannot share {opt('stride', self.stride)} of them"
            raise UsageError(what, "give a smaller stride, or a longer window")


__all__ = ["BATCH_SIZE", "TaskOptions", "TextOptions", "WindowOptions"]
