"""How notebooks show answers: scores as bars, spans highlighted in their text. Everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_BAR = "background:#8ab4f8;height:0.8em;width:{:.0f}px"
_MARK = "background:#fff3bf;color:#222;padding:0 2px;border-radius:3px"


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
