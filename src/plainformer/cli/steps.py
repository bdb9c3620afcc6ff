"""Print recorded generations: the ladder of every step, the tree of a beam search, the replay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.cli.options import MAX_INPUT_BYTES, write_json
from plainformer.cli.screen import console, shown, table
from plainformer.errors import InputError, plural

if TYPE_CHECKING:
    from plainformer.explanation import ExplainedSteps, Replayed, Trace
    from plainformer.explanation.trace_format import Branch, Ladder, Pick, TraceStep


Name = Callable[[int], str]  # a token as it is shown
_ENDS = {
    "eos": "stopped at the end token",
    "length": "stopped at the token limit",
    "stop_string": "stopped at a stop string",
    "time": "stopped by the time limit",
    "callback": "stopped by a function",
}


def print_steps(out: Any, found: ExplainedSteps, most: int) -> None:
    """Print the first `most` steps, and how it ended."""
    trace = found.trace

    def name(token_id: int) -> str:
        return f'"{shown(found.tokens.get(token_id, "?"))}"'

    seed = f", seed {trace.options['seed']}" if "seed" in trace.options else ""
    out.print(
        f"{shown(found.ref)}: {found.task}, {trace.mode}{seed}, prompt: {plural(len(trace.prompt_ids), 'token')}\n"
    )
    several = len(trace.answers) > 1
    for step in trace.steps[:most]:
        out.print(f"step {step.number}   cache: {_cache(step)}")
        picks = {pick.row: pick for pick in step.picks}
        for ladder in step.ladders:
            if several or step.groups:
                out.print(f"row {ladder.row}")
            _print_ladder(out, ladder, picks.get(ladder.row), name, "log p" if step.groups else "logit")
        out.print("")
    if any(step.groups for step in trace.steps):
        out.print(_tree(trace, name, most))
        out.print("")
    if len(trace.steps) > most:
        out.print(f"... and {plural(len(trace.steps) - most, 'more step')}\n")
    for number, (answer, text) in enumerate(zip(trace.answers, found.texts, strict=True)):
        which = f"answer {number}: " if several else ""
        score = f", score {answer.score:.4f}" if answer.score is not None else ""
        count = len(answer.token_ids)
        end = f"{_ENDS.get(answer.stop_reason, answer.stop_reason)} after {plural(count, 'new token')}"
        out.print(f'{which}{end}{score}: "{shown(text)}"')


def _print_ladder(out: Any, ladder: Ladder, pick: Pick | None, name: Name, unit: str) -> None:
    steps = [effect.processor for effect in ladder.effects]
    rows = table("token", "id", unit, *steps, "probability", "", right=("id", unit, *steps, "probability"))
    for place, token_id in enumerate(ladder.top_ids):
        after = [_number(effect.after[place]) for effect in ladder.effects]
        mark = "picked" if pick is not None and pick.token_id == token_id else ""
        values = (_number(ladder.logits[place]), *after, f"{ladder.probabilities[place]:.4f}", mark)
        rows.add_row(name(token_id), str(token_id), *values)
    out.print(rows)
    for effect in ladder.effects:
        out.print(f"  {effect.processor}: {_effect(effect)}")
    others = [c for c in ladder.final if c.token_id not in ladder.top_ids]
    if others:
        listed = ", ".join(f"{name(c.token_id)} {c.probability:.4f}" for c in others)
        out.print(f"  also likely in the end: {listed}")
    if pick is not None:
        how = f"the draw {pick.draw:.6f} gives" if pick.draw is not None else "the pick is"
        share = f"probability {pick.probability:.4f}, rank {pick.rank}"
        out.print(f"  {how} {name(pick.token_id)} (id {pick.token_id}), {share}")


def _effect(effect: Any) -> str:
    total = effect.left + effect.banned
    parts = [f"changes {plural(effect.changed, 'logit')}"] if effect.changed else []
    left = f"{effect.left:,} {'is' if effect.left == 1 else 'are'} left"
    parts += [f"removes {effect.banned:,} of {plural(total, 'token')}; {left}"] if effect.banned else []
    return ", ".join(parts) or "changes nothing"


def _number(value: float | None) -> str:
    return "banned" if value is None else f"{value:.3f}"


def _cache(step: TraceStep) -> str:
    """Return what the cache holds, and the memory that is allocated for it."""
    if not step.cache_reserved_bytes:
        return "none"
    used, reserved = _size(step.cache_used_bytes), _size(step.cache_reserved_bytes)
    return f"{plural(step.cache_positions, 'position')}, {used} used of {reserved} reserved"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _tree(trace: Trace, name: Name, most: int) -> Any:
    """Return the search as a tree: what ran on has branches of its own."""
    from rich.tree import Tree

    root = Tree("the search: log-probability of each beginning, best first")
    rows: dict[int, Any] = {}
    for step in trace.steps[:most]:
        following: dict[int, Any] = {}
        for group in step.groups:
            for branch in group.branches:
                node = rows.get(branch.parent, root).add(_branch(branch, name))
                if branch.row is not None:
                    following[branch.row] = node
        rows.update(following)
    return root


def _branch(branch: Branch, name: Name) -> str:
    end = f"finished, score {branch.score:.4f}" if branch.score is not None else branch.fate
    return f"{name(branch.token_id)} {branch.log_probability:.4f}  {end}"


def print_replayed(trace: Trace, found: Replayed, as_json: bool) -> None:
    """Print that a replay gave the same."""
    counts = {
        "steps": len(trace.steps),
        "tokens": sum(map(len, found.generation.token_ids)),
        "draws": sum(pick.draw is not None for step in trace.steps for pick in step.picks),
    }
    if as_json:
        write_json([{"reproduces": True, **counts, "logit_difference": found.logit_difference}])
        return
    same = ", ".join(plural(count, name.removesuffix("s")) for name, count in counts.items())
    console().print(f"reproduces: {same}; logits differ by {found.logit_difference:.2g} at most")


def read_trace(path: str) -> Trace:
    """Read a trace's file."""
    from plainformer.explanation import Trace

    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    if len(data) > MAX_INPUT_BYTES:
        raise InputError(f"{path} is longer than {MAX_INPUT_BYTES // 2**20} MiB", "it is not a trace of one generation")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}", "give what `explain --steps N --json` wrote") from None
    return Trace.from_dict(content)
