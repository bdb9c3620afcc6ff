"""Frontends, masks and rotations as operations on a tape, in the order of `model/frontend.py` and `model/stack.py`.

Letters: B rows, T positions, D hidden size, W width of token vectors, C channels, N samples or frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from plainformer.config import MelFrontend, PatchFrontend, RopeConfig, StackConfig, TokenFrontend, WaveFrontend
from plainformer.plan.layers import MASKS, Mask
from plainformer.plan.operations import Operations
from plainformer.plan.tape import NEW, SUMMED, Input, Value

EMBEDDINGS, INPUTS = "embeddings", "inputs"
LONG = 14  # side of a kernel from which on oneDNN multiplies matrices instead: with AVX2, with AVX-512 from 15 on


@dataclass(frozen=True)
class Sizes:
    """How large the inputs of one stack are.

    Attributes:
        rows: B; of multiple choice, rows times choices. length: T of tokens; of others see `positions`.
        padded: whether rows differ in length. packed: whether they then run without their padding, of which there may be
            next to none. token_types: whether their ids are given.
        pixels: height and width; None: as the model was trained. samples, frames: N of a waveform, of a spectrogram.
        hidden: whether frames and features are hidden from the model (SpecAugment), of which kind.
        noise: whether noise is added to the token vectors.
    """

    rows: int
    length: int = 0
    padded: bool = False
    packed: bool = False
    token_types: bool = False
    pixels: tuple[int, int] | None = None
    samples: int = 0
    frames: int = 0
    hidden_frames: bool = False
    hidden_features: bool = False
    noise: bool = False

    def packs(self, stack: StackConfig) -> bool:
        """Whether this stack runs without padding."""
        return self.packed and not stack.cross_attention and stack.disentangled is None

    def positions(self, stack: StackConfig) -> int:
        """Return T, the vectors that the stack's layers read of each row."""
        frontend = stack.frontend
        if isinstance(frontend, PatchFrontend):
            height, width = self.pixels or frontend.image_size
            grid = (height // frontend.patch_size[0]) * (width // frontend.patch_size[1])
            return frontend.class_tokens + grid
        if isinstance(frontend, WaveFrontend):
            return wave_lengths(frontend, self.samples)[-1]
        if isinstance(frontend, MelFrontend):
            return (self.frames + 1) // 2
        return self.length


def wave_lengths(frontend: WaveFrontend, samples: int) -> list[int]:
    """Return how many frames there are after each convolution."""
    lengths = []
    for kernel, stride in zip(frontend.kernels, frontend.strides, strict=True):
        samples = (samples - kernel) // stride + 1
        lengths.append(samples)
    return lengths


@dataclass
class Embedded:
    """What a frontend gives: its vectors, and the mask (B, T) of a byte each where rows are padded."""

    x: Value
    real: Value | None = None


def embed(ops: Operations, stack: StackConfig, name: str, sizes: Sizes) -> Embedded:
    """Return the vectors that the first layer reads."""
    frontend, name = stack.frontend, f"{name}.frontend"
    with ops.named(EMBEDDINGS):
        if isinstance(frontend, TokenFrontend):
            return _tokens(ops, stack, frontend, name, sizes)
        if isinstance(frontend, PatchFrontend):
            return Embedded(_patches(ops, stack, frontend, name, sizes))
        if isinstance(frontend, WaveFrontend):
            return _wave(ops, stack, frontend, name, sizes)
        return Embedded(_mel(ops, stack, frontend, name, sizes))


def _given(ops: Operations, numbers: int, width: int) -> Value:
    """Return an input of the model, which is alive until the gradients are there."""
    with ops.named(INPUTS):
        ops.inputs.append(ops.new(numbers, width))
    return ops.inputs[-1]


def _tokens(ops: Operations, stack: StackConfig, frontend: TokenFrontend, name: str, sizes: Sizes) -> Embedded:
    n, W = sizes.rows * sizes.length, frontend.embedding_size
    x = ops.embedding(f"{name}.tokens.weight", frontend.vocab_size, W, _given(ops, n, 8), True)
    if frontend.scale != 1.0:
        x = ops.scaled(x)
    if sizes.noise:
        x = ops.add(x, _given(ops, n * W, 4))
    real = ops.new(n, 1) if sizes.padded else None
    places = ops.new(n if sizes.padded else sizes.length, 8)
    if frontend.token_types:
        types = _given(ops, n, 8) if sizes.token_types else ops.new(places.numbers, 8)
        x = ops.add(x, ops.embedding(f"{name}.token_types.weight", frontend.token_types, W, types))
        del types
    if frontend.positions == "learned":
        x = ops.add(x, ops.embedding(f"{name}.positions.weight", frontend.max_positions, W, places))
    elif frontend.positions == "sinusoidal":
        x = ops.add(x, ops.new(places.numbers * W, 4))
    return Embedded(_projected(ops, stack, frontend, name, x, real), real)


def _projected(
    ops: Operations, stack: StackConfig, frontend: TokenFrontend, name: str, x: Value, real: Value | None
) -> Value:
    first = frontend.projection_place == "before_norm"

    def project(x: Value, here: bool) -> Value:
        if not here or frontend.projection == "none":
            return x
        place = "before_norm" if first else "after_norm"
        sizes = (frontend.embedding_size, stack.hidden_size)
        return ops.linear(x, f"{name}.{place}", *sizes, frontend.projection == "affine")

    width = stack.hidden_size if first else frontend.embedding_size
    x = ops.norm(project(x, first), f"{name}.norm", width, frontend.norm)
    x = project(ops.drop(x, stack.dropout.embedding), not first)
    if real is not None and frontend.padding == "zeroed":
        x = ops.multiply(x, ops.new(real.numbers, x.width))
    return x


def _patches(ops: Operations, stack: StackConfig, frontend: PatchFrontend, name: str, sizes: Sizes) -> Value:
    D, B = stack.hidden_size, sizes.rows
    height, width = sizes.pixels or frontend.image_size
    pixels = _given(ops, B * frontend.channels * height * width, 4)
    count = sizes.positions(stack)
    grid = count - frontend.class_tokens
    kernel = D * frontend.channels * frontend.patch_size[0] * frontend.patch_size[1]
    columns = kernel // D * grid if min(frontend.patch_size) >= LONG else 0
    how = Kernel(kernel, D, frontend.bias, columns, few=True, turned=True)
    again = (
        None if ops.on_gpu else ops.storage(max(kernel, B * D * grid) * pixels.width)
    )  # weight, then result, reordered
    patches = convolution(ops, pixels, f"{name}.patches", how, B * D * grid)
    del again
    tokens = [ops.weight(f"{name}.class_tokens.{i}", D) for i in range(frontend.class_tokens)]
    inputs = [Input(patches)] + [Input(token) for token in tokens]
    x = ops.operation(B * count * D, patches.width, inputs)
    rows = frontend.class_tokens + frontend.grid[0] * frontend.grid[1]
    positions = ops.weight(f"{name}.positions", rows * D)
    if (height // frontend.patch_size[0], width // frontend.patch_size[1]) != frontend.grid:
        positions = ops.operation(count * D, positions.width, [Input(positions)])
    return ops.drop(ops.add(x, positions), stack.dropout.embedding)


@dataclass(frozen=True)
class Kernel:
    """What a convolution is like, as far as its gradient's memory depends on it.

    Attributes:
        numbers: of its weight. outputs: channels of its result. bias: whether it adds one.
        columns: of a convolution in groups, or of long kernels, the numbers that one group reads of one row, once for each
            place where they are read; 0: of others.
        few: whether it reads so few channels (of an image, of a wave) that they stay in their order.
        turned: whether what follows wants channels last, so that the result's gradient is copied first. last: whether what it
            reads has them last, and is copied as well.
    """

    numbers: int
    outputs: int
    bias: bool = True
    columns: int = 0
    few: bool = False
    turned: bool = False
    last: bool = False


def convolution(
    ops: Operations, x: Value, name: str, kernel: Kernel, numbers: int, weight: Value | None = None
) -> Value:
    """Return a convolution of x, `numbers` of them. `weight`: None: a parameter's own. bf16 under autocast."""
    if weight is None:
        weight = ops.weight(f"{name}.weight", kernel.numbers)
    weight, x = ops.computed_with(weight), ops.read(x)
    offset = ops.computed_with(ops.weight(f"{name}.bias", kernel.outputs)) if kernel.bias else None
    inputs = [Input(x), Input(weight)] + ([Input(offset)] if offset is not None else [])
    needs = any(each.value.slot is not None for each in inputs)
    saved = [x.storage, weight.storage] if needs else []
    extra = 0 if ops.on_gpu else _convolution_needs(x, weight, kernel, numbers * x.width)
    return ops.operation(numbers, x.width, inputs, saved, extra)


def _convolution_needs(x: Value, weight: Value, kernel: Kernel, y: int) -> int:
    """Return the bytes that the gradient of a convolution takes on a CPU beside its results (oneDNN, measured; one thread).

    Of groups and long kernels: what is read, in columns, and the weight four times in fp32, in which it is added up.
    Otherwise the result's gradient of `y` bytes, the input and the weight's gradient are laid out in another order, not all
    at once; in bf16 the weight's is added up in fp32.
    """
    copied = (y if kernel.turned else 0) + (x.size if kernel.last else 0)
    if weight.slot is None:
        return copied + (y + weight.size if x.slot else 0)
    if kernel.columns:
        return copied + 4 * kernel.numbers * 4 + kernel.columns * x.width
    ordered = y + (0 if kernel.few else x.size)
    if x.width == 2:
        return copied + ordered + 2 * weight.size
    back = 2 * x.size - weight.size if x.slot else 0  # the input's gradient, in both orders
    return copied + max(ordered, weight.size, back)


def _wave(ops: Operations, stack: StackConfig, frontend: WaveFrontend, name: str, sizes: Sizes) -> Embedded:
    B, D = sizes.rows, stack.hidden_size
    x, before = _given(ops, B * sizes.samples, 4), 1
    for index, length in enumerate(wave_lengths(frontend, sizes.samples)):
        channels = frontend.channels[index]
        step, kernel = f"{name}.steps.{index}", before * channels * frontend.kernels[index]
        # A processor's kernel lays out what it reads and its weight in another order, where there are channels to order.
        again = [ops.storage(x.size), ops.storage(kernel * x.width)] if index and not ops.keeping else []
        normed = frontend.conv_norm == "layer"
        turned, last = normed or index == len(frontend.channels) - 1, normed and index > 0
        how = Kernel(kernel, channels, frontend.conv_bias, few=not index, turned=turned, last=last)
        x = convolution(ops, x, f"{step}.conv", how, B * channels * length)
        del again
        x = _conv_norm(ops, x, frontend, step, index, B)
        x, before = ops.activation(x, frontend.conv_activation), channels
    x = ops.norm(x.seen_as(strided=True), f"{name}.projection_norm", before, frontend.projection_norm)
    x = ops.drop(ops.linear(x, f"{name}.project", before, D, True), stack.dropout.projection)
    return _placed(ops, x, stack, frontend, name, sizes)


def _conv_norm(ops: Operations, x: Value, frontend: WaveFrontend, step: str, index: int, rows: int) -> Value:
    channels = frontend.channels[index]
    place = "norm" if frontend.conv_norm == "layer" else "time_norm" if index == 0 else ""
    if not place:
        return x
    inputs = [Input(x)] + [Input(ops.weight(f"{step}.{place}.{leaf}", channels)) for leaf in ("weight", "bias")]
    each = x.numbers // channels if place == "norm" else rows * channels
    return ops.operation(x.numbers, x.width, inputs, [x.storage, ops.storage(each * 4), ops.storage(each * 4)])


def _placed(ops: Operations, x: Value, stack: StackConfig, frontend: WaveFrontend, name: str, sizes: Sizes) -> Embedded:
    """Return frames with what is hidden of them hidden, and their positions."""
    B, D = sizes.rows, stack.hidden_size
    T = x.numbers // B // D
    if sizes.hidden_frames:
        hidden = [Input(ops.weight(f"{name}.hidden", D))] if frontend.hidden_vector else []
        x = ops.operation(x.numbers, x.width, [Input(x), *hidden], [_given(ops, B * T, 1).storage])
    if sizes.hidden_features:
        x = ops.operation(x.numbers, x.width, [Input(x)], [_given(ops, B * D, 1).storage])
    real = None
    if sizes.padded:
        real = ops.new(B * T, 1)
        x = ops.operation(x.numbers, x.width, [Input(x)], [ops.storage(B * T)])
    size = D * (D // frontend.position_groups) * frontend.position_kernel
    direction, magnitude = (
        ops.weight(f"{name}.positions.direction", size),
        ops.weight(f"{name}.positions.magnitude", frontend.position_kernel),
    )
    weight = ops.operation(
        size, direction.width, [Input(direction), Input(magnitude)], [ops.storage(frontend.position_kernel * 4)]
    )
    longer = T + 1 - frontend.position_kernel % 2
    how = Kernel(size, D, columns=size // D * longer, turned=True)
    placed = convolution(ops, x, f"{name}.positions", how, B * D * longer, weight)
    del weight
    placed = ops.keeps_input(ops.part_of(placed, B * D * T)) if frontend.conv_activation != "identity" else placed
    x = ops.norm(ops.add(x, placed), f"{name}.norm", D, frontend.norm)
    return Embedded(ops.drop(x, stack.dropout.embedding), real)


def _mel(ops: Operations, stack: StackConfig, frontend: MelFrontend, name: str, sizes: Sizes) -> Value:
    B, D, N = sizes.rows, stack.hidden_size, sizes.frames
    T = sizes.positions(stack)
    x = _given(ops, B * frontend.mels * N, 4)
    for conv, how, length in (
        ("conv1", Kernel(D * frontend.mels * 3, D), N),
        ("conv2", Kernel(D * D * 3, D, turned=True), T),
    ):
        x = ops.activation(convolution(ops, x, f"{name}.{conv}", how, B * D * length), frontend.activation)
    positions = ops.part_of(ops.weight(f"{name}.positions", frontend.max_positions * D), T * D)
    return ops.drop(ops.add(x.seen_as(strided=True), positions), stack.dropout.embedding)


# ---- masks and rotations -------------------------------------------------------------------------------------------


def rotations(
    ops: Operations, stack: StackConfig, sizes: Sizes, length: int, width: int
) -> list[tuple[RopeConfig, Value, Value] | None]:
    """Return each layer's cosines and sines; layers with equal positions share them."""
    made: dict[RopeConfig, tuple[RopeConfig, Value, Value]] = {}
    rows = sizes.rows if sizes.padded else 1
    with ops.named(MASKS):
        for rope in dict.fromkeys(stack.rope):
            if rope is not None:
                made[rope] = (rope, ops.new(rows * length * rope.dim, width), ops.new(rows * length * rope.dim, width))
    return [None if rope is None else made[rope] for rope in stack.rope]


def masks(ops: Operations, stack: StackConfig, name: str, sizes: Sizes, embedded: Embedded) -> list[Mask]:
    """Return each layer's mask; layers with equal windows share one."""
    causal, made, bias = stack.direction == "causal", {}, None
    length, real, width = sizes.positions(stack), embedded.real, embedded.x.width
    if sizes.packs(stack):
        real = None  # one mask for rows of every length
    with ops.named(MASKS):
        if stack.relative_bias is not None:
            weight = ops.weight(f"{name}.bias.weight", stack.relative_bias.buckets * stack.num_heads)
            made_of = ops.storage(length * length * 44)  # distances, logarithms and what is chosen of them
            del made_of
            index = ops.storage(length * length * 8)
            by_place = ops.operation(
                length * length * stack.num_heads, weight.width, [Input(weight)], [index], strided=True
            )  # heads are its last dimension in memory
            del index
            bias = ops.copied(by_place)
            del by_place
        for window in dict.fromkeys(stack.windows):
            if causal and length > 1 and real is None and bias is None and (window or length) >= length:
                made[window] = Mask(causal=True)
            else:
                made[window] = _mask(ops, sizes, length, real, bias, _Seen(causal, window, width))
    return [made[window] for window in stack.windows]


class _Seen(NamedTuple):
    """Which keys are seen, and the width of the mask that says so."""

    causal: bool
    window: int | None
    width: int


def _mask(ops: Operations, sizes: Sizes, T: int, real: Value | None, bias: Value | None, how: _Seen) -> Mask:
    plain = (not how.causal or T == 1) and (how.window is None or (how.causal and how.window >= T))
    if not plain:
        distances = ops.storage(T * T * (8 if how.window is None else 18))
        seen: Value | None = ops.new(T * T, 1)
        del distances
    else:
        seen = None
    if real is not None:
        seen = real if seen is None else ops.new(sizes.rows * T * T, 1)
    if seen is None:
        return Mask(bias)
    if bias is None:
        return Mask(ops.new(seen.numbers, how.width))
    rows = sizes.rows if real is not None else 1
    inputs = [Input(bias, NEW if rows == 1 else SUMMED)]
    return Mask(ops.operation(rows * bias.numbers, bias.width, inputs, [seen.storage], strided=bias.strided))
