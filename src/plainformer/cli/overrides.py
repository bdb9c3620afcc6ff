"""`--section.option VALUE` on the command line: what changes an option of a configuration for one run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields

from plainformer.cli.options import restored
from plainformer.config.building import all_names, section_of
from plainformer.config.declared import declared, fits
from plainformer.config.training import TrainConfig
from plainformer.errors import UsageError, opt

FLAGS = ("dry-run", "resume", "seen", "verdict", "json")  # of the verb itself


def parse_overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names and values of overrides: `--name value`, `--name=value`, or a switch alone.

    `--folds 5` is short for `--folds.count 5`.

    Raises:
        UsageError: a word that is not an option, an option without its value.
    """
    found: list[tuple[str, str]] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        close = [] if "." in name else difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.7)
        if close and name.replace("-", "_") not in {f.name for f in fields(TrainConfig)}:
            raise UsageError(f"there is no option {opt(name)}", f"did you mean {opt(close[0])}?")
        if not word.startswith("--") or not name:
            fix = "options are --section.option VALUE; quote a value with blanks in it"
            raise UsageError(f"unexpected {restored(word)!r}", fix)
        if not equals:
            if left and not left[0].startswith("--"):
                value = restored(left.pop(0))
            elif _is_switch(name):
                value = "true"
            else:
                raise UsageError(f"{opt(name)} needs a value", f"give {opt(name, ...)} VALUE, or {opt(name)}=VALUE")
        if (
            name == "folds" and value not in ("", "null", "~") and not value.startswith("{")
        ):  # the section's one value that a command line mostly gives
            name = "folds.count"
        found.append((name, value))
    return found


def _is_switch(name: str) -> bool:
    """Return whether an option is True or False; one that there is not needs no value: its error is another."""
    plain = name.replace("-", "_")
    if plain not in set(all_names(TrainConfig)):
        return True
    *sections, last = plain.split(".")
    kind: type = TrainConfig
    for one in sections:
        kind = section_of(kind, one) or kind
    return fits(True, declared(kind, last))
