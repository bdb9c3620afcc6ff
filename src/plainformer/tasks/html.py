"""How notebooks show answers: tables, scores as bars, spans highlighted in their text. Everything is escaped.

Colours are transparent ones over the page's own, so that they suit light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_BAR = "background:rgba(66,133,244,0.6);height:0.8em;width:{:.0f}px"
_MARK = "background:rgba(255,193,7,0.35);color:inherit;padding:0 2px;border-radius:3px"
_TEXT = "white-space:pre-wrap;text-align:left"
_ROWS, _COLUMNS, _CHARACTERS = 60, 10, 300  # the most that a table shows


def bars(scores: Sequence[tuple[str, float]]) -> str:
    """Return a table of names with their scores, each with a bar as long as the score is beside the largest."""
    most = max((abs(score) for _, score in scores), default=0.0) or 1.0
    rows = (
        f"<tr><td style='text-align:left'>{escape(name)}</td><td>{score:.4f}</td>"
        f"<td style='text-align:left'><div style='{_BAR.format(100 * abs(score) / most)}'></div></td></tr>"
        for name, score in scores
    )
    return f"<table>{''.join(rows)}</table>"


def marked(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """Return a text with spans (start, end, note) highlighted, each with its note; those that overlap others are left out."""
    parts, reached = [], 0
    for start, end, note in sorted(spans):
        if start < reached or start >= end:
            continue
        parts.append(escape(text[reached:start]))
        parts.append(f"<mark style='{_MARK}'>{escape(text[start:end])} <small>{escape(note)}</small></mark>")
        reached = end
    return f"<div style='white-space:pre-wrap'>{''.join(parts)}{escape(text[reached:])}</div>"


def continued(prompt: str, text: str) -> str:
    """Return a generated text after its prompt, which is fainter."""
    before = f"<span style='opacity:0.6'>{escape(prompt)}</span>" if prompt else ""
    return f"<div style='{_TEXT}'>{before}{escape(text)}</div>"


def blocks(parts: Sequence[str]) -> str:
    """Return pieces of a page one below the other, each with its number."""
    shown = "".join(f"<li>{part}</li>" for part in parts[:_ROWS])
    return f"<ol start='0'>{shown}</ol>{_more(len(parts))}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows (column → value) as a table; of many rows, columns and characters the first ones."""
    names = list(dict.fromkeys(str(name) for row in rows[:_ROWS] for name in row))
    columns = names[:_COLUMNS]
    cut = ["…"] if len(names) > _COLUMNS else []
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in [*columns, *cut])
    body = []
    for row in rows[:_ROWS]:
        values = {str(name): value for name, value in row.items()}
        cells = [_cell(values.get(name)) for name in columns] + cut
        body.append("<tr>" + "".join(f"<td style='{_TEXT}'>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>{_more(len(rows))}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return escape(text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…")


def _more(count: int) -> str:
    return f"<div>… {count - _ROWS} more</div>" if count > _ROWS else ""
