"""install.py: which build of PyTorch comes, by what pip offers, the machine and the network."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["install"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("offered", "gpu", "error", "from_cpu_index", "says"),
    [
        (False, False, "", False, "200 MB"),
        (False, True, "", False, "200 MB"),  # a local folder of wheels, macOS: what is offered is not changed
        (True, True, "", False, "3 GB"),
        (True, False, "", True, "200 MB"),
        (True, False, "timed out", False, "cannot be reached (timed out)"),
    ],
)
def test_choice(install: ModuleType, offered: bool, gpu: bool, error: str, from_cpu_index: bool, says: str) -> None:
    chosen = install.choose(offered_cuda=offered, has_gpu=gpu, cpu_index_error=error)
    assert (chosen.index == install.CPU_INDEX) == from_cpu_index
    assert says in chosen.message


@pytest.fixture
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip without what this machine's settings add."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in [name for name in os.environ if name.startswith("PIP_") and name != "PIP_CONFIG_FILE"]:
        monkeypatch.delenv(name)


def wheel(folder: Path, release: str, *needs: str) -> None:
    """A wheel without content that pip can read the metadata of."""
    info = f"torch-{release}.dist-info"
    lines = ["Metadata-Version: 2.1", "Name: torch", f"Version: {release}", *(f"Requires-Dist: {n}" for n in needs)]
    with zipfile.ZipFile(folder / f"torch-{release}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.usefixtures("own_settings")
@pytest.mark.parametrize(
    ("release", "needs", "cuda"),
    [
        ("9.9.0", ("filelock", 'nvidia-cudnn-cu13==9.9; platform_system == "Linux"'), True),
        ("9.9.0", ("filelock", 'cuda-toolkit[cublas]==13.0; platform_system == "Linux"'), True),
        ("9.9.0+cpu", ("filelock", "sympy"), False),
    ],
)
def test_what_pip_offers_is_told_by_its_metadata(
    install: ModuleType,
    release: str,
    needs: tuple[str, ...],
    cuda: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel(tmp_path, release, *needs)
    monkeypatch.setattr("sys.platform", "linux")
    assert install.offers_cuda("torch==9.9.0", ("--no-index", "--find-links", str(tmp_path))) is cuda


@pytest.mark.usefixtures("own_settings")
def test_no_build_at_all_ends_with_a_message(install: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="pip finds no PyTorch"):
        install.offers_cuda("torch==9.9.0", ("--no-index", "--find-links", str(tmp_path)))


@pytest.fixture
def index() -> Iterator[str]:
    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/whl/torch/" else 403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_whether_an_index_can_be_reached(install: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert install.why_unreachable(f"{index}/whl") == ""
    assert install.why_unreachable(f"{index}/elsewhere")  # 403, as behind a proxy
    assert install.why_unreachable("http://127.0.0.1:9")


def test_the_pin_is_found(install: ModuleType) -> None:
    import torch

    assert install.pinned_torch().startswith("torch==2.")
    release = torch.__version__.split("+")[0]
    assert install.is_installed(f"torch=={release}") and not install.is_installed("torch==1.0.0")
