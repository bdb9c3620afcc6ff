"""Training: what a step learns from (`plan`), what it minimises (`objectives`, `losses`), and the loop around it.

`plainformer.train(config)` trains: Python gives the name `train` to this package as soon as a part of it is imported, so the
package itself is what is called. See `plainformer.training.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig
    from plainformer.training import Event, TrainResult


class _Called(ModuleType):
    def __call__(
        self,
        config: TrainConfig | Mapping[str, Any] | str | Path,
        *,
        on_event: Callable[[Event], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> TrainResult:
        """Train a model as a configuration says: `plainformer.training.train`."""
        from plainformer.training import train

        return train(config, on_event=on_event, stop=stop)


sys.modules[__name__].__class__ = _Called
