"""What a plan is made for: a card by its name, a memory size, or this machine. No torch."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from plainformer.errors import UsageError, did_you_mean, opt

THIS_MACHINE = "this machine"
GB, GIB = 10**9, 2**30
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": GB, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": GIB, "tib": 2**40, "k": 10**3, "m": 10**6, "g": GB, "t": 10**12}


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        memory: bytes that a program can have, as its driver reports them.
        bandwidth, link: bytes/s of its memory; in one direction to the next device in the machine. None: not known.
        flops: operations/s by dtype.
        kind: "gpu", "cpu", or "memory" where only a size was given.
        source: where its figures are from, and when.
    """

    name: str
    memory: int
    bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    link: float | None = None
    kind: str = "gpu"
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "memory": self.memory,
            "bandwidth": self.bandwidth,
            "flops": dict(self.flops),
            "link": self.link,
            "source": self.source,
        }


@dataclass(frozen=True)
class Extras:
    """Bytes on a GPU that no tensor has, with where the figures are from."""

    context: int
    communicator: int
    communicator_more: int
    fragmentation: float
    sources: Mapping[str, str]
    date: str


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "devices.toml").read_text(encoding="utf-8"))


@cache
def extras() -> Extras:
    """Return the constants of GPUs."""
    raw = _table()["extras"]
    sources = {name: raw[f"{name}_source"] for name in ("context", "communicator", "fragmentation")}
    two, more = (int(raw[name] * GB) for name in ("communicator", "communicator_more"))
    return Extras(int(raw["context"] * GIB), two, more, raw["fragmentation"], sources, raw["date"])


@cache
def devices() -> dict[str, Device]:
    """Return every device that is known by its name and size: "H100 80GB"."""
    found = {}
    for raw in _table()["device"]:
        kind = "cpu" if raw["name"].startswith("Apple") else "gpu"
        for place, (size, memory) in enumerate(zip(raw["sizes"], raw["memory"], strict=True)):
            name, bandwidth = f"{raw['name']} {size}", raw["bandwidth"]
            found[name] = Device(
                name=name,
                memory=int(memory * GB),
                bandwidth=GB * (bandwidth[place] if isinstance(bandwidth, list) else bandwidth),
                flops={dtype: 1e12 * rate for dtype, rate in raw.get("tflops", {}).items()},
                link=GB * raw["link"] if "link" in raw else None,
                kind=kind,
                source=f"{raw['source']} ({raw['date']})",
            )
    return found


def find_device(name: str) -> Device:
    """Return a device by its name, with or without its size, in any spelling: "h100", "A100 80GB", "rtx4090".

    Raises:
        UsageError: no such device, or one of several sizes.
    """
    if _plain(name) in (_plain(THIS_MACHINE), "thismachine", "here"):
        return this_machine()
    wanted = _plain(name)
    known = devices()
    exact = [one for one in known if _plain(one) == wanted]
    found = exact or [one for one in known if wanted and _plain(one.rsplit(" ", 1)[0]) == wanted]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise UsageError(f"{opt('device', name)} has several sizes", "give " + " or ".join(map(repr, found)))
    near = did_you_mean(name, {*known, *(one.rsplit(" ", 1)[0] for one in known)}, few=False)
    names = ", ".join(dict.fromkeys(one.rsplit(" ", 1)[0] for one in known))
    fix = near or f"give {opt('memory', '24GB')} for any other, or one of: {names}, {THIS_MACHINE}"
    raise UsageError(f"{opt('device', name)} is not known", fix)


def _plain(name: str) -> str:
    words = re.sub(r"[\W_]+", "", name.lower())
    return re.sub(r"^(nvidia|geforce|amd|instinct)+", "", words).removeprefix("geforce").removeprefix("rtx")


def parse_bytes(name: str, text: str | int) -> int:
    """Return the bytes that a text such as "24GB", "16 GiB" or "800MB" says.

    Raises:
        UsageError: the text is not a size in bytes; `name` is the option that the message names.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text).lower())
    bare = found is not None and not found[2] and float(found[1]) < 10**6  # nobody means 24 bytes
    if found is None or bare or found[2] not in _UNITS or float(found[1]) <= 0:
        raise UsageError(
            f"{opt(name, text)} is not a size of memory", f"give {opt(name, '24GB')} or {opt(name, '22GiB')}"
        )
    return round(float(found[1]) * _UNITS[found[2]])


def of_size(memory: int) -> Device:
    """Return a device of which only the memory is known."""
    return Device(short(memory), memory, kind="memory", source="as given")


@cache
def this_machine() -> Device:
    """Return this machine's processor and memory, its bandwidth and rate measured in a fifth of a second each.

    Memory is what is available now, within the limit of a container.
    """
    from plainformer.plan.machine import available_memory, measured_rates

    bandwidth, flops = measured_rates()
    name = f"{THIS_MACHINE} ({os.cpu_count()} CPUs)"
    source = "memory available now; bandwidth and rate measured now"
    return Device(name, available_memory(), bandwidth, {"fp32": flops}, kind="cpu", source=source)


def unit_of(size: float) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the decimal and the binary unit that a size is said in, each with its bytes."""
    return (("GB", GB), ("GiB", GIB)) if abs(size) >= GB else (("MB", 10**6), ("MiB", 2**20))


def said(size: float) -> str:
    """Return bytes for people, in GB and GiB: "13.48 GB (12.55 GiB)"; small ones in MB and MiB."""
    (unit, power), (binary, other) = unit_of(size)
    return f"{size / power:,.2f} {unit} ({size / other:,.2f} {binary})"


def short(size: float, like: float = 0) -> str:
    """Return bytes for people in one unit: "13.48 GB", "7.10 MB", "812 bytes".

    `like`: a size whose unit is taken, so that figures of one sentence can be compared.
    """
    for unit, power in (("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if max(abs(size), like) >= power:
            return f"{size / power:,.2f} {unit}"
    return f"{int(size)} bytes"


def apart(one: float, two: float) -> tuple[str, str]:
    """Return two sizes in one unit, with as many digits as it takes to tell them apart: "1.0004 GB", "1.0000 GB"."""
    unit, power = unit_of(max(one, two))[0]
    for digits in range(2, 10 if one != two else 3):
        said = tuple(f"{size / power:,.{digits}f} {unit}" for size in (one, two))
        if said[0] != said[1]:
            break
    return said[0], said[1]
