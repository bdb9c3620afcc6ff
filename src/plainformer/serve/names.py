"""Which model a request means, and which tasks it can be asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.errors import did_you_mean
from plainformer.serve.errors import Refusal, invalid

if TYPE_CHECKING:
    from plainformer.serve.engine.capabilities import Capabilities


@dataclass(frozen=True)
class Served:
    """A served model: its name, its task (a `Task` of the library), what it can do, and when it was loaded, in Unix seconds."""

    name: str
    task: Any
    can: Capabilities
    tasks: tuple[str, ...]
    created: int

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer. Raises: UsageError, where it has none."""
        return self.task.tokenizer

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, uncut. It computes, without Python's lock: call it in a worker thread."""
        return [len(row) for row in self.tokenizer.encode_batch(list(texts), max_length=None)] if texts else []


class Names:
    """The served models by name."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self.models = models

    def find(self, name: str | None, tasks: Collection[str] = (), what: str = "") -> Served:
        """Return the model of that name, which does one of `tasks`; without a name, the first that does.

        Raises:
            Refusal: 404 for a name that is not served, 400 for a model that cannot do `what`.
        """
        what = what or "this"
        able = [model for model in self.models.values() if not tasks or set(tasks) & set(model.tasks)]
        if name is None:
            if not able:
                raise self._unable(f"no model here is for {what}", able)
            return able[0]
        model = self.models.get(name)
        if model is None:
            hint = did_you_mean(name, self.models) or "see /v1/models"
            raise Refusal(404, f"there is no model {name[:200]!r}\n  → {hint}", code="model_not_found", param="model")
        if model not in able:
            raise self._unable(f"the model {name!r} is for {model.can.task}, not for {what}", able)
        return model

    def _unable(self, why: str, able: list[Served]) -> Refusal:
        fix = (
            f"ask {' or '.join(repr(one.name) for one in able)}"
            if able
            else "start the server with a model for it: serve NAME=REF"
        )
        return invalid(f"{why}\n  → {fix}", "model", "wrong_task")
