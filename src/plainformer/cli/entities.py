"""`plainformer entities REF PATH...`: what many documents' entities say together, and which documents have what is required."""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli.flags import Flags, LoadFlags, as_flag
from plainformer.cli.options import (
    WHOLE,
    Json,
    Ref,
    passed_over,
    probe_output,
    restored,
    some_skipped,
    write_json,
    write_page,
)
from plainformer.cli.progress import Count, screen
from plainformer.cli.screen import console, table
from plainformer.config.values import check_choice, check_number, check_whole, no_effect
from plainformer.errors import PlainformerError, UsageError, did_you_mean, opt, plural
from plainformer.tasks.text.options import TokenClassificationOptions

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.entities import Analysis, Document

VIEWS = ("phrases", "pairs", "pieces", "matches", "ranking")


class EntityFlags(Flags, kinds=[TokenClassificationOptions], only=("aggregation", "scheme", "batch_size", "on_error")):
    """How entities are found."""


@Parameter(name="*", group="What is required")
@dataclass(frozen=True)
class Required:
    """What the documents should have."""

    require: Annotated[str | None, Parameter(help="File of required phrases, one per line: ranks the documents.")] = (
        None
    )
    similar: Annotated[str | None, Parameter(help="Embedding model; also match phrases of similar meaning.")] = None
    threshold: Annotated[
        float | None, Parameter(help="Minimum cosine similarity of a similar phrase; default 0.8.")
    ] = None
    anywhere: Annotated[bool, Parameter(negative="", help="Required words count outside entities, too.")] = False

    def options(self) -> dict[str, Any]:
        """Return those of `analyse`."""
        from plainformer.entities import read_requirements
        from plainformer.entities.matching import THRESHOLD

        for flag, on in (("similar", self.similar is not None), ("anywhere", self.anywhere)):
            no_effect(on and self.require is None, flag, f"without {opt('require')}", f"add {opt('require')} FILE")
        idle = self.threshold is not None and self.similar is None
        no_effect(idle, "threshold", f"without {opt('similar')}", f"add {opt('similar')} REF")
        threshold = THRESHOLD if self.threshold is None else self.threshold
        check_number("threshold", threshold, "[-1, 1]", fix="give a cosine, from 0 to 1")
        return {
            "required": read_requirements(restored(self.require)) if self.require is not None else (),
            "threshold": threshold,
            "anywhere": self.anywhere,
        }


@Parameter(name="*", group="What is written")
@dataclass(frozen=True)
class Written:
    """The tables, and where they go."""

    show: Annotated[list[str] | None, Parameter(help="phrases, pairs, pieces, matches or ranking; repeat it.")] = None
    top: Annotated[int, WHOLE, Parameter(help="Rows of each table; 0 for all.")] = 20
    html: Annotated[Path | None, Parameter(help="Also write a page with the entities highlighted.")] = None
    as_csv: Annotated[bool, Parameter(name="--csv", negative="", help="One table as CSV, all its rows.")] = False


def entities(
    ref: Ref,
    /,
    *paths: Annotated[str, Parameter(help="Text files, .jsonl files, or folders of such files.")],
    label: Annotated[list[str] | None, Parameter(help="A type of entity that counts; repeat it. Default: all.")] = None,
    min_score: Annotated[float, Parameter(help="Minimum score of an entity that counts.")] = 0.0,
    within: Annotated[str, Parameter(help="What makes phrases a pair: document, paragraph or line.")] = "paragraph",
    flags: EntityFlags = EntityFlags(),  # noqa: B008
    needs: Required = Required(),
    written: Written = Written(),
    load: LoadFlags = LoadFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Analyse the entities of documents.

    REF is a token classification checkpoint (`plainformer info REF` tells what a
    checkpoint does). A path is a text file (one document), a .jsonl file (one
    document per line: a text, or an object with "text" and perhaps "id"), or a
    folder of such files.

    Example: plainformer entities MODEL letters/ --require wanted.txt --html report.html
    """
    from plainformer.entities.documents import document_files
    from plainformer.entities.phrases import UNITS

    if not paths:
        raise UsageError("entities needs at least one PATH", "give files or folders")
    views = _views(written, needs.require, json)
    check_whole("top", written.top, 0)
    check_number("min_score", min_score, "[0, 1]")
    check_choice("within", within, UNITS)
    options = TokenClassificationOptions(**{"aggregation": "first", **flags.options()})
    if options.aggregation == "none":
        raise UsageError(f"{opt('aggregation', 'none')} finds no entities", "give simple, first, average or max")
    if written.html is not None:
        probe_output("html", written.html)
    given = [restored(path) for path in paths]
    other: list[Path] = []
    files = document_files(given, other.append)  # says what is not there before a model is loaded
    required = needs.options()
    task = _finder(load, ref, label or ())
    if needs.similar is not None:
        required["compare"] = _compare(needs.similar, load)
    analysis, failed = _analyse(
        task, options, files, other, labels=label or (), min_score=min_score, within=within, **required
    )
    if written.html is not None:
        from plainformer.entities.report import to_html

        write_page("html", written.html, to_html(analysis))
    if json:
        write_json([analysis.to_dict()])
    elif written.as_csv:
        columns, rows = _rows(analysis, views[0])
        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *rows])
    else:
        _print(analysis, views, written.top)
    if failed:
        raise some_skipped(failed, len(analysis.found) + failed, "documents")


def _analyse(task: Any, options: Any, files: Sequence[Path], other: Sequence[Path], **how: Any) -> tuple[Analysis, int]:
    """Return what the documents of `files` hold, and how many were skipped; stderr says that, and names `other` files."""
    from plainformer.entities import analyse, read_documents
    from plainformer.entities.documents import count_documents
    from plainformer.tasks.results import Skipped

    failed: list[PlainformerError] = []

    def fail(error: PlainformerError) -> None:
        failed.append(error)
        screen.say("skipped: " + error.reason(as_flag, first=1))

    count = Count(count_documents(files) if screen.shows else None, "documents")

    names: deque[str] = deque()  # of the documents that the task gets

    def documents() -> Iterator[Document]:
        for one in read_documents(files, failed=fail if options.on_error == "skip" else None):
            if one.text.strip():
                names.append(one.name)
            yield one

    def find(texts: Iterable[str]) -> Iterator[Any]:
        answered = 0
        try:
            for found in task.answer(iter(texts), options, done=count.advance):
                name, answered = names.popleft(), answered + 1
                if isinstance(found, Skipped):
                    fail(found.error.named(lambda place, name=name: name))  # type: ignore[misc]
                yield None if isinstance(found, Skipped) else found
        except PlainformerError as error:
            raise error.named(lambda place: names[place - answered]) from error.__cause__

    with screen.during(count):
        analysis = analyse(find, documents(), **how)
    found = sum(len(one.mentions) for one in analysis.found)
    left = f", {passed_over(other, 'not text')}" if other else ""
    screen.say(f"{plural(len(analysis.found), 'document')}, {plural(found, 'entity', 'entities')}{left}")
    return analysis, len(failed)


def _views(written: Written, require: str | None, json: bool) -> Sequence[str]:
    """Return the tables to print."""
    show, as_csv = written.show or (), written.as_csv
    if json and (as_csv or show):
        what = f"{opt('json')} gives everything: {opt('csv')} and {opt('show')} have no effect"
        raise UsageError(what, "leave them out")
    for name in show:
        check_choice("show", name, VIEWS)
        if name in ("matches", "ranking") and require is None:
            what = f"{opt('show', name)} has no effect without {opt('require')}"
            raise UsageError(what, f"add {opt('require')} FILE")
    if as_csv and len(show) > 1:
        raise UsageError(f"{opt('csv')} writes one table", f"give {opt('show')} once")
    return show or (["ranking"] if require is not None else ["phrases"] if as_csv else ["phrases", "pairs"])


def _finder(load: LoadFlags, ref: str, labels: Sequence[str]) -> Any:
    """Return the task, which has these types of entities."""

    def check(kind: Any, task: str, config: ModelConfig) -> None:
        if task != "token-classification":
            what = f"{restored(ref)} does {task}, which finds no entities"
            raise UsageError(what, "give a token classification checkpoint")
        known = sorted({name[2:] if name[1:2] == "-" else name for name in config.labels} - {"O"})
        for name in labels:
            if name not in known:
                raise UsageError(f"{opt('label', name)} is not a label of this model", did_you_mean(name, known))

    return load.load(ref, check)


def _compare(ref: str, flags: LoadFlags) -> Any:
    """Return a function that gives the cosines between phrases, by an embedding model."""
    from plainformer.loading import load

    device = {} if flags.device is None else {"device": flags.device}
    embed = load(restored(ref), task="feature-extraction", **device)

    def cosines(first: Sequence[str], second: Sequence[str]) -> list[list[float]]:
        one, other = (embed(list(texts), normalize=True).vectors for texts in (first, second))
        found: list[list[float]] = (one @ other.T).tolist()
        return found

    return cosines


def _print(analysis: Analysis, views: Sequence[str], top: int) -> None:
    from rich.markup import escape

    screen = console()
    for number, view in enumerate(views):
        columns, rows = _rows(analysis, view)
        if number:
            screen.print()
        made = table(*columns, right=("count", "documents", "bits", "place", "found", "score", "start", "end"))
        for row in rows[: top or None]:
            made.add_row(*(escape(" ".join(str(cell).split())) for cell in row))
        screen.print(made)
        if top and len(rows) > top:
            screen.print(f"{top} of {len(rows)}; --top 0 shows all")


def _rows(analysis: Analysis, view: str) -> tuple[list[str], list[list[Any]]]:
    """Return a table: its columns, its rows."""
    if view == "phrases":
        columns = ["phrase", "count", "documents", "types", "spellings"]
        return columns, [
            [p.text, p.count, p.documents, _counts(p.labels), _counts(p.variants)] for p in analysis.phrases
        ]
    if view == "pairs":
        columns = ["phrase", "with", "count", "documents", "bits"]
        return columns, [[p.first, p.second, p.count, p.documents, f"{p.information:.2f}"] for p in analysis.pairs]
    if view == "pieces":
        from plainformer.entities import cut

        columns = ["document", "start", "end", "type", "text"]
        return columns, [
            [one.document.name, piece.start, piece.end, piece.label or "", piece.text]
            for one in analysis.found
            for piece in cut(one.document.text, one.mentions)
        ]
    ranking = analysis.ranking or ()
    if view == "matches":
        columns = ["document", "required", "kind", "text", "start", "end", "score"]
        return columns, [
            [r.name, m.required, m.kind, *("" if v is None else v for v in (m.text, m.start, m.end)), f"{m.score:.3f}"]
            for r in ranking
            for m in r.matches
        ]
    columns = ["place", "document", "found", "score", "has", "misses"]
    return columns, [
        [
            r.place,
            r.name,
            f"{r.found}/{r.required}",
            f"{r.score:.2f}",
            ", ".join(m.required if m.kind != "similar" else f"{m.required} ≈ {m.text}" for m in r.matches if m.text),
            ", ".join(m.required for m in r.matches if m.kind == "missing"),
        ]
        for r in ranking
    ]


def _counts(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts)
