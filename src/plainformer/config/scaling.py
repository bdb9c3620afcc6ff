"""How numbers are scaled: (x - offset) / scale, one of each for every column. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plainformer.config.checks import require, require_choice
from plainformer.config.fields import Fields

SCALINGS = ("center", "standardize", "minmax")
TARGETS = "target_scaling"  # of config.json: the numbers that a regression's head answers, in units of its training


@dataclass(frozen=True)
class Scaling:
    """What scikit-learn's StandardScaler (center: `with_std=False`) or MinMaxScaler does.

    Attributes:
        kind: "center", "standardize" or "minmax", for people: the numbers say all.
        offset, scale: one of each for every column, in the data's own units.
    """

    kind: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        require_choice("kind of scaling", self.kind, SCALINGS)
        require(len(self.offset) == len(self.scale), f"{len(self.offset)} offsets and {len(self.scale)} scales")
        require(all(scale > 0 for scale in self.scale), "a scale is not above 0, and numbers are divided by it")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Scaling:
        """Read it as `to_dict` wrote it."""
        fields = Fields(content)
        return cls(fields.text("kind"), fields.numbers("offset"), fields.numbers("scale"))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        found = asdict(self)
        return {**found, "offset": list(self.offset), "scale": list(self.scale)}

    def line(self) -> str:
        """Return it as a sentence for people."""
        parts = [f"(x - {o:g}) / {s:g}" for o, s in zip(self.offset, self.scale, strict=True)]
        return f"{self.kind}: " + ", ".join(parts[:4]) + (" ..." if len(parts) > 4 else "")
