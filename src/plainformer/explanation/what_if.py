"""What if, of models that generate: both runs' tokens, and both first distributions."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.explanation.answers import changed_answer
from plainformer.explanation.changes import (
    PADDING,
    Change,
    Difference,
    LikelyToken,
    Run,
    check_room,
    kl_divergence,
    largest,
    masked_head,
    pad_id,
    padded,
    parse_change,
)
from plainformer.explanation.request import GENERATING, Request
from plainformer.explanation.steps import answer_texts, token_text
from plainformer.generation.modes.beam import Beam, Hypothesis
from plainformer.generation.search import generate
from plainformer.generation.sessions.session import Session
from plainformer.tasks.base import Task
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
    if isinstance(change, str):
        change = parse_change(change)
    if not isinstance(task, GeneratingTask) or task.config.head.kind not in GENERATING:
        return changed_answer(task, request, change)
    if request.options.get("do_sample") and request.options.get("seed") is None:
        request = request.with_options(seed=secrets.randbits(63))  # both runs draw alike
    baseline = _run(task, request.prepared(task), width)
    if change.name == "mask-head":
        with masked_head(task, str(change.value)):
            changed = _run(task, request.prepared(task), width)
        notes: tuple[str, ...] = ()
    else:
        prepared, notes = _prepare_changed(task, request, change)
        changed = _run(task, prepared, width)
    return _difference(change, baseline, changed, notes)


def _prepare_changed(task: GeneratingTask, request: Request, change: Change) -> tuple[Prepared, tuple[str, ...]]:
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


# ---- a run ------------------------------------------------------------------------------------------------------------


class _FirstStep:
    """A watcher that keeps the first step's logits, as the model gave them and in the end."""

    def __init__(self) -> None:
        self.raw_V: Tensor | None = None
        self.final_V: Tensor | None = None
        self.done = False

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        if not self.done:
            self.raw_V = before_RV[0].float() if self.raw_V is None else self.raw_V
            self.final_V = after_RV[0].float()

    def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: Session) -> None:
        self.done = True

    def beams(self, prompt: int, candidates: list[Beam], running: list[Beam], finished: list[Hypothesis]) -> None:
        self.done = True

    def searched(self, logits_RV: Tensor, session: Session) -> None:
        self.done = True


@dataclass(frozen=True)
class _Ran:
    side: Run
    raw_V: Tensor
    final_V: Tensor


def _run(task: GeneratingTask, prepared: Prepared, width: int) -> _Ran:
    watcher = _FirstStep()
    found = generate(task.model, **prepared.inputs, options=prepared.options, watcher=watcher)
    raw_V, final_V = watcher.raw_V, watcher.final_V
    assert raw_V is not None and final_V is not None
    best = final_V.softmax(-1).topk(min(width, len(final_V)))
    likely = tuple(
        LikelyToken(token_text(task, i), i, p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
    ids = (*prepared.begun, *found.token_ids[0])
    side = Run(answer_texts(task, prepared, found)[0], ids, found.stop_reasons[0], likely)
    return _Ran(side, raw_V, final_V)


def _difference(change: Change, baseline: _Ran, changed: _Ran, notes: tuple[str, ...]) -> Difference:
    was, now = baseline.side.token_ids, changed.side.token_ids
    places = (i for i in range(max(len(was), len(now))) if was[i : i + 1] != now[i : i + 1])
    p_V, q_V = (ran.final_V.double().log_softmax(-1) for ran in (baseline, changed))
    return Difference(
        str(change),
        was == now,
        next(places, None),
        largest(changed.raw_V - baseline.raw_V),
        largest(q_V.exp() - p_V.exp()),
        kl_divergence(p_V, q_V),
        baseline.side,
        changed.side,
        notes,
    )


# ---- padding ----------------------------------------------------------------------------------------------------------


def _padded(task: GeneratingTask, prepared: Prepared) -> tuple[Prepared, tuple[str, ...]]:
    """Put visible padding before the prompt (or after an encoder's input); say by how much masked padding changes logits."""
    inputs = dict(prepared.inputs)
    if "input_ids" not in inputs:
        raise UsageError(f"attend-to-padding has no effect in {task.name}, which reads no text", "leave it out")
    on_left = task.config.encoder is None
    ids = padded(inputs["input_ids"], pad_id(task), on_left)
    check_room(task, ids.size(1))
    real = padded(torch.ones_like(inputs["input_ids"]), 0, on_left)
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = padded(inputs["token_type_ids"], 0, on_left)
    inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
    # Both rows are of one batch: in the first its padding is masked, in the second it is seen.
    first = {name: inputs[name] for name in ("decoder_input_ids", "token_type_ids") if name in inputs}
    both_inputs = {name: value.expand(2, -1) for name, value in first.items()}
    both = task.model(
        ids.expand(2, -1), torch.cat((real, torch.ones_like(real))), **both_inputs, logits_to_keep=1
    ).logits
    alone = task.model(**{name: prepared.inputs[name] for name in ("input_ids", "attention_mask", *first)}).logits
    note = "a decoder's padding comes before the text" if on_left else "an encoder's padding comes after the text"
    masked, seen = ((row[-1] - alone[0, -1]).abs().max().item() for row in both)
    text = f"{PADDING} padding tokens change the next token's logits by {masked:.1e} masked, by {seen:.1e} attended to"
    return replace(prepared, inputs=inputs), (text, note)


# ---- a forced beginning -----------------------------------------------------------------------------------------------


def _likelihood(task: GeneratingTask, prepared: Prepared) -> str:
    """Say how likely the model finds the beginning that it is made to take."""
    name = "input_ids" if task.config.encoder is None else "decoder_input_ids"
    ids = torch.tensor([[*prepared.before, *prepared.begun]], device=task.model.device)
    inputs = {key: prepared.inputs[key] for key in ("input_ids", "attention_mask") if name != "input_ids"}
    log_p = task.model(**{**inputs, name: ids}).logits[0, len(prepared.before) - 1 : -1].float().log_softmax(-1)
    total = float(log_p.gather(-1, ids[0, len(prepared.before) :, None]).sum())
    return f"left alone, the model would begin so with probability {torch.tensor(total).exp().item():.2g}"
