"""`plainformer.generate` is a function to its users, whatever of the package of that name was imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEFORE = (
    "",
    "import plainformer.generate.cache",
    "pf.generate",
    "import plainformer.generate; import plainformer.generate.search",
)


@pytest.mark.parametrize("before", BEFORE)
def test_generate_is_callable(before: str) -> None:
    code = f"""
import plainformer as pf
{before}
try:
    pf.generate(None)
except AttributeError as error:  # None has no config: the function was reached
    assert "config" in str(error), error
    print("reached")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reached"
