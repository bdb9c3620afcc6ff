"""Fetch llama.cpp's vocabulary test files, which `tests/inputs/test_golden_vocabularies.py` reads, into `.cache/`.

They are inside the source package of llama-cpp-python on the package index: `ggml-vocab-*.gguf` with texts (`.inp`)
and the ids that the original tokenizers give (`.out`). Run `python -m tests.support.fetch_golden_vocabularies`; a second run
does nothing. To use a copy of the source package that is already here, set PLAINFORMER_LLAMA_CPP_SDIST to its .tar.gz,
or to a folder that holds it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support import ROOT

VERSION = "0.3.36"
FOLDER = ROOT / ".cache" / "golden_vocabularies"
_WANTED = re.compile(r".*/llama\.cpp/models/(ggml-vocab-[\w.-]+\.gguf(?:\.inp|\.out)?)")


def archive(folder: Path) -> Path:
    """The source package: the one that the environment names, or a fresh download into `folder`."""
    given = os.environ.get("PLAINFORMER_LLAMA_CPP_SDIST")
    if given and Path(given).is_file():
        return Path(given)
    place = Path(given) if given else folder
    if not given:
        # pip also prepares the package's metadata, which takes a few seconds and builds nothing.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        subprocess.run([*command, "--dest", str(folder), f"llama-cpp-python=={VERSION}"], check=True)
    found = sorted(place.glob("llama_cpp_python-*.tar.gz"))
    if not found:
        raise SystemExit(f"no llama_cpp_python-*.tar.gz in {place}")
    return found[-1]


def fetch() -> Path:
    """Put the files into FOLDER, unless they are there, and return it."""
    done = FOLDER / "complete"
    if done.is_file() and done.read_text() == VERSION:
        return FOLDER
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(archive(Path(temporary))) as package:
        for member in package:
            match = _WANTED.fullmatch(member.name)
            content = package.extractfile(member) if match and member.isfile() else None
            if match and content is not None:
                (FOLDER / match[1]).write_bytes(content.read())
    done.write_text(VERSION)
    return FOLDER


if __name__ == "__main__":
    print(f"golden vocabularies are in {fetch()}")
