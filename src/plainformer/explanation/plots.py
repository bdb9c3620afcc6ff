"""Pictures for notebooks and papers, drawn by matplotlib (the extra `plot`). Each takes the axes to draw on, and returns them.

Nothing is shown: notebooks show a cell's last figure, a script saves it (`axes.figure.savefig("map.png")`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from plainformer.config.values import check_whole
from plainformer.errors import InputError, MissingDependencyError, UsageError, opt
from plainformer.explanation.attention import Attention
from plainformer.explanation.lens import Lens
from plainformer.explanation.one_pass import Explanation
from plainformer.explanation.page import visible
from plainformer.explanation.steps import ExplainedSteps
from plainformer.explanation.tree import beam_tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes: TypeAlias = Any

NAMED = 64  # tokens of a map that still have room for their names
COLORS = {"runs": "tab:blue", "finished": "tab:green", "pruned": "tab:gray"}


def plot_attention(found: Explanation | Attention, head: str, axes: Axes | None = None) -> Axes:
    """Draw the map of a head as a heat map: rows look at columns, and every row sums to 1.

    Args:
        found: explained with the map of this head (`attention="3.5"` or "all"). head: "3.5", "cross.0.1".
    Raises:
        UsageError: there is no such map.
    """
    attention = found.attention if isinstance(found, Explanation) else found
    if attention is None:
        raise UsageError("this explanation has no attention", f"explain with {opt('attention', head)}")
    one = attention.map(head)
    side, rows, columns = attention.side(one.side), len(one.weights), len(one.weights[0])
    axes = _axes(axes, (2 + 0.3 * min(columns, NAMED), 2 + 0.3 * min(rows, NAMED)))
    image = axes.imshow(torch.tensor(one.weights).numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.figure.colorbar(image, ax=axes, label="attention")
    if columns <= NAMED:
        axes.set_xticks(range(columns), [_name(key) for key in side.keys[:columns]], rotation=60, ha="right")
    if rows <= NAMED:
        axes.set_yticks(range(rows), [_name(query) for query in side.queries[:rows]])
    axes.set(title=one.name, xlabel="is looked at", ylabel="looks")
    return axes


def plot_lens(found: Explanation | Lens, axes: Axes | None = None) -> Axes:
    """Draw what each layer would predict: its likeliest token and probability, and that of the final prediction.

    Of an explanation with several masks, the first is drawn; give one of its `lens` for another.
    """
    if isinstance(found, Explanation):
        if not found.lens:
            raise UsageError("this explanation has no lens", f"explain with {opt('lens', True)}")
        found = found.lens[0]
    names = ["embeddings", *(f"layer {layer.layer}" for layer in found.layers[1:])]
    axes = _axes(axes, (6, 1.5 + 0.25 * len(names)))
    places = range(len(names))
    axes.barh(places, [layer.tokens[0].probability for layer in found.layers], color="tab:blue", alpha=0.4)
    predicted = f"probability of {_name(found.predicted.token)!r}"
    axes.plot([layer.probability for layer in found.layers], places, "o-", color="tab:orange", label=predicted)
    for place, layer in enumerate(found.layers):
        axes.text(0.01, place, _name(layer.tokens[0].token), va="center")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="probability", title=f"what each layer would predict after {_name(found.token)!r}")
    axes.legend(loc="lower right")
    return axes


def plot_embeddings(vectors: Any, labels: Sequence[str], axes: Axes | None = None) -> Axes:
    """Draw vectors as points in the plane of their two largest principal components; each axis says its share of variance.

    Args:
        vectors: (N, D) as a tensor or an array, N at least 3; or a list of results of an embedding task.
        labels: a name for each.
    """
    rows = [getattr(vector, "vector", vector) for vector in vectors]
    x_ND = torch.stack([torch.as_tensor(row, dtype=torch.float64).flatten() for row in rows])
    if len(x_ND) < 3:
        raise InputError(f"{len(x_ND)} vectors: a plane needs 3 or more", "give more vectors")
    if len(labels) != len(x_ND):
        raise UsageError(f"{len(labels)} labels for {len(x_ND)} vectors", "give one label for each")
    centred_ND = x_ND - x_ND.mean(0)
    _, sizes, directions = torch.linalg.svd(centred_ND, full_matrices=False)
    # The sign of a component is arbitrary: its largest number is positive, so that a picture is the same every time.
    directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    points = centred_ND @ directions[:2].T
    shares = (sizes**2 / (sizes**2).sum().clamp_min(1e-300)).tolist()
    axes = _axes(axes, (7, 6))
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy())
    for label, (x, y) in zip(labels, points.tolist(), strict=True):
        axes.annotate(_name(label, 40), (x, y), xytext=(4, 4), textcoords="offset points")
    names = [f"component {place + 1} ({100 * shares[place]:.0f} % of the variance)" for place in (0, 1)]
    axes.set(xlabel=names[0], ylabel=names[1])
    return axes


def plot_step(found: ExplainedSteps, step: int = 1, row: int = 0, axes: Axes | None = None) -> Axes:
    """Draw a step of a generation: the probabilities of its likeliest tokens after all processors, the pick in orange.

    Args:
        step: from 1. row: of several samples or beams, which.
    """
    steps = {one.number: one for one in found.trace.steps if any(ladder.row == row for ladder in one.ladders)}
    check_whole("step", step)
    if step not in steps:
        raise UsageError(f"{opt('step', step)}: row {row} has no such step", f"it has {', '.join(map(str, steps))}")
    (ladder,) = (ladder for ladder in steps[step].ladders if ladder.row == row)
    picked = {pick.token_id for pick in steps[step].picks if pick.row == row}
    names = [_name(found.tokens.get(one.token_id, "?")) for one in ladder.final]
    axes = _axes(axes, (6, 1 + 0.35 * len(names)))
    colors = ["tab:orange" if one.token_id in picked else "tab:blue" for one in ladder.final]
    axes.barh(range(len(names)), [one.probability for one in ladder.final], color=colors)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="probability after all processors", title=f"step {step}")
    return axes


def plot_beams(found: ExplainedSteps, axes: Axes | None = None) -> Axes:
    """Draw a beam search as a tree: each candidate with its log-probability; green has finished, grey was pruned."""
    nodes = beam_tree(found.trace)
    if not nodes:
        raise UsageError("this generation has no beams", f"generate with {opt('num_beams', 3)}")
    height = max(node.height for node in nodes)
    axes = _axes(axes, (2 * max(node.depth for node in nodes), 1 + 0.25 * height))
    for node in nodes:
        branch = node.branch
        if node.parent is not None:
            parent = nodes[node.parent]
            axes.plot([parent.depth + 0.55, node.depth - 0.05], [parent.height, node.height], color="lightgray", lw=0.8)
        text = f"{_name(found.tokens.get(branch.token_id, '?'))} {branch.log_probability:.2f}"
        axes.text(node.depth, node.height, text, color=COLORS[branch.fate], va="center")
    axes.set(xlim=(0.9, max(node.depth for node in nodes) + 1), ylim=(height + 1, -1), xlabel="step", yticks=[])
    axes.set_xticks(sorted({node.depth for node in nodes}))
    return axes


def _axes(axes: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes that were given, or those of a new figure of that size in inches."""
    if axes is not None:
        return axes
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib", "pip install matplotlib") from error
    return pyplot.subplots(figsize=tuple(min(side, 40.0) for side in size), layout="constrained")[1]


def _name(token: str, most: int = 16) -> str:
    """Return a token as text that matplotlib takes literally: a dollar sign would begin a formula."""
    text = visible(token)
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
