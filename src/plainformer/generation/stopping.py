"""When a row of generated tokens ends, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

StopReason = Literal["eos", "stop_string", "callback", "length", "time", "exhausted"]


class TextStop(Protocol):
    """Looks for stop strings in the text of generated ids; `stop_strings.StopStrings` does."""

    def find(self, ids: Sequence[int]) -> Any | None:
        """Return what was found, or None."""


@dataclass
class Stops:
    """All that can end a row, in the order in which a reason is given when several apply.

    Attributes:
        eos_ids: tokens that end a row.
        text: stop strings, matched on text across the borders of tokens.
        callback: is given a row's generated ids, and ends it by returning True.
        limits: for each prompt, how many new tokens at most.
        max_time: seconds, from when generation began.
        agreed: what the first of several processes has decided, which have clocks and callbacks of their own.
    """

    eos_ids: frozenset[int]
    limits: tuple[int, ...]
    text: TextStop | None = None
    callback: Callable[[list[int]], bool] | None = None
    max_time: float | None = None
    started: float = field(default_factory=time.monotonic)
    agreed: Callable[[Any], Any] | None = None

    @property
    def needs_every_token(self) -> bool:
        """Whether the host must see each token as it comes, because more than end tokens and limits decides."""
        return self.text is not None or self.callback is not None or self.max_time is not None

    def reason(self, new_ids: list[int], prompt: int) -> StopReason | None:
        """Return why a row that has just got its last id ends, None where it continues."""
        if new_ids[-1] in self.eos_ids:
            return "eos"
        if self.text is not None and self.text.find(new_ids) is not None:
            return "stop_string"
        if self.callback is not None and self._decided(bool(self.callback(list(new_ids)))):
            return "callback"
        if len(new_ids) >= self.limits[prompt]:
            return "length"
        return "time" if self.out_of_time() else None

    def out_of_time(self) -> bool:
        return self.max_time is not None and self._decided(time.monotonic() - self.started >= self.max_time)

    def _decided(self, ends: bool) -> bool:
        return ends if self.agreed is None else bool(self.agreed(ends))
