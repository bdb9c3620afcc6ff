"""Attention, feed-forward networks and blocks as operations on a tape: the order is that of `model/`.

Letters as there: B rows, T queries, S keys, D hidden size, H heads, K key-value heads, E channels of a head, F
feed-forward size, N relative positions of a table. A stack is that of one rank: its own heads, widths and layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from plainformer.config import NormConfig, RopeConfig, StackConfig
from plainformer.plan.operations import Operations
from plainformer.plan.tape import NEW, SAME, SAME_SUMMED, Input, Value

ATTENTION, FEED_FORWARD, NORMS, MASKS = "attention", "feed-forward", "norms and sums", "masks and rotations"


@dataclass
class Mask:
    """What is added to scores; None: nothing. `causal` takes no memory. `rows`, `heads`: 1 where it is the same for all."""

    bias: Value | None = None
    causal: bool = False


@dataclass
class Flow:
    """What goes along with the hidden states, as in `model/flow.py`.

    Attributes:
        rows, length: B and T. memory, memory_length: the encoder's output, and S of cross-attention.
        real: the attention mask, of a stack whose convolution needs it. attentions: whether probabilities are returned.
        one: whether the layer at hand computes one position of each row alone.
        kept: what the key-value cache returns for a layer, instead of its own keys and values; None without a cache.
        by_blocks: whether several queries that look back go by blocks, and how: see `blockwise.py`. tables: what they are given.
    """

    rows: int
    length: int
    masks: list[Mask]
    rotations: list[tuple[RopeConfig, Value, Value] | None]
    real: Value | None = None
    memory: Value | None = None
    memory_length: int = 0
    memory_mask: Mask = field(default_factory=Mask)
    relative: Value | None = None
    attentions: bool = False
    chunk: int = 0
    one: bool = False
    kept: Callable[[Heads, int], None] | None = None
    by_blocks: ByBlocks | None = None
    tables: dict[int, Value] = field(default_factory=dict)

    @property
    def queries(self) -> int:
        """Positions that the layer at hand computes."""
        return 1 if self.one else self.length

    def residual(self, ops: Operations, x: Value, size: int) -> Value:
        """Return what the layer's output is added to."""
        return ops.part_of(x, self.rows * size) if self.one else x


@dataclass
class Heads:
    """Queries, keys and values by head.

    `apart`: laid out head by head; then the context is, too, and merging copies it. `by_head`: keys and values are, in a cache.
    """

    q: Value
    k: Value
    v: Value
    apart: bool
    by_head: bool = False


ByBlocks = Callable[[Operations, Heads, Flow, Mask, tuple[int, int, int], float | None], Value]


def rotate(ops: Operations, x: Value, heads: int, size: int, rotation: tuple[RopeConfig, Value, Value]) -> Value:
    """Return queries or keys after their rotation."""
    rope, cos, sin = rotation
    part = x if rope.dim == size else ops.part_of(x, x.numbers // size * rope.dim)
    width = max(part.width, cos.width)
    turned = _with_table(ops, part, cos, width)
    rolled = ops.operation(part.numbers, part.width, [Input(part)])
    saved = [sin.storage if rolled.slot else None]
    whole = ops.operation(
        part.numbers, width, [Input(turned, SAME if turned.width == width else NEW), Input(rolled)], saved
    )
    del turned, rolled
    if rope.dim == size:
        return whole
    return ops.joined([whole, ops.part_of(x, x.numbers - part.numbers)])


def _with_table(ops: Operations, x: Value, table: Value, width: int) -> Value:
    return ops.operation(x.numbers, width, [Input(x)], [table.storage if x.slot else None])


class Attention:
    """One layer's attention to its own sequence."""

    def __init__(self, ops: Operations, stack: StackConfig, layer: int, name: str) -> None:
        self.ops, self.stack, self.layer, self.name = ops, stack, layer, name

    def __call__(self, x: Value, flow: Flow, dropout: float) -> Value:
        """Return what is added to x."""
        ops, s = self.ops, self.stack
        heads = self._project(x, flow)
        if flow.kept is not None:
            flow.kept(heads, self.layer)
        mask = flow.masks[self.layer]
        if s.disentangled is not None:
            mask = self._with_positions(mask, heads, flow)
        if flow.one:
            heads.q, mask = ops.part_of(heads.q, flow.rows * s.num_heads * s.head_dim), Mask(mask.bias)
        own = (s.num_heads, s.num_kv_heads, flow.length)
        if flow.by_blocks is not None and flow.queries > 1 and s.direction == "causal":
            context = flow.by_blocks(ops, heads, flow, mask, own, s.score_softcap)
        elif flow.attentions or s.score_softcap is not None:
            context = attend_eagerly(ops, heads, flow, mask, own, s.score_softcap, dropout)
        else:
            context = attend(ops, heads, flow, mask, own, dropout)
        del mask
        return ops.linear(context, f"{self.name}.out", s.num_heads * s.head_dim, s.hidden_size, s.out_bias, True)

    def _project(self, x: Value, flow: Flow) -> Heads:
        ops, s, name = self.ops, self.stack, self.name
        q_size, kv_size = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        sizes, x = {"q": q_size, "k": kv_size, "v": kv_size}, ops.entered(x)
        q, k, v = ops.group(x, f"{name}.qkv", s.hidden_size, sizes, s.qkv_bias)
        if s.qk_norm == "all":
            q = ops.norm(q, f"{name}.q_norm_all", q_size, s.norm)
            k = ops.norm(k, f"{name}.k_norm_all", kv_size, s.norm)
        apart = False
        if s.qk_norm == "head":
            q = ops.norm(q, f"{name}.q_norm", s.head_dim, s.norm)
            k = ops.norm(k, f"{name}.k_norm", s.head_dim, s.norm)
            apart = s.norm.kind == "layer"
        rotation = flow.rotations[self.layer]
        if rotation is not None:
            q = rotate(ops, q, s.num_heads, s.head_dim, rotation)
            k = rotate(ops, k, s.num_kv_heads, s.head_dim, rotation)
            apart = apart or rotation[0].dim < s.head_dim
        return Heads(q, k, v, apart)

    def _with_positions(self, mask: Mask, heads: Heads, flow: Flow) -> Mask:
        """Return DeBERTa's scores of positions as a mask."""
        ops, s, config = self.ops, self.stack, self.stack.disentangled
        assert config is not None and flow.relative is not None
        size, N = s.num_heads * s.head_dim, 2 * config.span
        table = ops.drop(flow.relative, s.dropout.positions)
        shared = {
            key: ops.linear(table, f"{self.name}.qkv.{key}", s.hidden_size, size, s.qkv_bias) for key in ("q", "k", "v")
        }
        number, held = flow.rows * s.num_heads * flow.length, [ops.new(flow.length * flow.length, 8)]
        scores = found = ops.new(1, heads.q.width)  # which are all, where positions have no terms
        for term, key, content in (("c2p", "k", heads.q), ("p2c", "q", heads.k)):
            if term not in config.terms:
                continue
            of_positions = shared[key]
            if not config.shared_projection:
                of_positions = ops.linear(table, f"{self.name}.scores.{key}", s.hidden_size, size, True)
            found = self._gathered(content.seen_as(strided=True), of_positions, number, N, flow, held)
            scores = found if scores.numbers == 1 else ops.add(scores, found)
        del held, found
        if mask.bias is not None:
            scores = ops.keeps_input(ops.add(scores, mask.bias))
        return Mask(scores)

    def _gathered(self, content: Value, positions: Value, number: int, N: int, flow: Flow, held: list[Value]) -> Value:
        """Return the scores of content and positions, each at its distance: the gradient needs the index.

        `held`: what stays until all scores are there: distances, the scores of all positions, and the last index.
        """
        ops = self.ops
        spread = ops.operation(
            flow.rows * positions.numbers, positions.width, [Input(positions, SAME_SUMMED)]
        )  # once a row
        index = ops.new(flow.length * flow.length, 8)
        scores = ops.scaled(ops.product(content, spread, number * N))
        held[1:] = [*held[1:-1], scores, index]
        return ops.operation(number * flow.length, scores.width, [Input(scores)], [scores.storage, index.storage])


class Cross:
    """One layer's attention to the encoder's output."""

    def __init__(self, ops: Operations, stack: StackConfig, layer: int, name: str) -> None:
        self.ops, self.stack, self.layer, self.name = ops, stack, layer, name

    def __call__(self, x: Value, flow: Flow, dropout: float) -> Value:
        """Return what is added to x."""
        ops, s = self.ops, self.stack
        assert flow.memory is not None
        size = s.num_heads * s.head_dim
        memory = ops.entered(flow.memory)
        q = ops.linear(ops.entered(x), f"{self.name}.q", s.hidden_size, size, s.qkv_bias)
        k, v = ops.group(memory, f"{self.name}.kv", s.hidden_size, {"k": size, "v": size}, s.qkv_bias)
        heads, own = Heads(q, k, v, False), (s.num_heads, s.num_heads, flow.memory_length)
        del q, k, v, memory
        if flow.kept is not None:
            flow.kept(heads, -1)
        if flow.attentions:
            context = attend_eagerly(ops, heads, flow, flow.memory_mask, own, None, dropout)
        else:
            context = attend(ops, heads, flow, flow.memory_mask, own, dropout)
        return ops.linear(context, f"{self.name}.out", size, s.hidden_size, s.out_bias, True)


def attend(ops: Operations, heads: Heads, flow: Flow, mask: Mask, own: tuple[int, int, int], dropout: float) -> Value:
    """Return the context by torch's fused kernel, or by steps where that kernel does not do it: dropout, learned masks."""
    H, K, S = own
    bias = mask.bias
    if ops.autocast:
        heads = Heads(ops.cast(heads.q, 2), ops.cast(heads.k, 2), ops.cast(heads.v, 2), heads.apart)
        bias = ops.cast(bias, 2) if bias is not None else None
    if not _is_fused(ops, heads.q.width, bias, K < H, dropout):
        return _attend_by_steps(ops, heads, flow, bias, mask.causal, own, dropout)
    q, k, v = heads.q, heads.k, heads.v
    more = None if ops.keeping else _kernel_needs(ops, flow, bias, q.numbers // (flow.rows * H * flow.queries), S)
    context = ops.storage(q.size)
    lse = ops.storage(flow.rows * H * flow.queries * 4)
    saved = [q.storage, k.storage, v.storage, context, lse, bias.storage if bias is not None else None]
    inputs = [Input(q), Input(k), Input(v)] + ([Input(bias)] if bias is not None else [])
    merged = ops.follow(q.numbers, q.width, context, inputs, saved, extra=q.size)
    del more
    laid_apart = heads.apart and H > 1 and flow.queries > 1
    return ops.copied(merged.seen_as(strided=laid_apart))


def _kernel_needs(ops: Operations, flow: Flow, bias: Value | None, size: int, S: int) -> list[object]:
    """What torch's kernel takes on a CPU beside its result: a mask laid out in its order, and a block of scores (a thread)."""
    rows = min(flow.queries, 256 if flow.queries >= 768 else 64 if flow.queries >= 192 else 32)
    block = ops.storage(rows * (min(S, 512) + 2 + size) * 4)
    return [block] if bias is None else [block, ops.copied(bias)]


def _is_fused(ops: Operations, width: int, bias: Value | None, grouped: bool, dropout: float) -> bool:
    """Whether torch has a kernel for it that keeps no probabilities.

    A processor's has no dropout, and no gradient of a mask. A GPU's have both, but keys that queries share only in half
    precision and without a mask (read in torch's sdp_utils.cpp, 2.13).
    """
    if ops.on_gpu:
        return not grouped or (width == 2 and bias is None)
    return dropout <= 0 and (bias is None or bias.slot is None)


def _attend_by_steps(
    ops: Operations,
    heads: Heads,
    flow: Flow,
    bias: Value | None,
    causal: bool,
    own: tuple[int, int, int],
    dropout: float,
) -> Value:
    """torch's own fallback: scores, probabilities and context one after the other, in fp32."""
    H, K, S = own
    number, width = flow.rows * H * flow.queries * S, heads.q.width
    q, k, v = (ops.cast(x, 4) for x in (heads.q, heads.k, heads.v))
    if K < H:
        k, v = (ops.operation(x.numbers * (H // K), x.width, [Input(x)]) for x in (k, v))
    else:
        v = v.seen_as(strided=True)
    q, k = ops.scaled(q).seen_as(strided=True), ops.scaled(k).seen_as(strided=True)
    scores = _product(ops, q, k, number)
    del k
    if bias is not None:
        learned = ops.cast(bias, 4)
        scores = ops.follow(number, scores.width, scores.storage, [Input(scores, SAME), Input(learned, SAME_SUMMED)])
    probabilities = ops.keeps_output(scores)
    rows_without_keys = ops.storage(number)  # torch looks for them
    del scores, rows_without_keys, q
    context = _product(ops, ops.drop(probabilities, dropout), v, heads.q.numbers)
    del probabilities, v
    return ops.copied(ops.cast(context, width).seen_as(strided=True))


def _product(ops: Operations, a: Value, b: Value, numbers: int) -> Value:
    """Return a batched product outside autocast."""
    a, b = ops.copied(a), ops.copied(b)
    saved = [a.storage if b.slot else None, b.storage if a.slot else None]
    return ops.operation(numbers, a.width, [Input(a), Input(b)], saved)


def attend_eagerly(
    ops: Operations,
    heads: Heads,
    flow: Flow,
    mask: Mask,
    own: tuple[int, int, int],
    softcap: float | None,
    dropout: float,
) -> Value:
    """Return the context computed step by step, as `model/attention.py` does for soft caps and for probabilities."""
    H, K, S = own
    number, width = flow.rows * H * flow.queries * S, heads.q.width
    q = ops.scaled(heads.q).seen_as(strided=True)
    if K < H:
        q = ops.copied(q)  # heads that share keys are the rows of one product
    k, v = (x.seen_as(strided=not heads.by_head) for x in (heads.k, heads.v))
    scores = ops.product(q, k, number)
    del q, k
    if softcap is not None:
        scores = ops.scaled(scores)
        scores = ops.keeps_output(scores)
        scores = ops.scaled(scores)
    hidden = None
    if mask.causal:
        hidden = ops.new(flow.length * S, 1)
        scores = ops.operation(number, scores.width, [Input(scores)], [hidden.storage])
    elif mask.bias is not None:
        scores = ops.add(scores, mask.bias)
        scores = ops.keeps_input(scores)
    probabilities = ops.keeps_output(scores, width=4)
    probabilities = ops.cast(probabilities, width)
    del scores, hidden
    context = ops.product(ops.drop(probabilities, dropout), v, heads.q.numbers)
    del probabilities
    return ops.copied(context.seen_as(strided=True))


class FeedForward:
    """The network at every position, all at once or a chunk after the other."""

    def __init__(self, ops: Operations, stack: StackConfig, name: str) -> None:
        self.ops, self.stack, self.name = ops, stack, name

    def __call__(self, x: Value, flow: Flow) -> Value:
        """Return what is added to x."""
        if not 0 < flow.chunk < flow.queries:
            return self._network(x)
        whole, chunk = flow.queries * flow.rows, flow.chunk * flow.rows
        counts = [(min(first + chunk, whole) - first) * self.stack.hidden_size for first in range(0, whole, chunk)]
        return self.ops.joined([self._network(part) for part in self.ops.divided(x, counts)])

    def _network(self, x: Value) -> Value:
        ops, s, name = self.ops, self.stack, self.name
        D, F, bias, x = s.hidden_size, s.ffn_size, s.ffn_bias, ops.entered(x)
        if s.ffn == "gated":
            gate, up = ops.group(x, f"{name}.gate_up", D, {"gate": F, "up": F}, bias)
            inner = ops.activation(gate, s.activation)
            inner = (
                ops.multiply(inner, up) if ops.keeping else ops.follow(inner.numbers, inner.width, inner.storage, ())
            )
            del gate, up
        else:
            inner = ops.activation(ops.linear(x, f"{name}.up", D, F, bias), s.activation)
        return ops.linear(ops.drop(inner, s.dropout.activation), f"{name}.down", F, D, bias, True)


class Block:
    """One layer: sub-layers with their norms and sums."""

    def __init__(self, ops: Operations, stack: StackConfig, layer: int, name: str) -> None:
        self.ops, self.stack, self.layer = ops, stack, layer
        number = stack.layer_ids[layer]
        self.name = f"{name}.layers.{number}"
        self.first = stack.norm if number > 0 or stack.first_norm == "norm" else None
        self.attention = Attention(ops, stack, layer, f"{self.name}.attention")
        self.cross = Cross(ops, stack, layer, f"{self.name}.cross") if stack.cross_attention else None
        self.ffn = FeedForward(ops, stack, f"{self.name}.ffn")

    def __call__(self, x: Value, flow: Flow) -> Value:
        """Return the layer's output."""
        p = self.stack.dropout
        if self.stack.residual == "parallel":
            return self._parallel(x, flow)
        x = self._sub_layer(x, "attention", p.attention_output, flow, lambda y: self.attention(y, flow, p.attention))
        if self.cross is not None:
            cross = self.cross
            x = self._sub_layer(x, "cross", p.attention_output, flow, lambda y: cross(y, flow, p.attention))
        return self._sub_layer(x, "ffn", p.ffn_output, flow, lambda y: self.ffn(y, flow))

    def _sub_layer(self, x: Value, kind: str, p: float, flow: Flow, function: Callable[[Value], Value]) -> Value:
        ops, s, place = self.ops, self.stack, self.stack.norm_place
        config = self.first if kind == "attention" else s.norm
        after = "" if kind == "cross" else "_after"  # a decoder's cross-attention has one norm
        read = x
        if place in ("pre", "both"):
            read = self._norm(x, f"{kind}_norm", config)
        with ops.named(FEED_FORWARD if kind == "ffn" else ATTENTION):
            y = function(read)
        del read
        if place == "both":
            y = self._norm(y, f"{kind}{after}_norm", s.norm)
        elif place == "branch":
            y = self._norm(y, f"{kind}_norm", config)
        with ops.named(NORMS):
            if kind == "attention":
                x = flow.residual(ops, x, s.hidden_size)
            total = ops.add(x, ops.drop(y, p))
        del x, y
        return self._norm(total, f"{kind}_norm", config) if place == "post" else total

    def _norm(self, x: Value, name: str, config: NormConfig | None) -> Value:
        with self.ops.named(NORMS):
            return self.ops.norm(x, f"{self.name}.{name}", self.stack.hidden_size, config)

    def _parallel(self, x: Value, flow: Flow) -> Value:
        ops, s = self.ops, self.stack
        read = self._norm(x, "attention_norm", s.norm)
        with ops.named(ATTENTION):
            y = ops.drop(self.attention(read, flow, s.dropout.attention), s.dropout.attention_output)
        x = flow.residual(ops, x, s.hidden_size)
        read = self._norm(x, "ffn_norm", s.norm)
        with ops.named(FEED_FORWARD):
            z = ops.drop(self.ffn(read, flow), s.dropout.ffn_output)
        del read
        with ops.named(NORMS):
            return ops.add(ops.add(z, y), x)
