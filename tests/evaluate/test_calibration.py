"""Calibration, against direct definitions and scipy's optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from plainformer.errors import InputError
from plainformer.evaluate.calibration import (
    COLDEST,
    HOTTEST,
    Reliability,
    brier,
    expected_calibration_error,
    fit_binary_temperature,
    fit_temperature,
    nats,
)


def test_error_of_bins_of_equal_size() -> None:
    random = np.random.default_rng(0)
    sure = random.random(300)
    right = random.random(300) < sure**2
    order = np.argsort(sure)
    expected = np.mean([abs(sure[part].mean() - right[part].mean()) for part in np.split(order, 15)])
    assert expected_calibration_error(sure, right) == pytest.approx(expected)
    rows = Reliability(sure, right).table().rows
    assert [line[3] for line in rows] == pytest.approx([right[part].mean() for part in np.split(order, 15)])


def test_error_of_known_answers() -> None:
    assert expected_calibration_error([1.0] * 4, [True] * 4) == 0
    assert expected_calibration_error([1.0] * 4, [False] * 4) == pytest.approx(1)
    # Equal confidences share their outcomes: 3 of 4 are right, however they are ordered.
    assert expected_calibration_error([0.75] * 4, [True, False, True, True]) == pytest.approx(0)
    assert expected_calibration_error([0.9], [True]) == pytest.approx(0.1)
    assert math.isnan(expected_calibration_error([], []))
    assert nats(0.0) == pytest.approx(-math.log(np.finfo(float).eps)) and nats(1.0) == 0
    assert brier(np.array([0.5, 0.5]), 0) == 0.25 and brier(np.array([1.0, 0.0, 0.0]), 1) == 2


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_temperature_is_that_of_the_least_loss(classes: int) -> None:
    random = np.random.default_rng(classes)
    logits = 5 * random.normal(size=(400, classes))
    odds = np.exp(logits / 3)
    odds /= odds.sum(-1, keepdims=True)
    labels = np.array([random.choice(classes, p=each) for each in odds])

    def loss(temperature: float) -> float:
        return float(-log_softmax(logits / temperature, axis=-1)[np.arange(400), labels].mean())

    expected = minimize_scalar(loss, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-12})
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(expected.x, rel=1e-6) and loss(found) <= expected.fun + 1e-12
    # The loss is flat at its least: its slope says more.
    step = 1e-4
    assert (loss(found * (1 + step)) - loss(found * (1 - step))) / step == pytest.approx(0, abs=1e-6)
    assert fit_temperature(log_softmax(logits, axis=-1), labels) == pytest.approx(found, rel=1e-9)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * found, rel=1e-9)
    assert fit_temperature(logits.astype(np.float32), labels) == pytest.approx(found, rel=1e-5)


def test_temperature_of_yes_and_no() -> None:
    random = np.random.default_rng(0)
    logits = 4 * random.normal(size=(200, 3))
    targets = random.random((200, 3)) < 1 / (1 + np.exp(-logits / 2))
    both = np.stack((np.zeros(600), logits.reshape(-1)), -1)
    assert fit_binary_temperature(logits, targets) == pytest.approx(
        fit_temperature(both, targets.reshape(-1).astype(int))
    )
    assert 1.5 < fit_binary_temperature(logits, targets) < 2.7


def test_temperatures_that_do_not_exist() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, [0, 1]) == COLDEST and fit_temperature(logits, [1, 0]) == HOTTEST
    assert fit_temperature(np.zeros((2, 2)), [0, 1]) == HOTTEST  # all temperatures are the same
    assert fit_temperature(1e4 * logits, [0, 1]) == COLDEST
    with pytest.raises(InputError, match="no examples"):
        fit_temperature(np.zeros((0, 2)), [])
    with pytest.raises(InputError, match="not finite"):
        fit_temperature([[0.0, math.inf]], [0])
