"""Published figures to set beside measured ones, from a YAML file in which each names its source.

    figures:
      - name: BERT-base
        metric: accuracy
        value: 0.935
        source: Devlin et al. 2019, table 1
        n: 1821                     # examples, if known
        task: text-classification   # if the metric's name does not say what it is of

They are never tested: their answers are not known, and their data and protocol may be others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainformer.config.yaml import Keys, Written, read_yaml
from plainformer.errors import InputError, did_you_mean
from plainformer.evaluate.base import Metric

_REQUIRED = {"name": str, "metric": str, "value": float, "source": str}
_OPTIONAL = {"n": int, "task": str}
_KINDS = {str: "a text", float: "a number", int: "a whole number of at least 1"}
# Metrics that are shares, so that 93.5 is a percentage by mistake.
_SHARES = ("accuracy", "precision", "recall", "f1", "mcc", "roc_auc", "exact_match", "wer", "cer", "ece")


@dataclass(frozen=True)
class Figure:
    """A published figure.

    Attributes:
        n: of how many examples, if that is known. task: that it is of; "" for any. place: where it is written.
    """

    name: str
    metric: str
    value: float
    source: str
    n: int | None = None
    task: str = ""
    place: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: value for name, value in vars(self).items() if name != "place"}


def read_figures(path: str | Path) -> tuple[Figure, ...]:
    """Return the figures of a YAML file. Raises InputError, with the line: a missing key, one that is unknown, a wrong value."""
    written = read_yaml(path)
    listed = written.data.get("figures")
    for key in written.data:
        if key != "figures":
            raise InputError(f"{written.place((key,))}: unknown key {key!r}", "the file has one key: figures")
    if not isinstance(listed, list) or not listed:
        what = (
            f"{written.place(('figures',))}: figures {'is missing' if listed is None else 'is not a list of figures'}"
        )
        raise InputError(what, "write `figures:`, and `- name: ...` below it, with metric, value and source")
    return tuple(_figure(written, one, ("figures", place)) for place, one in enumerate(listed))


def _figure(written: Written, data: Any, keys: Keys) -> Figure:
    known = {**_REQUIRED, **_OPTIONAL}
    if not isinstance(data, Mapping):
        raise InputError(f"{written.place(keys)}: a figure is {data!r}", f"give it {', '.join(_REQUIRED)}")
    for key in data:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"known: {', '.join(known)}"
            raise InputError(f"{written.place((*keys, key))}: unknown key {key!r}", hint)
    for key in _REQUIRED:
        if data.get(key) is None:
            why = "a figure without its source proves nothing" if key == "source" else f"give {', '.join(_REQUIRED)}"
            raise InputError(f"{written.place(keys)}: {key} is missing", why)
    values = {key: value for key, value in data.items() if value is not None}
    for key, value in values.items():
        if not _fits(value, known[key]):
            fix = f"give {_KINDS[known[key]]}" + (", or quote it" if known[key] is str else "")
            raise InputError(f"{written.place((*keys, key))}: {key} is {value!r}", fix)
    return Figure(**{**values, "value": float(values["value"]), "place": written.place(keys)})


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) and value >= 1
    return (isinstance(value, str) and bool(value.strip())) if kind is str else _finite(value)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def suited(
    figures: Iterable[Figure], metrics: Mapping[str, Metric], task: str, *, percent: bool = False
) -> tuple[Figure, ...]:
    """Return the figures for a task.

    Args:
        percent: whether shares are measured in percent here, as SQuAD's script does.
    Raises:
        InputError: a metric that was not measured; a share of more than 1 that is a percentage, or the other way round.
    """
    found = tuple(one for one in figures if one.task in ("", task))
    for one in found:
        if one.metric not in metrics:
            hint = (
                did_you_mean(one.metric, metrics)
                or f"measured are {', '.join(name for name in metrics if '/' not in name)}"
            )
            raise InputError(f"{one.place}: {one.metric!r} was not measured", hint)
        if not is_share(one.metric) or (one.metric in ("wer", "cer") and 1 < one.value < 2):
            continue
        if (one.value > 1) != percent and one.value != 0:
            what = (
                f"{one.place}: {one.metric} is {one.value:g}, and it is {'in percent' if percent else 'a share'} here"
            )
            raise InputError(what, f"write {one.value * 100 if percent else one.value / 100:g}")
    return found


def is_share(metric: str) -> bool:
    """Return whether a metric's values are from 0 to 1, or to 100 where it is in percent; errors per word may be more."""
    name = metric.partition("/")[0]
    for how in ("_micro", "_macro", "_weighted", "_strict"):
        name = name.removesuffix(how)
    return name in _SHARES
