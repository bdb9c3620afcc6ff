"""Print what-ifs: both outputs, and by how much the model's next token changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from plainformer.cli.screen import shown, table
from plainformer.errors import plural

if TYPE_CHECKING:
    from plainformer.explanation import Difference, Run


def print_difference(out: Any, found: Difference) -> None:
    """Print one what-if."""
    out.print(f"what if {shown(found.change)}?")
    for name, side in (("baseline", found.baseline), ("changed", found.changed)):
        out.print(f"  {name + ':':<10} {_output(side)}")
    out.print("  " + _verdict(found))
    out.print("  " + _amounts(found))
    for note in found.notes:
        out.print(f"  {shown(note)}")
    if found.baseline.next_tokens:
        rows = table("baseline", "probability", "changed", "probability ", right=("probability", "probability "))
        for was, now in zip(found.baseline.next_tokens, found.changed.next_tokens, strict=True):
            values = (f"{was.probability:.4f}", f'"{shown(now.token)}"', f"{now.probability:.4f}")
            rows.add_row(f'"{shown(was.token)}"', *values)
        out.print(rows)
    out.print("")


def _output(side: Run) -> str:
    if side.text is not None:
        return f'"{shown(side.text)}" ({side.stop_reason})'
    answer = side.answer
    if isinstance(answer, dict) and isinstance(answer.get("vector"), list):
        first = ", ".join(f"{value:.4f}" for value in answer["vector"][:6])
        return f"a vector of {plural(len(answer['vector']), 'number')}: {first}, ..."
    return shown(json.dumps(answer, ensure_ascii=False))


def _verdict(found: Difference) -> str:
    if found.baseline.text is None:
        return "the answers are identical" if found.same else "the answers differ"
    if found.same:
        return f"the outputs are identical: {plural(len(found.baseline.token_ids), 'token')}"
    return f"the first token that differs: number {(found.first_difference or 0) + 1}"


def _amounts(found: Difference) -> str:
    one_pass = found.baseline.text is None
    what = "largest change of the model's output" if one_pass else "first position: largest change of a logit"
    parts = [f"{what} {found.logit_change:.4g}"]
    if found.probability_change is not None:
        parts.append(f"of a probability {found.probability_change:.4g}")
        kl = "infinite" if found.kl_divergence is None else f"{found.kl_divergence:.4g} nats"
        parts.append(f"KL divergence {kl}")
    return ", ".join(parts)
