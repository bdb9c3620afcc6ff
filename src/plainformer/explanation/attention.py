"""What attention looks at: the weights of every head, softmax(Q K^T / sqrt(d) + mask), as the model computes them.

A model has up to three sides: "encoder" and "decoder" attend within their own sequence; "cross" is the decoder that attends
to the encoder's output. A head is written L.H (layer and head from 0): of the stack that the head of the model reads, as in
`mask-head=L.H`; "encoder.L.H", "decoder.L.H" and "cross.L.H" name the side.

Shapes: L layers, H heads, T positions (queries), S positions (keys), N queries that count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from plainformer.config.values import check_whole
from plainformer.errors import InputError, UsageError, did_you_mean, opt
from plainformer.model.attention import CrossAttention, SelfAttention
from plainformer.model.transformer import Transformer

SideName = Literal["encoder", "decoder", "cross"]
Kind = Literal["itself", "previous", "next", "first", "special", "spread"]
SIDES: tuple[SideName, ...] = ("encoder", "decoder", "cross")
STRONGEST = 3  # links that a summary names
MAX_WEIGHTS = 5_000_000  # of all maps together: as Python numbers they take 200 MB
MAX_LAYER = 2**29  # weights of one layer: 2 GiB
# The share of its attention that a head must give to one kind of key to be called by it.
HALF = 0.5


@dataclass(frozen=True)
class Sequenced:
    """The tokens (or patches, frames) on one end of attention, and which of them are special."""

    texts: tuple[str, ...]
    special: tuple[bool, ...]


@dataclass(frozen=True)
class AttentionSide:
    """A side of the model: its layers and heads, and what looks (queries, T) at what (keys, S)."""

    name: SideName
    layers: int
    heads: int
    queries: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A query that looks at a key: their places, from 0, and the weight."""

    query: int
    key: int
    weight: float


@dataclass(frozen=True)
class _Head:
    """A head's place in the model, layer and head from 0."""

    side: SideName
    layer: int
    head: int

    @property
    def name(self) -> str:
        """Return the head as it is written: "decoder.3.5"."""
        return f"{self.side}.{self.layer}.{self.head}"


@dataclass(frozen=True)
class HeadSummary(_Head):
    """What one head looks at, on average over the queries that have a choice (a decoder's first token sees itself alone).

    Attributes:
        kind: the kind of key that gets at least half of the attention; "spread" where none does.
        entropy: in nats: 0 looks at one key, ln S at all alike.
        first: the share of the first key. special: of special tokens other than the first.
        itself, previous, next: the shares of the query's own token and its neighbours; None across two sequences.
        strongest: the largest weights, best first.
    """

    kind: Kind
    entropy: float
    first: float
    special: float
    itself: float | None
    previous: float | None
    next: float | None
    strongest: tuple[Link, ...]


@dataclass(frozen=True)
class AttentionMap(_Head):
    """The weights of one head, (T, S): `weights[i][j]` is how much query i looks at key j; each row sums to 1."""

    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Attention:
    """The attention of one pass: all heads in a summary, and the maps that were asked for."""

    sides: tuple[AttentionSide, ...]
    heads: tuple[HeadSummary, ...]
    maps: tuple[AttentionMap, ...] = ()

    def side(self, name: str) -> AttentionSide:
        """Return a side by its name."""
        return next(side for side in self.sides if side.name == name)

    def map(self, which: str) -> AttentionMap:
        """Return the map of a head: "decoder.3.5", or "3.5" where one map alone has that layer and head.

        Raises:
            UsageError: there is no such map.
        """
        found = [one for one in self.maps if which in (one.name, f"{one.layer}.{one.head}")]
        if len(found) != 1:
            what = f"{len(found) or 'no'} maps are called {which!r}"
            hint = did_you_mean(which, [one.name for one in self.maps])
            raise UsageError(what, hint or f"name them when you explain: {opt('attention', which)}")
        return found[0]


Wanted = Callable[[SideName, int, int], bool]


def wanted_heads(model: Transformer, asked: bool | str | Sequence[str]) -> Wanted:
    """Return which heads' maps are wanted: of True none (a summary alone), of "all" every one, else those that are named.

    Raises:
        UsageError: a name that does not name a head of this model.
    """
    if isinstance(asked, bool):
        return lambda *head: False
    names = [asked] if isinstance(asked, str) else list(asked)
    if names == ["all"]:
        return lambda *head: True
    chosen = {find_head(model, name, opt("attention", name), also='"all", ') for name in names}
    return lambda *head: head in chosen


def read_attention(
    model: Transformer,
    inputs: Mapping[str, Tensor],
    sequences: Mapping[str, Sequenced],
    wanted: Wanted,
    map_size: int | None = None,
) -> Attention:
    """Run the model once, and return what every head looks at.

    Args:
        inputs: one row, as `Transformer.forward` takes it. sequences: "encoder" and "decoder", those that the model has.
        map_size: keep only the first queries and keys of each map, this many.
    Raises:
        UsageError: the maps would take too much memory. InputError: one layer would.
    """
    if map_size is not None:
        check_whole("map_size", map_size)
    sides = tuple(_sides(model, sequences))
    _check_size(sides, wanted, map_size)
    summaries: list[HeadSummary] = []
    maps: list[AttentionMap] = []

    def keep(side: AttentionSide, layer: int, weights_HTS: Tensor) -> None:
        special = sequences["encoder" if side.name == "cross" else side.name].special
        causal = side.name != "cross" and getattr(model, side.name).causal
        summaries.extend(_summaries(side.name, layer, weights_HTS, special, causal))
        for head, weights_TS in enumerate(weights_HTS[:, :map_size, :map_size]):
            if wanted(side.name, layer, head):
                rows = tuple(map(tuple, weights_TS.tolist()))
                maps.append(AttentionMap(side.name, layer, head, rows))

    with _watched(model, {side.name: side for side in sides}, keep):
        model(**inputs, output_attentions=True)
    order = {name: place for place, name in enumerate(SIDES)}
    summaries.sort(key=lambda one: (order[one.side], one.layer, one.head))
    maps.sort(key=lambda one: (order[one.side], one.layer, one.head))
    return Attention(sides, tuple(summaries), tuple(maps))


def _sides(model: Transformer, sequences: Mapping[str, Sequenced]) -> Iterator[AttentionSide]:
    for name in SIDES:
        stack = model.encoder if name == "encoder" else model.decoder
        if stack is None or (name == "cross" and not stack.config.cross_attention):
            continue
        queries = sequences["decoder" if name == "cross" else name].texts
        keys = sequences["encoder" if name == "cross" else name].texts
        yield AttentionSide(name, stack.config.num_layers, stack.config.num_heads, queries, keys)


def _check_size(sides: Sequence[AttentionSide], wanted: Wanted, map_size: int | None) -> None:
    total = 0
    for side in sides:
        layer = side.heads * len(side.queries) * len(side.keys)
        if layer > MAX_LAYER:
            sizes = f"{side.heads} heads x {len(side.queries):,} x {len(side.keys):,}"
            what = f"the attention of one layer, {sizes} weights, takes {4 * layer / 2**30:.1f} GiB"
            raise InputError(what, "give a shorter text: attention grows with the square of its length")
        heads = sum(wanted(side.name, layer, head) for layer in range(side.layers) for head in range(side.heads))
        total += heads * len(side.queries[:map_size]) * len(side.keys[:map_size])
    if total > MAX_WEIGHTS:
        what = f"the maps of these heads are {total:,} numbers, more than {MAX_WEIGHTS:,}"
        raise UsageError(what, "name fewer heads, or give a shorter input")


@contextmanager
def _watched(
    model: Transformer, sides: Mapping[str, AttentionSide], keep: Callable[[AttentionSide, int, Tensor], None]
) -> Iterator[None]:
    """While open, give each layer's weights to `keep` and let go of them: of long inputs they do not fit together."""

    def note(side: AttentionSide, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        context, weights_BHTS = output
        keep(side, args[1], weights_BHTS[0].float())
        return context, None

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, SelfAttention | CrossAttention):
                stack = name.split(".")[0]
                side = sides["cross" if isinstance(module, CrossAttention) else stack]
                hooks.enter_context(module.register_forward_hook(partial(note, side)))
        yield


def _summaries(
    side: SideName, layer: int, weights_HTS: Tensor, special: Sequence[bool], causal: bool
) -> Iterator[HeadSummary]:
    queries = weights_HTS.size(1)
    start = 1 if causal and queries > 1 else 0  # the first token of a decoder sees itself alone
    w_HNS = weights_HTS[:, start:]
    entropy_H = torch.special.entr(w_HNS).sum(-1, dtype=torch.float64).mean(-1).tolist()
    others = torch.tensor(special, device=w_HNS.device)
    others[:1] = False
    first_H, special_H = w_HNS[..., 0].mean(-1).tolist(), w_HNS[..., others].sum(-1).mean(-1).tolist()
    near: list[list[float | None]] = []
    for distance in (0, -1, 1):
        near.append([None] * len(w_HNS) if side == "cross" else _diagonal(weights_HTS, distance, start))
    best = w_HNS.flatten(1).topk(min(STRONGEST, w_HNS[0].numel()))
    for head, places in enumerate(best.indices.tolist()):
        itself, previous, following = (values[head] for values in near)
        shares = {"itself": itself, "previous": previous, "next": following}
        kind = _kind({**shares, "first": first_H[head], "special": special_H[head]})
        links = tuple(
            Link(start + place // w_HNS.size(-1), place % w_HNS.size(-1), weight)
            for place, weight in zip(places, best.values[head].tolist(), strict=True)
        )
        yield HeadSummary(
            side, layer, head, kind, entropy_H[head], first_H[head], special_H[head], **shares, strongest=links
        )


def _diagonal(weights_HTS: Tensor, distance: int, start: int) -> list[float | None]:
    """Return the mean weight of the key at that distance, over the queries that have one."""
    values_HN = weights_HTS.diagonal(distance, -2, -1)
    values_HN = values_HN[:, max(0, start + min(distance, 0)) :]
    return [0.0] * len(weights_HTS) if values_HN.size(-1) == 0 else values_HN.mean(-1).tolist()


def _kind(shares: Mapping[Any, float | None]) -> Kind:
    name, most = max(((name, share or 0.0) for name, share in shares.items()), key=lambda one: one[1])
    return name if most >= HALF else "spread"


def find_head(
    model: Transformer, name: str, said: str, sides: Sequence[SideName] = SIDES, *, also: str = ""
) -> tuple[SideName, int, int]:
    """Return side, layer and head of a name, "L.H" or "side.L.H"; without a side, it is the stack that the model's head reads.

    Args:
        said: how a message names the option and its value. sides: those that may be named. also: what else may be written.
    Raises:
        UsageError: the name is not a head's, or this model has no such head.
    """
    found = re.fullmatch(r"(?:(\w+)\.)?([0-9]+)\.([0-9]+)", name)
    stacks: dict[Any, Any] = {"encoder": model.encoder, "decoder": model.decoder}
    stacks["cross"] = model.decoder if model.decoder is not None and model.decoder.config.cross_attention else None
    there = [side for side in sides if stacks[side] is not None]
    own: SideName = "decoder" if model.decoder is not None else "encoder"
    side = next((one for one in there if one == ((found and found[1]) or own)), None)
    if side is None:
        raise UsageError(f"{said}: this model has no {found and found[1]!r}", f"it has {' and '.join(there)}")
    layers, heads = stacks[side].config.num_layers, stacks[side].config.num_heads
    known = f"layers are 0 to {layers - 1}, heads 0 to {heads - 1}"
    if found is None:
        raise UsageError(f"{said} does not name a head", f"write L.H, {also}or {there[-1]}.L.H: {known}")
    layer, head = int(found[2]), int(found[3])
    if layer >= layers or head >= heads:
        raise UsageError(f"{said}: there is no such head", known)
    return side, layer, head
