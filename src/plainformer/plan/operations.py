"""The operations that models are made of: what each makes, and what its gradient needs.

Sizes are numbers, not bytes: n positions (rows times length), D, F, O, I widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plainformer.config import NormConfig
from plainformer.plan.tape import NEW, SAME, SAME_SUMMED, SUMMED, Input, Tape, Value


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters of linears in whose names one of `targets` is, as "q" or "attention.qkv"; the head has none."""

    targets: tuple[str, ...]
    rank: int
    dropout: float = 0.0

    def has(self, name: str) -> bool:
        """Return whether a linear is adapted."""
        return not name.startswith("head.") and any(f".{target}." in f".{name}." for target in self.targets)


class Operations(Tape):
    """A tape with the operations of `model/`.

    Args:
        trained: whether a parameter, by its name, is learnt. same: another name of a parameter → its first.
        autocast: whether products are computed in bf16 (torch.autocast) from fp32 weights.
        width: bytes of a weight. on_gpu: torch keeps smaller dropout masks there. adapters: see `Adapters`.
        parts: tensor-parallel ranks, each of which has some rows or columns of the weights.
    """

    def __init__(
        self,
        trained: Callable[[str], bool],
        same: dict[str, str],
        autocast: bool = False,
        width: int = 4,
        on_gpu: bool = False,
        adapters: Adapters | None = None,
        parts: int = 1,
    ) -> None:
        super().__init__()
        self.trained, self.same, self.autocast, self.wide = trained, same, autocast, width
        self.on_gpu, self.adapters, self.parts = on_gpu, adapters, parts
        self.known: dict[str, Value] = {}
        self.inputs: list[Value] = []
        self.casts: dict[str, Value] = {}  # autocast's own cache, until the loss is there

    # ---- parameters ------------------------------------------------------------------------------------------------

    def weight(self, name: str, numbers: int) -> Value:
        """Return a parameter, the same each time."""
        name = self.same.get(name, name)
        if name not in self.known:
            self.known[name] = self.parameter(name, numbers, self.wide, self.trained(name))
        return self.known[name]

    def computed_with(self, weight: Value) -> Value:
        """Return a parameter as products compute with it: autocast keeps the casts of those that are trained, no others."""
        if not self.autocast or weight.width == 2:
            return weight
        name = weight.slot.parameter if weight.slot is not None else ""
        if not name:
            return self.cast(weight, 2)
        if name not in self.casts:
            self.casts[name] = self.cast(weight, 2)
        return self.casts[name]

    def part_done(self) -> None:
        """Leave autocast, which then forgets its casts."""
        self.casts.clear()

    def read(self, x: Value) -> Value:
        """Return an activation as products read it."""
        return self.computed_with(x) if self.autocast else x

    # ---- elementwise -----------------------------------------------------------------------------------------------

    def cast(self, x: Value, width: int) -> Value:
        """Return x in another dtype, itself if it is in it."""
        return x if x.width == width else self.operation(x.numbers, width, [Input(x)], strided=x.strided)

    def scaled(self, x: Value) -> Value:
        """Return x times a constant (or plus one, or divided by it)."""
        return self.operation(x.numbers, x.width, [Input(x)], strided=x.strided)

    def add(self, a: Value, b: Value) -> Value:
        """Return a + b, of which one may be broadcast."""
        numbers, width = max(a.numbers, b.numbers), max(a.width, b.width)
        inputs = [Input(x, _of_sum(x, numbers, width)) for x in (a, b)]
        return self.operation(numbers, width, inputs, strided=a.strided)

    def multiply(self, a: Value, b: Value) -> Value:
        """Return a · b, of which one may be broadcast."""
        numbers, width = max(a.numbers, b.numbers), max(a.width, b.width)
        inputs = [Input(x, NEW if x.numbers == numbers else SUMMED) for x in (a, b)]
        saved = [a.storage if b.slot else None, b.storage if a.slot else None]
        return self.operation(numbers, width, inputs, saved, strided=a.strided)

    def keeps_input(self, x: Value, numbers: int | None = None, width: int | None = None) -> Value:
        """Return a function of x whose gradient needs x (gelu, silu, square, clamp)."""
        return self.operation(numbers or x.numbers, width or x.width, [Input(x)], [x.storage], strided=x.strided)

    def keeps_output(self, x: Value, numbers: int | None = None, width: int | None = None) -> Value:
        """Return a function of x whose gradient needs the result (tanh, relu, softmax)."""
        numbers, width = numbers or x.numbers, width or x.width
        made = self.storage(numbers * width)
        return self.follow(numbers, width, made, [Input(x)], [made], strided=x.strided)

    def activation(self, x: Value, kind: str) -> Value:
        """Return one of the model's activations."""
        if kind == "identity":
            return x
        if kind in ("relu", "tanh", "sigmoid"):
            return self.keeps_output(x)
        if kind == "relu2":
            return self.keeps_input(self.keeps_output(x))
        if kind == "quick_gelu":
            return self.multiply(x, self.keeps_output(self.scaled(x)))
        return self.keeps_input(x)

    def drop(self, x: Value, p: float) -> Value:
        """Return x after dropout: on a CPU its factors are as large as x, on a GPU a byte each."""
        if p <= 0:
            return x
        factors = self.storage(x.numbers * (1 if self.on_gpu else x.width))
        return self.operation(x.numbers, x.width, [Input(x)], [factors], strided=x.strided)

    def copied(self, x: Value) -> Value:
        """Return x laid out as its shape is, itself if it is."""
        return self.operation(x.numbers, x.width, [Input(x, SAME)]) if x.strided else x

    def part_of(self, x: Value, numbers: int) -> Value:
        """Return a view of some of x, whose gradient is zeros elsewhere."""
        return self.follow(numbers, x.width, x.storage, [Input(x)], strided=True)

    def picked(self, x: Value, numbers: int, index_bytes: int) -> Value:
        """Return some of x by an index, which the gradient needs."""
        return self.operation(numbers, x.width, [Input(x)], [self.storage(index_bytes)])

    def joined(self, parts: list[Value]) -> Value:
        """Return several values after one another."""
        numbers, width = sum(part.numbers for part in parts), max(part.width for part in parts)
        return self.operation(numbers, width, [Input(part, SAME) for part in parts])  # views of the whole's gradient

    # ---- with weights ----------------------------------------------------------------------------------------------

    def embedding(self, name: str, rows: int, size: int, ids: Value, shared: bool = False) -> Value:
        """Return vectors by id; `ids` of 8 bytes each. `shared`: ranks have some rows each."""
        table = self.weight(name, rows * size)
        if not shared or self.parts == 1:
            return self.operation(ids.numbers * size, table.width, [Input(table)], [ids.storage])
        away, here = self.storage(ids.numbers), self.new(ids.numbers, 8)
        vectors = self.operation(ids.numbers * size, table.width, [Input(table)], [here.storage])
        return self.summed(self.operation(vectors.numbers, vectors.width, [Input(vectors)], [away]))

    def entered(self, x: Value) -> Value:
        """Return x before weights of which ranks have some rows: its gradients are added up in a copy."""
        return self.follow(x.numbers, x.width, x.storage, [Input(x)], strided=x.strided) if self.parts > 1 else x

    def summed(self, x: Value) -> Value:
        """Return the sum of all ranks' x, which is made in a copy."""
        return self.operation(x.numbers, x.width, [Input(x, SAME)]) if self.parts > 1 else x

    def linear(self, x: Value, name: str, inputs: int, outputs: int, bias: bool, leaves: bool = False) -> Value:
        """Return x Wᵀ + b, and what an adapter adds. `leaves`: ranks have some columns each, and the sum follows."""
        read, n, leaves = x, x.numbers // inputs, leaves and self.parts > 1
        weight = self.computed_with(self.weight(f"{name}.weight", inputs * outputs))
        offset = self.computed_with(self.weight(f"{name}.bias", outputs)) if bias and not leaves else None
        x = self.copied(self.read(x))
        used = [Input(x), Input(weight)] + ([Input(offset, SAME_SUMMED)] if offset is not None else [])
        saved = [x.storage if weight.slot else None, weight.storage if x.slot else None]
        y = self.operation(n * outputs, x.width, used, saved)
        if self.adapters is not None and self.adapters.has(name):
            y = self.add(y, self._adapter(read, name, inputs, outputs))
        if not leaves:
            return y
        y = self.summed(y)
        return self.add(y, self.cast(self.weight(f"{name}.bias", outputs), y.width)) if bias else y

    def group(self, x: Value, name: str, inputs: int, sizes: dict[str, int], bias: bool) -> list[Value]:
        """Return what linears that read the same make of x, one after the other."""
        return [self.linear(x, f"{name}.{part}", inputs, size, bias) for part, size in sizes.items()]

    def _adapter(self, x: Value, name: str, inputs: int, outputs: int) -> Value:
        assert self.adapters is not None
        x, n, rank = self.drop(x, self.adapters.dropout), x.numbers // inputs, self.adapters.rank
        for factor, size, width in (("a", inputs, rank), ("b", rank, outputs)):
            weight = self.computed_with(self._factor(f"{name}.adapter.low.{factor}", size * width))
            x = self.copied(self.read(x))
            saved = [x.storage, weight.storage if x.slot else None]
            x = self.operation(n * width, x.width, [Input(x), Input(weight)], saved)
        return self.scaled(x)

    def _factor(self, name: str, numbers: int) -> Value:
        """Return a factor of an adapter, which is always trained."""
        if name not in self.known:
            self.known[name] = self.parameter(name, numbers, 4, True)
        return self.known[name]

    def norm(self, x: Value, name: str, size: int, config: NormConfig | None) -> Value:
        """Return x normalised over its last `size` channels; x itself for None."""
        if config is None:
            return x
        weight, n = self.weight(f"{name}.weight", size), x.numbers // size
        if config.kind == "rms":
            return self._rms(x, weight, n, config)
        bias = self.weight(f"{name}.bias", size) if config.bias else None
        inputs = [Input(x), Input(weight)] + ([Input(bias)] if bias is not None else [])
        made = self.storage(x.size)
        saved = [x.storage, self.storage(n * 4), self.storage(n * 4)]
        return self.follow(x.numbers, x.width, made, inputs, saved)

    def _rms(self, x: Value, weight: Value, n: int, config: NormConfig) -> Value:
        width, wide = x.width, self.cast(x, 4)
        made = self.storage(n * 4)
        length = self.follow(n, 4, made, [Input(wide)], [wide.storage, made], extra=wide.size)
        mean = self.keeps_input(length)  # addcmul(eps, length, length)
        inverse = self.keeps_output(mean)
        wide = self.multiply(wide, inverse)
        del length, mean, inverse, made
        if width == 4 and not config.weight_offset:
            return self.multiply(wide, weight)
        if config.cast == "last":
            weight = self.cast(weight, 4)
            return self.cast(self.multiply(wide, self.scaled(weight)), width)
        return self.multiply(self.cast(wide, width), self.scaled(weight))

    # ---- products of activations -----------------------------------------------------------------------------------

    def product(self, a: Value, b: Value, numbers: int) -> Value:
        """Return a batched product of two activations, each of which the other's gradient needs."""
        a, b = self.copied(self.read(a)), self.copied(self.read(b))
        saved = [a.storage if b.slot else None, b.storage if a.slot else None]
        return self.operation(numbers, max(a.width, b.width), [Input(a), Input(b)], saved)


def _of_sum(x: Value, numbers: int, width: int) -> int:
    if x.numbers < numbers:
        return SAME_SUMMED
    return SAME if x.width == width else NEW
