"""`make models` makes what the pages use, and the recipes on real data are listed, read, and say what they read."""

from __future__ import annotations

import re

import pytest

from plainformer.config.building import read_config
from tests.support import ROOT

MADE = (ROOT / "examples" / "make_data.py").read_text(encoding="utf-8")
LISTED = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
TAUGHT = (ROOT / "docs" / "how-to-train.md").read_text(encoding="utf-8")
REAL = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if f"({path.name})" in LISTED]


@pytest.mark.parametrize("page", ["how-to-tasks.md", "how-to-train.md"])
def test_make_models_trains_what_the_pages_use(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    target = re.search(
        r"^models: install\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert target is not None
    made = {line.strip().removeprefix("$(BIN)/") for line in target[1].splitlines()}
    used = {f"runs/{name}" for name in re.findall(r"runs/(\w+)/best", text)}
    commands = [
        re.sub(r" 2> \S+$", "", line) for line in re.findall(r"^\$ (plainformer train .+)$", text, re.MULTILINE)
    ]
    trained = [command for command in commands if not re.search(r"--(dry-run|seen|seed|verdict|folder)\b", command)]
    assert trained and set(trained) <= made, set(trained) - made
    folders = {line.split("--folder ")[1].split()[0] for line in made if "--folder" in line}
    folders |= {
        str(read_config(ROOT / line.split()[2]).folder) for line in made if line.startswith("plainformer train")
    }
    assert used <= folders, used - folders


def test_every_recipe_is_on_one_of_the_two_pages() -> None:
    names = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert [name for name in names if f"({name})" not in LISTED and f"recipes/{name})" not in TAUGHT] == []
    scripts = {path.name for path in (ROOT / "recipes").glob("*.py")}
    assert [name for name in scripts if f"({name})" not in LISTED] == []


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_recipe_on_real_data_says_what_it_reads(path: object) -> None:
    text = path.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    config = read_config(path)  # type: ignore[arg-type]
    assert (
        text.startswith("# ") and config.data.train.path.startswith(str(ROOT / "data"))
    ) or "data/" in config.data.train.path
    assert str(config.folder).endswith(path.stem)  # type: ignore[attr-defined]
    for script in re.findall(r"python (recipes/\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    for recipe in re.findall(r"train (recipes/[\w-]+\.yaml)", text):
        assert (ROOT / recipe).is_file(), recipe
