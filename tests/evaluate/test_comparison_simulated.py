"""`compare` on simulated systems, through folders as `evaluate` leaves them: what it says is true as often as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import plainformer as pf
from plainformer.evaluate import make_scorer
from tests.support.kept import LABELS, keep, labelled

SCORER = make_scorer("single-label", labels=LABELS)
DOCUMENTS, EACH = 40, 3


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files are written, which need not outlive a power cut."""
    monkeypatch.setattr("os.fsync", lambda file: None)


def pair(draw: np.random.Generator, shares: tuple[float, float], count: int = 120) -> tuple[list[bool], list[bool]]:
    """Two systems that often are right of the same examples."""
    same = draw.random(count)
    own = draw.random((2, count))
    shared = draw.random(count) < 0.5  # the others are drawn for each system by itself
    first, second = (np.where(shared, same, one) < share for one, share in zip(own, shares, strict=True))
    return first.tolist(), second.tolist()


def compared(
    folder: Path, right: tuple[list[bool], list[bool]], seed: int, units: list[str] | None = None
) -> pf.Comparison:
    for name, own in zip(("first", "second"), right, strict=True):
        data = {"name": "dev.tsv", "side": "validation", "identity": str(seed)}
        keep(folder / name, SCORER, labelled(own), units=units, data=data)
    return pf.compare(folder / "first", folder / "second", draws=1000, resamples=400, seed=seed)


@pytest.mark.slow
def test_intervals_hold_the_true_difference(tmp_path: Path) -> None:
    """Of 95 % intervals 95 % do; by chance 88 to 99 % of 200 (binomial, p < 1e-4 outside)."""
    held, values = 0, 0
    for number in range(200):
        found = compared(tmp_path, pair(np.random.default_rng(number), (0.8, 0.72)), number)
        tested = found.differences[0].tested
        assert tested.low is not None and tested.high is not None
        held += tested.low <= -0.08 <= tested.high
        own = found.systems[0].values["accuracy"]
        assert own.low is not None and own.high is not None
        values += own.low <= 0.8 <= own.high
    low, high = stats.binom(200, 0.95).ppf((1e-4, 1 - 1e-4))
    assert low <= held <= high and low <= values <= high, (held, values)


@pytest.mark.slow
@pytest.mark.parametrize("documents", [False, True], ids=["examples", "documents"])
def test_p_of_systems_that_are_alike_is_uniform(documents: bool, tmp_path: Path) -> None:
    """A p-value of counts has steps: it is made uniform by drawing a place within its step, as Smirnov's test needs."""
    ps, units = [], [f"document {number % DOCUMENTS}" for number in range(DOCUMENTS * EACH)] if documents else None
    for number in range(200):
        draw = np.random.default_rng(10_000 + number)
        right = pair(draw, (0.75, 0.75))
        if documents:  # all of a document is right, or nothing is: examples are no sample of their own
            right = tuple([own[k % DOCUMENTS] for k in range(len(own))] for own in right)  # type: ignore[assignment]
        tested = compared(tmp_path, right, number, units).differences[0].tested
        assert tested.p is not None and 0 < tested.p <= 1
        ps.append(tested.p)
    # Never more small ones than a uniform p has, at any level: a p with steps is larger at most.
    above = stats.kstest(ps, "uniform", alternative="greater")
    assert above.pvalue > 0.01, above
    assert 0.005 <= np.mean(np.array(ps) < 0.05) <= 0.09, np.mean(np.array(ps) < 0.05)


@pytest.mark.slow
def test_differences_are_found(tmp_path: Path) -> None:
    """McNemar's power at 120 pairs is met, and grows."""
    found = []
    for gap in (0.05, 0.15, 0.3):
        ps = [
            compared(tmp_path, pair(np.random.default_rng(n), (0.85, 0.85 - gap)), n).differences[0].tested.p
            for n in range(40)
        ]
        found.append(np.mean([p is not None and p < 0.05 for p in ps]))
    assert found[0] < found[1] < found[2] and found[1] > 0.6 and found[2] > 0.97, found
