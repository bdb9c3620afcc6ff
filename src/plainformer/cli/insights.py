"""Print what is inside a pass: attention, the reading of each layer, and the nearest words. Made for 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import write_page
from plainformer.cli.screen import shown, table

if TYPE_CHECKING:
    from plainformer.explanation import (
        Attention,
        AttentionMap,
        AttentionSide,
        ExplainedSteps,
        Explanation,
        HeadSummary,
        Lens,
        Nearest,
    )

# The kinds of heads: what the overview writes, and what it means.
KINDS = {
    "first": ("F", "first token"),
    "previous": ("P", "previous token"),
    "next": ("N", "next token"),
    "itself": ("I", "the token itself"),
    "special": ("S", "special tokens after the first"),
    "spread": ("·", "none has half of it"),
}
OVERVIEW = "overview"  # what --attention without a value asks for
HEADS_IN_LINE = 14  # of the overview
COLUMNS = 14  # of a map; a wider one lists the strongest of each row
TARGETS = 3
NAME = 12  # characters of a token beside a map
SHADES = " ░▒▓█"

_ATTENTION = (
    "What every head looks at; with L.H the map of head H of layer L (of an encoder-decoder: encoder.L.H, decoder.L.H, "
    "cross.L.H); repeat it. all: every map."
)
_LENS = "What each layer would predict as the next token (or for each mask), read by the model's own head."
_NEAREST = (
    "The words nearest to each token's embedding; with a layer's number, or last, to its hidden state after that layer."
)
_HTML = "Also write a page with pictures of all this, for a browser; with --steps, of every step and the tree of beams."


@Parameter(name="*", group="Inside the model")
@dataclass(frozen=True)
class InsightFlags:
    """What is shown of the inside of a pass, and the page."""

    attention: Annotated[list[str] | None, Parameter(negative="", help=_ATTENTION)] = None
    lens: Annotated[bool, Parameter(negative="", help=_LENS)] = False
    nearest: Annotated[str | None, Parameter(help=_NEAREST)] = None
    html: Annotated[Path | None, Parameter(help=_HTML)] = None

    def given(self) -> dict[str, bool]:
        """Return the flags, and whether each was given."""
        return {name: getattr(self, name) not in (None, False) for name in ("attention", "lens", "nearest", "html")}

    def arguments(self) -> dict[str, Any]:
        """Return what was asked for as `explain` takes it."""
        found: dict[str, Any] = {"lens": True} if self.lens else {}
        if self.attention:
            named = [name for name in self.attention if name != OVERVIEW]
            found["attention"] = named or True
        if self.nearest is not None:
            found["nearest"] = int(self.nearest) if self.nearest.isdecimal() else self.nearest
        return found


def write_insights(task: Any, given: dict[str, Any], inside: InsightFlags, steps: ExplainedSteps | None = None) -> None:
    """Write the page, if it was asked for: with every map, and the lens where the model predicts tokens."""
    if inside.html is None:
        return
    from plainformer.explanation import explain
    from plainformer.explanation.lens import has_lens
    from plainformer.explanation.page import map_size_of, to_html

    seen = {**inside.arguments(), "attention": "all", "map_size": map_size_of(task.model)}
    seen["lens"] = inside.lens or has_lens(task, given["item"])
    write_page("html", inside.html, to_html(explain(task, **given, **seen), steps))


def print_insights(out: Any, found: Explanation) -> None:
    """Print what was asked for."""
    if found.attention is not None:
        if found.attention.maps:
            for one in found.attention.maps:
                _print_map(out, one, found.attention.side(one.side))
        else:
            _print_overview(out, found.attention)
    for reading in found.lens:
        _print_lens(out, reading)
    if found.nearest:
        _print_nearest(out, found.nearest)


def _print_overview(out: Any, attention: Attention) -> None:
    for name, group in groupby(attention.heads, key=lambda head: head.side):
        side, heads = attention.side(name), list(group)
        size = f"{len(side.queries)} tokens" if name != "cross" else f"{len(side.queries)} look at {len(side.keys)}"
        out.print(f"attention, {name}: {side.layers} layers x {side.heads} heads, {size}")
        out.print("the kind of token that has at least half of a head's attention, and its percentage:")
        used = dict.fromkeys(head.kind for head in heads)
        out.print(fill("; ".join(f"{sign} {what}" for kind, (sign, what) in KINDS.items() if kind in used), 80) + "\n")
        for first in range(0, side.heads, HEADS_IN_LINE):
            columns = range(first, min(first + HEADS_IN_LINE, side.heads))
            out.print("layer " + "".join(f"{column:>5}" for column in columns))
            for layer in range(side.layers):
                cells = (_cell(heads[layer * side.heads + column]) for column in columns)
                out.print(f"{layer:>5} " + "".join(f"{cell:>5}" for cell in cells))
            out.print("")
        _print_clearest(out, side, heads)


def _cell(head: HeadSummary) -> str:
    sign = KINDS[head.kind][0]
    return sign if head.kind == "spread" else f"{sign}{100 * (_share(head) or 0):.0f}"


def _share(head: HeadSummary) -> float | None:
    return None if head.kind == "spread" else getattr(head, head.kind)


def _print_clearest(out: Any, side: AttentionSide, heads: Sequence[HeadSummary]) -> None:
    """Print the clearest head of each kind; of those that spread, the one that is nearest to a single token."""
    rows = table("head", "looks at", "share", "entropy", "strongest pair", right=("share", "entropy"))
    for kind, (_, what) in KINDS.items():
        same = [head for head in heads if head.kind == kind]
        if not same:
            continue
        best = max(same, key=lambda head: (_share(head) or 0.0, -head.entropy))
        share = _share(best)
        link = best.strongest[0]
        pair = f"{_short(side.queries[link.query], 10)} → {_short(side.keys[link.key], 10)} {link.weight:.2f}"
        what = "varying tokens" if kind == "spread" else what.removesuffix(" after the first").removeprefix("the ")
        rows.add_row(best.name, what, f"{share:.2f}" if share is not None else "", f"{best.entropy:.2f}", pair)
    out.print(rows)
    out.print("")


def _short(token: str, most: int = NAME) -> str:
    """Return a token for a place with little room."""
    return shown(token if len(token) <= most else token[: most - 1] + "…")


def _print_map(out: Any, one: AttentionMap, side: AttentionSide) -> None:
    out.print(f"attention, {one.name}: how much each token looks at the others, in percent")
    lines = _grid(one, side) if len(one.weights[0]) <= COLUMNS else _targets(one, side)
    for line in lines:
        out.print(line, markup=False)
    out.print("")


def _grid(one: AttentionMap, side: AttentionSide) -> Iterator[str]:
    """Yield the lines of a heat map; where a weight is 0 there is nothing, where it rounds to 0 a dot."""
    from rich.cells import set_cell_size

    indent = " " * (NAME + 5)
    yield indent + "".join(f"{column:>4}" for column in range(len(one.weights[0])))
    for place, row in enumerate(one.weights):
        name = set_cell_size(_plain(side.queries[place]), NAME)
        yield f"{place:>3} {name} {''.join(map(_shaded, row))}".rstrip()
    if side.queries != side.keys:
        yield "columns: " + ", ".join(_numbered(place, side.keys).strip() for place in range(len(side.keys)))


def _shaded(weight: float) -> str:
    if round(100 * weight) == 0:
        return "   ·" if weight > 0 else "    "
    return f"{SHADES[min(int(weight * 5), 4)]}{100 * weight:>3.0f}"


def _targets(one: AttentionMap, side: AttentionSide) -> Iterator[str]:
    """Yield for each token what it looks at most: the map is too wide for a line."""
    from rich.cells import set_cell_size

    yield f"({len(one.weights[0])} columns do not fit: the {TARGETS} largest of each row; --json has all)"
    for place, row in enumerate(one.weights):
        best = sorted(range(len(row)), key=lambda key: -row[key])[:TARGETS]
        parts = [f"{100 * row[key]:>3.0f} {_numbered(key, side.keys)}" for key in best if row[key] > 0]
        cells = "".join(set_cell_size(part, NAME + 8) for part in parts)
        yield f"{place:>3} {set_cell_size(_plain(side.queries[place]), NAME)} {cells}".rstrip()


def _numbered(place: int, texts: Sequence[str]) -> str:
    """Return a token with its place; a frame is called by its place alone."""
    return f"{place:>3}" if texts[place] == str(place) else f"{place:>3} {_plain(texts[place])}"


def _plain(token: str) -> str:
    """Return a token with its blanks visible, for output without markup."""
    text = token if len(token) <= NAME else token[: NAME - 1] + "…"
    return text.encode("unicode_escape").decode() if not text.isprintable() else text


def _print_lens(out: Any, reading: Lens) -> None:
    predicted = f'"{shown(reading.predicted.token)}"'
    out.print(
        f"the lens, at {reading.position} ({shown(reading.token)}): what each layer would predict; rank of {predicted}"
    )
    rows = table("layer", "rank", "likeliest", right=("layer", "rank"))
    for layer in reading.layers:
        tokens = "  ".join(f'"{shown(one.token)}" {one.probability:.2f}' for one in layer.tokens)
        rows.add_row("embeddings" if layer.layer is None else str(layer.layer), str(layer.rank), tokens)
    out.print(rows)
    out.print("the last line is the model's own prediction\n")


def _print_nearest(out: Any, found: Sequence[Nearest]) -> None:
    rows = table("#", "token", "nearest words, and the cosine", right=("#",))
    for one in found:
        near = "  ".join(f"{_short(word.token)} {word.cosine:.2f}" for word in one.neighbours)
        rows.add_row(str(one.index), shown(one.token), near)
    out.print(rows)
    out.print("")
