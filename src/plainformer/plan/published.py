"""Shapes of published models: the nearest to a number of parameters, as values of a config.json. No torch."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plainformer.errors import UsageError, opt

_SCALES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_PLAIN = "llama"  # what people mean by "a 7B model": no gain for any other family until it is clearly nearer
_PREFERENCE = 0.1


@dataclass(frozen=True)
class Published:
    """A published model: its name, its id on the Hub, its parameters, and its config.json as far as sizes go."""

    name: str
    id: str
    parameters: int
    config: Mapping[str, Any]

    @property
    def is_decoder(self) -> bool:
        """Return whether it writes text by a decoder alone."""
        return "CausalLM" in self.config["architectures"][0] or "LMHead" in self.config["architectures"][0]


@cache
def published() -> tuple[Published, ...]:
    """Return the models of published.toml, the smallest first."""
    raw = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))["model"]
    found = (Published(one["name"], one["id"], one["parameters"], one["config"]) for one in raw)
    return tuple(sorted(found, key=lambda one: one.parameters))


def parse_count(text: str) -> int:
    """Return the number that a text such as "7B", "1.5b", "360M" or "7e9" says.

    Raises:
        UsageError: it says none, or less than a thousand.
    """
    found = re.fullmatch(
        r"\s*(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kmbt]?)\s*", text.lower().replace(",", "").replace("_", "")
    )
    count = round(float(found[1]) * _SCALES.get(found[2], 1)) if found is not None else 0
    if not 1000 <= count <= 10**14:
        raise UsageError(f"{opt('params', text)} is not a number of parameters", f"give {opt('params', '7B')}")
    return count


def nearest(count: int) -> Published:
    """Return the published decoder that a model of this many parameters is most likely like.

    Those that are called so ("7B") come first, and among them the plainest; then the nearest in size.
    """
    decoders = [one for one in published() if one.is_decoder]
    called = [one for one in decoders if size_in(one.name) == count]
    return min(called or decoders, key=lambda one: _distance(one, count))


def _distance(one: Published, count: int) -> float:
    return abs(math.log(one.parameters / count)) + (_PREFERENCE if one.config["model_type"] != _PLAIN else 0)


def size_in(name: str) -> int | None:
    """Return the number of parameters that a model's name says: "Llama-2-7b-hf" is 7,000,000,000; None for none."""
    return next(iter(sizes_in(name)), None)


def sizes_in(name: str) -> Iterable[int]:
    """Yield the sizes in a name."""
    for number, scale in re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([mMbB])(?![A-Za-z0-9])", name):
        yield round(float(number) * _SCALES[scale.lower()])
