"""Every random choice of training is a function of (seed, place): nothing is remembered, so a resumed run draws the same.

Masks, augmentation and noise of an example are keyed by (seed, epoch, example), dropout by (seed, step, micro-batch).
"""

from __future__ import annotations

import hashlib

import numpy as np


def _digest(*place: int) -> int:
    """Return 64 bits of a hash of whole numbers."""
    text = " ".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def generator(seed: int, *place: int) -> np.random.Generator:
    """Return the random numbers of a place: (seed, epoch, example), or (seed, epoch) for an epoch's order."""
    return np.random.Generator(np.random.Philox(_digest(seed, *place)))


def torch_seed(seed: int, step: int, micro: int, rank: int = 0) -> int:
    """Return what `torch.manual_seed` takes before a forward pass, so that dropout depends on the step alone."""
    return _digest(seed, step, micro, rank) >> 1
