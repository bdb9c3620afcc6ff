"""What `fit` answers: the largest batch or context, the largest models, the cheapest layouts. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plainformer.errors import plural, spelt
from plainformer.plan.devices import apart, short
from plainformer.plan.result import PHASES
from plainformer.plan.tables import table_lines

if TYPE_CHECKING:
    from plainformer.plan.planned import Plan

Written = tuple[tuple[str, ...], list[tuple[str, ...]]]  # the columns of a table, and its rows


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What fits, and why no more does.

    Attributes:
        answer: in a sentence. plans: what fits, the best first. rejected: what is a step further, and does not; None for none.
        why: by which bytes and in which phase; "" where nothing is rejected.
    """

    kind: ClassVar[str] = ""
    answer: str
    plans: tuple[Plan, ...] = ()
    rejected: Plan | None = None
    why: str = ""

    def table(self) -> Written:
        """Return columns and rows where several answers are to be compared; nothing otherwise."""
        return (), []

    def lines(self) -> list[str]:
        """Return it for people."""
        columns, rows = self.table()
        return [self.answer, *table_lines(columns, rows, columns), *([f"does not fit: {self.why}"] if self.why else [])]

    def __str__(self) -> str:
        return "\n".join(map(spelt, self.lines()))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "fit": self.kind,
            "answer": spelt(self.answer),
            "plans": [one.to_dict() for one in self.plans],
            "rejected": None if self.rejected is None else self.rejected.to_dict(),
            "why": spelt(self.why),
        }


@dataclass(frozen=True, kw_only=True)
class LargestBatch(Fitted):
    """The most rows at a time; `rows` 0: not even one fits."""

    kind: ClassVar[str] = "batch"
    rows: int


@dataclass(frozen=True, kw_only=True)
class LargestContext(Fitted):
    """The longest row; `tokens` are those of a prompt with what follows, or of a training example. 0: not even one fits."""

    kind: ClassVar[str] = "context"
    tokens: int


@dataclass(frozen=True, kw_only=True)
class LargestModels(Fitted):
    """The largest published models, of those that are known here; `names` in the order of `plans`."""

    kind: ClassVar[str] = "model"

    @property
    def names(self) -> tuple[str, ...]:
        """Return what they are called."""
        return tuple(one.name for one in self.plans)

    def table(self) -> Written:
        """Return each model with its parameters and what it needs."""
        rows: list[tuple[str, ...]] = [(one.name, f"{one.parameters:,}", short(one.total)) for one in self.plans]
        return ("model", "parameters", "needs"), rows


@dataclass(frozen=True, kw_only=True)
class CheapestLayouts(Fitted):
    """The layouts that need the fewest devices; among those of as many, the fastest first (see `Plan.layout`)."""

    kind: ClassVar[str] = "layout"

    def table(self) -> Written:
        """Return each layout with its peak, and with the most tokens a second where the device's rates are known."""
        rated = any(one.time is not None for one in self.plans)
        columns = ("devices", "tp", "pp", "dp", "zero", "checkpointing", "needs")
        return (*columns, "tokens/s") if rated else columns, [self._row(one, rated) for one in self.plans]

    @staticmethod
    def _row(plan: Plan, rated: bool) -> tuple[str, ...]:
        layout, bound = plan.layout, plan.time
        sizes = (str(number) for number in (layout.world, layout.tp, layout.pp, layout.dp))
        how = plan.workload.checkpointing if plan.workload.training else "-"
        rate = None if bound is None else bound.tokens_per_second
        tail = ("" if rate is None else f"{rate:,.0f}",) if rated else ()
        return (*sizes, str(layout.zero or "-"), how, short(plan.total), *tail)


def over(what: str, plan: Plan) -> str:
    """Return why a plan does not fit: its bytes, its phase, and where."""
    assert plan.device is not None
    needs, there = apart(plan.total, plan.device.memory)
    place = f", on the device that is {plan.worst.place}" if plan.worst.place else ""
    return f"{what}: {needs} needed, {there} there, in {plan.phase} ({PHASES[plan.phase]}){place}"


def options_said(plan: Plan) -> str:
    """Return a layout by its options: "8 devices: tp 2, dp 4, zero 3, checkpointing all"."""
    layout = plan.layout
    sizes = (("tp", layout.tp), ("pp", layout.pp), ("dp", layout.dp))
    parts = [f"{name} {value}" for name, value in sizes if value > 1]
    parts += [f"zero {layout.zero}"] if layout.zero else []
    parts += [f"checkpointing {plan.workload.checkpointing}"] if plan.workload.recomputed_every else []
    return f"{plural(layout.world, 'device')}{', ' if parts else ''}{', '.join(parts)}"
