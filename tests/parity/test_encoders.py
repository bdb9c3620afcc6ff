"""Encoder-only families against the reference, for each head and each value that changes the computation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cases.encoders import ALL
from tests.support.parity import Case, check_everything


@pytest.mark.parametrize("case", ALL, ids=str)
def test_encoder(case: Case, tmp_path: Path) -> None:
    check_everything(case, tmp_path)
