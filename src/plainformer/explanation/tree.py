"""The tree of a beam search, laid out: for pages and plots."""

from __future__ import annotations

from dataclasses import dataclass

from plainformer.explanation.trace_format import Branch, Trace


@dataclass(frozen=True)
class TreeNode:
    """A candidate in the tree: `parent` is the place of its parent among the nodes, None at the root's.

    `depth`: the step, from 1. `height`: where it is drawn: leaves are one apart, a parent is in the middle of its children.
    """

    branch: Branch
    parent: int | None
    depth: int
    height: float


def beam_tree(trace: Trace, most: int | None = None) -> tuple[TreeNode, ...]:
    """Return the candidates of the first `most` steps (None: of all), parents before children; none without beam search."""
    branches: list[Branch] = []
    parents: list[int | None] = []
    depths: list[int] = []
    rows: dict[int, int] = {}  # row → the node that runs in it
    for step in trace.steps[:most]:
        following: dict[int, int] = {}
        for branch in (branch for group in step.groups for branch in group.branches):
            parents.append(rows.get(branch.parent))
            depths.append(step.number)
            if branch.row is not None:
                following[branch.row] = len(branches)
            branches.append(branch)
        rows.update(following)
    columns = zip(branches, parents, depths, _heights(parents), strict=True)
    return tuple(TreeNode(*column) for column in columns)


def _heights(parents: list[int | None]) -> list[float]:
    """Return where each node is drawn, from its parent's place."""
    children: dict[int | None, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    heights = [0.0] * len(parents)
    leaves = 0
    order = list(reversed(children.get(None, [])))
    walk: list[int] = []  # parents before children; a search of thousands of steps is deeper than recursion goes
    while order:
        node = order.pop()
        walk.append(node)
        if node not in children:
            heights[node], leaves = float(leaves), leaves + 1
        order.extend(reversed(children.get(node, [])))
    for node in reversed(walk):
        if node in children:
            own = children[node]
            heights[node] = (heights[own[0]] + heights[own[-1]]) / 2
    return heights
