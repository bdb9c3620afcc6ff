"""The learning rate as a function of the step, so that a resumed run needs to remember nothing.

linear     up to 1 in the warm-up, then straight down to `final`
cosine     the same, down along half a cosine (Loshchilov & Hutter 2017)
wsd        warm-up, stable, decay: down in a straight line in the last steps alone (Hu et al. 2024, MiniCPM)
constant   1 after the warm-up
"""

from __future__ import annotations

import math

from plainformer.config.training import ScheduleConfig
from plainformer.errors import UsageError, opt, plural


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    """Return the steps of the warm-up: a share of all is rounded up, and leaves at least one step after it."""
    if config.warmup >= 1:
        return round(config.warmup)
    return min(math.ceil(config.warmup * total - 1e-9), total - 1)  # 1e-9: 0.07 * 100 is a little more than 7


def decay_steps(config: ScheduleConfig, total: int) -> int:
    """Return the last steps, in which wsd decays: a share of all, rounded down, at least one."""
    return max(math.floor(config.decay * total + 1e-9), 1)


def check_schedule(config: ScheduleConfig, total: int) -> None:
    """Refuse a schedule that does not fit into a run of `total` steps."""
    warmup = warmup_steps(config, total)
    if warmup > total:
        raise UsageError(
            f"{opt('schedule.warmup', config.warmup)}: the run has {plural(total, 'step')}, so the warm-up would not end",
            "give fewer steps of warm-up, or a share below 1",
        )
    if config.kind == "wsd" and warmup + decay_steps(config, total) > total:
        raise UsageError(
            f"a warm-up of {plural(warmup, 'step')} and a decay of {decay_steps(config, total):,} do not fit into "
            f"the {plural(total, 'step')} of the run",
            f"lower {opt('schedule.warmup')} or {opt('schedule.decay')}",
        )


def factor(config: ScheduleConfig, step: int, total: int) -> float:
    """Return the share of the peak rate with which step `step`, counted from 0, of `total` is taken; `final` after them."""
    warmup = warmup_steps(config, total)
    if step < warmup:
        return step / warmup
    if config.kind == "constant":
        return 1.0
    first = total - decay_steps(config, total) if config.kind == "wsd" else warmup
    done = min(max(step - first, 0) / max(total - first, 1), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.kind == "cosine" else 1 - done
    return config.final + (1 - config.final) * left
