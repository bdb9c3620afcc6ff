"""An explanation as one HTML page that needs nothing else: tokens, shapes, attention, the lens, and every step of a generation.

The page loads nothing (its own content security policy forbids it), and everything that comes from the input or the model is
escaped. What does not fit is cut, and the page says so.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch

from plainformer.explanation.tree import TreeNode, beam_tree
from plainformer.model.transformer import Transformer

if TYPE_CHECKING:
    from plainformer.explanation.attention import Attention
    from plainformer.explanation.one_pass import Explanation
    from plainformer.explanation.steps import ExplainedSteps

MAX_PIECES = 2000
MAX_STEPS = 50
MAX_NODES = 400  # of the tree
MAX_MAP_BYTES = 6 * 2**20  # of all maps on a page
MAP_SIZES = (8, 64)  # tokens of a map: at least, at most
_FEW = 8  # numbers of a vector that are shown
_LEVELS = 65535  # a weight is stored in 16 bits: to within 0.000008


@dataclass(frozen=True)
class Drawn:
    """A node of the tree on the page, in pixels, with the line from its parent."""

    x: float
    y: float
    from_x: float
    from_y: float
    label: str
    note: str
    fate: str


def map_size_of(model: Transformer) -> int:
    """Return how many tokens of each map a page has room for: the `map_size` to explain with."""
    heads = sum(
        stack.config.num_layers * stack.config.num_heads * (2 if stack.config.cross_attention else 1)
        for stack in (model.encoder, model.decoder)
        if stack is not None
    )
    least, most = MAP_SIZES
    return max(least, min(most, int((MAX_MAP_BYTES * 3 / 4 / 2 / heads) ** 0.5)))


def to_html(found: Explanation, steps: ExplainedSteps | None = None) -> str:
    """Return the page.

    Args:
        found: explained with attention="all" and a `map_size` (`map_size_of`); without maps the page has none.
        steps: a generation's steps, for the ladders and the tree of beams.
    """
    from jinja2 import Environment

    source = files("plainformer.explanation").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    tree, tree_cut = ([], False) if steps is None else _tree(steps)
    return environment.from_string(source).render(
        found=found,
        steps=steps,
        layers=_layers(found.attention) if found.attention is not None else [],
        maps=_script(_maps(found.attention)) if found.attention is not None else "",
        cuts=_cuts(found.attention) if found.attention is not None else [],
        answer=json.dumps(_short(found.answer), ensure_ascii=False, indent=1) if found.answer is not None else "",
        most_pieces=MAX_PIECES,
        most_steps=MAX_STEPS,
        tree=tree,
        tree_cut=tree_cut,
        number=_number,
    )


def framed(page: str) -> str:
    """Return a page as a part of a notebook: in a frame of its own, whose scripts and styles reach nothing outside it."""
    return f'<iframe sandbox="allow-scripts" srcdoc="{escape(page)}" style="width:100%;height:32em;border:0"></iframe>'


def _short(answer: Any) -> Any:
    """Return an answer with its vectors as the first few of their numbers, in one line."""
    if isinstance(answer, dict):
        return {name: _short(value) for name, value in answer.items()}
    if isinstance(answer, list) and len(answer) > _FEW and all(isinstance(value, float) for value in answer):
        return f"{len(answer)} numbers: {', '.join(f'{value:.4f}' for value in answer[:_FEW])}, ..."
    return [_short(value) for value in answer] if isinstance(answer, list) else answer


def visible(token: str) -> str:
    """Return a token with its blanks and control characters visible."""
    return json.dumps(token, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\\\\", "\\").replace(" ", "␣")


def _number(value: float | None) -> str:
    return "banned" if value is None else f"{value:.3f}"


def _layers(attention: Attention) -> list[Any]:
    """Return for each side its heads, a list for each layer."""
    grids = []
    for side in attention.sides:
        heads = [head for head in attention.heads if head.side == side.name]
        rows = [heads[start : start + side.heads] for start in range(0, len(heads), side.heads)]
        grids.append({"side": side, "rows": rows})
    return grids


def _maps(attention: Attention) -> dict[str, Any]:
    """Return what the page's script reads: the tokens of each side, and each map as 16-bit numbers in base 64."""
    sides: dict[str, Any] = {}
    for side in attention.sides:
        own = [one for one in attention.maps if one.side == side.name]
        if own:
            rows, columns = len(own[0].weights), len(own[0].weights[0])
            queries, keys = map(visible, side.queries[:rows]), map(visible, side.keys[:columns])
            maps = {f"{one.layer}.{one.head}": _packed(one.weights) for one in own}
            sides[side.name] = {"queries": list(queries), "keys": list(keys), "maps": maps}
    return sides


def _packed(weights: tuple[tuple[float, ...], ...]) -> str:
    levels = (torch.tensor(weights) * _LEVELS).round().clamp(0, _LEVELS).to(torch.int32)
    data = b"".join(int(level).to_bytes(2, "little") for level in levels.flatten().tolist())
    return base64.b64encode(data).decode()


def _cuts(attention: Attention) -> list[str]:
    """Return what the maps leave out, a sentence for each side."""
    cuts = []
    for side in attention.sides:
        own = next((one for one in attention.maps if one.side == side.name), None)
        rows, columns = (len(own.weights), len(own.weights[0])) if own is not None else (0, 0)
        if own is not None and (rows, columns) != (len(side.queries), len(side.keys)):
            what = f"the maps show the first {rows} of {len(side.queries)} tokens that look"
            cuts.append(f"{side.name}: {what}, and the first {columns} of {len(side.keys)} that they look at")
    return cuts


def _script(data: Any) -> str:
    """Return JSON that can be inside a script element whatever it says."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _tree(steps: ExplainedSteps) -> tuple[list[Drawn], bool]:
    """Return the tree in pixels, and whether steps were left out."""
    trace = steps.trace
    count, most = 0, 0
    for step in trace.steps:
        count += sum(len(group.branches) for group in step.groups)
        if count > MAX_NODES:
            break
        most += 1
    nodes = beam_tree(trace, most)
    return [_drawn(node, nodes, steps.tokens) for node in nodes], most < len(trace.steps) and count > 0


def _drawn(node: TreeNode, nodes: tuple[TreeNode, ...], tokens: dict[int, str]) -> Drawn:
    def place(each: TreeNode) -> tuple[float, float]:
        return 150.0 * each.depth - 140, 22.0 * each.height + 16

    x, y = place(node)
    from_x, from_y = place(nodes[node.parent]) if node.parent is not None else (x, y)
    branch = node.branch
    token = visible(tokens.get(branch.token_id, "?"))
    label = token if len(token) <= 11 else token[:10] + "…"
    end = f", finished with score {branch.score:.4f}" if branch.score is not None else f", {branch.fate}"
    note = f"{token}: log-probability {branch.log_probability:.4f}{end}"
    return Drawn(x, y, from_x, from_y, f"{label} {branch.log_probability:.2f}", note, branch.fate)
