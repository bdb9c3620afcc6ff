"""The rule of thumb, parameters times bytes, beside what was counted: when it is wrong, and by how much. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plainformer.config.model import ModelConfig
from plainformer.errors import plural
from plainformer.plan.devices import short
from plainformer.plan.published import size_in
from plainformer.plan.result import GRADIENTS, OPTIMIZER, WEIGHTS, RankPlan
from plainformer.plan.stored import StoredFile
from plainformer.plan.workload import Workload

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int4": 0.5}
_NEAR = 0.02  # a difference that nobody minds


@dataclass(frozen=True)
class Rule:
    """What people reckon with.

    Attributes:
        said: the rule, in numbers. bytes: what it gives.
        states: what was counted of what it is about: weights, in training also gradients and states of the optimizer.
        peak: the bytes of tensors at the peak, all devices that hold the model together.
        sentences: when it is wrong, and by how much.
    """

    said: str
    bytes: int
    states: int
    peak: int
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "rule": self.said,
            "bytes": self.bytes,
            "counted": self.states,
            "peak": self.peak,
            "sentences": list(self.sentences),
        }


def rule_of(
    name: str,
    config: ModelConfig,
    workload: Workload,
    parameters: int,
    ranks: tuple[RankPlan, ...],
    copies: int = 1,
    stored: str | StoredFile | None = None,
) -> Rule:
    """Return the rule of thumb for a model of that name; where it says its size ("7B"), people take that.

    `copies`: how many whole models the ranks have together. `stored`: as the weights are in their file.
    """
    count = size_in(name) or parameters
    said, rule = _reckoned(count, workload, stored)
    worst = max(ranks, key=lambda rank: rank.bytes)
    about = (WEIGHTS, GRADIENTS, OPTIMIZER) if workload.training else (WEIGHTS,)
    held: dict[str, int] = {}
    for phase in worst.phases:
        for part, size in phase.parts().items():
            if part in about:
                held[part] = max(held.get(part, 0), size)
    states, peak = sum(held.values()), worst.bytes
    alone = sum(len(rank.ranks) for rank in ranks) == copies
    sentences = (
        tuple(_sentences(config, workload, count, parameters, rule, states, worst))
        if alone
        else _divided(ranks, rule, copies)
    )
    return Rule(said, rule, states, peak, sentences)


def _reckoned(count: int, workload: Workload, stored: str | StoredFile | None) -> tuple[str, int]:
    """Return the rule in numbers, and what it gives."""
    if workload.quantized == "keep" and isinstance(stored, StoredFile):
        return f"the size of the file = {short(stored.size)}", stored.size
    each = 4 if workload.training else _BYTES[workload.quantized or workload.number]
    rule = round(count * each * (4 if workload.training else 1))
    times = "4 bytes x 4 for training" if workload.training else f"{each} {'byte' if each == 1 else 'bytes'}"
    return f"{said_count(count)} x {times} = {short(rule)}", rule


def _divided(ranks: tuple[RankPlan, ...], rule: int, copies: int) -> tuple[str, ...]:
    count = sum(len(rank.ranks) for rank in ranks) // copies
    worst = max(rank.bytes for rank in ranks)
    share = rule / max(count, 1)
    return (
        f"divided among {count} devices, that is {short(share)} each",
        f"the device that needs most needs {short(worst, share)}, {worst / share:.2f} times that",
    )


def _sentences(
    config: ModelConfig, workload: Workload, count: int, parameters: int, rule: int, states: int, worst: RankPlan
) -> Iterator[str]:
    what = "weights, gradients and optimizer states" if workload.training else "weights"
    off = states / max(rule, 1) - 1
    if abs(off) < _NEAR:
        yield f"the {what} are {short(states, rule)}: right to {abs(off):.1%}"
    else:
        sign = "more" if off > 0 else "less"
        yield f"the {what} are {short(states, rule)}, {abs(off):.1%} {sign}{_because(config, workload, count, parameters)}"
    peak = worst.bytes
    if peak > rule * (1 + _NEAR):
        rest = {name: size for name, size in worst.peak.parts().items() if name not in (WEIGHTS, GRADIENTS, OPTIMIZER)}
        largest = sorted(rest, key=lambda name: -rest[name])[:2]
        named = " and ".join(f"{name} ({short(rest[name])})" for name in largest)
        left_out = f", which leaves out {named}" if named else ""
        yield f"the peak is {short(peak, rule)}, {peak / rule:.2f} times the rule{left_out}"
    else:
        yield f"the peak is {short(peak, rule)}, {peak / rule:.2f} times the rule"
    yield _grows(config, workload)


def _because(config: ModelConfig, workload: Workload, count: int, parameters: int) -> str:
    reasons = []
    if abs(count / parameters - 1) >= _NEAR:
        reasons.append(f"the model has {said_count(parameters)} parameters, not {said_count(count)}")
    if workload.training and workload.trainable != "all":
        reasons.append(
            f"only {'adapters have' if workload.trainable == 'lora' else 'the head has'} gradients and states"
        )
    if workload.training and workload.trainable == "all" and config.fixed:
        reasons.append("not all of them are trained")
    if workload.training and workload.optimizer != "adamw":
        reasons.append(f"x4 is AdamW's; {workload.optimizer} keeps less")
    if not workload.training and workload.quantized in ("int8", "int4"):
        blocks = "a block of 32 numbers has 20 bytes, not 16; " if workload.quantized == "int4" else ""
        tied = ", and the tied table exists twice, once in int8" if config.tied else ""
        reasons.append(f"{blocks}embeddings and norms stay fp32{tied}")
    return ": " + "; ".join(reasons) if reasons else ""


def _grows(config: ModelConfig, workload: Workload) -> str:
    """Return what the rule does not see grow."""
    if workload.training:
        return "the rule knows neither batch nor length: activations and logits grow with both"
    shared = [s for s in (config.encoder, config.decoder) if s is not None and len(set(s.layer_ids)) < s.num_layers]
    if shared:
        one = shared[0]
        sets = plural(len(set(one.layer_ids)), "set")
        return f"{one.num_layers} layers share {sets} of weights, but each of them takes its time and its activations"
    stack = config.decoder
    if stack is None:
        return "the rule knows neither batch nor length: activations grow with both"
    size = 1 if workload.cache == "int8" else 2 if workload.number in ("bf16", "fp16") else 4
    token = 2 * stack.num_kv_heads * stack.head_dim * size * stack.num_layers
    return f"the rule does not know the cache: {short(token)} for each token of each row"


def said_count(count: int) -> str:
    """Return a number of parameters for people: "7B", "22.71M"."""
    power, letter = next(((p, x) for p, x in ((10**9, "B"), (10**6, "M"), (10**3, "k")) if count >= p), (1, ""))
    return f"{round(count / power, 2):g}{letter}"
