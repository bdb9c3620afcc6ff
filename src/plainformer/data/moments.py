"""Mean, variance and extremes of columns in one pass over their rows, whatever the blocks they come in.

Blocks are joined as Chan, Golub & LeVeque (1979) join them: no sum of squares is kept, from which a small variance around a
large mean could not be told. The scalings of it are scikit-learn's.

N are rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from plainformer.config.scaling import Scaling

Numbers = npt.NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


class Moments:
    """Mean, variance and extremes of what has been added so far, in fp64.

    Attributes:
        count: rows. mean, least, most: (C,). squares: sums of squared differences from the mean, (C,).
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(columns), np.zeros(columns)
        self.least, self.most = np.full(columns, np.inf), np.full(columns, -np.inf)

    @classmethod
    def of(cls, blocks: Iterable[npt.NDArray[np.generic]], columns: int) -> Moments:
        """Return those of all rows of blocks, (N, C) each."""
        found = cls(columns)
        for block in blocks:
            found.add(block)
        return found

    def add(self, rows: npt.NDArray[np.generic]) -> None:
        """Count rows, (N, C), in; there may be none."""
        rows_NC = np.asarray(rows, dtype=np.float64)
        count = len(rows_NC)
        if not count:
            return
        mean_C = rows_NC.mean(0)
        apart_NC = rows_NC - mean_C
        # The mean is rounded; what that adds to the squares is taken off again.
        squares_C = (apart_NC**2).sum(0) - apart_NC.sum(0) ** 2 / count
        both, between_C = self.count + count, mean_C - self.mean
        self.squares += squares_C + between_C**2 * (self.count * count / both)
        self.mean += between_C * (count / both)
        self.count = both
        self.least, self.most = np.minimum(self.least, rows_NC.min(0)), np.maximum(self.most, rows_NC.max(0))

    @property
    def variance(self) -> Numbers:
        """Return the variances, (C,), with the number of rows in the denominator."""
        return self.squares / max(1, self.count)

    def scaling(self, kind: str) -> Scaling:
        """Return the "center", "standardize" or "minmax" of these rows. A column that is constant is only shifted.

        As in scikit-learn, constant is what the rounding of fp64 cannot tell from it.
        """
        ones_C = np.ones_like(self.mean)
        if kind == "center":
            offset_C, scale_C = self.mean, ones_C
        elif kind == "standardize":
            rounding_C = self.count * _EPS * self.variance + (self.count * self.mean * _EPS) ** 2
            varies_C = self.variance > rounding_C
            offset_C, scale_C = self.mean, np.where(varies_C, np.sqrt(np.where(varies_C, self.variance, 1.0)), ones_C)
        else:
            width_C = self.most - self.least
            offset_C, scale_C = self.least, np.where(width_C < 10 * _EPS, ones_C, width_C)
        return Scaling(kind, tuple(map(float, offset_C)), tuple(map(float, scale_C)))
