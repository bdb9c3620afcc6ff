"""Metrics of masked language models: the loss of hidden tokens, and how many are found.

Shapes: N texts, M numbers of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plainformer.evaluate.base import Measure, Metric, Numbers, OfSums, Scorer, ratio


class Masked(Scorer):
    """Hidden tokens of texts.

    There is no reference; an answer is {"nats": the sum of their losses, "tokens": how many are hidden, "right": how many the
    model finds likeliest}.
    """

    name = "masked"
    columns = ("nats", "tokens", "right")
    metrics = (Metric("loss", "lower"), Metric("accuracy"))

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        return float(answer["nats"]), float(answer["tokens"]), float(answer["right"])

    def measure(self, rows_NM: Numbers) -> Measure:
        def measured(sums: Numbers) -> dict[str, float]:
            nats, tokens, right = map(float, sums)
            return {"loss": ratio(nats, tokens), "accuracy": ratio(right, tokens)}

        return OfSums(np.array(rows_NM, dtype=np.float64), measured)
