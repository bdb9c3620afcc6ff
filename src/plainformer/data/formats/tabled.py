"""Parquet, Arrow and data sets on the Hub, through the `datasets` library: an extra, imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plainformer.data.files import unreadable
from plainformer.data.rows import DataRow, Reading
from plainformer.errors import HubError, InputError, MissingDependencyError, UsageError, opt, to_install


def library() -> Any:
    """Return the module `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "parquet, Arrow and Hub data sets need datasets", to_install("datasets")
        ) from error
    return datasets


def read_tabled(reading: Reading) -> Iterator[DataRow]:
    """Yield the rows of parquet and Arrow files, or of a data set on the Hub.

    A label that is kept as a number with a table of names becomes its name. Audio and images are not decoded here: they
    are {"bytes", "path"}.
    """
    for name, table in tables(reading):
        table = _undecoded(table)
        names = {key: _names_of(feature) for key, feature in table.features.items()}
        for i, row in enumerate(table):
            values = {key: _named(value, names[key]) for key, value in row.items()}
            yield DataRow(values, f"{name} row {i}")


def tables(reading: Reading) -> Iterator[tuple[str, Any]]:
    """Yield each table with its name; one of the Hub, or one for each file."""
    hub = library()
    if reading.source.format == "hub":
        yield reading.source.path, _from_hub(hub, reading)
        return
    for path in reading.files:
        name = reading.name(path)
        try:
            yield name, _from_file(hub, path)
        except (OSError, ValueError, hub.exceptions.DatasetGenerationError) as error:
            cause = error.__cause__ or error
            raise unreadable(name, cause, "is it a whole file of this format?") from None


def _from_file(hub: Any, path: Path) -> Any:
    if path.suffix.lower() == ".parquet":
        return hub.Dataset.from_parquet(str(path))
    try:
        return hub.Dataset.from_file(str(path))
    except Exception as error:
        # pyarrow has its own errors, and two file formats of this name: streams, which `datasets` writes, and files.
        import pyarrow  # type: ignore[import-untyped]

        if not isinstance(error, pyarrow.ArrowInvalid):
            raise
        with pyarrow.memory_map(str(path)) as source:
            return hub.Dataset(pyarrow.ipc.open_file(source).read_all())


def _from_hub(hub: Any, reading: Reading) -> Any:
    source = reading.source
    if source.split is None:
        raise UsageError(f"the data set {source.path!r} has splits", f"name one: {opt('split', 'train')}")
    try:
        return hub.load_dataset(source.path, source.name, split=source.split)
    except (ConnectionError, hub.exceptions.DatasetNotFoundError) as error:
        raise HubError(
            f"the data set {source.path!r} cannot be fetched: {error}",
            "check its name and the network, or give files that are on this machine",
        ) from None
    except ValueError as error:  # an unknown configuration or split; the message lists those there are
        raise InputError(f"the data set {source.path!r}: {error}", f"check {opt('name')} and {opt('split')}") from None


def _undecoded(table: Any) -> Any:
    for key, feature in table.features.items():
        if type(feature).__name__ in ("Audio", "Image"):
            table = table.cast_column(key, type(feature)(decode=False))
    return table


def _names_of(feature: Any) -> Any:
    """Return the table of label names of a column, also where it holds lists of labels; None for other columns."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
    return getattr(inner, "names", None)


def _named(value: Any, names: Any) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if value >= 0 else None  # -1: a test set whose labels are kept back
