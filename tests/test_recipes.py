"""The recipes: each trains for two steps on the data that the pages of docs/ make, and the page shows them as they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import plainformer as pf
from plainformer.config.building import as_data, read_config, table_of
from plainformer.config.training import OBJECTIVES, TrainConfig
from tests.support import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAGE = (ROOT / "docs" / "how-to-train.md").read_text(encoding="utf-8")
LISTED = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
REAL = [path.stem for path in RECIPES if f"({path.name})" in LISTED]  # on real data, which are not here
BIG = (*REAL, "chats", "ner", "qa")  # and a model of 135 million parameters; how-to-tasks trains two


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and the tokenizers that the recipes name."""
    folder = tmp_path_factory.mktemp("clone")
    subprocess.run(
        [sys.executable, ROOT / "examples" / "make_data.py", folder / "data"], check=True, capture_output=True
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in re.findall(r"^\$ plainformer (tokenizer train .+)$", PAGE, re.MULTILINE):
            from plainformer.cli.main import run_app

            assert run_app(command.split()) in (0, None)
    finally:
        os.chdir(before)
    return folder


def test_every_objective_has_a_recipe() -> None:
    assert {read_config(path).objective for path in RECIPES} == set(OBJECTIVES)


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in BIG], ids=lambda path: path.stem)
def test_a_recipe_trains(path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    asked = as_data(read_config(path))
    limits = {
        side: {**source, "limit": 16}
        for side, source in asked["data"].items()
        if side in ("train", "validation") and source
    }
    changed = {"data": {**asked["data"], **limits}, "length": {"steps": 2}, "batches": {**asked["batches"], "size": 4}}
    result = pf.train({**asked, **changed, "evaluate": {**asked["evaluate"], "every": None}})
    assert result.ended == "done" and result.step == 2
    config = pf.load_model(result.folder / "last").config
    if path.stem in ("causal", "denoising", "dates"):  # from scratch: the ids are the tokenizer's
        tokenizer = pf.load_tokenizer(str(result.folder / "last"))
        assert config.source["eos_token_id"] == tokenizer.eos_id is not None
        assert config.source["vocab_size"] == tokenizer.vocab_size
    shutil.rmtree(result.folder)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_page_shows_the_recipe(path: Path) -> None:
    assert f"recipes/{path.name}" in PAGE or path.stem in REAL
    blocks = re.findall(r"^```yaml\n# recipes/(.+?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    shown = dict(blocks)
    assert path.name not in shown or shown[path.name] == path.read_text(encoding="utf-8")


def test_the_page_has_the_table_of_options() -> None:
    assert table_of(TrainConfig) in PAGE, "run `make docs`"


if __name__ == "__main__":
    marks = re.compile(r"(<!-- the table is made by .*? -->\n).*(\n<!-- its end -->)", re.DOTALL)
    table = f"\n{table_of(TrainConfig)}\n"
    (ROOT / "docs" / "how-to-train.md").write_text(marks.sub(lambda m: f"{m[1]}{table}{m[2]}", PAGE), encoding="utf-8")
