"""A plan for people: lines, a page for notebooks, and plain values. No torch."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from plainformer.config.layout import Layout
from plainformer.errors import Spelling, in_python, plural, spelt
from plainformer.plan.devices import said, short, unit_of
from plainformer.plan.lengths import lengths, reads_text
from plainformer.plan.result import PHASES, RankPlan
from plainformer.plan.stored import StoredFile
from plainformer.plan.tables import table_lines

if TYPE_CHECKING:
    from plainformer.plan.planned import Plan


OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD", "sgd-momentum": "SGD with momentum", "adafactor": "Adafactor"}


def title(plan: Plan) -> str:
    """Return what is planned, in a line."""
    asked, at = plan.workload, lengths(plan.config, plan.workload)
    words = [f"{plan.name}: {plan.parameters:,} parameters", asked.purpose]
    if asked.training:
        words += [OPTIMIZERS.get(asked.optimizer, asked.optimizer), asked.precision]
        words += {"lora": [f"LoRA of rank {asked.lora_rank}"], "head": ["the head alone"]}.get(asked.trainable, [])
        words += [f"checkpointing {asked.checkpointing}"] if asked.recomputed_every else []
    else:
        words += [asked.quantized or asked.number] if asked.quantized != "keep" else ["blocks of the file"]
        words += ["int8 cache"] if asked.cache == "int8" else []
    unit = "tokens" if reads_text(plan.config) else "positions"
    tokens = f"{at.encoder or at.decoder:,}"
    if asked.training and at.encoder and at.decoder:
        tokens += f"{'' if unit == 'tokens' else ' positions'} to {at.decoder:,} tokens"
    elif at.new:
        tokens += f"{'' if unit == 'tokens' else ' positions'} + {at.new:,} tokens"
    else:
        tokens += f" {unit}"
    words += [f"{plural(asked.batch, 'row')} of {tokens}"]
    words += [f"{asked.copies:,} copies each"] if asked.copies > 1 else []
    words += [f"{asked.accumulate} micro-batches a step"] if asked.training and asked.accumulate > 1 else []
    return ", ".join(words)


def division_said(layout: Layout) -> str:
    """Return the division, in a line: "8 devices: 2 tensor-parallel x 4 data-parallel, ZeRO-3"; "" for one device."""
    if layout.world == 1:
        return ""
    sizes = (
        ("tensor-parallel", layout.tp),
        (f"pipeline stages ({layout.schedule})", layout.pp),
        ("data-parallel", layout.dp),
    )
    parts = " x ".join(f"{count} {name}" for name, count in sizes if count > 1)
    return f"{layout.world} devices: {parts}" + (f", ZeRO-{layout.zero}" if layout.zero else "")


def columns(plan: Plan) -> list[tuple[str, RankPlan]]:
    """Return the devices that differ, each with its heading."""
    if len(plan.ranks) == 1:
        return [("each device" if plan.layout.world > 1 else "device", plan.ranks[0])]
    return [(_ranks(rank.ranks), rank) for rank in plan.ranks]


def _ranks(ranks: tuple[int, ...]) -> str:
    first, last = ranks[0], ranks[-1]
    if len(ranks) == 1:
        return f"rank {first}"
    return f"ranks {first}-{last}" if len(ranks) == last - first + 1 else f"ranks {first}, {ranks[1]} ..."


Row = tuple[str, list[int], str]


def part_rows(plan: Plan) -> list[Row]:
    """Return each part with its bytes on each device at that device's peak, and a note."""
    shown: dict[str, list[int]] = {}
    notes: dict[str, dict[str, int]] = {}
    found = columns(plan)
    for place, (_, rank) in enumerate(found):
        for item in rank.peak.items:
            if item.bytes:
                shown.setdefault(item.name, [0] * len(found))[place] += item.bytes
                kind = item.note.partition(", of ")[0]  # other micro-batches keep the same
                if kind not in ("", item.name):
                    known = notes.setdefault(item.name, {})
                    known[kind] = known.get(kind, 0) + item.bytes
    rows = [(name, sizes, _note(notes.get(name, {}))) for name, sizes in shown.items()]
    return [*rows, *((item.name, [item.bytes] * len(found), ESTIMATE) for item in plan.beside)]


ESTIMATE = "an estimate, see below"
MOST_NOTES = 3


def _note(found: Mapping[str, int]) -> str:
    """Return what a part consists of, the largest first."""
    names = sorted(found, key=lambda name: -found[name])
    return "; ".join(names[:MOST_NOTES]) + ("; ..." if len(names) > MOST_NOTES else "")


def table_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Return the table of parts, written: its columns, and its rows with the sums as the last."""
    (unit, power), (binary, other) = unit_of(plan.total)
    many = plan.layout.world > 1
    heads = ["part", *(f"{name}, {unit}" if many else unit for name, _ in columns(plan)), binary, "note"]
    heads[-2] = f"most, {binary}" if len(plan.ranks) > 1 else binary
    rows = part_rows(plan)
    rows.append(("in all", [sum(sizes) for sizes in zip(*(sizes for _, sizes, _ in rows), strict=True)], ""))
    written = (
        [name, *(_number(size, power) for size in sizes), _number(max(sizes), other), note]
        for name, sizes, note in rows
    )
    return heads, list(written)


def _number(size: int, power: int) -> str:
    """Return a size for a table; one that would read as nothing is "< 0.001"."""
    return "< 0.001" if 0 < size < power / 2000 else f"{size / power:,.3f}"


def file_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Return the table of a GGUF file, written: its types, and what they are once they are loaded; no rows for no such file."""
    if not isinstance(plan.stored, StoredFile):
        return [], []
    (unit, power), _ = unit_of(max(plan.total, plan.stored.size))
    alone = plan.layout.world == 1
    heads = ["type in the file", "tensors", "numbers", f"{unit} in the file"] + (
        [f"{unit} loaded", "as"] if alone else []
    )
    rows = [
        [one.kind, f"{one.tensors:,}", f"{one.numbers:,}", _number(one.bytes, power)]
        + ([_number(one.loaded or 0, power), one.dtype or "not used"] if alone else [])
        for one in plan.file
    ]
    more = ["", ""] if alone else []
    rows.append(["header, vocabulary", "", "", _number(plan.stored.rest, power), *more])
    loaded = [_number(sum(one.loaded or 0 for one in plan.file), power), ""] if alone else []
    tensors, numbers = (sum(getattr(one, name) for one in plan.file) for name in ("tensors", "numbers"))
    rows.append(["in all", f"{tensors:,}", f"{numbers:,}", _number(plan.stored.size, power), *loaded])
    return heads, rows


Facts = dict[str, list[str]]


def facts(plan: Plan, spelling: Spelling = in_python) -> Facts:
    """Return what is to be known besides the tables: a name, and sentences."""
    rank = plan.worst
    found = {"peak": [f"{said(rank.bytes)} in {plan.phase}: {PHASES[plan.phase]}"]}
    found["phases"] = [", ".join(f"{phase.name} {short(phase.bytes, rank.bytes)}" for phase in rank.phases)]
    if plan.device is not None:
        where = "" if plan.device.kind == "memory" else f"{plan.device.name}: "
        found["device"] = [f"{where}{said(plan.device.memory)}"]
        found["fits"] = fits_said(plan)
    if plan.time is not None:
        found["time"] = time_said(plan)
    found["rule of thumb"] = [plan.rule.said, *plan.rule.sentences]
    found["compare with"] = plan.comparable_to.split("; ")
    found["assumed"] = [spelt(one, spelling) for one in plan.notes]
    found["estimates"] = [f"{item.name}: {item.note}" for item in plan.beside]
    return {name: sentences for name, sentences in found.items() if sentences}


def fits_said(plan: Plan) -> list[str]:
    """Return whether it fits, with what is left, or missing, in bytes and in what is asked for."""
    left = plan.headroom or 0
    largest = [f"{plural(plan.largest_batch, 'row')} at a time"] if plan.largest_batch else []
    largest += [f"rows of {plural(plan.largest_context, 'token')}"] if plan.largest_context else []
    most = (
        f"at most {' or '.join(largest)}"
        if largest
        else f"not even one row{' of one token' if reads_text(plan.config) else ''} fits"
    )
    if not plan.fits:
        return [f"no, {short(-left)} are missing in {plan.phase}", most]
    more = [f"{plural(plan.headroom_rows, 'more row')}"] if plan.headroom_rows is not None else []
    tokens = plan.headroom_tokens
    more += [f"{plural(tokens, 'more token')} a row"] if tokens else []
    return [f"yes, {short(left)} are left: {' or '.join(more)}", most]


def time_said(plan: Plan) -> list[str]:
    """Return the bound of the time, with what it was reckoned with."""
    bound = plan.time
    assert bound is not None
    parts = [
        f"{_TIMED.get(name, name)} {_seconds(value)} or more, limited by {bound.limits[name]}"
        for name, value in bound.seconds.items()
    ]
    rate = [f"at most {bound.tokens_per_second:,.0f} tokens/s"] if bound.tokens_per_second is not None else []
    return [*rate, "; ".join(parts), f"reckoned with {', '.join(bound.assumptions)}"]


_TIMED = {"prefill": "the prompt takes", "token": "each token", "step": "a step takes"}


def _seconds(value: float) -> str:
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def lines_of(plan: Plan) -> list[str]:
    """Return a plan in lines."""
    found = [title(plan)]
    found += [division_said(plan.layout)] if plan.layout.world > 1 else []
    for (heads, rows), texts in ((table_rows(plan), ("part", "note")), (file_rows(plan), ("type in the file", "as"))):
        found += table_lines(heads, rows, texts)
    return [*found, *(f"{name}: {'; '.join(sentences)}" for name, sentences in facts(plan).items())]


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
    unit, power = unit_of(plan.total)[0]
    for name, sizes, note in part_rows(plan):
        share = 100 * max(sizes) / whole
        bar = f'<div style="width:{share:.1f}%;background:#4878a8;height:0.8em"></div>'
        cells = "".join(f'<td style="text-align:right">{html.escape(_number(size, power))}</td>' for size in sizes)
        rows.append(
            f'<tr><td style="text-align:left">{html.escape(name)}</td>{cells}<td style="width:12em">{bar}</td>'
            f'<td style="text-align:left;color:gray">{html.escape(note)}</td></tr>'
        )
    heads = "".join(f"<th>{html.escape(name)}, {unit}</th>" for name, _ in columns(plan))
    points = "".join(
        f"<li>{html.escape(name)}: {html.escape('; '.join(texts))}</li>" for name, texts in facts(plan).items()
    )
    table = f"<table><tr><th>part</th>{heads}<th></th><th></th></tr>{''.join(rows)}</table>"
    return f"<div><b>{html.escape(title(plan))}</b>{table}<ul>{points}</ul></div>"
