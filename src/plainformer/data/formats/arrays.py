"""Files of numpy arrays: row i is the i-th entry of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.data.rows import DataRow, Reading
from plainformer.errors import InputError, opt

Arrays = dict[str, npt.NDArray[Any]]


def read_npz(reading: Reading) -> Iterator[DataRow]:
    """Yield a row for each index of the first axis; entries of 1-D arrays are plain numbers or texts.

    With `split: train` the arrays x_train and y_train are the columns x and y, and others are passed over.
    """
    for path in reading.files:
        name = reading.name(path)
        arrays = _arrays(path, name)
        if reading.source.split is not None:
            arrays = _of_split(arrays, reading, name)
        sizes = {key: array.shape[0] if array.ndim else 0 for key, array in arrays.items()}
        if len(set(sizes.values())) != 1:
            said = ", ".join(f"{key} {array.shape}" for key, array in arrays.items()) or "none"
            raise InputError(
                f"{name} has arrays of unequal length: {said}",
                f"give arrays with an entry for each row, or {opt('split', 'train')} for x_train, y_train",
            )
        for i in range(next(iter(sizes.values()))):
            entries = ((key, array[i]) for key, array in arrays.items())
            values = {key: entry.item() if np.ndim(entry) == 0 else entry for key, entry in entries}
            yield DataRow(values, f"{name} row {i}")


def _arrays(path: Path, name: str) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as held:
            if not isinstance(held, np.lib.npyio.NpzFile):
                raise InputError(f"{name} holds one array without a name", "write it with numpy.savez")
            return {key: held[key] for key in held.files}
    except InputError:
        raise
    except ValueError as error:  # objects are pickled, and unpickling runs what a file says
        raise InputError(f"{name} cannot be read: {error}", "save arrays of numbers or texts, not of objects") from None
    except Exception as error:  # a damaged zip file fails in a dozen ways, with the errors of three libraries
        raise InputError(f"{name} is not a whole npz file: {error}", "copy or write it again") from None


def _of_split(arrays: Arrays, reading: Reading, name: str) -> Arrays:
    split = str(reading.source.split)
    found: Arrays = {}
    for key, array in arrays.items():
        base = key.removesuffix(f"_{split}").removeprefix(f"{split}_")
        if base == key:
            reading.counts.skip("array of another split", key)
        else:
            found[base] = array
    if not found:
        raise InputError(
            f"{opt('split', split)} fits no array of {name}", f"its arrays are {', '.join(arrays)}: they end in _SPLIT"
        )
    return found
