"""The model of code in the package: small, described, and better than chance at what it is for."""

from __future__ import annotations

import math

import pytest

import plainformer as pf
from plainformer.checkpoint.bundled import bundled_path, is_installed
from plainformer.cli.default_model import DEFAULT

pytestmark = pytest.mark.skipif(
    not is_installed(DEFAULT), reason="this copy has no weights: recipes/code.yaml makes them"
)


def test_it_is_small_and_says_what_it_learnt_from() -> None:
    folder = bundled_path(DEFAULT)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("pandas", "BSD-3-Clause", "PSF-2.0", "Held out", "bits per byte", "code_data.py", "recipes/code.yaml"):
        assert part in card
    assert "Not measured yet" not in card and "/tmp/" not in card and "/home/" not in card


def test_it_goes_on_with_code() -> None:
    complete = pf.load(DEFAULT)
    begun = "import pandas as pd\n\n\ndf = pd.Data"
    assert "pd.DataFrame(" in begun + complete(begun, max_new_tokens=4, heal=True).text
    code = "import os\n\n\ndef size_of(path):\n    return os.path.getsize(path)\n"
    scored = complete.score(code)
    shuffled = complete.score("\n".join(sorted(code.split(), reverse=True)))
    assert scored.perplexity < shuffled.perplexity < math.inf and scored.perplexity < 60
