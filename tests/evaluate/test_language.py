"""Perplexity and bits per byte, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plainformer.evaluate import make_scorer


def test_all_tokens_weigh_the_same() -> None:
    scorer = make_scorer("language")
    found = [
        ("é", {"nats": 3 * math.log(2), "tokens": 1}),
        (2, {"nats": math.log(2), "tokens": 3}),
        ("", {"nats": 0.0, "tokens": 0}),
    ]
    rows = np.array([scorer.row(*pair) for pair in found])
    values = scorer.measure(rows)(np.ones(3))
    assert values == pytest.approx({"loss": math.log(2), "perplexity": 2.0, "bits_per_byte": 1.0})
    assert scorer.tables(rows)[0].rows[:3] == (("documents", 3), ("tokens", 4), ("bytes", 4))
    assert all(np.isnan(value) for value in scorer.measure(rows)(np.array([0.0, 0.0, 1.0])).values())
    assert scorer.measure(np.array([[1e6, 1.0, 1.0]]))(np.ones(1))["perplexity"] == math.inf
