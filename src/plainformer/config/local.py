"""What one rank of a layout holds of a model: a smaller configuration. Torch-free.

The planner counts it, the model is built from it, loading reads just these rows, checkpoints store them: one description, so
that they cannot disagree.

    tensor parallel     a layer's heads, its feed-forward units, the rows of its vocabulary
    pipeline parallel   a range of the layers; the frontend goes with the first of a stack, the head with the last of all
    ZeRO-2, 3           some of the rows of each parameter that these have left

A parameter that several stages need - a tied table, T5's bias, ALBERT's layer - is held by each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from typing import Any, Literal

from plainformer.config.layout import Layout, Place
from plainformer.config.model import HeadConfig, ModelConfig, StackConfig
from plainformer.config.parts import TokenFrontend
from plainformer.config.shapes import shapes

STACKS = ("encoder", "decoder")
WORD_HEADS = ("causal_lm", "seq2seq_lm", "masked_lm")  # whose output layer has a row for each word

# Which dimension of a layer's parameters is divided, and by what; all others are whole on each rank.
_CUTS: tuple[tuple[str, int, Literal["heads", "kv_heads", "units"]], ...] = (
    (r"(attention\.qkv|attention\.scores|cross|cross\.kv)\.q\.(weight|bias)", 0, "heads"),
    (r"(attention\.scores|cross\.kv)\.[kv]\.(weight|bias)", 0, "heads"),
    (r"attention\.qkv\.[kv]\.(weight|bias)", 0, "kv_heads"),
    (r"attention\.q_norm_all\.(weight|bias)", 0, "heads"),
    (r"attention\.k_norm_all\.(weight|bias)", 0, "kv_heads"),
    (r"(attention|cross)\.out\.weight", 1, "heads"),
    (r"ffn\.(gate_up\.)?(gate|up)\.(weight|bias)", 0, "units"),
    (r"ffn\.down\.weight", 1, "units"),
)
_CUT = [(re.compile(rf"(encoder|decoder)\.layers\.\d+\.{pattern}"), dim, what) for pattern, dim, what in _CUTS]
# Whole, but each rank's heads give a part of the gradient alone.
_SUMMED = re.compile(r"(encoder|decoder)\.layers\.\d+\.attention\.[qk]_norm\.(weight|bias)")
_TABLE = re.compile(r"(encoder|decoder)\.frontend\.tokens\.weight")
_BIAS = re.compile(r"(encoder|decoder)\.bias\.weight")
_HEAD_ROWS = re.compile(r"head\.out\.(weight|bias)")


@dataclass(frozen=True)
class Part:
    """What a rank holds of one parameter.

    Attributes:
        name: of the parameter in the whole model; of tied ones, the one that is saved.
        shape: of the whole.
        dim, start, stop: the slice that is here; dim None: all of it.
        gradient: "own": backward gives the whole gradient of this slice; "sum": a part of it, and that of the tensor-parallel
            ranks that hold the same rows must be added.
        first: whether this rank is the first that holds the slice, and counts and saves it for the others.
    """

    name: str
    shape: tuple[int, ...]
    dim: int | None = None
    start: int = 0
    stop: int = 0
    gradient: Literal["own", "sum"] = "own"
    first: bool = True

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Return the shape of the slice."""
        if self.dim is None:
            return self.shape
        return (*self.shape[: self.dim], self.stop - self.start, *self.shape[self.dim + 1 :])


@dataclass(frozen=True)
class Local:
    """One rank's share of a model.

    Attributes:
        config: of the whole model. model: of this rank's tensor-parallel share; layers are all counted.
        layout, place: the division, and where this rank is in it.
        layers: stack → the layers that are held here.
        parts: the name under which a parameter is held here → which part of the whole model's it is.
    """

    config: ModelConfig
    layout: Layout
    place: Place

    @cached_property
    def model(self) -> ModelConfig:
        if self.layout.tp == 1:
            return self.config
        stacks: dict[str, Any] = {
            name: _narrow(stack, self.layout.tp, self.place.tp) for name, stack in _stacks(self.config)
        }
        return replace(self.config, head=_narrow_head(self.config.head, self.layout.tp, self.place.tp), **stacks)

    @cached_property
    def layers(self) -> dict[str, range]:
        ends = cuts(self.config, self.layout.pp)
        first, last = ends[self.place.pp], ends[self.place.pp + 1]
        found, before = {}, 0
        for name, stack in _stacks(self.config):
            count = stack.num_layers
            found[name] = range(min(max(first - before, 0), count), min(max(last - before, 0), count))
            before += count
        return found

    def begins(self, stack: str) -> bool:
        """Return whether this rank has a stack's first layer, and with it the frontend."""
        return 0 in self.layers[stack]

    def ends(self, stack: str) -> bool:
        """Return whether this rank has a stack's last layer, and with it the final norm."""
        return bool(self.layers[stack]) and self.layers[stack].stop == dict(_stacks(self.config))[stack].num_layers

    @property
    def is_last(self) -> bool:
        """Return whether the head is here."""
        return self.place.pp == self.layout.pp - 1

    @cached_property
    def tied(self) -> tuple[tuple[str, str], ...]:
        """Pairs of names held here that are one tensor: the second is the one that is kept."""
        kept: dict[str, str] = {}  # the whole model's name → the first that is held here
        pairs = []
        sources = dict(self.config.tied)
        # In the order of the model's modules, in which its parameters have the first of their names; sources come first.
        order = ("encoder", "decoder", "head")
        names = sorted({*sources, *sources.values()}, key=lambda name: (order.index(name.partition(".")[0]), name))
        for name in sorted(names, key=lambda name: name in sources):
            if self.holds(name):
                first = kept.setdefault(sources.get(name, name), name)
                pairs += [(name, first)] if first != name else []
        return tuple(pairs)

    def rows(self, part: Part) -> tuple[int, int] | None:
        """Return which rows of a part ZeRO leaves here: the first, and the one after the last; None where it leaves all."""
        layout = self.layout
        if layout.zero < 2 or layout.dp == 1 or not part.shape:
            return None
        return chunk_rows(part.local_shape[0], layout.dp, self.place.dp)

    def holds(self, name: str) -> bool:
        """Return whether a parameter of the whole model, by any of its names, is held here under that name."""
        if name.startswith("head."):
            return self.is_last
        stack, _, rest = name.partition(".")
        what, _, rest = rest.partition(".")
        if what == "layers":
            return int(rest.partition(".")[0]) in self._layer_ids[stack]
        if what in ("frontend", "local"):
            return self.begins(stack)
        return self.ends(stack) if what == "norm" else bool(self.layers[stack])

    @cached_property
    def _layer_ids(self) -> dict[str, frozenset[int]]:
        """The sets of parameters of the layers that are held here."""
        return {name: frozenset(stack.layer_ids[i] for i in self.layers[name]) for name, stack in _stacks(self.config)}

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        sizes, sources = shapes(self.config), dict(self.config.tied)
        others = {name for name, _ in self.tied}
        names = [*sizes, *(name for name in sources if name not in sizes)]
        return {
            name: self._part(name, sources.get(name, name), sizes[sources.get(name, name)])
            for name in names
            if name not in others and self.holds(name)
        }

    def part(self, name: str, shape: tuple[int, ...] = ()) -> Part:
        """Return which part is held here under any name: of a parameter, a tied one, or an adapter's, which has that shape.

        Adapters are whole on each rank, and each rank uses what belongs to its rows or columns of the weight alone.
        """
        linear, adapter, _ = name.partition(".adapter.")
        if not adapter:
            return self.parts[dict(self.tied).get(name, name)]
        weight = f"{linear}.weight"
        cut = self.layout.tp > 1 and division(self.config, weight)[0] is not None
        first = self.place.pp == self._stages[weight][0] and self.place.tp == 0
        return Part(name, shape, gradient="sum" if cut else "own", first=first)

    def of(self, name: str) -> Part:
        """Return what this rank would hold of a parameter of the whole model if it were not tied to another."""
        sizes, sources = shapes(self.config), dict(self.config.tied)
        return self._part(name, name, sizes[sources.get(name, name)])

    @cached_property
    def _stages(self) -> Mapping[str, list[int]]:
        """The stages of the pipeline that hold each parameter."""
        return _holders(self.config, self.layout)

    def _part(self, name: str, kept: str, shape: tuple[int, ...]) -> Part:
        tp, index = self.layout.tp, self.place.tp
        dim, pieces = division(self.config, name)
        first_stage = self.place.pp == self._stages[kept][0]
        if tp == 1 or dim is None:
            summed = tp > 1 and _SUMMED.fullmatch(name) is not None
            return Part(kept, shape, gradient="sum" if summed else "own", first=first_stage and index == 0)
        start, stop = rows_of(shape[dim], tp, index, pieces)
        copies = max(1, tp // pieces) if pieces else 1
        first = first_stage and index % copies == 0
        return Part(kept, shape, dim, start, stop, "sum" if copies > 1 else "own", first)


def local(config: ModelConfig, layout: Layout, rank: int) -> Local:
    """Return what a rank holds. The layout must fit the model: see `Layout.check`."""
    return Local(config, layout, layout.place(rank))


def division(config: ModelConfig, name: str) -> tuple[int | None, int]:
    """Return which dimension of a parameter tensor parallelism divides, and into how many heads it comes.

    None: it is whole on each rank. 0 heads: rows that may be divided anywhere.
    """
    if _HEAD_ROWS.fullmatch(name):
        return (0, 0) if config.head.kind in WORD_HEADS else (None, 0)
    if _TABLE.fullmatch(name):
        return 0, 0
    stack = dict(_stacks(config)).get(name.partition(".")[0])
    if stack is not None and _BIAS.fullmatch(name):
        return 1, stack.num_heads
    for pattern, dim, what in _CUT if stack is not None else ():
        if pattern.fullmatch(name):
            assert stack is not None
            return dim, {"heads": stack.num_heads, "kv_heads": stack.num_kv_heads, "units": 0}[what]
    return None, 0


def rows_of(size: int, count: int, index: int, pieces: int = 0) -> tuple[int, int]:
    """Return the first row and the one after the last that one of `count` ranks has.

    `pieces`: heads that are not divided; with fewer heads than ranks, neighbours have the same one. 0: each has
    ceil(size / count) rows, the last ones fewer.
    """
    if pieces and pieces < count:
        index, count = index * pieces // count, pieces
    return chunk_rows(size, count, index)


def chunk_rows(rows: int, count: int, index: int) -> tuple[int, int]:
    """Return the rows of one of `count` parts of ceil(rows / count), as `torch.chunk` divides; the last have fewer or none."""
    most = -(-rows // count)
    return min(index * most, rows), min((index + 1) * most, rows)


def zero1_owners(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return which of `count` ranks keeps the optimizer's states of each parameter: the largest first, to whoever has least."""
    held = [0] * count
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = held.index(min(held))
        owners[name] = owner
        held[owner] += sizes[name]
    return owners


@lru_cache(maxsize=8)  # asked for again for each rank
def _holders(config: ModelConfig, layout: Layout) -> dict[str, list[int]]:
    """Return the stages that hold each parameter of the whole model, under any of its names."""
    stages = [Local(config, layout, Place(stage, 0, 0)) for stage in range(layout.pp)]
    sources = dict(config.tied)
    names = dict.fromkeys((*shapes(config), *sources))
    held = {name: {stage.place.pp for stage in stages if stage.holds(name)} for name in names}
    for name, source in sources.items():
        held[source] |= held[name]
    return {name: sorted(stages) for name, stages in held.items()}


def shared(config: ModelConfig, layout: Layout) -> dict[str, list[int]]:
    """Return the parameters that several stages hold, with these stages: their gradients are summed."""
    if layout.pp == 1:
        return {}
    found, ties = _holders(config, layout), dict(config.tied)
    return {name: stages for name, stages in found.items() if len(stages) > 1 and name not in ties}


def cuts(config: ModelConfig, pp: int) -> list[int]:
    """Return where a pipeline is cut: stage s has the layers from the s-th number up to the next, encoder before decoder.

    The largest stage is as small as it can be, where a layer counts as its multiplications, and the head with the last.
    """
    return list(_cuts(tuple(_costs(config)), pp))


@cache  # asked for again for each parameter
def _cuts(costs: tuple[int, ...], pp: int) -> tuple[int, ...]:
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(costs, pp, middle)) <= pp:
            high = middle
        else:
            low = middle + 1
    return (0, *accumulate(_filled(costs, pp, low)))


def _filled(costs: Sequence[int], pp: int, most: int) -> list[int]:
    """Return how many layers each stage has if none may cost more than `most`; each has one at least."""
    stages, cost = [0], 0
    for place, one in enumerate(costs):
        full = stages[-1] and (cost + one > most or len(costs) - place <= pp - len(stages))
        if full:
            stages.append(0)
            cost = 0
        stages[-1] += 1
        cost += one
    return stages


def _costs(config: ModelConfig) -> list[int]:
    costs = []
    for _, stack in _stacks(config):
        q, kv = stack.num_heads * stack.head_dim, stack.num_kv_heads * stack.head_dim
        attention = stack.hidden_size * (2 * q + 2 * kv) + (4 * stack.hidden_size * q if stack.cross_attention else 0)
        ffn = stack.hidden_size * stack.ffn_size * (3 if stack.ffn == "gated" else 2)
        costs += [attention + ffn] * stack.num_layers
    costs[-1] += config.head.out_size * config.main_stack.hidden_size if config.head.pick == "all" else 0
    return costs


def _stacks(config: ModelConfig) -> Iterator[tuple[str, StackConfig]]:
    for name in STACKS:
        stack = getattr(config, name)
        if stack is not None:
            yield name, stack


def _narrow(stack: StackConfig, tp: int, index: int) -> StackConfig:
    """Return a stack's tensor-parallel share."""
    frontend = stack.frontend
    if isinstance(frontend, TokenFrontend):
        start, stop = chunk_rows(frontend.vocab_size, tp, index)
        frontend = replace(frontend, vocab_size=stop - start)
    return replace(
        stack,
        frontend=frontend,
        num_heads=stack.num_heads // tp,
        num_kv_heads=max(1, stack.num_kv_heads // tp),
        ffn_size=stack.ffn_size // tp,
    )


def _narrow_head(head: HeadConfig, tp: int, index: int) -> HeadConfig:
    if head.kind not in WORD_HEADS or not head.out_size:
        return head
    start, stop = chunk_rows(head.out_size, tp, index)
    return replace(head, out_size=stop - start)
