"""How many threads compute: the cores that are really there, unless something else is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plainformer as pf
from plainformer.errors import UsageError
from plainformer.model.fast import threads
from tests.support import ROOT

CGROUP_2 = "0::/user.slice/docker-1.scope\n"
CGROUP_1 = "9:pids:/x\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/\n"


def _files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": CGROUP_2}, 8),
        ({"proc/self/cgroup": CGROUP_2, "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": CGROUP_2, "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": CGROUP_2, "sys/fs/cgroup/user.slice/docker-1.scope/cpu.max": "350000 100000\n"}, 3),
        # The smallest of those above counts; half a core is one thread.
        ({"proc/self/cgroup": CGROUP_2, "sys/fs/cgroup/user.slice/docker-1.scope/cpu.max": "400000 100000",
          "sys/fs/cgroup/user.slice/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": CGROUP_1, "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us": "100000"}, 8),
        ({"proc/self/cgroup": CGROUP_1, "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "150000",
          "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "50000"}, 3),
        # In a container the group is what is mounted, whatever it is called outside.
        ({"proc/self/cgroup": CGROUP_1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"proc/self/cgroup": CGROUP_2, "sys/fs/cgroup/cpu.max": "nonsense"}, 8),
    ],
)  # fmt: skip
def test_a_quota(files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.cores(_files(tmp_path, files)) == expected


@settings(deadline=None, max_examples=30)
@given(bound=st.integers(1, 64), quota=st.integers(1_000, 10_000_000), period=st.integers(1_000, 1_000_000))
def test_what_is_smaller_counts(bound: int, quota: int, period: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    _files(root, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} {period}\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
        assert threads.cores(root) == min(bound, max(quota // period, 1))


SCRIPT = """
import json, os, sys, torch
from plainformer.model.fast import threads
torch.set_num_threads(int(sys.argv[2]))
threads.cores = lambda: 1
seen = []
for asked in json.loads(sys.argv[1]):
    threads.settle(asked)
    seen.append(torch.get_num_threads())
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("asked", "before", "environment", "expected"),
    [
        ([None], "4", {}, [1]),
        ([None], "4", {"OMP_NUM_THREADS": "2"}, [4]),
        ([2], "4", {"OMP_NUM_THREADS": "3"}, [2]),
        ([2, None, 5, None], "4", {}, [2, 1, 5, 5]),  # what the program chooses after the first look stays
    ],
)
def test_who_decides(asked: list[int | None], before: str, environment: dict[str, str], expected: list[int]) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in threads.OF_ENVIRONMENT}
    command = [sys.executable, "-c", SCRIPT, json.dumps(asked), before]
    done = subprocess.run(command, cwd=ROOT, env={**plain, **environment}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def test_the_option(tiny: object) -> None:
    folder = tiny("text-generation")  # type: ignore[operator]
    before = torch.get_num_threads()
    ids = torch.arange(5, 9)[None]
    try:
        found = []
        for count in (1, 3):
            model = pf.load_model(folder, threads=count)
            assert torch.get_num_threads() == count
            found.append(pf.generate(model, ids, max_new_tokens=5))
        assert str(found[0]) == str(found[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "2", 5000])
def test_what_is_not_a_number_of_threads(count: object, tiny: object) -> None:
    with pytest.raises(UsageError, match="threads"):
        pf.load_model(tiny("text-generation"), threads=count)  # type: ignore[operator, arg-type]


def test_no_threads_of_a_gpu(tiny: object) -> None:
    with pytest.raises(UsageError, match="threads=2 has no effect with device='cuda'"):
        pf.load_model(tiny("text-generation"), threads=2, device="cuda")  # type: ignore[operator]
