"""How a model that is not trained yet gets its first weights, as data: families say what, `model/initial.py` does it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal


@dataclass(frozen=True)
class Distribution:
    """Where one tensor's numbers come from.

    Attributes:
        kind: "normal" around 0; "truncated" normal around 0, cut off at `cutoff`; "uniform" in [-scale, scale];
            "share" in [0, scale];
            "constant" `scale`; "sinusoids": sines, then cosines of each row's number (Vaswani et al. 2017);
            "interleaved sinusoids": sines in even columns, cosines in odd ones.
        scale: the standard deviation, the bound, or the constant.
        cutoff: the largest absolute value; a truncated one's real deviation is smaller than `scale`.
    """

    kind: Literal["normal", "truncated", "uniform", "share", "constant", "sinusoids", "interleaved sinusoids"]
    scale: float = 0.0
    cutoff: float = 0.0


def normal(std: float) -> Distribution:
    return Distribution("normal", std)


def truncated(std: float, cutoff: float = 2.0) -> Distribution:
    """Return a normal distribution that is cut off at an absolute value."""
    return Distribution("truncated", std, cutoff)


def uniform(bound: float) -> Distribution:
    return Distribution("uniform", bound)


def share(bound: float) -> Distribution:
    """Return the uniform distribution between 0 and a bound."""
    return Distribution("share", bound)


def constant(value: float) -> Distribution:
    return Distribution("constant", value)


SINUSOIDS, INTERLEAVED = Distribution("sinusoids"), Distribution("interleaved sinusoids")


@dataclass(frozen=True)
class FirstWeights:
    """First weights of a family. What no rule names: biases are 0, norms the identity, all else is normal(0, `std`).

    Attributes:
        rules: (pattern of our parameters' names, with * for anything; its distribution); the first that fits counts.
        zero_rows: (pattern, row) of tables in which that row, the padding's, is 0.
    """

    std: float = 0.02
    rules: tuple[tuple[str, Distribution], ...] = ()
    zero_rows: tuple[tuple[str, int], ...] = ()

    def rule(self, name: str) -> Distribution | None:
        """Return what a rule says of a parameter; None where none does."""
        return next((found for pattern, found in self.rules if fnmatchcase(name, pattern)), None)

    def rows_of_zeros(self, name: str) -> list[int]:
        """Return which rows of a parameter are 0."""
        return [row for pattern, row in self.zero_rows if fnmatchcase(name, pattern)]
