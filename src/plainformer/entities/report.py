"""An analysis as one HTML page that needs nothing else, the entities highlighted in their texts."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from plainformer.entities.phrases import cut

if TYPE_CHECKING:
    from plainformer.entities.analysis import Analysis

TOP = 200  # rows of a table


def to_html(analysis: Analysis, *, top: int = TOP) -> str:
    """Return the page; every text of the documents is escaped. `top`: the most rows of a table."""
    from jinja2 import Environment

    source = files("plainformer.entities").joinpath("report.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=False).from_string(source)
    labels = sorted({mention.label for one in analysis.found for mention in one.mentions})
    numbers = {one.document.name: number for number, one in reversed(list(enumerate(analysis.found)))}
    return template.render(analysis=analysis, labels=labels, numbers=numbers, cut=cut, top=top)
