"""`plainformer explain REF TEXT`: how one input becomes an answer, step by step."""

from __future__ import annotations

import re
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import (
    STDIN,
    Json,
    LoadOptions,
    console,
    read_inputs,
    read_stdin,
    restored,
    shown,
    table,
    write_json,
)
from plainformer.errors import UsageError


def explain(
    ref: str,
    item: Annotated[str, Parameter(name="TEXT")],
    /,
    *,
    pair: Annotated[str | None, Parameter(help="The second text, where the task reads two.")] = None,
    chat: Annotated[bool, Parameter(negative="", help="TEXT is a user's message in the model's chat format.")] = False,
    top_k: Annotated[int | None, Parameter(help="Candidates for the next token, or of the answer.")] = None,
    truncate: Annotated[bool, Parameter(negative="", help="Cut an over-long text instead of refusing it.")] = False,
    shapes: Annotated[bool, Parameter(negative="", help="Every layer's shapes, not only the first's.")] = False,
    load: LoadOptions = LoadOptions(),  # noqa: B008
    json: Json = False,
) -> None:
    """Show tokens with ids, character spans and embedding norms, the shape after every step, and the answer.

    TEXT is a text, or "-" for stdin; for images and audio it is the file.
    """
    from plainformer.explain import explain as explain_item
    from plainformer.explain import reads_text

    if shapes and json:
        raise UsageError("--shapes has no effect with --json, which always has every shape", "leave it out")
    task = load.load(ref)
    given: Any = item
    if item == STDIN:
        given = next(read_inputs([STDIN], whole=True, literal=False)) if reads_text(task) else read_stdin()
    found = explain_item(task, given, pair=restored(pair), chat=chat, top_k=top_k, truncate=truncate)
    if json:
        write_json([found.to_dict()])
        return
    out = console()
    out.print(f"{shown(found.ref)}: {found.task}\n")
    _print_pieces(out, found.pieces)
    _print_steps(out, found.steps, everything=shapes)
    if found.next_tokens:
        rows = table("next token", "id", "probability", "logit", right=("id", "probability", "logit"))
        for token in found.next_tokens:
            rows.add_row(shown(token.token), str(token.token_id), f"{token.probability:.4f}", f"{token.logit:.3f}")
        out.print(rows)
    elif found.answer is not None:
        _print_answer(out, found.answer)


def _print_pieces(out: Any, pieces: Any) -> None:
    if pieces and pieces[0].token_id is None:
        rows = table("#", "piece", "where", "norm", right=("#", "norm"))
        for piece in pieces:
            rows.add_row(str(piece.index), piece.text, piece.place, f"{piece.norm:.3f}")
    else:
        rows = table("#", "token", "id", "characters", "special", "norm", right=("#", "id", "characters", "norm"))
        for piece in pieces:
            span = "" if piece.special else f"{piece.start}:{piece.end}" + (" (pair)" if piece.sequence == 1 else "")
            special = "special" if piece.special else ""
            rows.add_row(str(piece.index), shown(piece.text), str(piece.token_id), span, special, f"{piece.norm:.3f}")
    out.print(rows)


def _print_steps(out: Any, steps: Any, *, everything: bool) -> None:
    """The first layer in full, the later ones, which have the same shapes, as one line."""
    rows = table("step", "shape")
    last = None
    for step in steps:
        layer = re.match(r"(\w+)\.layers\.(\d+)", step.step)
        if layer is None or layer[2] == "0" or everything:
            rows.add_row(step.step, " x ".join(str(size) for size in step.shape))
        elif layer[1] != last:
            count = len({s.step.split(".")[2] for s in steps if s.step.startswith(f"{layer[1]}.layers.")})
            rows.add_row(f"{layer[1]}.layers.1" + (f" to {count - 1}" if count > 2 else ""), "the same")
            last = layer[1]
    out.print(rows)


def _print_answer(out: Any, answer: Any) -> None:
    import json

    for part in answer if isinstance(answer, list) else [answer]:
        if isinstance(part.get("vector"), list):
            vector = part["vector"]
            length = sum(value * value for value in vector) ** 0.5
            first = ", ".join(f"{value:.4f}" for value in vector[:6])
            out.print(f"answer: a vector of {len(vector)} numbers and length {length:.4f}: {first}, ...", markup=False)
        else:
            out.print("answer: " + json.dumps(part, ensure_ascii=False), markup=False)
