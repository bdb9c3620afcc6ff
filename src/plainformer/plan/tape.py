"""What automatic differentiation keeps, and when: a computation without numbers, of which only bytes are counted.

`Value` stands for a tensor: how many numbers of how many bytes, and its `Storage`. An operation (`operations.py`) makes a
new value, says which storages its gradient will need, and `Tape.backward` goes through the operations in reverse as torch's
engine does. A storage counts as long as Python refers to it, which is the rule by which torch frees memory, too; so code
that is written in the order of the model's own lets go of a value where the model does.

The rules are those of torch's `derivatives.yaml`; tests compare with `saved_tensors_hooks` and with the allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Meter:
    """Counts what is alive, by the name of its part, and remembers what there was when it was most.

    Attributes:
        now, peak: bytes. live, top: part → bytes, now and at the peak since `restart`.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.live: dict[str, int] = {}
        self.top: dict[str, int] = {}
        self._rising = True

    def restart(self) -> None:
        """Begin a phase: what is alive is its peak so far."""
        self.peak, self.top, self._rising = self.now, dict(self.live), True

    def change(self, size: int, part: str) -> None:
        """Count bytes that are taken (above 0) or given back."""
        if size < 0 and self._rising:
            self._keep()
        self.now += size
        self.live[part] = self.live.get(part, 0) + size
        if self.now > self.peak:
            self.peak, self._rising = self.now, True

    def finish(self) -> dict[str, int]:
        """Return part → bytes at the peak."""
        self._keep()
        return {part: size for part, size in self.top.items() if size}

    def _keep(self) -> None:
        if self._rising and self.now == self.peak:
            self.top = dict(self.live)
        self._rising = False


class Storage:
    """Bytes that are alive as long as something refers to them."""

    __slots__ = ("holders", "meter", "part", "size")

    def __init__(self, size: int, part: str, meter: Meter) -> None:
        self.size, self.part, self.meter, self.holders = size, part, meter, 0
        meter.change(size, part)

    def __del__(self) -> None:
        self.meter.change(-self.size, self.part)


class Slot:
    """Where the gradient of a value arrives.

    Of a parameter, `kept` is the gradient that stays, and `uses` how many operations are still to give theirs: torch adds
    them up beside it, and to it when all are there.
    """

    __slots__ = ("gradient", "kept", "parameter", "size", "uses")

    def __init__(self, size: int, parameter: str = "") -> None:
        self.size, self.parameter, self.uses = size, parameter, 0
        self.gradient: Storage | None = None
        self.kept: Storage | None = None


class Value:
    """A tensor without its numbers. `slot` None: it has no gradient; `storage` None: it is a parameter's own.

    `strided`: its layout is not that of its shape, so that a product must copy it first.
    """

    __slots__ = ("numbers", "slot", "storage", "strided", "width")

    def __init__(
        self, numbers: int, width: int, storage: Storage | None, slot: Slot | None, strided: bool = False
    ) -> None:
        self.numbers, self.width, self.storage, self.slot, self.strided = numbers, width, storage, slot, strided

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numbers * self.width

    def detached(self) -> Value:
        """Return the same numbers without a gradient."""
        return Value(self.numbers, self.width, self.storage, None, self.strided)

    def seen_as(self, *, strided: bool) -> Value:
        """Return a view in another layout."""
        return Value(self.numbers, self.width, self.storage, self.slot, strided)


# What a gradient is made of: a new tensor of the input's size; the output's own gradient; a tensor of the output's size that
# is summed to the input's; the output's gradient summed to the input's size; zeros of the input's size around it.
NEW, SAME, SUMMED, SAME_SUMMED = range(4)


class Input(NamedTuple):
    """An input of an operation, and how its gradient is made."""

    value: Value
    how: int = NEW


class Node:
    """An operation that was done: what its gradient needs."""

    __slots__ = ("extra", "hows", "output", "saved", "slots")

    def __init__(
        self, output: Slot, slots: Sequence[Slot], hows: Sequence[int], saved: list[Storage], extra: int
    ) -> None:
        self.output, self.slots, self.hows, self.saved, self.extra = output, slots, hows, saved, extra

    def run(self, tape: Tape) -> None:
        """Turn the output's gradient into those of the inputs."""
        arrived, self.output.gradient = self.output.gradient, None
        if arrived is None:
            self.saved = []
            return
        arrived.holders -= 1
        extra = tape.storage(self.extra, TEMPORARY)
        raw = [self._made(tape, slot, how, arrived) for slot, how in zip(self.slots, self.hows, strict=True)]
        del extra
        for place, (slot, how) in enumerate(zip(self.slots, self.hows, strict=True)):
            if how in (SUMMED, SAME_SUMMED):
                raw[place] = tape.storage(slot.size, FLOWING)
        self.saved = []
        del arrived
        for slot in self.slots:
            tape.arrive(slot, raw.pop(0))

    def _made(self, tape: Tape, slot: Slot, how: int, arrived: Storage) -> Storage:
        if how in (SAME, SAME_SUMMED):
            return arrived
        return tape.storage(self.output.size if how == SUMMED else slot.size, FLOWING)


class Pieces:
    """Parts that a value was divided into: their gradients are joined when all are there."""

    __slots__ = ("entry", "outputs", "saved")

    def __init__(self, entry: Slot, outputs: list[Slot]) -> None:
        self.entry, self.outputs = entry, outputs
        self.saved: list[Storage] = []

    def run(self, tape: Tape) -> None:
        """Join them."""
        arrived = [slot.gradient for slot in self.outputs]
        whole = tape.storage(self.entry.size, FLOWING)
        for slot, one in zip(self.outputs, arrived, strict=True):
            slot.gradient = None
            if one is not None:
                one.holders -= 1
        del arrived
        tape.arrive(self.entry, whole)


class Again:
    """A part that keeps its input alone and runs once more for its gradient."""

    __slots__ = ("entry", "output", "part", "saved")

    def __init__(self, output: Slot, entry: Value, part: Callable[[Value], Value], saved: list[Storage]) -> None:
        self.output, self.entry, self.part, self.saved = output, entry, part, saved

    def run(self, tape: Tape) -> None:
        """Compute the part again, then go through it in reverse."""
        before, tape.nodes, tape.counting = tape.nodes, [], False
        output = self.part(self.entry)
        tape.counting = True
        tape.part_done()
        if output.slot is not None and output.slot is not self.output:
            output.slot.gradient, self.output.gradient = self.output.gradient, None
        del output
        self.saved = []
        tape.backward()
        tape.nodes = before
        self.part = _nothing


def _nothing(x: Value) -> Value:
    return x


RANDOM_STATE = 5056  # bytes of a random generator's state, so that dropout is the same again
TEMPORARY, FLOWING, GRADIENTS = "temporary", "gradients of activations", "gradients"


class Tape:
    """The operations so far, in order, and a meter of all bytes.

    Attributes:
        part: the part that new values belong to.
        keeping: whether operations are remembered; off where nothing is to be learnt.
        gradient_share: among how many ranks the gradients of parameters are divided as soon as they are there.
        hollow: whether they are remembered without what their gradient needs, because they will be done again.
    """

    def __init__(self) -> None:
        self.meter = Meter()
        self.nodes: list[Node | Pieces | Again] = []
        self.counting = True  # off where operations are done again: a parameter's uses are known
        self.part, self.keeping, self.hollow = "", True, False
        self.gradients: dict[str, Slot] = {}
        self.gradient_share = 1

    def storage(self, size: int, part: str = "") -> Storage:
        """Return new memory."""
        return Storage(size, part or self.part, self.meter)

    def new(self, numbers: int, width: int = 4) -> Value:
        """Return a value without a gradient."""
        return Value(numbers, width, self.storage(numbers * width), None)

    def parameter(self, name: str, numbers: int, width: int, trained: bool) -> Value:
        """Return a parameter, whose own bytes are counted elsewhere."""
        return Value(numbers, width, None, Slot(numbers * width, name) if trained else None)

    def operation(
        self,
        numbers: int,
        width: int,
        inputs: Sequence[Input],
        saved: Sequence[Storage | None] = (),
        extra: int = 0,
        strided: bool = False,
    ) -> Value:
        """Return a new value that is made of `inputs`.

        Args:
            saved: what the gradient needs. extra: bytes that only computing the gradient takes.
        """
        return self.follow(numbers, width, self.storage(numbers * width), inputs, saved, extra, strided)

    def follow(
        self,
        numbers: int,
        width: int,
        storage: Storage | None,
        inputs: Sequence[Input],
        saved: Sequence[Storage | None] = (),
        extra: int = 0,
        strided: bool = False,
    ) -> Value:
        """Return a value in memory that is there already (a view, or what an operation saves of its own output)."""
        known = [each for each in inputs if each.value.slot is not None]
        if not known or not self.keeping:
            return Value(numbers, width, storage, None, strided)
        slot = Slot(numbers * width)
        slots = [self.used(each.value.slot) for each in known if each.value.slot is not None]
        kept = [] if self.hollow else [each for each in saved if each is not None]
        self.nodes.append(Node(slot, slots, [each.how for each in known], kept, extra))
        return Value(numbers, width, storage, slot, strided)

    def part_done(self) -> None:
        """Let go of what is kept until a computation ends."""

    def used(self, slot: Slot) -> Slot:
        """Return a slot, of which one more gradient is to be waited for."""
        slot.uses += self.counting
        return slot

    def divided(self, x: Value, counts: Sequence[int]) -> list[Value]:
        """Return parts of a value after one another, of these numbers of elements, which are in its memory."""
        parts = [Value(count, x.width, x.storage, None) for count in counts]
        if x.slot is not None and self.keeping:
            for part in parts:
                part.slot = Slot(part.size)
            self.nodes.append(Pieces(self.used(x.slot), [part.slot for part in parts if part.slot is not None]))
        return parts

    def again(self, x: Value, part: Callable[[Value], Value]) -> Value:
        """Return what a part makes of x; its gradient is computed from x alone."""
        nodes, hollow, self.nodes, self.hollow = self.nodes, self.hollow, [], True
        output = part(x)
        depends = bool(self.nodes)
        self.nodes, self.hollow = nodes, hollow
        if not depends:
            return output.detached()
        slot = Slot(output.size)
        kept = [self.storage(RANDOM_STATE)] + ([x.storage] if x.storage is not None else [])
        self.nodes.append(Again(slot, x, part, kept))
        return Value(output.numbers, output.width, output.storage, slot, output.strided)

    @contextmanager
    def named(self, part: str):  # type: ignore[no-untyped-def]
        """Within, new values belong to a part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def start_backward(self, output: Value) -> None:
        """Give the result its gradient, of its own size."""
        assert output.slot is not None
        self.arrive(output.slot, self.storage(output.size, FLOWING))

    def backward(self, until: int = 0) -> None:
        """Go through the operations in reverse, down to the one with the number `until`."""
        while len(self.nodes) > until:
            self.nodes.pop().run(self)

    def arrive(self, slot: Slot, gradient: Storage) -> None:
        """Add a gradient to what has arrived; of a parameter it stays when all have."""
        there = slot.gradient
        if there is None:
            gradient.holders += 1
            slot.gradient = gradient
        elif there.holders > 1:  # someone else still needs it as it is
            there.holders -= 1
            slot.gradient = self.storage(slot.size, FLOWING)
            slot.gradient.holders += 1
        del there, gradient
        slot.uses -= 1
        if slot.parameter and slot.uses <= 0:
            self._settle(slot)

    def _settle(self, slot: Slot) -> None:
        """Keep a parameter's gradient; its memory now belongs to another part."""
        made, slot.gradient, slot.uses = slot.gradient, None, 0
        assert made is not None
        made.holders -= 1
        self.gradients[slot.parameter] = slot
        if slot.kept is not None:
            return
        if made.holders or self.gradient_share > 1:
            slot.kept = self.storage(-(-slot.size // self.gradient_share), GRADIENTS)
            return
        self.meter.change(-made.size, made.part)
        made.part, slot.kept = GRADIENTS, made
        self.meter.change(made.size, GRADIENTS)

    def saved(self) -> list[int]:
        """Return the bytes of each storage that the operations so far keep, each once."""
        distinct = {id(each): each.size for node in self.nodes for each in node.saved}
        return list(distinct.values())
