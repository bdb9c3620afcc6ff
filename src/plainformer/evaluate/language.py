"""Metrics of a language model on texts: perplexity and bits per byte, of the nats of each document.

Shapes: N documents, M numbers of a document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.errors import InputError
from plainformer.evaluate.base import Measure, Metric, Numbers, OfSums, Scorer, Table, ratio

_MOST_NATS = 700.0  # exp of more is infinite in fp64


class Language(Scorer):
    """Documents scored by a language model.

    A reference is the text that was scored, or how many UTF-8 bytes it has; an answer is {"nats": the sum of -log p over its
    tokens, "tokens": how many were scored}. Every token of a document weighs the same: perplexity is exp(nats / tokens), "loss"
    its logarithm, and bits per byte, nats / (ln 2 · bytes), compares models with different tokenizers.
    """

    name = "language"
    columns = ("nats", "tokens", "bytes")
    metrics = (
        Metric("bits_per_byte", "lower", "the texts have no bytes"),
        Metric("perplexity", "lower", "no token was scored"),
        Metric("loss", "lower", "no token was scored"),
    )

    def row(self, reference: Any, answer: Mapping[str, Any]) -> Sequence[float]:
        """Return nats, tokens and bytes. Raises InputError: nats that are not a number from 0, or infinite."""
        size = len(reference.encode("utf-8", "surrogatepass")) if isinstance(reference, str) else int(reference)
        nats, tokens = float(answer["nats"]), int(answer["tokens"])
        if not 0 <= nats < math.inf or tokens < 0 or size < 0:
            raise InputError(f"a document has {nats} nats, {tokens} tokens and {size} bytes", "give finite sums from 0")
        return nats, tokens, size

    def measure(self, rows_NM: Numbers) -> Measure:
        return OfSums(rows_NM, _measured)

    def tables(self, rows_NM: Numbers) -> list[Table]:
        sums_M = np.asarray(rows_NM).sum(0).tolist()
        counts = (
            ("documents", len(rows_NM)),
            ("tokens", int(sums_M[1])),
            ("bytes", int(sums_M[2])),
            ("nats", sums_M[0]),
        )
        return [Table("sums", ("of", "all"), counts)]


def _measured(sums_M: Numbers) -> dict[str, float]:
    nats, tokens, size = sums_M.tolist()
    loss = ratio(nats, tokens)
    perplexity = math.exp(loss) if not loss > _MOST_NATS else math.inf
    return {"loss": loss, "perplexity": perplexity, "bits_per_byte": ratio(nats, math.log(2) * size)}
