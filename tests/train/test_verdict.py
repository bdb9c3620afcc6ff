"""The verdict on overfitting: simulated curves, whose truth is known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.evaluate.gathered import fold_folders
from plainformer.train.example_losses import Losses, bytes_of, most_kept, packed, read_losses
from plainformer.train.kept_verdict import kept_verdict
from plainformer.train.verdict import MOST_UNITS, ChosenMetric, Curves, bootstrap, judge, verdict

EVALUATIONS = 8
FAST = 300  # samples of a bootstrap


def curves(
    draw: np.random.Generator,
    n: int,
    *,
    jitter: float = 0.0,
    rise: float = 0.0,
    onset: int = 4,
    train: tuple[float, float] = (1.2, 0.4),
    metric: ChosenMetric | None = None,
) -> Curves:
    """Skewed losses of mean 0.3, with noise of 0.3 in each and a factor that each evaluation varies by.

    With a rise they fall until `onset` - 1, and rise from there to the end, by that share.
    """
    true_N, shape_E = draw.exponential(0.3, n), np.ones(EVALUATIONS)
    if rise:
        shape_E[:onset] = np.linspace(1.3, 1.0, onset)
        shape_E[onset:] = 1 + rise * np.arange(1, EVALUATIONS - onset + 1) / (EVALUATIONS - onset)
    shape_E *= 1 + jitter * draw.standard_normal(EVALUATIONS)
    losses = true_N * shape_E[:, None] + 0.3 * draw.standard_normal((EVALUATIONS, n))
    of_train = true_N * np.linspace(*train, EVALUATIONS)[:, None] + 0.3 * draw.standard_normal((EVALUATIONS, n))
    steps = list(range(0, 100 * EVALUATIONS, 100))
    return Curves(steps, [step / 100 for step in steps], losses, np.ones(n), of_train, metric)


@pytest.mark.parametrize(("jitter", "n"), [(0.0, 872), (0.02, 872)])
def test_a_flat_curve_is_seldom_called_overfitting(jitter: float, n: int) -> None:
    draw = np.random.default_rng(0)
    count = 500
    found = Counter(judge([curves(draw, n, jitter=jitter)], resamples=FAST).kind for _ in range(count))
    assert found["overfitting"] + found["worse"] <= 0.03 * count, found


def test_a_planted_onset_is_found() -> None:
    draw = np.random.default_rng(0)
    found = [judge([curves(draw, 872, jitter=0.01, rise=0.33)], resamples=FAST) for _ in range(100)]
    assert sum(one.kind == "overfitting" for one in found) >= 95
    assert all(abs(one.since["evaluation"] - 4) <= 1 for one in found if one.since)


def test_what_it_says() -> None:
    draw = np.random.default_rng(1)
    falling = curves(draw, 872, rise=1.0, onset=4)
    found = judge([falling])
    assert found.kind == "overfitting" and found.n == 872 and found.p is not None and found.p < 0.001
    assert found.since["step"] == 400 and found.best["evaluation"] == 3 and found.last["evaluation"] == 7
    assert found.interval is not None and found.interval[0] < 1.0 < found.interval[1]
    means = falling.losses.mean(1)
    assert found.generalisation_loss == pytest.approx(100 * (means[7] / means.min() - 1))
    assert str(found).startswith("overfitting since evaluation 4 (step 400, epoch 4): validation loss +")
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == "overfitting"


def test_it_is_overfitting_only_where_train_goes_on_falling() -> None:
    draw = np.random.default_rng(1)
    diverged = curves(draw, 872, rise=1.0, train=(0.4, 1.2))
    assert judge([diverged]).kind == "worse"
    unknown = Curves(diverged.steps, diverged.epochs, diverged.losses, diverged.labels)
    assert judge([unknown]).kind == "worse"


def test_other_kinds() -> None:
    draw = np.random.default_rng(1)
    rising = curves(draw, 872, rise=1.0)
    better = Curves(
        rising.steps, rising.epochs, rising.losses[np.argsort(-rising.means)], rising.labels, rising.of_train
    )
    assert judge([better]).kind == "still improving"
    few = Curves(rising.steps, rising.epochs, rising.losses[:, :19], rising.labels[:19], rising.of_train)
    assert str(judge([few])) == "not enough evidence (n = 19)"
    one = Curves(rising.steps[:1], rising.epochs[:1], rising.losses[:1], rising.labels, rising.of_train)
    assert judge([one]).kind == "not enough evidence"
    assert judge([curves(draw, 20_000)]).kind == "flat"


def test_a_metric_that_did_not_fall_makes_it_over_confident() -> None:
    draw, bounds = np.random.default_rng(1), [[0.85, 0.91]] * EVALUATIONS
    gaps = [{"metric": "accuracy", "better": "higher", "value": 0.1, "interval": [0.08, 0.12]}] * EVALUATIONS
    same = ChosenMetric("accuracy", 1, [0.88] * EVALUATIONS, bounds, gaps)
    found = judge([curves(draw, 872, rise=1.0, metric=same)])
    assert found.metric == {"name": "accuracy", "best": 0.88, "last": 0.88, "fell": False, "gap": gaps[3]}
    assert str(found).endswith("; accuracy did not fall with it (0.88, now 0.88): over-confident")
    fallen = ChosenMetric("accuracy", 1, [0.88] * 7 + [0.8], bounds, gaps)
    found = judge([curves(draw, 872, rise=1.0, metric=fallen)])
    assert found.metric["fell"] is True and "over-confident" not in str(found)


def test_folds_are_judged_together() -> None:
    draw = np.random.default_rng(1)
    runs = [curves(draw, 300, rise=1.0, onset=3 + (number == 0)) for number in range(4)] + [curves(draw, 300)]
    each = tuple(judge([run]) for run in runs)
    found = judge(runs, folds=each)
    assert found.kind == "overfitting" and found.n == 1500 and found.since["evaluation"] == 3
    assert str(found).startswith("4 of 5 folds overfit, median e* = 3; all together: overfitting since evaluation 3")
    assert len(found.to_dict()["folds"]) == 5


def test_losses_that_are_no_numbers_are_the_worst() -> None:
    draw = np.random.default_rng(1)
    run = curves(draw, 100, train=(0.4, 1.2))
    losses = run.losses.copy()
    losses[-1] = 1e30
    assert judge([Curves(run.steps, run.epochs, losses, run.labels, run.of_train)]).kind == "worse"


def test_the_bootstrap_is_that_of_scipy() -> None:
    draw = np.random.default_rng(0)
    values = draw.exponential(1.0, 200)
    found = bootstrap(values[:, None])[:, 0] / 200
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=draw)
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx(list(expected.confidence_interval), abs=0.01)
    assert np.array_equal(bootstrap(values[:, None]), bootstrap(values[:, None]))


def test_many_units_are_joined_and_their_sum_varies_as_much() -> None:
    values = np.random.default_rng(0).exponential(1.0, 3 * MOST_UNITS)
    found = bootstrap(values[:, None], 400)
    assert found.std() == pytest.approx(values.std() * np.sqrt(len(values)), rel=0.15)


def test_files_have_no_time_and_are_bounded(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.uint64)}
    (tmp_path / "x.npz").write_bytes(packed(arrays))
    with np.load(tmp_path / "x.npz") as file:
        assert all(np.array_equal(file[name], array) for name, array in arrays.items())
    assert packed(arrays) == packed(arrays) and b"PK" in packed(arrays)
    assert bytes_of(2 * 872, 10) == 1744 * 72
    assert bytes_of(10**9, 10) < 2**28 * 2 and most_kept(10**9) == 1000


def test_a_folder_without_losses_has_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not the folder of a run"):
        verdict(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(CheckpointError, match="has no evaluation"):
        verdict(tmp_path)
    with pytest.raises(CheckpointError, match="does not have the losses"):
        read_losses(tmp_path, [0])
    assert Losses.__doc__


def test_a_loss_that_ran_away_is_called_that() -> None:
    found = curves(np.random.default_rng(0), 100)
    found.losses[-1] = 1e30  # as `curves_of` reads a loss that is no number
    sentence = str(judge([found], resamples=FAST))
    assert "validation loss is no longer a finite number" in sentence and "%" not in sentence


def test_a_damaged_file_of_losses_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    for content in (b"", b"PK nothing", b"text"):
        (tmp_path / "losses" / "examples.npz").write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_losses(tmp_path, [0])


def test_folders_that_are_no_folds_are_passed_over(tmp_path: Path) -> None:
    for name in ("fold-10", "fold-2", "fold-old", "fold-0", "folds"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    assert fold_folders(tmp_path) == [tmp_path / "fold-2", tmp_path / "fold-10"]
    (tmp_path / "folds.json").write_text('{"folds": []}')  # before the series is done
    assert fold_folders(tmp_path) == [tmp_path / "fold-2", tmp_path / "fold-10"]
    (tmp_path / "folds.json").write_text('{"folds": [{"run": "search-1-rate-1/fold-1"}, {"run": "fold-2"}]}')
    assert fold_folders(tmp_path) == [tmp_path / "search-1-rate-1" / "fold-1", tmp_path / "fold-2"]
    (tmp_path / "folds.json").write_text("{")
    with pytest.raises(InputError, match=r"folds\.json is damaged"):
        fold_folders(tmp_path)
    (tmp_path / "folds.json").unlink()
    with pytest.raises(CheckpointError, match="fold-2 has no evaluation"):
        verdict(tmp_path)


@pytest.mark.parametrize("written", ["{", "3", "[1]"])
def test_a_damaged_verdict_is_an_error(written: str, tmp_path: Path) -> None:
    assert kept_verdict(tmp_path) is None
    (tmp_path / "verdict.json").write_text(written)
    with pytest.raises(CheckpointError, match=r"verdict\.json cannot be read"):
        kept_verdict(tmp_path)
