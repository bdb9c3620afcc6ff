"""Which collections are lists of inputs: columns of pandas, arrays of text, views, ranges - in their order, or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from plainformer.errors import InputError

_AS_THEY_ARE = (list, tuple, Iterator, str, bytes, bytearray, memoryview, Mapping, os.PathLike)
_TEXT_KINDS = ("O", "U", "T")  # of numpy: objects, text of fixed and of any length


def as_list(inputs: Any) -> Any:
    """Return a collection of inputs as a list, in its order: a column, an array of text, a view, a range.

    A list, a tuple, an iterator, an array of numbers and whatever is one input come back as they are; an array of text
    without dimensions gives its text.

    Raises:
        InputError: a set, which has no order, or a table with several columns.
    """
    if isinstance(inputs, _AS_THEY_ARE):
        return inputs
    if isinstance(inputs, set | frozenset):
        raise InputError("a set has no order, so answers could not be matched to it", "give sorted(...), or a list")
    if hasattr(inputs, "columns") and hasattr(inputs, "shape"):
        columns = [str(name) for name in list(inputs.columns)[:12]]
        what = f"a table with the columns {', '.join(columns)} is not a list of inputs"
        raise InputError(
            what, f"give a column, table[{columns[0] if columns else 'text'!r}], or the rows, table.to_dict('records')"
        )
    if hasattr(inputs, "ndim"):
        return _of_array(inputs)
    if hasattr(inputs, "to_pylist"):  # pyarrow, whose items are not Python's own
        return inputs.to_pylist()
    return list(inputs) if isinstance(inputs, Collection) else inputs


def _of_array(array: Any) -> Any:
    """Return the items of an array or column that may hold text; anything else as it is."""
    if getattr(getattr(array, "dtype", None), "kind", "") not in _TEXT_KINDS:
        return array
    return array.tolist() if array.ndim else array.item()
