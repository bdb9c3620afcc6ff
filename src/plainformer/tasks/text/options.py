"""Options of the tasks that read text and answer in one pass."""

from __future__ import annotations

from dataclasses import dataclass

from plainformer.tasks.options import TextOptions


@dataclass(frozen=True, kw_only=True)
class TextClassificationOptions(TextOptions):
    """Options of text classification."""
