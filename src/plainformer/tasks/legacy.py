"""Tasks whose options are still found by their steps' signatures. Goes when the last of them has a dataclass of options."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from plainformer.errors import InputError, UsageError, did_you_mean, opt
from plainformer.tasks.base import Task, _is_a_value, _windows
from plainformer.tasks.options import BATCH_SIZE


class LegacyTask(Task):
    """As `Task` was."""

    if TYPE_CHECKING:
        encode: Any
        predict: Any
        decode: Any

    def __call__(self, inputs: Any, *, batch_size: int = BATCH_SIZE, **options: Any) -> Any:  # type: ignore[override]
        """One input → one result; a list → a list; an iterator → an iterator of results, in order.

        `batch_size` inputs of like length run at once: of a list, any; of an iterator, those among the next inputs, which
        are read ahead (at first `batch_size` of them, later up to 32 times as many; with batch_size=1 none).
        """
        self._check(options)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(
                f"{opt('batch_size', batch_size)} is not a count of at least 1", f"the default is {BATCH_SIZE}"
            )
        if hasattr(inputs, "read"):
            raise InputError(f"an open file is not an input for {self.name}", "give its path or its bytes")
        if self.is_one(inputs):
            return self.run([inputs], **options)[0]
        if isinstance(inputs, list | tuple):
            return list(self._results([list(inputs)], batch_size, options))
        if isinstance(inputs, Iterable) and not _is_a_value(inputs):
            return self._results(_windows(inputs, batch_size), batch_size, options)
        raise InputError(
            f"a {type(inputs).__name__} is not an input for {self.name}", f"give {self.reads()}, or a list of them"
        )

    def _results(self, windows: Iterable[list[Any]], batch_size: int, options: dict[str, Any]) -> Iterator[Any]:
        """Results in the inputs' order, though a window's inputs run with others of their length, the longest first."""
        before = 0
        for window in windows:
            order = list(range(len(window)))
            if self.sorts(options):
                order.sort(key=lambda place: -self.size(window[place]))
            results: list[Any] = [None] * len(window)
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                own = self.options_of([before + place for place in places], options)
                for place, result in zip(places, self.run([window[place] for place in places], **own), strict=True):
                    results[place] = result
            yield from results
            before += len(window)

    def sorts(self, options: Mapping[str, Any]) -> bool:
        """Whether inputs may run in another order than they came in."""
        return True

    def options_of(self, places: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
        """The options of the inputs at these places."""
        return options

    @torch.inference_mode()
    def run(self, inputs: Sequence[Any], **options: Any) -> list[Any]:  # type: ignore[override]
        """encode → predict → decode, for one batch."""
        encoded = self.encode(inputs, **self._for(self.encode, options))
        predicted = self.predict(encoded, **self._for(self.predict, options))
        return self.decode(encoded, predicted, **self._for(self.decode, options))

    def options(self) -> dict[str, inspect.Parameter]:  # type: ignore[override]
        """The keyword options that the three steps take."""
        steps = (self.encode, self.predict, self.decode)
        found = [p for step in steps for p in inspect.signature(step).parameters.values()]
        more = (inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(self.more_options))
        return {p.name: p for p in (*found, *more) if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def _check(self, options: dict[str, Any]) -> None:
        known = self.options()
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known) if known else "it takes none"
                raise UsageError(f"{self.name} has no option {name!r}", hint or "options: " + ", ".join(known))

    def _for(self, step: Any, options: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(step).parameters
        takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        names = {*parameters, *(self.more_options if takes_more else ())}
        return {name: value for name, value in options.items() if name in names}
