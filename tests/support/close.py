"""The one comparison of numbers: relative to the scale of what is expected, so that it means the same on every processor.

Another instruction set sums in another order, and the difference grows with what is summed: scores near -11 differ by
1e-5 where probabilities differ by 1e-7. An absolute tolerance that fits the one is too tight, or too wide, for the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def close(found: Any, expected: Any, what: str = "", rel: float = 1e-5) -> None:
    """Fail unless all |found - expected| <= rel * max(1, largest |expected|); infinities must be in the same places.

    Tensors, arrays, numbers and (nested) lists of numbers, of equal shape.
    """
    x, y = _tensor(found), _tensor(expected)
    assert x.shape == y.shape, f"{what}: shape {tuple(x.shape)}, not {tuple(y.shape)}"
    assert not x.isnan().any(), f"{what}: not a number"
    known = y.isfinite()
    assert torch.equal(x[~known], y[~known]) and x[known].isfinite().all(), f"{what}: not finite in other places"
    if known.any():
        worst = apart(x[known], y[known])
        assert worst <= rel, f"{what}: differs by {worst:.2e} of its scale, more than {rel:.0e}"


def apart(found: Any, expected: Any) -> float:
    """Return the largest |found - expected| / max(1, largest |expected|) of finite numbers: what `close` bounds."""
    x, y = _tensor(found), _tensor(expected)
    return float((x - y).abs().max() / y.abs().max().clamp(min=1))


def _tensor(value: Any) -> Tensor:
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
        value = torch.stack([torch.as_tensor(each) for each in value])
    return torch.as_tensor(value).detach().cpu().double()
