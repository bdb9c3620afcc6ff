"""Install Plainformer into the environment of the Python that runs this, without gigabytes of CUDA where there is no GPU.

    python install.py                       # the library
    python install.py --editable '.[audio,image]'

On Linux, PyPI's build of PyTorch brings NVIDIA's CUDA libraries: about 3 GB to download, 5 GB on disk. On a machine without
an NVIDIA GPU this takes PyTorch's CPU build instead (about 200 MB, 0.8 GB on disk) from PyTorch's own index, if that can
be reached. It says which of them comes before it starts. Versions are those of constraints.txt. Needs pip 22.2 or newer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_SIZE = "about 3 GB to download, 5 GB on disk"
CPU_SIZE = "about 200 MB to download, 0.8 GB on disk"
TIMEOUT_S = 10
CONSTRAINTS = Path(__file__).parent / "constraints.txt"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@dataclass(frozen=True)
class Choice:
    """Where PyTorch comes from: an index other than pip's own or None, and what to tell the user."""

    index: str | None
    message: str


def choose(*, offered_cuda: bool, has_gpu: bool, cpu_index_error: str) -> Choice:
    """Return where PyTorch comes from.

    Args:
        offered_cuda: whether the build that pip would take by itself needs CUDA libraries.
        has_gpu: whether this machine has an NVIDIA GPU.
        cpu_index_error: why PyTorch's CPU index cannot be reached, or "".
    """
    if not offered_cuda:
        return Choice(None, f"PyTorch for the CPU ({CPU_SIZE})")
    if has_gpu:
        return Choice(None, f"PyTorch with CUDA ({CUDA_SIZE}): this machine has an NVIDIA GPU")
    if not cpu_index_error:
        return Choice(CPU_INDEX, f"PyTorch for the CPU from {CPU_INDEX} ({CPU_SIZE}): no NVIDIA GPU was found")
    return Choice(
        None,
        f"PyTorch with CUDA ({CUDA_SIZE}), although no NVIDIA GPU was found: {CPU_INDEX} cannot be reached "
        f"({cpu_index_error}). To avoid it, stop here and install a CPU build of torch first",
    )


def pinned_torch() -> str:
    """Return the requirement of torch in constraints.txt."""
    found = re.search(r"^torch==\S+", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: {CONSTRAINTS} does not pin torch")
    return found[0]


def is_installed(requirement: str) -> bool:
    """Whether that version of torch is installed, with or without a local label such as +cpu."""
    try:
        return version("torch").split("+")[0] == requirement.removeprefix("torch==")
    except PackageNotFoundError:
        return False


def offers_cuda(requirement: str, options: tuple[str, ...] = ()) -> bool:
    """Whether the build that pip would take by itself needs CUDA libraries, by the wheel's own metadata."""
    command = [*PIP, "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--report", "-"]
    done = subprocess.run([*command, *options, requirement], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit("error: pip finds no PyTorch for this machine and Python (see above)")
    needs = json.loads(done.stdout)["install"][0]["metadata"].get("requires_dist", [])
    return sys.platform == "linux" and any(re.match(r"nvidia-|cuda-|triton", need) for need in needs)


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver is there."""
    return (
        Path("/proc/driver/nvidia/version").exists()
        or Path("/dev/nvidia0").exists()
        or bool(shutil.which("nvidia-smi"))
    )


def why_unreachable(index: str) -> str:
    """Return why an index cannot be reached, or ""."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=TIMEOUT_S) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def main(arguments: list[str]) -> int:
    """Install PyTorch from the right place, then the rest."""
    torch = pinned_torch()
    if not is_installed(torch):
        offered, gpu = offers_cuda(torch), has_nvidia_gpu()
        error = why_unreachable(CPU_INDEX) if offered and not gpu else ""
        chosen = choose(offered_cuda=offered, has_gpu=gpu, cpu_index_error=error)
        print(f"installing {chosen.message}", file=sys.stderr, flush=True)
        if chosen.index:
            # Only torch itself: what it needs comes from PyPI with the rest, at the pinned versions.
            command = [*PIP, "install", "--quiet", "--no-deps", "--index-url", chosen.index, torch]
            if code := subprocess.call(command):
                return code
    wanted = arguments or [os.fspath(Path(__file__).parent)]
    return subprocess.call([*PIP, "install", "--quiet", "--constraint", os.fspath(CONSTRAINTS), *wanted])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
