"""What is a list of inputs: columns, arrays of text, views; and what is not."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plainformer.errors import InputError, a_type
from plainformer.inputs.listed import as_list

pd = pytest.importorskip("pandas")
TEXTS = ["b", "a", "b"]


@pytest.mark.parametrize(
    "given",
    [
        pd.Series(TEXTS),
        pd.Series(TEXTS, dtype=object),
        pd.Series(TEXTS, dtype="string"),
        pd.Series(TEXTS, dtype="category"),
        pd.Series(TEXTS, index=[9, 3, 3]),
        pd.DataFrame({"text": TEXTS, "n": [1, 2, 3]}).text,
        pd.DataFrame({"text": TEXTS}).text.values,
        pd.Index(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array(TEXTS, dtype=np.dtypes.StringDType()),
        dict(zip((1, 2, 3), TEXTS, strict=True)).values(),
        dict.fromkeys(["b", "a"]).keys(),
        deque(TEXTS),
    ],
    ids=lambda given: f"{type(given).__name__}-{getattr(given, 'dtype', '')}",
)
def test_collections_are_lists_in_their_order(given: Any) -> None:
    found = as_list(given)
    assert type(found) is list and found == TEXTS[: len(given)] and all(type(one) is str for one in found)


def test_what_is_left_as_it_is() -> None:
    pairs = {"a": "b"}.items()
    assert as_list(pairs) == [("a", "b")] and as_list(range(3)) == [0, 1, 2]
    for same in ("text", b"text", 3, None, TEXTS, ("a", "b"), iter(TEXTS), {"text": "a"}, Path("a"), np.zeros(3)):
        assert as_list(same) is same
    for same in (np.zeros((2, 3)), torch.zeros(3), torch.tensor(1.0), np.float32(1), pd.Series([1.0, 2.0])):
        assert as_list(same) is same
    assert as_list(np.array("text")) == "text" and as_list(np.array(TEXTS)[0]) == "b"


def test_what_has_no_order_or_no_column() -> None:
    for given in ({"a"}, frozenset(TEXTS)):
        with pytest.raises(InputError, match="no order"):
            as_list(given)
    with pytest.raises(InputError, match=r"the columns text, n is not a list") as caught:
        as_list(pd.DataFrame({"text": TEXTS, "n": [1, 2, 3]}))
    assert "table['text']" in caught.value.fix


def test_kinds_for_messages() -> None:
    assert [a_type(value) for value in (3, None, np.zeros(1), "", 1.0)] == [
        "an int",
        "None",
        "an ndarray",
        "a str",
        "a float",
    ]
