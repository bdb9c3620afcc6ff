"""`plainformer info REF`: what a checkpoint is, without loading its weights."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli.flags import Flags, as_flag
from plainformer.cli.options import Json, Ref, restored, write_json
from plainformer.cli.screen import console, print_facts, shown, table, visible
from plainformer.config.loading import LoadOptions


class HubFlags(Flags, kinds=[LoadOptions], only=("revision", "token", "family")):
    """Which version of a Hub repository is read, with what right, and as which family."""


def info(
    ref: Ref,
    /,
    *,
    tensors: Annotated[bool, Parameter(negative="", help="List every parameter with its shape.")] = False,
    hub: HubFlags = HubFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Show a checkpoint's family, parameters by part, shapes, dtypes, tokenizer, limits and task.

    Example: plainformer info all-minilm-l6-v2
    """
    from plainformer.info import inspect_checkpoint

    found = inspect_checkpoint(restored(ref), **hub.options())
    if json:
        write_json([found.to_dict()])
        return
    out = console()
    for name, value in found.summary(as_flag).items():
        print_facts(out, {name: visible(value)})
    out.print()
    parts = table("part", "parameters", "share", right=("parameters", "share"))
    for name, count in found.parameters_by_part.items():
        parts.add_row(name, f"{count:,}", f"{count / max(found.parameters, 1):.1%}")
    parts.add_row("total", f"{found.parameters:,}", "")
    out.print(parts)
    if tensors:
        _print_tensors(out, found.shapes)


def _print_tensors(out: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    rows = table("parameter", "shape")
    for name, shape in shapes.items():
        rows.add_row(shown(name), " x ".join(str(size) for size in shape))
    out.print(rows)
