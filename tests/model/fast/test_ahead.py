"""The first answer does not wait for kernels, and is the same as with them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plainformer.model.fast import compiled
from tests.support import ROOT

HEAD = """
import time, torch
from tests.support.close import apart
from tests.support.step import decode, ids_of, make
from plainformer.model.fast import ahead, compiled
from plainformer.model.fast.prepare import prepare_for_inference
model, ids = make(), ids_of(2)
expected = decode(model, ids)
ways, take = [], compiled.paths.take
def noted(cache, module):
    ways.append(module)
    take(cache, module)
compiled.paths.take = noted
def is_plain():
    return ways[-1] is None
def come_to_kernels():
    end = time.monotonic() + 100
    while time.monotonic() < end:
        found = decode(model, ids)
        assert apart(found, expected) < 1e-5
        if not is_plain():
            return True
        time.sleep(0.2)
"""


@pytest.fixture(autouse=True)
def has_numba() -> None:
    if compiled.kernels() is None:
        pytest.skip("no Numba here")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all kernels, which takes its time once."""
    folder = tmp_path_factory.mktemp("kernels")
    run = "prepare_for_inference(model); decode(model, ids)"
    _said(_start(run, NUMBA_CACHE_DIR=str(folder), PLAINFORMER_KERNELS="wait"))
    return folder


@pytest.fixture
def nearly(filled: Path, tmp_path: Path) -> Path:
    """The same without the smallest, without which the others are of no use."""
    folder = Path(shutil.copytree(filled, tmp_path / "kernels"))
    for file in folder.rglob("parts.serve-*"):
        file.unlink()
    return folder


def _start(script: str, **environment: str) -> subprocess.Popen[str]:
    plain = {name: value for name, value in os.environ.items() if name != "PLAINFORMER_KERNELS"}
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + script], cwd=ROOT, env={**plain, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def _said(process: subprocess.Popen[str]) -> list[str]:
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return out.splitlines()


BOTH_WAYS = """
assert set(prepare_for_inference(model).values()) == {"compiled"}
decode(model, ids)
first = is_plain()
print(first, come_to_kernels(), len(compiled.kernels().run_layers.overloads), len(compiled.kernels().multiply.overloads))
"""


@pytest.mark.slow
def test_two_programs_start_on_a_fresh_machine(tmp_path: Path) -> None:
    """Both answer without kernels at first, then with them; what was compiled is what is called."""
    started = [_start(BOTH_WAYS, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    for process in started:
        *_, last = _said(process)
        assert last == "True True 1 1"
    script = "prepare_for_inference(model); decode(model, ids); print(is_plain())"
    assert _said(_start(script, NUMBA_CACHE_DIR=str(tmp_path))) == ["False"]


IN_THE_MIDDLE = """
prepare_for_inference(model)
from plainformer.generation.cache.cache import KeyValueCache
cache, other = KeyValueCache(model.config, 2, 40), KeyValueCache(model.config, 2, 40)
with torch.no_grad():
    model(ids[:, :3], cache=cache)
    began = compiled.paths.of[cache]
    assert come_to_kernels()
    model(ids[:, 3:4], cache=cache)
    still = compiled.paths.of[cache]
    model(ids[:, 4:6], cache=cache)
    later = compiled.paths.of[cache]
print(began is None, still is None, later is None)
"""


def test_a_sequence_is_computed_in_one_way(nearly: Path) -> None:
    assert _said(_start(IN_THE_MIDDLE, NUMBA_CACHE_DIR=str(nearly))) == ["True True False"]


ENDS = """
prepare_for_inference(model)
decode(model, ids)
print(ahead._other.process.pid, flush=True)
{end}
"""


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("end", ["", "time.sleep(100)", "os.kill(os.getpid(), 9)"])
def test_no_orphan(end: str, nearly: Path) -> None:
    """At its end, after Ctrl-C, and after a kill that it does not see."""
    process = _start("import os" + ENDS.format(end=end), NUMBA_CACHE_DIR=str(nearly))
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if end.startswith("time"):
        process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.communicate(timeout=60)
    while _is_there(pid) and time.monotonic() - start < 30:
        time.sleep(0.1)
    assert not _is_there(pid)


def test_the_next_program_waits_where_one_ended_too_early(nearly: Path) -> None:
    """A program that is always short would never have kernels."""
    short = "prepare_for_inference(model); decode(model, ids); print(is_plain())"
    said = [_said(_start(short, NUMBA_CACHE_DIR=str(nearly))) for _ in range(3)]
    assert said == [["True"], ["False"], ["False"]]
    assert not list(nearly.rglob("unfinished"))


KILLED = """
prepare_for_inference(model)
decode(model, ids)
ahead._other.process.kill()
print(come_to_kernels(), ahead._other.failed)
"""


def test_a_compilation_that_is_interrupted_is_done_here(nearly: Path) -> None:
    assert _said(_start(KILLED, NUMBA_CACHE_DIR=str(nearly))) == ["True True"]


READ_ONLY = """
import numba.core.caching as caching, tempfile, numba
def refuse(self):
    if not self.get_cache_path().startswith(tempfile.gettempdir() + "/plainformer"):
        raise OSError(30, "Read-only file system")
for locator in caching.CacheImpl._locator_classes:
    locator.ensure_cache_path = refuse
prepare_for_inference(model)
decode(model, ids)
print(is_plain(), come_to_kernels(), ahead._other.failed, numba.config.CACHE_DIR)
"""


@pytest.mark.slow
def test_a_package_and_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    """What is compiled is kept in a temporary folder as long as the program runs."""
    (said,) = _said(_start(READ_ONLY, TMPDIR=str(tmp_path)))
    plain, came, failed, folder = said.split()
    assert (plain, came, failed) == ("True", "True", "False")
    assert Path(folder).parent == tmp_path and not Path(folder).exists()
