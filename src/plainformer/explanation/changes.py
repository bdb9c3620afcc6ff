"""The changes that can be made, how they are written, and the differences that they make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plainformer.config.options import specs
from plainformer.errors import InputError, UsageError, did_you_mean
from plainformer.explanation.attention import find_head
from plainformer.model.stack import Stack
from plainformer.tasks.base import Task
from plainformer.tasks.writing.options import PromptOptions

PADDING = 8
CHANGES = ("attend-to-padding", "decoder-prefix=TEXT", "no-cache", "mask-head=L.H", "OPTION=VALUE")
_PLAIN = ("attend-to-padding", "no-cache")
_TEXTS = ("decoder-prefix", "mask-head")
_LISTS = ("stop", "choices")


@dataclass(frozen=True)
class Change:
    """What is changed: `name` as in `CHANGES`; `value` is None where it takes none."""

    name: str
    value: Any = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"


@dataclass(frozen=True)
class LikelyToken:
    """A token and its probability at the first position."""

    token: str
    token_id: int
    probability: float


@dataclass(frozen=True)
class Run:
    """One of the two runs: `text` and `token_ids` of what was generated (a forced beginning included); else `answer`."""

    text: str | None
    token_ids: tuple[int, ...]
    stop_reason: str | None
    next_tokens: tuple[LikelyToken, ...]
    answer: Any = None


@dataclass(frozen=True)
class Difference:
    """What a change does.

    Attributes:
        same: whether both outputs are equal: the tokens, or the answers.
        first_difference: the first place at which the tokens differ, from 0; None where none does, or there are none.
        logit_change: the largest change of a logit of the model itself, at the first position (an encoder's: of all its
            logits, or of its vectors).
        probability_change: the largest change of a probability there, after all processors.
        kl_divergence: of the changed from the baseline's distribution, in nats; None if it is infinite, because the change
            bans a token that was possible, and where there is no distribution.
        notes: remarks.
    """

    change: str
    same: bool
    first_difference: int | None
    logit_change: float
    probability_change: float | None
    kl_divergence: float | None
    baseline: Run
    changed: Run
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def parse_change(text: str) -> Change:
    """Parse a change as it is written: "mask-head=0.1", "num-beams=4".

    Raises:
        UsageError: an unknown change; a value is missing, or there is one too many.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if name in _PLAIN:
        if equals:
            raise UsageError(f"what-if {name} takes no value", f"write {name}")
        return Change(name)
    known = {*_TEXTS, *(name.replace("_", "-") for name in specs(PromptOptions))}
    name = name.replace("_", "-")
    if name not in known:
        hint = did_you_mean(name, known | set(_PLAIN))
        raise UsageError(f"what-if {name!r} is unknown", f"{hint} possible: {', '.join(CHANGES)}".strip())
    if not equals:
        raise UsageError(f"what-if {name} needs a value", f"write {name}=...")
    return Change(name, value if name in _TEXTS else _parsed(name, value))


def _parsed(name: str, value: str) -> Any:
    """Return an option's value: a number, true, false or a list as JSON writes it; any other text as it is."""
    if value.lower() == "none":
        return "none"
    if name in _LISTS and not value.startswith("["):
        return [value]
    try:
        return json.loads(value)
    except ValueError:
        return value


def largest(values: Tensor) -> float:
    """Return the largest absolute value; NaN (infinity less infinity) and infinity do not count."""
    return float(values.abs().nan_to_num(nan=0.0, posinf=0.0).max())


def kl_divergence(p_V: Tensor, q_V: Tensor) -> float | None:
    """Return the KL divergence of q from p in nats, given log-probabilities; None if it is infinite."""
    possible = p_V > float("-inf")
    value = float((p_V.exp() * (p_V - q_V))[possible].sum())
    return max(value, 0.0) if value < float("inf") else None


def padded(ids: Tensor, value: int, on_left: bool) -> Tensor:
    """Return a row, (1, T), with padding, (1, T + PADDING)."""
    return torch.nn.functional.pad(ids, (PADDING, 0) if on_left else (0, PADDING), value=value)


def padded_ids(task: Task, ids: Tensor, on_left: bool) -> Tensor:
    """Return `padded` token ids; the padding of a model without a padding token is its end token.

    Raises:
        InputError: the model has fewer positions; padding that is attended to needs them.
    """
    config, length = task.config, ids.size(1) + PADDING
    stack = config.encoder or config.main_stack
    if stack.max_positions is not None and length > stack.max_positions:
        what = f"the text and {PADDING} padding tokens are {length}; the model learned {stack.max_positions} positions"
        raise InputError(what, "give a shorter text")
    pad_id = next(i for i in (task.tokenizer.pad_id, config.pad_id, *config.eos_ids, 0) if i is not None)
    return padded(ids, pad_id, on_left)


@contextmanager
def masked_head(task: Task, which: str) -> Iterator[None]:
    """While open, one attention head is masked: its output is zeroed. `which`: "L.H", "encoder.L.H" or "decoder.L.H"."""
    side, layer, head = find_head(task.model, which, f"mask-head={which}", ("encoder", "decoder"))
    stack: Stack = getattr(task.model, side)
    mask_LH = torch.ones(stack.config.num_layers, stack.config.num_heads, device=task.model.device)
    mask_LH[layer, head] = 0

    def mask(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (replace(inputs[0], head_mask=mask_LH), *inputs[1:])

    with stack.register_forward_pre_hook(mask):
        yield
