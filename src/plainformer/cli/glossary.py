"""`plainformer glossary TERM`: what a term of the field means, where it is in this code, and its source.

The terms are in glossary.toml beside this file. docs/glossary.md is made of it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from plainformer.cli.options import Json, restored, write_json
from plainformer.cli.screen import console, folded, print_facts, shown, table, visible
from plainformer.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Term:
    """A term with its other names, its meaning, files below src/plainformer, and papers or pages."""

    name: str
    text: str
    code: tuple[str, ...]
    source: tuple[str, ...]
    also: tuple[str, ...] = ()


def glossary(*term: Annotated[str, Parameter(help="A term, or several words of one.")], json: Json = False) -> None:
    """Explain a term of the field; without one, list all terms.

    Example: plainformer glossary attention head
    """
    terms = read_terms()
    found = find(restored(" ".join(term)), terms) if term else terms
    if json:
        write_json(asdict(each) for each in found)
        return
    out = console()
    if not term:
        listed = table("term", "also called")
        for each in found:
            listed.add_row(each.name, ", ".join(each.also))
        out.print(listed)
        return
    for number, each in enumerate(found):
        also = f" ({', '.join(each.also)})" if each.also else ""
        out.print("\n" * bool(number) + shown(f"{each.name}{also}"))
        out.print("\n".join(folded(visible(each.text), out.width, "  ", "  ")), markup=False)
        print_facts(out, {"code": ", ".join(each.code)}, indent="  ", label=7)
        for place, source in enumerate(each.source):
            print_facts(out, {"" if place else "source": visible(source)}, indent="  ", label=7)


def read_terms() -> list[Term]:
    """All terms, by name, with their sources written out."""
    import tomllib
    from importlib.resources import files

    data = tomllib.loads(files("plainformer.cli").joinpath("glossary.toml").read_text(encoding="utf-8"))
    made = []
    for entry in data["terms"]:
        source = tuple(data["sources"].get(key, key) for key in entry["source"])
        also = tuple(entry.get("also", ()))
        made.append(Term(entry["name"], entry["text"], tuple(entry["code"]), source, also))
    return made


def find(name: str, terms: list[Term]) -> list[Term]:
    """The terms of that name, whatever its case, hyphens and plural; where there is none, those also called so."""
    wanted = _plain(name)
    found = [term for term in terms if _plain(term.name) == wanted]
    found = found or [term for term in terms if wanted in map(_plain, term.also)]
    if not found:
        names = [each for term in terms for each in (term.name, *term.also)]
        hint = did_you_mean(name, names)
        raise UsageError(f"{name!r} is not in the glossary", hint or "`plainformer glossary` lists all terms")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip().removesuffix("s")
