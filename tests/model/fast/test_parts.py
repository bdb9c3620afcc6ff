"""Loops shared with helpers: each index once, whatever the helpers do; nobody waits for one that does not run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.model.fast import compiled, helpers, parts
from plainformer.model.fast.jit import compiled as jit
from tests.support import ROOT


@jit()
def _count(job, first, last):  # type: ignore[no-untyped-def]
    (seen,) = job
    for i in range(first, last):
        seen[i] += 1


@jit(inner=False)
def _all(seen, size):  # type: ignore[no-untyped-def]
    parts.share(parts.parts_of(_count, (seen,)), len(seen), size)


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    if compiled.kernels() is None:
        pytest.skip("no Numba here")
    before = parts.SHARED[parts.HELPERS]
    yield
    helpers.want(before)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 3000), size=st.integers(1, 500), wanted=st.integers(0, 5))
def test_each_index_once(count: int, size: int, wanted: int) -> None:
    helpers.want(wanted)
    seen = np.zeros(count, np.int64)
    for _ in range(20):
        _all(seen, size)
    assert (seen == 20).all()


@settings(deadline=None, max_examples=200)
@given(count=st.integers(1, 10**9), threads=st.integers(1, 300), halvings=st.integers(0, 4))
def test_parts_cover_a_loop(count: int, threads: int, halvings: int) -> None:
    start = parts._start_of.py_func
    starts = [start(part, count, threads, halvings) for part in range(threads * (halvings + 1))] + [count]
    assert starts[0] == 0 and all(a <= b for a, b in itertools.pairwise(starts))


def test_several_callers_at_once() -> None:
    """The helpers are one caller's; the others go on alone."""
    helpers.want(2)
    arrays = [np.zeros(5000, np.int64) for _ in range(4)]

    def call(seen: np.ndarray) -> None:
        for _ in range(300):
            _all(seen, 10)

    callers = [threading.Thread(target=call, args=(seen,)) for seen in arrays]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert all((seen == 300).all() for seen in arrays)


def test_helpers_that_are_not_needed_sleep() -> None:
    helpers.want(1)
    _all(np.zeros(5000, np.int64), 10)
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    seen = np.zeros(5000, np.int64)
    helpers.want(1)
    _all(seen, 10)
    assert (seen == 1).all()


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGINT)", "sys.exit(3)", "raise ValueError"])
def test_a_process_ends_with_its_helpers(end: str) -> None:
    """While one works, sleeps, or stays away."""
    script = (
        "import os, signal, sys, numpy as np\nfrom plainformer.model.fast import helpers, compiled\n"
        "module = compiled.kernels()\nhelpers.want(3)\nx, y = np.ones(64, np.float32), np.ones(4096, np.float32)\n"
        "w = compiled.Matrix(0, (64, 4096), np.ones((4096, 64), np.float32), None, None)\n"
        f"for _ in range(50): module.multiply(w.address, 1, compiled.address(x), compiled.address(y), 0, 0)\n{end}"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ, capture_output=True, timeout=60)
    codes = {"": (0,), "sys.exit(3)": (3,), "raise ValueError": (1,)}.get(end, (-2, 1, 130))
    assert done.returncode in codes, done.stderr
    assert time.monotonic() - start < 60
