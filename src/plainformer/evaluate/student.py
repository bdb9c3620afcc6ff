"""Student's t distribution, by the incomplete beta function: the two numbers that tests over few values need."""

from __future__ import annotations

import math

_SMALLEST, _CLOSE, _MOST = 1e-300, 1e-15, 10_000


def two_sided(t: float, df: float) -> float:
    """Return how probable |t| or more is, with `df` degrees of freedom (any positive number)."""
    if math.isnan(t) or math.isinf(t):
        return math.nan if math.isnan(t) else 0.0
    if t * t < min(df, 1):  # near 1, p is exact from the other side
        return 1 - incomplete_beta(0.5, df / 2, t * t / (df + t * t))
    return incomplete_beta(df / 2, 0.5, df / (df + t * t))


def critical(level: float, df: float) -> float:
    """Return the t within which `level` of the distribution lies, around 0: 12.7 for 0.95 and one degree of freedom."""
    low, high = 0.0, 1.0
    while two_sided(high, df) > 1 - level:
        high *= 2
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, df) > 1 - level else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b) (Abramowitz & Stegun 1964, 6.6.2 and 26.5.8)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - incomplete_beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) / a / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """Return 1 + d1/(1 + d2/(1 + ...)), from the front (Lentz 1976, modified by Thompson & Barnett 1986)."""
    value, above, below = 1.0, 1.0, 0.0
    for step in range(1, _MOST):
        m = step // 2
        if step % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / _not_zero(1 + d * below)
        above = _not_zero(1 + d / above)
        value *= above * below
        if abs(above * below - 1) < _CLOSE:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _SMALLEST else _SMALLEST
