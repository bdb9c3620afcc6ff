"""What a run would read, before it does: counts, labels, lengths, copies and leaks; copies are named here, not refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from plainformer.config.building import as_config
from plainformer.config.training import PRETRAINING
from plainformer.data.duplicates import window_share
from plainformer.data.report import DataReport
from plainformer.data.sides import report_of, sides_of
from plainformer.errors import PlainformerError
from plainformer.train.objectives import objective_class
from plainformer.training.prepared import Prepared, prepare


@dataclass(frozen=True)
class DataDescription:
    """The report of data, and the run that could begin with it, but for copies that it would refuse.

    Attributes:
        prepared: None where rows cannot be encoded. error: why.
    """

    report: DataReport
    prepared: Prepared | None = None
    error: PlainformerError | None = None


def describe_data(config: Any) -> DataDescription:
    """Read the rows of a configuration, encode them, and look for what is wrong with them.

    Args:
        config: a `TrainConfig`, a mapping, or the path of a YAML file.
    Raises:
        UsageError, InputError: rows that cannot be read.
    """
    asked = as_config(config)
    data = asked.data
    alone = data.validation is None and data.test is None and data.split is None
    if data.duplicates == "refuse" and not alone:
        data = replace(data, duplicates="allow")
    try:
        prepared = prepare(replace(asked, data=data))
    except PlainformerError as error:  # what can be known without encoding the rows is told anyway
        sides = sides_of(data, objective_class(asked.objective).columns)
        return DataDescription(report_of(sides), error=error)
    examples, validation = prepared.examples, prepared.validation
    stores = {"train": examples, **({} if validation is None else {"validation": validation})}
    corpus = asked.objective in PRETRAINING and validation is not None
    found = report_of(
        prepared.rows,
        counts={name: store.counts for name, store in stores.items()},
        lengths={name: store.lengths for name, store in stores.items()},
        windows=window_share(examples, validation) if corpus else None,
    )
    return DataDescription(found, prepared)
