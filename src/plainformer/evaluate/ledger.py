"""The ledger of looks at test sets: a test set that was looked at twice is one that was chosen by.

A line of JSON for each look, in a folder of the user's own, so that it outlives the folders of runs. A test set is known by what
it holds (`Source.identity`), not by where it is. Printing the same evaluation again is not a look.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plainformer.errors import PlainformerError, UsageError, a_type, opt, plural

NAME = "test-ledger.jsonl"
LEVEL = 0.95
_KIND = {str: "text", dict: "object"}


def state_folder() -> Path:
    """Return $PLAINFORMER_STATE, else $XDG_STATE_HOME/plainformer, else ~/.local/state/plainformer."""
    own = os.environ.get("PLAINFORMER_STATE")
    if own:
        return Path(own)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "plainformer"


@dataclass(frozen=True)
class Look:
    """One look at a test set.

    Attributes:
        time: UTC. data: identity of the test set. name: of the data; run: the reference that was evaluated.
        checkpoint, config: digests of the model, and of task, options and columns.
        metrics: what was seen. reason: why it was looked at again; "" for the first look.
    """

    time: str
    data: str
    name: str
    run: str
    checkpoint: str
    config: str
    metrics: Mapping[str, Any]
    reason: str = ""

    def same(self, other: Look) -> bool:
        """Return whether it is the same model with the same options."""
        return (self.checkpoint, self.config) == (other.checkpoint, other.config)

    def line(self) -> str:
        """Return it for people."""
        main = next(iter(self.metrics.items()), None)
        value = f": {main[0]} {main[1]:.4g}" if main is not None and isinstance(main[1], int | float) else ""
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.time} {self.run}{value}{why}"


@dataclass(frozen=True)
class Looks:
    """All looks at one test set."""

    all: tuple[Look, ...] = ()

    @property
    def level(self) -> float:
        """Return the confidence level: Bonferroni's, over the looks."""
        return 1 - (1 - LEVEL) / max(1, len(self.all))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"count": len(self.all), "reasons": [look.reason for look in self.all if look.reason]}

    def lines(self) -> list[str]:
        """Return what every report says; nothing of one look alone."""
        if len(self.all) < 2:
            return ["test set looked at once"] if self.all else []
        reasons = [f"reason: {look.reason}" for look in self.all if look.reason]
        return [f"test set looked at {len(self.all)} times; intervals are at {100 * self.level:.4g} %", *reasons]


class Ledger:
    """Reads and writes the ledger.

    Raises:
        PlainformerError: it cannot be read or written, or is damaged.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or state_folder()) / NAME

    def looks(self, data: str) -> Looks:
        """Return the looks at a test set, the first one first."""
        try:
            written = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise self._cannot("read", error) from None
        return self._looks(written, data)

    def _looks(self, written: bytes, data: str) -> Looks:
        if written and not written.endswith(b"\n"):
            raise self._damaged(written.count(b"\n") + 1, "it breaks off")
        found = []
        for number, line in enumerate(written.splitlines(), 1):
            try:
                look = _look(json.loads(line))
            except ValueError as error:
                raise self._damaged(number, error) from None
            if look.data == data:
                found.append(look)
        return Looks(tuple(found))

    def check(self, look: Look, reason: str | None) -> Looks:
        """Return the looks so far, if one more with this model and these options is allowed.

        Raises:
            UsageError: the test set was looked at with others, and there is no reason to look again.
        """
        return self._check(self.looks(look.data), look, reason)

    def _check(self, looks: Looks, look: Look, reason: str | None) -> Looks:
        if not looks.all or reason is not None or any(look.same(one) for one in looks.all):
            return looks
        listed = "".join(f"\n    {one.line()}" for one in looks.all)
        what = f"the test set {look.name} was looked at {_often(looks.all)} already:{listed}"
        fix = "choose by validation rows; if there is a reason to look again, every report will say it: "
        raise UsageError(what, fix + opt("look_again", "..."))

    def probe(self) -> None:
        """Refuse a ledger that cannot be written, before anything is seen. Raises PlainformerError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b"):
                pass
        except OSError as error:
            raise self._cannot("written", error) from None

    def add(self, look: Look, reason: str | None) -> Looks:
        """Write a look down, unless this model with these options was seen before; return all looks at the test set.

        The check is made again: another process may have looked meanwhile.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file, _alone(file):
                file.seek(0)
                looks = self._check(self._looks(file.read(), look.data), look, reason)
                if any(look.same(one) for one in looks.all):
                    return looks
                given = Look(**{**vars(look), "reason": (reason or "") if looks.all else ""})
                line = json.dumps(vars(given), ensure_ascii=False) + "\n"
                file.write(line.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
                return Looks((*looks.all, given))
        except OSError as error:
            raise self._cannot("written", error) from None

    def _damaged(self, number: int, why: object) -> PlainformerError:
        what = f"line {number} of the ledger of test sets, {self.path}, is damaged: {why}"
        return PlainformerError(what, "correct or remove that line; the ledger says how often a test set was looked at")

    def _cannot(self, how: str, error: OSError) -> PlainformerError:
        what = f"the ledger of test sets, {self.path}, cannot be {how}: {error.strerror or error}"
        return PlainformerError(
            what, "without it nobody knows whether a test set is still one; PLAINFORMER_STATE is its folder"
        )


def _look(value: Any) -> Look:
    """Return a look from what a line says. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"it is {a_type(value)}, not an object")
    known = {each.name: dict if each.name == "metrics" else str for each in fields(Look)}
    for name in known.keys() | value.keys():
        if name not in known or not isinstance(value.get(name, "" if name == "reason" else None), known[name]):
            raise ValueError(
                f"{name!r} is unknown" if name not in known else f"{name!r} is missing, or is no {_KIND[known[name]]}"
            )
    return Look(**value)


@contextmanager
def _alone(file: Any) -> Iterator[None]:
    """Within, no other process writes; where the system has no such locks, a line is written at one stroke all the same."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def now() -> str:
    """Return the time, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")


def card_section(looks: Looks) -> str:
    """Return what a model card says of all looks at its test set, those with other models too."""
    lines = ["## Test set", "", f"Looked at {_often(looks.all)}, with {plural(len(_models(looks.all)), 'model')}."]
    for look in looks.all:
        values = {name: value for name, value in look.metrics.items() if isinstance(value, int | float)}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:3])
        lines.append(
            f"- {look.time} UTC, {Path(look.run).name} on {Path(look.name).name}: {shown}"
            + (f". Reason: {look.reason}" if look.reason else "")
        )
    return "\n".join(lines) + "\n"


def _often(looks: Sequence[Look]) -> str:
    return "once" if len(looks) == 1 else plural(len(looks), "time")


def _models(looks: Sequence[Look]) -> set[str]:
    return {look.checkpoint for look in looks}
