"""A plan for people: lines, a page for notebooks, and plain values. No torch."""

from __future__ import annotations

import html
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from plainformer.errors import Spelling, in_python, plural, spelt
from plainformer.plan.devices import GB, GIB, said, short
from plainformer.plan.lengths import lengths, reads_text
from plainformer.plan.result import RankPlan
from plainformer.plan.stored import StoredFile

if TYPE_CHECKING:
    from plainformer.plan.planned import Plan


def title(plan: Plan) -> str:
    """Return what is planned, in a line."""
    asked, at = plan.workload, lengths(plan.config, plan.workload)
    words = [f"{plan.name}: {plan.parameters:,} parameters", asked.purpose]
    if asked.training:
        words += [asked.optimizer, asked.precision]
        words += [] if asked.trainable == "all" else [f"trained: {asked.trainable}"]
        words += [f"checkpointing {asked.checkpointing}"] if asked.recomputed_every else []
    else:
        words += [asked.dtype or "fp32"]
        words += ["int8 cache"] if asked.cache == "int8" else []
    tokens = (
        " to ".join(f"{n:,}" for n in (at.encoder, at.decoder) if n)
        if asked.training
        else f"{at.encoder or at.decoder:,}"
    )
    tokens += f" + {at.new:,}" if at.new else ""
    unit = "tokens" if reads_text(plan.config) else "positions"
    words += [f"{plural(asked.batch, 'row')} of {tokens} {unit}"]
    words += [f"{asked.copies:,} copies each"] if asked.copies > 1 else []
    words += [f"{asked.accumulate} micro-batches a step"] if asked.training and asked.accumulate > 1 else []
    return ", ".join(words)


def layout_said(plan: Plan) -> str:
    """Return the division, in a line; "" for one device."""
    layout = plan.layout
    if layout.world == 1:
        return ""
    parts = [
        f"{name} {value}" for name, value in (("tp", layout.tp), ("pp", layout.pp), ("dp", layout.dp)) if value > 1
    ]
    parts += [f"zero {layout.zero}"] if layout.zero else []
    parts += [layout.schedule] if layout.pp > 1 else []
    return f"{layout.world} devices: {', '.join(parts)}"


def columns(plan: Plan) -> list[tuple[str, RankPlan]]:
    """Return the devices that differ, each with its heading."""
    if len(plan.ranks) == 1:
        return [("each device" if plan.layout.world > 1 else "device", plan.ranks[0])]
    return [(f"rank {_ranks(rank.ranks)}", rank) for rank in plan.ranks]


def _ranks(ranks: tuple[int, ...]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} ..."


def units(plan: Plan) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the decimal and the binary unit that a plan's figures are read in, each with its bytes."""
    return (("GB", GB), ("GiB", GIB)) if plan.total >= GB else (("MB", 10**6), ("MiB", 2**20))


def part_rows(plan: Plan) -> list[tuple[str, list[int], str]]:
    """Return each part with its bytes on each device at that device's peak, and a note."""
    shown: dict[str, list[int]] = {}
    notes: dict[str, dict[str, None]] = {}
    found = columns(plan)
    for place, (_, rank) in enumerate(found):
        for item in rank.peak.items:
            if item.bytes:
                shown.setdefault(item.name, [0] * len(found))[place] += item.bytes
                notes.setdefault(item.name, {}).update({item.note: None} if item.note else {})
    for item in plan.beside:
        shown[item.name] = [item.bytes] * len(found)
        notes[item.name] = {item.note: None}
    return [(name, sizes, "; ".join(list(notes[name])[:3])) for name, sizes in shown.items()]


def phase_line(rank: RankPlan) -> str:
    """Return the phases with their bytes, the peak first."""
    others = [f"{phase.name} {short(phase.bytes)}" for phase in rank.phases if phase is not rank.peak]
    tail = f" ({', '.join(others)})" if others else ""
    return f"{said(rank.bytes)} in {rank.peak.name}{tail}"


def facts(plan: Plan, spelling: Spelling = in_python) -> dict[str, str]:
    """Return what is to be known besides the table: a name and a sentence each."""
    found = {"peak": phase_line(plan.worst), "comparable to": plan.comparable_to}
    if plan.device is not None:
        found["device"] = f"{plan.device.name}, {said(plan.device.memory)}"
        found["fits"] = fits_said(plan)
        largest = [f"{plural(plan.largest_batch, 'row')} at a time"] if plan.largest_batch else []
        largest += [f"{plural(plan.largest_context, 'token')} a row"] if plan.largest_context else []
        found["largest"] = (
            " or ".join(largest) or f"not even one row{' of one token' if reads_text(plan.config) else ''} fits"
        )
    if plan.time is not None:
        found["time"] = time_said(plan)
    found["rule of thumb"] = "; ".join([plan.rule.said, *plan.rule.sentences])
    found["assumed"] = "; ".join(spelt(one, spelling) for one in plan.notes)
    return found


def fits_said(plan: Plan) -> str:
    """Return whether it fits, with what is left, or missing, in bytes and in what is asked for."""
    left = plan.headroom or 0
    if not plan.fits:
        return f"no, {short(-left)} are missing in {plan.phase}"
    more = [f"{plural(plan.headroom_rows, 'more row', 'more rows')}"] if plan.headroom_rows is not None else []
    tokens = plan.headroom_tokens
    more += [f"{plural(tokens, 'more token', 'more tokens')} a row"] if tokens is not None else []
    return f"yes, {short(left)} left = {' or '.join(more)}"


def time_said(plan: Plan) -> str:
    """Return the bound of the time, with what it was reckoned with."""
    bound = plan.time
    assert bound is not None
    parts = [f"{name} {_seconds(value)} or more ({bound.limits[name]})" for name, value in bound.seconds.items()]
    rate = f"at most {bound.tokens_per_second:,.0f} tokens/s: " if bound.tokens_per_second is not None else ""
    return f"{rate}{', '.join(parts)}; with {', '.join(bound.assumptions)}"


def _seconds(value: float) -> str:
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def lines_of(plan: Plan) -> list[str]:
    """Return a plan in lines."""
    found = [title(plan)]
    found += [layout_said(plan)] if plan.layout.world > 1 else []
    names = [name for name, _ in columns(plan)]
    (unit, power), (binary, other) = units(plan)
    rows = [("part", *(f"{name}, {unit}" for name in names), binary)]
    for name, sizes, _ in part_rows(plan):
        rows.append((name, *(f"{size / power:,.3f}" for size in sizes), f"{max(sizes) / other:,.3f}"))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        found.append("  ".join(cells).rstrip())
    return [*found, *(f"{name}: {text}" for name, text in facts(plan).items() if text)]


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON holds it."""
    asked, layout = plan.workload, plan.layout
    names = [one.name for one in fields(asked)]
    return {
        "name": plan.name,
        "family": plan.config.family,
        "parameters": plan.parameters,
        "workload": {name: getattr(asked, name) for name in names},
        "layout": {name: getattr(layout, name) for name in ("dp", "zero", "tp", "pp", "schedule")},
        "device": None if plan.device is None else plan.device.to_dict(),
        "peak": plan.peak,
        "phase": plan.phase,
        "total": plan.total,
        "beside": {item.name: {"bytes": item.bytes, "source": item.note} for item in plan.beside},
        "parts": plan.parts,
        "file": file_dict(plan),
        "devices": [rank.to_dict() for rank in plan.ranks],
        "fits": plan.fits,
        "headroom": plan.headroom,
        "headroom_tokens": plan.headroom_tokens,
        "headroom_rows": plan.headroom_rows,
        "largest_batch": plan.largest_batch,
        "largest_context": plan.largest_context,
        "time": None if plan.time is None else plan.time.to_dict(),
        "rule_of_thumb": plan.rule.to_dict(),
        "comparable_to": plan.comparable_to,
        "notes": [spelt(one) for one in plan.notes],
    }


def file_dict(plan: Plan) -> dict[str, Any] | None:
    """Return what a GGUF file stores as JSON holds it; None for no such file."""
    if not isinstance(plan.stored, StoredFile):
        return None
    types = {one.kind: one.to_dict() for one in plan.file}
    return {"bytes": plan.stored.size, "rest": plan.stored.rest, "types": types}


def html_of(plan: Plan) -> str:
    """Return a plan as a notebook shows it: bars for parts."""
    rows, whole = [], max(plan.total, 1)
    unit, power = units(plan)[0]
    for name, sizes, note in part_rows(plan):
        share = 100 * max(sizes) / whole
        bar = f'<div style="width:{share:.1f}%;background:#4878a8;height:0.8em"></div>'
        cells = "".join(f'<td style="text-align:right">{size / power:,.3f}</td>' for size in sizes)
        rows.append(
            f'<tr><td style="text-align:left">{html.escape(name)}</td>{cells}<td style="width:12em">{bar}</td>'
            f'<td style="text-align:left;color:gray">{html.escape(note)}</td></tr>'
        )
    heads = "".join(f"<th>{html.escape(name)}, {unit}</th>" for name, _ in columns(plan))
    said_ = "".join(f"<li>{html.escape(name)}: {html.escape(text)}</li>" for name, text in facts(plan).items() if text)
    table = f"<table><tr><th>part</th>{heads}<th></th><th></th></tr>{''.join(rows)}</table>"
    return f"<div><b>{html.escape(title(plan))}</b>{table}<ul>{said_}</ul></div>"
