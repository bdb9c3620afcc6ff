"""Whether a model's probabilities are to be believed, and the temperature that makes them so.

Shapes: N examples, C classes, G groups of equal confidence, P bins.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from plainformer.errors import InputError
from plainformer.evaluate.base import Numbers, Table, ratio
from plainformer.evaluate.ranks import Order

BINS = 15
COLDEST, HOTTEST = 0.01, 100.0  # temperatures: answers that are all right, or no better than chance, have none
_ROWS_AT_ONCE = 8192


class Reliability:
    """How often answers are right, by how sure the model was of them: bins of equal mass (Nguyen & O'Connor 2015).

    Each bin has the same weight of examples, in order of confidence; an example at the border of two is shared between them
    in proportion, and equal confidences share their outcomes, so that the order of the examples has no effect.

    Args:
        confidence_N: probabilities of the answers that were given. right_N: whether they are right.
    """

    def __init__(self, confidence_N: Numbers, right_N: npt.NDArray[np.bool_], bins: int = BINS) -> None:
        self.order = Order(confidence_N)
        places_N = self.order.places_N
        self.sure_N, self.right_N = confidence_N[places_N], right_N[places_N]
        self.edges_P = np.linspace(0.0, 1.0, bins + 1)

    def bins(self, weights_N: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Return each bin's weight, sum of confidences and sum of right answers, (P,) each."""
        weights_N = weights_N[self.order.places_N]
        mass_G = self._totals(weights_N)
        edges_P = self.edges_P * mass_G[-1]
        sums = [np.interp(edges_P, mass_G, self._totals(weights_N * of_N)) for of_N in (self.sure_N, self.right_N)]
        return np.diff(edges_P), np.diff(sums[0]), np.diff(sums[1])

    def _totals(self, sorted_N: Numbers) -> Numbers:
        """Return 0, and the sum up to the end of each group, (G + 1,)."""
        ends_G = self.order.ends_G
        found = np.zeros(len(ends_G) + 1)
        np.take(np.cumsum(sorted_N), ends_G, out=found[1:])
        return found

    def error(self, weights_N: Numbers) -> float:
        """Return the expected calibration error: the mean gap between confidence and accuracy over bins (Guo et al. 2017)."""
        mass_P, sure_P, right_P = self.bins(weights_N)
        return ratio(float(np.abs(sure_P - right_P).sum()), float(mass_P.sum()))

    def table(self) -> Table:
        """Return the bins as data, for a reliability diagram."""
        bins = np.stack(self.bins(np.ones(len(self.sure_N))), -1).tolist()
        rows = tuple(
            (str(number), mass, ratio(sure, mass), ratio(right, mass))
            for number, (mass, sure, right) in enumerate(bins, 1)
        )
        return Table("reliability", ("bin", "examples", "confidence", "accuracy"), rows, "Bins of equal mass.")


def expected_calibration_error(confidence_N: npt.ArrayLike, right_N: npt.ArrayLike, bins: int = BINS) -> float:
    """Return the mean gap between how sure answers were and how often they are right, over bins of equal mass; NaN of none."""
    confidence = np.asarray(confidence_N, dtype=np.float64)
    return Reliability(confidence, np.asarray(right_N, dtype=bool), bins).error(np.ones(len(confidence)))


def brier(probabilities_C: Numbers, label: int) -> float:
    """Return the squared error of one answer's probabilities (Brier 1950), from 0 to 2; of two classes half of it.

    scikit-learn's `brier_score_loss` halves it in the same way, so that of two classes it is (1 - p)².
    """
    squares = float(probabilities_C @ probabilities_C) - 2 * float(probabilities_C[label]) + 1
    return max(0.0, squares) / (2 if len(probabilities_C) == 2 else 1)


def nats(probability: float) -> float:
    """Return -log p. As scikit-learn's `log_loss`, p is at least fp64's epsilon: at most 36 nats."""
    return -math.log(min(1.0, max(float(probability), float(np.finfo(np.float64).eps))))


def fit_temperature(logits_NC: npt.ArrayLike, labels_N: npt.ArrayLike) -> float:
    """Return the temperature T by which logits are divided so that right labels are likeliest (Guo et al. 2017).

    The loss is convex in 1/T, so that its derivative has one root: Newton's method, with halving where that would leave the
    bracket. Log-probabilities serve as well as logits.

    Args:
        logits_NC: scores of each class, (N, C); may be memory-mapped. labels_N: the right class of each.
    Returns:
        T between 0.01 and 100; an end where the likelihood still grows there: all answers right, or worse than chance.
    Raises:
        InputError: no examples, or logits that are not finite.
    """
    logits, labels = np.asanyarray(logits_NC), np.asarray(labels_N, dtype=np.int64)
    if not len(logits):
        raise InputError("a temperature cannot be fitted to no examples", "give validation rows")
    low, high, sharpness = 1 / HOTTEST, 1 / COLDEST, 1.0
    if _slope(logits, labels, low)[0] >= 0:
        return HOTTEST
    if _slope(logits, labels, high)[0] <= 0:
        return COLDEST
    for _ in range(200):
        slope, bend = _slope(logits, labels, sharpness)
        low, high = (sharpness, high) if slope < 0 else (low, sharpness)
        stepped = sharpness - slope / bend if bend > 0 else low
        after = stepped if low < stepped < high else (low + high) / 2
        if abs(after - sharpness) <= 1e-13 * sharpness:
            break
        sharpness = after
    return float(1 / sharpness)


def fit_binary_temperature(logits: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Return the temperature of logits that each answer yes or no by themselves: several labels, (N, C).

    Args:
        targets: 1 where the answer is yes, else 0, of the same shape.
    """
    scores = np.asarray(logits, dtype=np.float64).reshape(-1)
    return fit_temperature(np.stack((np.zeros_like(scores), scores), -1), np.asarray(targets).reshape(-1) > 0.5)


def _slope(logits_NC: Numbers, labels_N: npt.NDArray[np.int64], sharpness: float) -> tuple[float, float]:
    """Return the first and second derivative of the summed loss by 1/T."""
    slope = bend = 0.0
    for start in range(0, len(labels_N), _ROWS_AT_ONCE):
        scores_NC = np.asarray(logits_NC[start : start + _ROWS_AT_ONCE], dtype=np.float64)
        if not np.isfinite(scores_NC).all():
            raise InputError(
                "a logit is not finite", "give the scores before softmax, or logarithms of probabilities above 0"
            )
        scores_NC = scores_NC - scores_NC.max(-1, keepdims=True)
        right_N = scores_NC[np.arange(len(scores_NC)), labels_N[start : start + _ROWS_AT_ONCE]]
        odds_NC = np.exp(sharpness * scores_NC)
        odds_NC /= odds_NC.sum(-1, keepdims=True)
        mean_N = (odds_NC * scores_NC).sum(-1)
        slope += float((mean_N - right_N).sum())
        bend += float((odds_NC * (scores_NC - mean_N[:, None]) ** 2).sum())
    return slope, bend
