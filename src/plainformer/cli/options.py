"""Options that several verbs share, and how their results are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.errors import InputError

STDIN = "/dev/stdin"  # what "-" becomes before the parser sees it
Json = Annotated[bool, Parameter(name="--json", negative="", help="Machine-readable output on stdout.")]


@Parameter(name="*")
@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded."""

    task: Annotated[str | None, Parameter(help="Task; default: what the checkpoint's architecture implies.")] = None
    dtype: Annotated[str | None, Parameter(help="fp32, bf16 or fp16; default: fp32 on a CPU.")] = None
    device: Annotated[str, Parameter(help="cpu, cuda or cuda:N.")] = "cpu"
    backend: Annotated[str, Parameter(help="CPU linears: auto, plain, fused or onednn.")] = "auto"
    ffn_chunk_size: Annotated[int, Parameter(help="Positions a feed-forward network runs at a time; 0 for all.")] = 0
    allow_unused: Annotated[bool, Parameter(negative="", help="Accept tensors that no weight row knows.")] = False
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit of a Hub repository.")] = None
    token: Annotated[str | None, Parameter(help="Hub access token; default: HF_TOKEN.")] = None

    def load(self, ref: str, **changes: Any) -> Any:
        """The reference as a task, ready to call."""
        from plainformer.loading import load

        return load(ref, **{**vars(self), **changes})


def read_inputs(values: Sequence[str], *, whole: bool, literal: bool) -> Iterator[Any]:
    """Texts from the command line, from files, and from stdin ("-").

    A file gives one input a line; a `.jsonl` file one JSON value a line (a string, or an object with "text");
    `whole` makes each file one input; `literal` takes every value as text even if a file has that name.
    """
    for value in values:
        if literal:
            yield value
        elif value == STDIN:
            yield from _parts(sys.stdin.buffer.read(), "stdin", whole=whole, jsonl=False)
        elif _is_file(value):
            yield from _parts(Path(value).read_bytes(), value, whole=whole, jsonl=value.endswith(".jsonl"))
        else:
            yield value


def _is_file(value: str) -> bool:
    try:
        return len(value) < 4096 and Path(value).is_file()
    except (OSError, ValueError):  # a text too long, or with a character that no file name has
        return False


def _parts(data: bytes, where: str, *, whole: bool, jsonl: bool) -> Iterator[Any]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: byte {error.start}", "convert it, e.g. with iconv") from None
    if whole and not jsonl:
        yield text
        return
    # Not splitlines(): only line feeds end a line, so a form feed or U+2028 inside a text stays in it.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if line.strip():
            yield _json_input(line, where, number) if jsonl else line


def _json_input(line: str, where: str, number: int) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}, line {number} is not JSON: {error}", "one JSON value a line") from None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value["text"]
    if isinstance(value, str | list | dict):
        return value
    raise InputError(f"{where}, line {number}: {value!r} is no input", 'give a string, or an object with "text"')


def write_json(values: Iterable[Any]) -> None:
    """One JSON value a line, at once."""
    for value in values:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def console() -> Any:
    """A rich console on stdout that neither wraps nor colours when piped."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 1 << 12)


def table(*columns: str, right: Sequence[str] = ()) -> Any:
    """A plain table; the columns in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        wraps = column in ("about", "answers", "also called", "where")
        justify: Any = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=not wraps)
    return made


def shown(text: str) -> str:
    """A token's text with its blanks visible, safe from rich's markup."""
    from rich.markup import escape

    return escape(json.dumps(text, ensure_ascii=False)[1:-1])
