"""A row of a data set, and what its reader is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plainformer.config.training import SourceConfig
from plainformer.data.counts import Counts


class DataRow(dict[str, Any]):
    """A row, column → value, that knows its place: "train.jsonl line 7"."""

    __slots__ = ("place",)

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]], place: str) -> None:
        super().__init__(values)
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return DataRow, (dict(self), self.place)


class MediaPath(str):
    """The path of a clip or an image: what such a row holds is the file, not its name."""

    __slots__ = ()


@dataclass
class Reading:
    """What a reader of one format gets.

    Attributes:
        source: what was asked for. root: the folder that places are told from. files: what is read, in order.
        numbered: whether columns are given by number. counts: where it counts what it passes over.
    """

    source: SourceConfig
    root: Path
    files: tuple[Path, ...]
    numbered: bool = False
    counts: Counts = field(default_factory=Counts)

    def name(self, path: Path) -> str:
        """Return how messages call a file."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return path.name
