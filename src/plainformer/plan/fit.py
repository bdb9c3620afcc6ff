"""What fits: the largest batch or context, and the cheapest layout. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from plainformer.config.layout import Layout
from plainformer.config.model import ModelConfig
from plainformer.errors import UsageError, opt, plural
from plainformer.plan.asked import LayoutOptions
from plainformer.plan.devices import short
from plainformer.plan.fitted import CheapestLayouts, LargestBatch, LargestContext, LargestModels, options_said, over
from plainformer.plan.lengths import reads_text

if TYPE_CHECKING:
    from plainformer.plan.planned import Plan

MOST = 1 << 24  # rows or tokens: more would tell nobody anything
MOST_DEVICES = 64  # that are tried where nobody says how many there are
BEST = 3


def largest_batch(plan: Plan) -> int | None:
    """Return the most rows at a time that fit; 0: not even one; None where no device is named."""
    if plan.device is None:
        return None
    return _largest(lambda rows: bool(plan.with_workload(batch=rows).fits))


def largest_context(plan: Plan) -> int | None:
    """Return the longest row that fits, in tokens; 0: not even one; None: no device, or an input that is not a text.

    A prompt grows, what may follow it does not; the model's table of positions is a limit as well.
    """
    if plan.device is None or not reads_text(plan.config):
        return None
    limit = _longest(plan)
    found = _largest(lambda tokens: bool(at_length(plan, tokens).fits), limit)
    return found + _after(plan) if found else 0


def at_length(plan: Plan, tokens: int) -> Plan:
    """Return the plan for rows of another length: of the prompt, or of what is learnt from."""
    return plan.with_workload(**{"length" if plan.workload.training else "prompt": tokens})


def _after(plan: Plan) -> int:
    return 0 if plan.workload.training or plan.config.decoder is None else plan.workload.new


def _longest(plan: Plan) -> int:
    limit = plan.config.input_stack.max_positions
    if limit is None:
        return MOST
    return max(limit - (_after(plan) if plan.config.encoder is None else 0), 1)


def _largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """Return the largest number up to `most` for which something is so, where it is so for all smaller ones; 0 for none."""
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, bad * 2
    bad = min(bad, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def need_device(plan: Plan, what: str) -> None:
    """Refuse to fit something to nothing."""
    if plan.device is None:
        fix = f"give {opt('device', 'H100')} or {opt('memory', '24GB')}"
        raise UsageError(f"{opt('fit', what)} needs to know the memory", fix)


def fit_batch(plan: Plan) -> LargestBatch:
    """Return the largest batch."""
    need_device(plan, "batch")
    most = plan.largest_batch or 0
    further = plan.with_workload(batch=most + 1)
    if not most:
        return LargestBatch(answer="not even one row fits", rows=0, rejected=further, why=over("1 row", further))
    best = plan.with_workload(batch=most)
    if most >= MOST:
        return LargestBatch(answer=f"{most:,} rows fit, and no more were tried", rows=most, plans=(best,))
    said = f"largest batch: {plural(most, 'row')} at a time, which need {short(best.total)}"
    why = over(plural(most + 1, "row"), further)
    return LargestBatch(answer=said, rows=most, plans=(best,), rejected=further, why=why)


def fit_context(plan: Plan) -> LargestContext:
    """Return the longest row."""
    need_device(plan, "context")
    if not reads_text(plan.config):
        raise UsageError(f"{opt('fit', 'context')}: the model reads no text", f"give {opt('fit', 'batch')}")
    most = plan.largest_context or 0
    own = most - _after(plan)
    if not most:
        further = at_length(plan, 1)
        return LargestContext(
            answer="not even one token fits", tokens=0, rejected=further, why=over("1 token", further)
        )
    best = at_length(plan, own)
    said = f"largest context: {plural(most, 'token')} a row"
    said += f", {plan.workload.new:,} of which may follow the prompt" if _after(plan) else ""
    said += f"; it needs {short(best.total)}"
    if own >= _longest(plan):
        where = "the model has no more positions" if own < MOST else "no more were tried"
        return LargestContext(answer=f"{said}; {where}", tokens=most, plans=(best,))
    further = at_length(plan, own + 1)
    why = over(plural(most + 1, "token"), further)
    return LargestContext(answer=said, tokens=most, plans=(best,), rejected=further, why=why)


def fit_models(plans: Iterable[Plan]) -> LargestModels:
    """Return the largest published models that fit, from plans of all of them."""
    every = sorted(plans, key=lambda one: one.parameters)
    if not every:
        fix = f"give {opt('fit', 'batch')}"
        raise UsageError(f"{opt('fit', 'model')}: no published shape of this kind is known here", fix)
    need_device(every[0], "model")
    good = [one for one in every if one.fits]
    further = next((one for one in every if not one.fits), None)
    why = "" if further is None else over(further.name, further)
    if not good:
        return LargestModels(answer="no published model that is known here fits", rejected=further, why=why)
    best = tuple(reversed(good[-BEST:]))
    return LargestModels(answer="the largest published models that fit", plans=best, rejected=further, why=why)


def fit_layout(plan: Plan, asked: LayoutOptions) -> CheapestLayouts:
    """Return the layouts that fit with the fewest devices, and why the next cheaper one does not.

    Args:
        asked: what was said of the layout stays as it is; `devices` and `nodes` are how many there are.
    """
    need_device(plan, "layout")
    tried = _tried(plan, asked)
    good = [one for one in tried if one.fits]
    if not good:
        nearest = min(tried, key=lambda one: one.total, default=None)
        answer = f"no layout of up to {plural(asked.count or MOST_DEVICES, 'device')} fits"
        why = "" if nearest is None else over(f"the nearest, {options_said(nearest)}", nearest)
        return CheapestLayouts(answer=answer, rejected=nearest, why=why)
    good.sort(key=_order)
    first = _order(good[0])
    cheaper = [one for one in tried if not one.fits and _order(one) < first]
    closest = max(cheaper, key=lambda one: (one.layout.world, -one.total), default=None)
    why = "" if closest is None else over(f"the next cheaper one, {options_said(closest)}", closest)
    answer = "the cheapest layouts that fit: fewest devices, then most tokens/s"
    return CheapestLayouts(answer=answer, plans=tuple(good[:BEST]), rejected=closest, why=why)


def _tried(plan: Plan, asked: LayoutOptions) -> list[Plan]:
    """Return the candidates, those of few devices first, as far as more devices could still be an answer.

    Of a layout that fits as it is, nothing is tried with layers that are computed twice.
    """
    tried: list[Plan] = []
    good: set[Layout] = set()
    for one in candidates(plan, asked):
        if len(good) >= BEST and one.layout.world > tried[-1].layout.world:
            break
        if one.layout not in good:
            tried.append(one)
            good |= {one.layout} if one.fits else set()
    return tried


def _order(plan: Plan) -> tuple[float, ...]:
    """Return what layouts are sorted by: devices, then tokens a second, then what is computed twice."""
    bound = plan.time
    rate = 0.0 if bound is None or bound.tokens_per_second is None else bound.tokens_per_second
    simple = plan.layout.zero, plan.layout.pp, plan.layout.tp
    return plan.layout.world, -rate, plan.workload.recomputed_every, *simple


def candidates(plan: Plan, asked: LayoutOptions) -> Iterator[Plan]:
    """Yield the plan of each layout that can work, and, in training, with and without layers that are recomputed."""
    total = asked.count or MOST_DEVICES
    inside = asked.devices or 8
    counts = [n for n in range(1, total + 1) if total % n == 0]
    recomputed = (
        ("none", "all") if plan.workload.training and "checkpointing" not in plan.workload.explicit else (None,)
    )
    changed = [plan if how is None else plan.with_workload(checkpointing=how) for how in recomputed]
    for layout in layouts(plan.config, plan.workload.training, asked, counts, inside):
        for one in changed:
            yield one.with_layout(layout)


def layouts(
    config: ModelConfig, training: bool, asked: LayoutOptions, counts: Iterable[int], inside: int
) -> Iterator[Layout]:
    """Yield the layouts of these numbers of devices that a model can have, with what was asked for as it was."""
    given = asked.explicit

    def free(name: str, count: int, most: int) -> list[int]:
        if name in given:
            return [value for value in (getattr(asked, name),) if value and count % value == 0]
        return [n for n in range(1, min(count, most) + 1) if count % n == 0]

    schedule: Any = asked.schedule
    for count in counts:
        for tp in free("tp", count, inside):
            for pp in free("pp", count // tp, 1 << 30):
                dp = count // tp // pp
                if ("dp" in given and dp != asked.dp) or (not training and dp > 1 and "dp" not in given):
                    continue
                zeros: tuple[Any, ...] = (
                    (asked.zero,) if "zero" in given else (0, 1, 2, 3) if dp > 1 and training else (0,)
                )
                for zero in zeros:
                    made = Layout(dp=dp, zero=zero if dp > 1 else 0, tp=tp, pp=pp, schedule=schedule)
                    if not made.problems(config):
                        yield made
