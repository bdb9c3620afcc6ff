"""Decoder-only families against the reference, for each head and each value that changes the computation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cases.decoders import LLAMA, OTHERS
from tests.support.parity import Case, check_everything


@pytest.mark.parametrize("case", [*LLAMA, *OTHERS], ids=str)
def test_decoder(case: Case, tmp_path: Path) -> None:
    check_everything(case, tmp_path)
