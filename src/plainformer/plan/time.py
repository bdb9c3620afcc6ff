"""The least time that something can take: by the operations, by the bytes that are read, by what is sent (a roofline).

Williams et al. 2009. A bound says "at most 100 tokens a second"; the shares of a device's rates that programs reach are
options, because they are guesses. No torch.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from plainformer.config.layout import Layout
from plainformer.config.model import ModelConfig, StackConfig
from plainformer.config.shapes import shapes
from plainformer.plan.asked import TargetOptions
from plainformer.plan.devices import Device
from plainformer.plan.lengths import Lengths, lengths
from plainformer.plan.stored import StoredFile
from plainformer.plan.weights import BLOCK, FOUR_BITS
from plainformer.plan.workload import Workload

_WORD_HEADS = ("causal_lm", "seq2seq_lm", "masked_lm")
_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int4": FOUR_BITS / BLOCK}


@dataclass(frozen=True)
class Bound:
    """The least time.

    Attributes:
        seconds: by part: "prefill" and "token", or "step".
        tokens_per_second: the most, over all devices: those that are written, or learnt from; None where none are.
        limits: what each part waits for: "operations", "memory" or "links".
        assumptions: what it was reckoned with, a sentence each.
    """

    seconds: dict[str, float]
    tokens_per_second: float | None
    limits: dict[str, str]
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "limits": self.limits,
            "assumptions": list(self.assumptions),
        }


def bound_of(
    config: ModelConfig,
    workload: Workload,
    layout: Layout,
    device: Device | None,
    target: TargetOptions,
    stored: str | StoredFile | None = None,
) -> Bound | None:
    """Return the least time on a device; None where its rates are not known. `stored`: as the weights are in their file."""
    if device is None or device.bandwidth is None:
        return None
    made = _Roofline(config, workload, layout, device, target, stored)
    return made.training() if workload.training else made.inference()


class _Roofline:
    def __init__(
        self,
        config: ModelConfig,
        workload: Workload,
        layout: Layout,
        device: Device,
        target: TargetOptions,
        stored: str | StoredFile | None,
    ) -> None:
        self.config, self.workload, self.layout, self.stored = config, workload, layout, stored
        self.lengths = lengths(config, workload)
        self.dtype = _computed_in(workload)
        rate = device.flops.get(self.dtype, device.flops.get("fp32"))
        self.rate = None if rate is None else rate * target.compute_share
        self.bandwidth = (device.bandwidth or 0.0) * target.bandwidth_share
        self.link = device.link
        self.said = (
            f"{target.compute_share:.0%} of {_rate(rate)} in {self.dtype}"
            if rate
            else "no rate of operations is known",
            f"{target.bandwidth_share:.0%} of {(device.bandwidth or 0) / 1e9:,.0f} GB/s of memory",
        )

    def inference(self) -> Bound:
        """Prefill by operations or weights read; each token by weights and cache read."""
        at, asked = self.lengths, self.workload
        share = self.layout.tp * self.layout.pp
        weights = _weights_read(self.config, asked, self.stored)
        first = self._slowest(
            operations=forward_operations(self.config, asked, at) / share,
            read=weights / share,
            sent=self._tensor_parallel(asked.batch * (at.encoder + at.decoder), passes=1),
        )
        seconds, limits = {"prefill": first[0]}, {"prefill": first[1]}
        rate = None
        if at.new and self.config.decoder is not None:
            read = weights + cache_read(self.config, asked, at)
            operations = asked.rows * token_operations(self.config, at)
            # One row after the other through all stages: a pipeline has the memory of all, and the time of one.
            token = self._slowest(
                operations / self.layout.tp, read / self.layout.tp, self._tensor_parallel(asked.rows, passes=1)
            )
            seconds["token"], limits["token"] = token
            rate = self.layout.dp * asked.rows / token[0]
        return Bound(seconds, rate, limits, self.said)

    def training(self) -> Bound:
        """Three times the forward pass, four where layers are recomputed; what is sent is not hidden by anything."""
        at, asked, layout = self.lengths, self.workload, self.layout
        passes = 3.0 + (1 / asked.recomputed_every if asked.recomputed_every else 0.0)
        operations = passes * forward_operations(self.config, asked, at) / (layout.tp * layout.pp)
        positions = asked.batch * (at.encoder + at.decoder)
        sent = self._tensor_parallel(positions, passes=2)
        numbers = sum(map(math.prod, shapes(self.config).values())) / (layout.tp * layout.pp)
        part = (layout.dp - 1) / layout.dp
        if layout.zero == 3:
            sent += 3 * numbers * _BYTES[self.dtype] * part
        micro, limit = self._slowest(operations, 0.0, sent)
        step = micro * asked.accumulate
        bubble = (layout.pp - 1) / (asked.accumulate + layout.pp - 1)
        step /= 1 - bubble
        if layout.zero < 3 and self.link:
            step += 2 * numbers * 4 * part / self.link
        tokens = layout.dp * asked.accumulate * asked.batch * ((at.decoder or at.encoder) if asked.training else 0)
        more = (f"a pipeline of {layout.pp} stages waits {bubble:.0%} of the time",) if bubble else ()
        return Bound({"step": step}, tokens / step, {"step": limit}, (*self.said, *more))

    def _tensor_parallel(self, positions: int, passes: int) -> float:
        """Return the bytes that a rank sends: two all-reduces a layer and pass, of hidden states, in a ring."""
        tp, stack = self.layout.tp, self.config.main_stack
        layers = sum(one.num_layers for one in (self.config.encoder, self.config.decoder) if one is not None)
        each = positions * stack.hidden_size * _BYTES[self.dtype] * 2 * (tp - 1) / tp
        return 2 * passes * layers / self.layout.pp * each

    def _slowest(self, operations: float, read: float, sent: float) -> tuple[float, str]:
        """Return the seconds of what takes longest, and its name; what is sent comes on top."""
        times = {"operations": operations / self.rate if self.rate else 0.0, "memory": read / self.bandwidth}
        name = max(times, key=lambda one: times[one])
        link = sent / self.link if self.link and sent else 0.0
        return times[name] + link, name if link <= times[name] else "links"


def forward_operations(config: ModelConfig, workload: Workload, at: Lengths) -> float:
    """Return the operations of a forward pass: two for each weight and position, and attention's."""
    found, head = 0.0, _head_numbers(config)
    for stack, own, other in ((config.encoder, at.encoder, 0), (config.decoder, at.decoder, at.encoder)):
        if stack is not None:
            found += workload.batch * own * (2 * _linear_numbers(config, stack) + _attention(stack, own, other))
    scored = at.decoder or at.encoder
    if not workload.training and config.head.kind == "causal_lm":
        scored = 1
    return found + 2 * head * workload.batch * (scored if config.head.kind in _WORD_HEADS else 1)


def token_operations(config: ModelConfig, at: Lengths) -> float:
    """Return the operations of one more token, at the middle of the answer."""
    stack = config.decoder
    assert stack is not None
    seen = at.decoder + at.new // 2
    attention = sum(4 * min(seen, window or seen) * stack.num_heads * stack.head_dim for window in stack.windows)
    cross = 4 * at.encoder * stack.num_heads * stack.head_dim * stack.num_layers if stack.cross_attention else 0
    return 2 * (_linear_numbers(config, stack) + _head_numbers(config)) + attention + cross


def cache_read(config: ModelConfig, workload: Workload, at: Lengths) -> float:
    """Return the bytes of keys and values that one more token reads, at the middle of the answer."""
    stack = config.decoder
    assert stack is not None
    size = 1.0 if workload.cache == "int8" else _BYTES[_computed_in(workload)]
    seen = at.decoder + at.new // 2
    own = sum(2 * stack.num_kv_heads * stack.head_dim * min(seen, window or seen) for window in stack.windows)
    cross = 2 * stack.num_heads * stack.head_dim * at.encoder * stack.num_layers if stack.cross_attention else 0
    return size * workload.rows * (own + cross)


def _attention(stack: StackConfig, own: int, other: int) -> float:
    """Return attention's operations for one position: scores and their sum, half of them where they look back alone."""
    half = 2 if stack.direction == "causal" else 1
    seen = (min(own / half, window or own) for window in stack.windows)
    cross = other * stack.num_layers if stack.cross_attention else 0
    return 4 * stack.num_heads * stack.head_dim * (sum(seen) + cross)


def _linear_numbers(config: ModelConfig, stack: StackConfig) -> float:
    """Return the numbers of a stack's matrices, those that several layers share once for each."""
    return _linear_numbers_of(config, "encoder" if stack is config.encoder else "decoder")


@lru_cache(maxsize=64)  # a search for a layout asks for each of them
def _linear_numbers_of(config: ModelConfig, name: str) -> int:
    stack: StackConfig = getattr(config, name)
    uses = Counter(stack.layer_ids)
    return sum(
        math.prod(shape) * uses[int(key.split(".")[2])]
        for key, shape in shapes(config).items()
        if key.startswith(f"{name}.layers.") and len(shape) == 2
    )


def _head_numbers(config: ModelConfig) -> float:
    stack, head = config.main_stack, config.head
    width = head.transform_size or stack.hidden_size
    return head.out_size * width + head.transform_size * stack.hidden_size


def _weights_read(config: ModelConfig, workload: Workload, stored: str | StoredFile | None) -> float:
    """Return the bytes of the matrices that one pass reads: not the table that is looked up."""
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    numbers = sum(_linear_numbers(config, stack) for stack in stacks) + _head_numbers(config)
    if workload.quantized == "keep" and isinstance(stored, StoredFile):
        return numbers * stored.bytes_a_number
    return numbers * _BYTES[workload.quantized or workload.number]


def _computed_in(workload: Workload) -> str:
    if workload.training:
        return "fp32" if workload.precision == "fp32" else "bf16"
    return workload.number


def _rate(rate: float) -> str:
    return f"{rate / 1e12:,.0f} TFLOPS" if rate >= 1e12 else f"{rate / 1e9:,.0f} GFLOPS"
