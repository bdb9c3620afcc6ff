"""What-ifs of models that answer in one pass: the task's own answer with and without a change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from plainformer.config.values import no_effect
from plainformer.errors import UsageError
from plainformer.explanation.changes import (
    PADDING,
    Change,
    Difference,
    Run,
    kl_divergence,
    largest,
    masked_head,
    padded,
    padded_ids,
)
from plainformer.explanation.request import Request, plain_answer
from plainformer.inputs.text.encoding import TextBatch
from plainformer.tasks.base import Task

POSSIBLE = "attend-to-padding and mask-head=L.H"
# Heads whose logits are one distribution for a text, or one for each position.
DISTRIBUTIONS = ("sequence", "token", "masked_lm")


def changed_answer(task: Task, request: Request, change: Change) -> Difference:
    """Return the difference that a change makes to a task's answer."""
    if change.name not in ("attend-to-padding", "mask-head"):
        what = f"what-if {change.name} has no effect in {task.name}: this model answers in one pass"
        raise UsageError(what, f"possible: {POSSIBLE}")
    no_effect(request.chat, "chat", f"in {task.name}")
    task.checked([request.item], task.make_options(request.call))
    was, before = _answer(task, request)
    notes: tuple[str, ...] = ()
    if change.name == "mask-head":
        with masked_head(task, str(change.value)):
            now, after = _answer(task, request)
    else:
        masked = _cut(_answer(task, request, padding="masked")[1], before)
        now, after = _answer(task, request, padding="seen")
        after = _cut(after, before)
        rounding = f"{largest(masked - before):.1e}"
        notes = (f"{PADDING} padding tokens after the text change the output by {rounding} when they are masked",)
    kl, probability = _distributions(task, before, after)
    first, second = (Run(None, (), None, (), answer) for answer in (was, now))
    return Difference(str(change), was == now, None, largest(after - before), probability, kl, first, second, notes)


def _answer(task: Task, request: Request, *, padding: str | None = None) -> tuple[Any, Tensor]:
    """Return the task's answer as plain values, and the model's output: logits, or vectors where its head gives none."""
    options = task.make_options(request.call)
    read = seen = task.encode([request.item], options)
    if padding is not None:  # only the model sees padding as text: the answer is read where the text is
        read, seen = (_padded(task, read, visible=visible) for visible in (False, padding == "seen"))
    with _outputs(task) as outputs:
        predicted = task.predict(seen, options)
    (answer,) = task.decode(read, predicted, options)
    return plain_answer(answer), outputs[0]


@contextmanager
def _outputs(task: Task) -> Iterator[list[Tensor]]:
    """While open, keep each output of the model's head: its logits, or the last hidden states where it has no logits."""
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept.append(output.float() if isinstance(output, Tensor) else output.last_hidden_state.float())

    scores = task.config.head.out_size > 0
    with (task.model.head if scores else task.model.encoder or task.model.main).register_forward_hook(keep):
        yield kept


def _padded(task: Task, encoded: Any, *, visible: bool) -> Any:
    """Return the encoded input with its batch padded, wherever the task keeps it."""
    if isinstance(encoded, TextBatch):
        ids = padded_ids(task, encoded.input_ids, on_left=False)
        mask = padded(encoded.attention_mask, int(visible), on_left=False)
        types = padded(encoded.token_type_ids, 0, on_left=False)
        return TextBatch(ids, mask, types, encoded.encodings, encoded.counts)
    if isinstance(encoded, tuple):
        return tuple(_padded(task, part, visible=visible) if isinstance(part, TextBatch) else part for part in encoded)
    if isinstance(getattr(encoded, "batch", None), TextBatch):
        return replace(encoded, batch=_padded(task, encoded.batch, visible=visible))
    raise UsageError(f"attend-to-padding has no effect in {task.name}, which reads no text", "leave it out")


def _cut(output: Tensor, like: Tensor) -> Tensor:
    """Return the places that both runs have: padding has outputs of its own."""
    return output[:, : like.size(1)] if output.dim() == 3 else output


def _distributions(task: Task, before: Tensor, after: Tensor) -> tuple[float | None, float | None]:
    """Return the mean KL divergence of the heads' distributions, and the largest change of a probability."""
    head = task.config.head
    if head.kind not in DISTRIBUTIONS or before.size(-1) < 2 or head.problem in ("regression", "multi_label"):
        return None, None
    p_NC, q_NC = (logits.double().log_softmax(-1).flatten(0, -2) for logits in (before, after))
    found = [kl_divergence(p_C, q_C) for p_C, q_C in zip(p_NC, q_NC, strict=True)]
    kl = None if any(value is None for value in found) else sum(value or 0.0 for value in found) / len(found)
    return kl, largest(q_NC.exp() - p_NC.exp())
