"""Heads and losses as operations on a tape, in the order of `model/heads.py` and `train/losses.py`.

Letters: B rows, T positions, N labels, D hidden size, V words, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from plainformer.config import HeadConfig
from plainformer.plan.operations import Operations
from plainformer.plan.tape import FLOWING, SAME, Input, Node, Slot, Storage, Tape, Value

LOGITS = "logits and loss"
SCORES_AT_ONCE = 1 << 24  # numbers that a chunk's scores may have, as in `train/losses.py`


@dataclass(frozen=True)
class LossSizes:
    """What the loss is made of.

    Attributes:
        kind: "words", "token", "labels", "span", "choice", "ctc".
        labels: N of words and tagged tokens; characters of all texts of CTC. choices: of each question.
        smoothing, robust: whether there are any. form: of "labels": "single_label", "multi_label", "regression" or "huber".
        chunk: labels scored at a time; None: as `train`, 0: all.
        most_letters: of CTC, the longest text.
    """

    kind: str
    labels: int = 0
    choices: int = 0
    smoothing: bool = False
    robust: bool = False
    form: str = "single_label"
    chunk: int | None = None
    most_letters: int = 0


class HeadRun:
    """A head on a tape. `rows`: of the vocabulary that this rank has, where ranks share it; 0: all."""

    def __init__(self, ops: Operations, config: HeadConfig, hidden_size: int, rows: int = 0) -> None:
        self.ops, self.config, self.hidden_size = ops, config, hidden_size
        self.own = rows or config.out_size

    @property
    def is_shared(self) -> bool:
        """Whether ranks have rows of the vocabulary each."""
        return self.own < self.config.out_size

    @property
    def size(self) -> int:
        """Width of what the output layer reads."""
        return self.config.transform_size or self.hidden_size

    def transform(self, x: Value) -> Value:
        """Return what the output layer reads."""
        ops, c = self.ops, self.config
        if c.scale != 1.0:
            x = ops.scaled(x)
        x = ops.drop(x, c.dense_dropout)
        if c.transform_size:
            x = ops.linear(x, "head.dense", self.hidden_size, c.transform_size, c.transform_bias)
            x = ops.activation(x, c.transform_activation)
        return ops.drop(ops.norm(x, "head.norm", self.size, c.transform_norm), c.dropout)

    def score(self, x: Value) -> Value:
        """Return logits of vectors that were picked."""
        ops, c = self.ops, self.config
        x = self.transform(x)
        if not c.out_size:
            return x
        logits = ops.linear(ops.entered(x) if self.is_shared else x, "head.out", self.size, self.own, c.out_bias)
        if self.is_shared:  # every rank gets all words' scores
            count = logits.numbers // self.own
            parts = ops.storage(ops.parts * count * -(-c.out_size // ops.parts) * logits.width)
            logits = ops.operation(count * c.out_size, logits.width, [Input(logits, SAME)])
            del parts
        return ops.scaled(ops.keeps_output(ops.scaled(logits))) if c.softcap is not None else logits

    def mix(self, states: list[Value]) -> Value:
        """Return the weighted sum of all layers' outputs."""
        ops, total = self.ops, None
        weights = ops.keeps_output(ops.weight("head.layer_weights", self.config.mixed_states))
        total = ops.new(states[0].numbers, states[0].width)
        for state in states:
            one = ops.follow(1, weights.width, weights.storage, [Input(weights)])
            total = ops.add(ops.multiply(state, one), total)
        return total

    def pick(self, x: Value, rows: int, real: Value | None) -> Value:
        """Return the vectors that are scored: all, or one for each row."""
        ops, how, numbers = self.ops, self.config.pick, rows * self.hidden_size
        if how == "all":
            return x
        if how == "mean":
            if real is None:
                return ops.operation(numbers, x.width, [Input(x)])
            weights = ops.new(real.numbers, x.width)
            total = ops.operation(numbers, x.width, [Input(ops.multiply(x, weights))])
            return ops.operation(numbers, x.width, [Input(total)], [ops.storage(rows * x.width)])
        if how in ("first", "last") and real is None:
            return ops.follow(numbers, x.width, x.storage, [Input(x)])
        index = [ops.storage(rows * 8), ops.storage(rows * 8)]
        return ops.operation(numbers, x.width, [Input(x)], index)

    def __call__(self, x: Value, rows: int, real: Value | None) -> Value:
        """Return logits, or a pooler's output."""
        ops, c = self.ops, self.config
        if c.pick != "first_two":
            return self.score(self.pick(x, rows, real))
        numbers = rows * self.hidden_size
        both = [
            ops.linear(
                ops.follow(numbers, x.width, x.storage, [Input(x)]), f"head.{name}", self.size, c.out_size, c.out_bias
            )
            for name in ("out", "distilled")
        ]
        return ops.scaled(ops.add(*both))


class Known(Node):
    """An operation whose gradients were made with its result."""

    __slots__ = ("made",)

    def __init__(self, output: Slot, slots: list[Slot], saved: list[Storage], made: list[Storage]) -> None:
        super().__init__(output, slots, (), saved, 0)
        self.made = made

    def run(self, tape: Tape) -> None:
        """Hand them on."""
        arrived, self.output.gradient, self.saved = self.output.gradient, None, []
        if arrived is None:
            return
        for slot in self.slots:
            tape.arrive(slot, self.made.pop(0))


def word_losses(head: HeadRun, states: Value, sizes: LossSizes) -> Value:
    """Return a loss for each label, whose scores are made a chunk at a time."""
    ops, c = head.ops, head.config
    N, V = sizes.labels, c.out_size
    chunk = max(1, SCORES_AT_ONCE // V) if sizes.chunk is None else sizes.chunk or max(1, N)
    if not head.is_shared and ops.keeping:
        return _swept(head, head.transform(states), sizes, min(chunk, N))
    cuts = [*range(0, N, chunk), N]

    def scored(x: Value) -> Value:
        return cross_entropy(ops, head.score(x), x.numbers // head.hidden_size, V, sizes)

    parts = ops.divided(states, [(b - a) * head.hidden_size for a, b in pairwise(cuts)])
    return ops.joined([scored(part) if chunk >= N else ops.again(part, scored) for part in parts])


def _swept(head: HeadRun, x: Value, sizes: LossSizes, chunk: int) -> Value:
    """The cross entropy that makes its gradients as it goes (`_LinearCrossEntropy`)."""
    ops, c, N, D, V = head.ops, head.config, sizes.labels, head.size, head.config.out_size
    weight = ops.weight("head.out.weight", D * V)
    bias = ops.weight("head.out.bias", V) if c.out_bias else None
    known = [each for each in (x, weight, bias) if each is not None and each.slot is not None]
    made = [ops.storage(each.size, FLOWING) for each in known]
    width = 2 if ops.autocast else x.width
    _sweep(ops, chunk, N, D, V, width, x, weight, c.softcap is not None)
    losses = ops.storage(N * 4)
    if not known:
        return Value(N, 4, losses, None)
    slot = Slot(N * 4)
    saved = [each for each in (x.storage, ops.storage(N * 8)) if each is not None]
    ops.nodes.append(Known(slot, [ops.used(each.slot) for each in known if each.slot is not None], saved, made))
    return Value(N, 4, losses, slot)


def _sweep(
    ops: Operations, chunk: int, N: int, D: int, V: int, width: int, x: Value, weight: Value, capped: bool
) -> None:
    """Take and give back what one chunk needs."""
    narrow = width == 2 and weight.width != 2
    matrix = ops.storage(D * V * 2) if narrow else None
    some = ops.storage(chunk * D * 2) if width == 2 and x.width != 2 else None
    half = ops.storage(chunk * V * 2) if width == 2 else None
    scores = ops.storage(chunk * V * 4)
    del half
    if capped:  # divided, capped, multiplied; squared and its complement
        divided, slope = ops.storage(chunk * V * 4), ops.storage(chunk * V * 4)
        del divided
        more = [ops.storage(chunk * V * 4)]
        del scores
        more.append(ops.storage(chunk * V * 4))
        del slope
        scores, slope = more
    log = ops.storage(chunk * V * 4)
    del scores
    half = ops.storage(chunk * V * 2) if width == 2 else None
    if width == 2:
        del log
    of_x = ops.storage(chunk * D * width) if x.slot else None
    del of_x
    product = ops.storage(D * V * 2) if narrow and weight.slot else None
    del half, product, matrix, some


def cross_entropy(ops: Operations, logits: Value, N: int, C: int, sizes: LossSizes) -> Value:
    """Return each label's cross entropy: log-probabilities are kept, and the labels."""
    logits = ops.cast(logits, 4)
    logs = ops.keeps_output(logits)
    saved = [logs.storage, ops.storage(N * 8), ops.storage(4)]
    if sizes.smoothing:
        saved.append(ops.storage(N))
    losses = ops.operation(N, 4, [Input(logs)], saved)
    return ops.keeps_input(losses) if sizes.robust else losses


def answer_losses(ops: Operations, logits: Value, rows: int, sizes: LossSizes) -> Value:
    """Return a loss for each row: of classes, yes-or-no labels, numbers."""
    wide, form = ops.cast(logits, 4), sizes.form
    if form == "single_label":
        return cross_entropy(ops, wide, rows, wide.numbers // rows, sizes)
    if form == "multi_label":
        losses = ops.operation(wide.numbers, 4, [Input(wide)], [wide.storage, ops.storage(wide.size)])
        losses = ops.keeps_input(losses) if sizes.robust else losses
    elif form == "huber":
        losses = ops.operation(wide.numbers, 4, [Input(wide)], [wide.storage, ops.storage(wide.size)])
    else:
        losses = ops.keeps_input(ops.add(wide, ops.new(wide.numbers, 4)))
    return ops.operation(rows, 4, [Input(losses)])


def span_losses(ops: Operations, logits: Value, rows: int, length: int, padded: bool, sizes: LossSizes) -> Value:
    """Return a loss for each row: the mean of both ends'."""
    wide = ops.cast(logits, 4)
    if padded:
        wide = ops.operation(wide.numbers, 4, [Input(wide)], [ops.storage(rows * length)])
    wide = ops.copied(wide.seen_as(strided=True))
    return ops.operation(rows, 4, [Input(cross_entropy(ops, wide, 2 * rows, length, sizes))])


def ctc_losses(ops: Operations, logits: Value, rows: int, length: int, sizes: LossSizes) -> Value:
    """Return a loss for each clip: log-probabilities and the forward variables are kept."""
    logs = ops.keeps_output(ops.cast(logits, 4))
    alphas = ops.storage(rows * length * (2 * sizes.most_letters + 1) * 4)
    saved = [logs.storage, alphas, ops.storage(sizes.labels * 8), ops.storage(rows * 4)]
    losses = ops.operation(rows, 4, [Input(logs)], saved)
    return ops.operation(rows, 4, [Input(losses)])


def choice_losses(ops: Operations, logits: Value, rows: int, sizes: LossSizes) -> Value:
    """Return a loss for each question."""
    scores = ops.picked(ops.cast(logits, 4), rows * sizes.choices, rows * sizes.choices * 8)
    scores = ops.operation(scores.numbers, 4, [Input(scores)], [ops.storage(scores.numbers)])
    logs = ops.keeps_output(scores)
    right = ops.operation(rows, 4, [Input(logs)], [logs.storage, ops.storage(rows * 8)])
    return ops.keeps_input(ops.scaled(right)) if sizes.robust else ops.scaled(right)
