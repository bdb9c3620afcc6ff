"""What-ifs of models that generate: the tokens and the first distribution of both runs."""

from __future__ import annotations

import secrets
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plainformer.config.values import check_whole
from plainformer.errors import UsageError
from plainformer.explanation.answers import changed_answer
from plainformer.explanation.changes import (
    PADDING,
    Change,
    Difference,
    LikelyToken,
    Run,
    kl_divergence,
    largest,
    masked_head,
    padded,
    padded_ids,
    parse_change,
)
from plainformer.explanation.request import GENERATING, Request
from plainformer.explanation.steps import answer_texts, token_text
from plainformer.explanation.trace_format import first_difference
from plainformer.generation.search import generate
from plainformer.tasks.base import Task, best
from plainformer.tasks.writing.base import GeneratingTask
from plainformer.tasks.writing.prepared import Prepared


@torch.inference_mode()
def what_if(task: Task, request: Request, change: Change | str, *, width: int = 5) -> Difference:
    """Run a request as it is, and changed.

    Args:
        task: what `load` returned. change: see `plainformer.explanation`.
        width: how many of the likeliest next tokens are shown of each run.
    Raises:
        UsageError: the change is unknown, or has no effect on this model.
    """
    check_whole("width", width)
    if isinstance(change, str):
        change = parse_change(change)
    if not isinstance(task, GeneratingTask) or task.config.head.kind not in GENERATING:
        return changed_answer(task, request, change)
    if request.options.get("do_sample") and request.options.get("seed") is None:
        request = request.with_options(seed=secrets.randbits(63))  # both runs draw alike
    baseline = _run(task, request.prepared(task), width)
    with masked_head(task, str(change.value)) if change.name == "mask-head" else nullcontext():
        prepared, notes = _prepare_changed(task, request, change)
        changed = _run(task, prepared, width)
    (was, raw_V, final_V), (now, new_raw_V, new_final_V) = baseline, changed
    p_V, q_V = (logits_V.double().log_softmax(-1) for logits_V in (final_V, new_final_V))
    amounts = (largest(new_raw_V - raw_V), largest(q_V.exp() - p_V.exp()), kl_divergence(p_V, q_V))
    place = first_difference(was.token_ids, now.token_ids)
    return Difference(str(change), place is None, place, *amounts, was, now, notes)


def _prepare_changed(task: GeneratingTask, request: Request, change: Change) -> tuple[Prepared, tuple[str, ...]]:
    if change.name == "mask-head":
        return request.prepared(task), ()
    if change.name == "attend-to-padding":
        return _padded(task, request.prepared(task))
    if change.name == "no-cache":
        return request.with_options(cache_kind="none").prepared(task), ()
    if change.name == "decoder-prefix":
        prefix = "answer_prefix" if task.config.encoder is None else "decoder_prefix"
        prepared = request.with_options(**{prefix: str(change.value)}).prepared(task)
        return prepared, (_likelihood(task, prepared),) if prepared.begun else ()
    value = None if change.value == "none" else change.value
    return request.with_options(**{change.name.replace("-", "_"): value}).prepared(task), ()


class _FirstStep:
    """Watches a generation and keeps the first step's logits: the model's own, and those after all processors."""

    def __init__(self) -> None:
        self.raw_V: Tensor | None = None
        self.final_V: Tensor | None = None
        self.done = False

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        if not self.done:
            self.raw_V = before_RV[0].float() if self.raw_V is None else self.raw_V
            self.final_V = after_RV[0].float()

    def picked(self, *_: Any) -> None:
        self.done = True

    beams = searched = picked


def _run(task: GeneratingTask, prepared: Prepared, width: int) -> tuple[Run, Tensor, Tensor]:
    """Return what is generated, and the first step's logits: the model's own, and those after all processors."""
    watcher = _FirstStep()
    found = generate(task.model, **prepared.inputs, options=prepared.options, watcher=watcher)
    raw_V, final_V = watcher.raw_V, watcher.final_V
    assert raw_V is not None and final_V is not None
    probabilities_V = final_V.softmax(-1)
    ids = best(probabilities_V, min(width, len(final_V))).tolist()
    likely = tuple(map(LikelyToken, (token_text(task, i) for i in ids), ids, probabilities_V[ids].tolist()))
    text = answer_texts(task, prepared, found)[0]
    return Run(text, (*prepared.begun, *found.token_ids[0]), found.stop_reasons[0], likely), raw_V, final_V


def _padded(task: GeneratingTask, prepared: Prepared) -> tuple[Prepared, tuple[str, ...]]:
    """Return the prompt with visible padding before it (after an encoder's input), and notes of what it does to logits."""
    inputs = dict(prepared.inputs)
    if "input_ids" not in inputs:
        raise UsageError(f"attend-to-padding has no effect in {task.name}, which reads no text", "leave it out")
    on_left = task.config.encoder is None
    ids = padded_ids(task, inputs["input_ids"], on_left)
    real, seen = padded(torch.ones_like(inputs["input_ids"]), 0, on_left), torch.ones_like(ids)
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = padded(inputs["token_type_ids"], 0, on_left)
    inputs.update(input_ids=ids, attention_mask=seen)
    # Two rows: padding is masked in the first, and seen in the second.
    names = [name for name in ("decoder_input_ids", "token_type_ids") if name in inputs]
    twice = {name: inputs[name].expand(2, -1) for name in ("input_ids", *names)}
    both = task.model(**twice, attention_mask=torch.cat((real, seen)), logits_to_keep=1).logits
    alone = task.model(**{name: prepared.inputs[name] for name in ("input_ids", "attention_mask", *names)}).logits
    note = "a decoder's padding comes before the text" if on_left else "an encoder's padding comes after the text"
    masked, attended = ((row[-1] - alone[0, -1]).abs().max().item() for row in both)
    text = (
        f"{PADDING} padding tokens change the next token's logits by {masked:.1e} masked, by {attended:.1e} attended to"
    )
    return replace(prepared, inputs=inputs), (text, note)


def _likelihood(task: GeneratingTask, prepared: Prepared) -> str:
    """Return a note of the probability that the model itself gives a forced beginning."""
    name = "input_ids" if task.config.encoder is None else "decoder_input_ids"
    ids = torch.tensor([[*prepared.before, *prepared.begun]], device=task.model.device)
    inputs = {key: prepared.inputs[key] for key in ("input_ids", "attention_mask") if name != "input_ids"}
    log_p = task.model(**{**inputs, name: ids}).logits[0, len(prepared.before) - 1 : -1].float().log_softmax(-1)
    total = float(log_p.gather(-1, ids[0, len(prepared.before) :, None]).sum())
    return f"without the prefix, the model would have begun this way with probability {torch.tensor(total).exp().item():.2g}"
