"""`plainformer explain REF TEXT`: how one input becomes an answer, step by step."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli import STDIN
from plainformer.cli.flags import LoadFlags, as_flag
from plainformer.cli.generation import GenerationFlags
from plainformer.cli.insights import InsightFlags, print_insights, write_insights
from plainformer.cli.options import WHOLE, Json, Ref, probe_output, read_stdin, restored, write_json
from plainformer.cli.screen import console, shown, table
from plainformer.cli.steps import read_trace
from plainformer.config.values import check_whole, decode_text, no_effect
from plainformer.errors import UsageError, opt, plural
from plainformer.generation.options import GenerationOptions
from plainformer.inputs.files import existing_file
from plainformer.tasks import TASKS
from plainformer.tasks.writing.options import READ, of_reading

if TYPE_CHECKING:
    from plainformer.explanation import ExplainedSteps, Explanation, Request, Trace
    from plainformer.tasks.base import Task

_WHAT_IF = (
    "Change one thing and show the difference: attend-to-padding, decoder-prefix=TEXT, no-cache, mask-head=L.H, "
    "or an option=value, such as num-beams=4; repeat it."
)
_ENDS = (16, 4)  # patches or frames that are shown at the beginning and at the end


def explain(
    ref: Ref,
    item: Annotated[
        str | None, Parameter(name="TEXT", help="A text, or - for stdin; an image's or a recording's file.")
    ] = None,
    /,
    *,
    pair: Annotated[str | None, Parameter(help="The second text, where the task reads two.")] = None,
    chat: Annotated[bool, Parameter(negative="", help="TEXT is a user's message in the model's chat format.")] = False,
    truncate: Annotated[bool, Parameter(negative="", help="Cut an over-long text instead of refusing it.")] = False,
    shapes: Annotated[bool, Parameter(negative="", help="Every layer's shapes, not only the first's.")] = False,
    steps: Annotated[int | None, WHOLE, Parameter(help="Generate this many tokens, and show each step.")] = None,
    candidates: Annotated[int | None, WHOLE, Parameter(help="Tokens to show of each step; 5.")] = None,
    what_if: Annotated[list[str] | None, Parameter(help=_WHAT_IF)] = None,
    all_pieces: Annotated[bool, Parameter(negative="", help="Every patch or frame, not the ends alone.")] = False,
    inside: InsightFlags = InsightFlags(),  # noqa: B008
    replay: Annotated[str | None, Parameter(help="Run a trace that --steps N --json wrote again.")] = None,
    load: LoadFlags = LoadFlags(),  # noqa: B008
    generation: GenerationFlags = GenerationFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Show tokens with ids, character spans and embedding norms, the shape after every step, and the answer.

    For images and audio, TEXT is the file. --top-k is how many next tokens (or
    answers) are shown; with --steps and --what-if it is the option of sampling.

    Example: plainformer explain smollm2-135m-instruct "The capital of France is" --steps 3
    """
    asked = [name for name, on in (("steps", steps), ("what_if", what_if), ("replay", replay)) if on is not None]
    _check_generation(asked, generation, candidates, steps)
    flags = {"pair": pair is not None, "shapes": shapes, "chat": chat, "truncate": truncate, "all_pieces": all_pieces}
    _check_flags(asked, json, **flags, **inside.given())
    if item is None and replay is None:
        raise UsageError("explain needs a TEXT", 'give a text, or "-" for stdin')
    if inside.html is not None:
        probe_output("html", inside.html)
    trace = None if replay is None else read_trace(replay)
    options: dict[str, Any] = {}
    task = load.load(ref, lambda kind, name, config: options.update(_chosen(kind, name, item, asked, generation)))
    if trace is not None:
        return _replay(task, trace, item, json)
    from plainformer.explanation import Request
    from plainformer.explanation.one_pass import paired

    given, second = _read(task, item), restored(pair)
    request = Request(paired(task, given, second), chat, truncate, options)
    width = 5 if candidates is None else candidates
    call = {"item": given, "pair": second, "chat": chat, "truncate": truncate, **of_reading(options)}
    if what_if:
        _what_if(task, request, what_if, steps, width, json)
    elif steps is None:
        call["top_k"] = getattr(generation, "top_k", None)
        _one_pass(task, call, inside, json, shapes=shapes, all_pieces=all_pieces)
    else:
        found = _steps(
            task, request, {name: getattr(generation, name) for name in generation.given()}, steps, width, json
        )
        _insights(task, {**call, "ids": (*found.trace.prompt_ids, *found.trace.answers[0].token_ids)}, inside, found)


def _one_pass(task: Any, given: dict[str, Any], inside: InsightFlags, json: bool, **how: bool) -> None:
    from plainformer.explanation import explain as explain_item
    from plainformer.explanation.one_pass import reads_text

    no_effect(how["all_pieces"] and reads_text(task), "all_pieces", "on a text, of which every token is shown")
    found = explain_item(task, **given, **inside.arguments())
    _show(found, json, _print_explanation, how)
    write_insights(task, given, inside)


def _insights(task: Any, given: dict[str, Any], inside: InsightFlags, steps: Any) -> None:
    """Show what is inside the whole of a prompt and its answer, and write the page."""
    from plainformer.explanation import explain as explain_item

    if inside.arguments():
        console().print("")
        print_insights(console(), explain_item(task, **given, **inside.arguments()))
    write_insights(task, given, inside, steps)


def _check_generation(asked: list[str], generation: GenerationFlags, candidates: int | None, steps: int | None) -> None:
    """Refuse options of generation where nothing is generated, or a trace has its own."""
    for name, count in (("candidates", candidates), ("steps", steps)):
        if count is not None:
            check_whole(name, count, fix="give the number of tokens, 1 or more")
    replays, otherwise = "replay" in asked, f"without {opt('steps')} or {opt('what_if')}"
    no_effect(replays and len(asked) > 1, asked[0] if asked else "", f"with {opt('replay')}", "leave one of them out")
    for name in generation.given():
        no_effect(replays, name, f"with {opt('replay')}: the trace has its options")
        idle = not asked and name != "top_k" and generation.known[name].option not in READ
        no_effect(idle, name, otherwise, f"for example {opt('steps', 5)}")
    idle = candidates is not None and (replays or not asked)
    no_effect(idle, "candidates", otherwise, f"{opt('top_k')} shows more next tokens")


def _chosen(
    kind: type[Task], name: str, item: str | None, asked: list[str], generation: GenerationFlags
) -> dict[str, Any]:
    """Return the options of the task, and see that its file exists, before any weight is read."""
    if item is not None and item != STDIN and name.startswith(("image", "audio", "automatic")):
        existing_file(item, TASKS[name].reads)
    return _options(kind, name, asked, generation)


def _options(kind: type[Task], name: str, asked: list[str], generation: GenerationFlags) -> dict[str, Any]:
    """Return the options of generation, checked before any weight is read."""
    top_k = generation.top_k
    if not asked:
        if top_k is not None:
            check_whole("top_k", top_k)
        others = replace(generation, top_k=None)  # type: ignore[call-arg]  # made of the options; here it is of what is shown
        return others.checked(kind.Options, name) if others.given() else {}
    if "replay" in asked or not issubclass(kind.Options, GenerationOptions):
        return generation.options()
    greedy = top_k is not None and not generation.do_sample and generation.penalty_alpha is None
    fix = f"{opt('candidates', top_k)} shows that many tokens of each step"
    no_effect(greedy, "top_k", f"with {opt(asked[0])} and without {opt('do_sample')}", fix)
    return generation.checked(kind.Options, name)


def _check_flags(asked: list[str], json: bool, **flags: bool) -> None:
    """Refuse flags that what is asked for does not take."""
    replays = "replay" in asked
    inside = not asked or asked == ["steps"]
    taken = {"pair": asked in ([], ["what_if"]), "shapes": not asked, "chat": not replays, "truncate": not replays}
    taken |= {"all_pieces": not asked, "attention": inside, "lens": inside, "nearest": inside, "html": inside}
    for name, on in flags.items():
        no_effect(on and not taken[name], name, f"with {opt(asked[0])}" if asked else "", "leave one of them out")
        idle = on and json and bool(asked) and name in ("attention", "lens", "nearest")
        no_effect(
            idle, name, f"with {opt('steps')} and {opt('json')}, which is the trace alone", "leave one of them out"
        )
    for name, what in (("shapes", "shape"), ("all_pieces", "patch and frame")):
        no_effect(flags[name] and json, name, f"with {opt('json')}, which always has every {what}")


def _read(task: Any, item: str | None) -> Any:
    """Return the text, or stdin's."""
    from plainformer.explanation.one_pass import reads_text

    if item == STDIN:
        return decode_text(read_stdin(), "stdin") if reads_text(task) else read_stdin()
    return item


def _show(found: Any, json: bool, printed: Callable[..., None], *arguments: Any) -> None:
    """Write what was found as JSON, or print it."""
    if json:
        write_json([found.to_dict()])
    else:
        printed(console(), found, *arguments)


def _print_explanation(out: Any, found: Explanation, how: dict[str, bool]) -> None:
    out.print(f"{shown(found.ref)}: {found.task}\n")
    _print_pieces(out, found.pieces, everything=how["all_pieces"])
    _print_steps(out, found.steps, everything=how["shapes"])
    if found.next_tokens:
        rows = table("next token", "id", "probability", "logit", right=("id", "probability", "logit"))
        for token in found.next_tokens:
            rows.add_row(shown(token.token), str(token.token_id), f"{token.probability:.4f}", f"{token.logit:.3f}")
        out.print(rows)
    elif found.answer is not None:
        _print_answer(out, found.answer)
    if found.attention is not None or found.lens or found.nearest:
        out.print("")
        print_insights(out, found)


def _steps(task: Any, request: Request, flags: dict[str, Any], steps: int, width: int, json: bool) -> ExplainedSteps:
    from plainformer.cli.steps import print_steps
    from plainformer.explanation import explain_steps

    text = request.item if isinstance(request.item, str) else None
    about = {"text": text, "chat": request.chat, "truncate": request.truncate, "flags": flags}
    found = explain_steps(task, request, steps=steps, width=width, about=about)
    _show(found, json, print_steps, steps)
    return found


def _replay(task: Any, trace: Trace, item: str | None, json: bool) -> None:
    from plainformer.cli.steps import print_replayed
    from plainformer.explanation import Request, replay_steps

    about = trace.about
    if item is not None and not trace.needs:
        raise UsageError(f"TEXT has no effect with {opt('replay')}: the trace has its own", "leave it out")
    request = None
    if trace.needs:
        text = _read(task, item) if item is not None else about.get("text")
        try:
            options = GenerationFlags(**about.get("flags", {})).options()
        except TypeError as error:
            raise UsageError(f"the trace is damaged: {error}", "record it again") from None
        options.setdefault("max_new_tokens", trace.options.get("max_new_tokens"))
        request = Request(text, bool(about.get("chat")), bool(about.get("truncate")), options)
    print_replayed(trace, replay_steps(task, trace, request), json)


def _what_if(task: Any, request: Request, changes: list[str], steps: int | None, width: int, json: bool) -> None:
    from plainformer.cli.differences import print_difference
    from plainformer.explanation import parse_change, what_if
    from plainformer.explanation.request import check_generates

    parsed = [parse_change(restored(change)) for change in changes]
    if steps is not None:
        check_generates(task, opt("steps"))
        if "max_new_tokens" not in request.options:
            request = request.with_options(max_new_tokens=steps)
    for change in parsed:
        _show(what_if(task, request, change, width=width), json, print_difference)


def _print_pieces(out: Any, pieces: Any, *, everything: bool) -> None:
    if pieces and pieces[0].token_id is None:
        rows = table("#", "piece", "where", "norm", right=("#", "norm"))
        first, last = (len(pieces), 0) if everything or len(pieces) <= sum(_ENDS) + 1 else _ENDS
        for piece in pieces[:first]:
            rows.add_row(str(piece.index), piece.text, piece.place, f"{piece.norm:.3f}")
        if last:
            rows.add_row("...", "", f"{len(pieces) - first - last} more ({as_flag('all_pieces', None)} shows them)", "")
        for piece in pieces[len(pieces) - last :]:
            rows.add_row(str(piece.index), piece.text, piece.place, f"{piece.norm:.3f}")
    else:
        rows = table("#", "token", "id", "characters", "special", "norm", right=("#", "id", "characters", "norm"))
        for piece in pieces:
            span = "" if piece.start is None else f"{piece.start}:{piece.end}"
            span += " (pair)" if piece.sequence == 1 else ""
            where = ("", "special") if piece.special else (span, "")
            rows.add_row(str(piece.index), shown(piece.text), str(piece.token_id), *where, f"{piece.norm:.3f}")
    out.print(rows)


def _print_steps(out: Any, steps: Any, *, everything: bool) -> None:
    """Print the first layer in full, the later ones, which have the same shapes, as one line."""
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
        text = json.dumps(part, ensure_ascii=False)
        if isinstance(vector := part.get("vector"), list):
            length = sum(value * value for value in vector) ** 0.5
            first = ", ".join(f"{value:.4f}" for value in vector[:6])
            text = f"a vector of {plural(len(vector), 'number')} and length {length:.4f}: {first}, ..."
        out.print(f"answer: {text}", markup=False)
