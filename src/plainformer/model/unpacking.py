"""Modules whose weights may lie in another layout, for inference: whoever moves, trains or loads them finds plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Unpacking(nn.Module):
    """Unpacks its weights before they are moved, cast, trained or loaded into."""

    def unpack(self) -> None:
        """Have plain weights again; does nothing where they are plain."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.unpack()  # moving or casting a blocked layout would leave it where it is
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Any:
        if mode:
            self.unpack()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)
