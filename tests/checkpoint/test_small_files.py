"""What is downloaded is what is read: the names in the readers' source, and the list of the Hub."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import plainformer
from plainformer.checkpoint.formats.source import WEIGHT_FILES
from plainformer.checkpoint.small_files import SMALL_FILES, pick_module_files, pick_small_files

SOURCE = Path(plainformer.__file__).parent
LIST = SOURCE / "checkpoint" / "small_files.py"
NAME = re.compile(
    r"(?:[\w*{}-]+/)*[\w.*{}-]*[\w*{}]\.(json|txt|model|spm|jinja|tiktoken|codes|bpe|arpa|safetensors|bin)"
)
# Names that are not asked for beside a model's weights, and why.
OTHERS = {
    "*/config.json": "looked for in other folders, for a hint",
    "snapshots/*/config.json": "looked for in other folders, for a hint",
    "{}/config.json": "of a step of sentence-transformers, whose folder modules.json names",
    "adapter_config.json": "an adapter's: `checkpoint.adapters.ADAPTER_FILES`",
    "adapter_model.safetensors": "an adapter's",
    "adapter_model.bin": "an adapter's",
    "model-{}-of-{}.safetensors": "weights, which an index lists",
    "{}-{}-of-{}.safetensors": "written by several processes",
    "{}.safetensors": "written by several processes",
    "folds.json": "of a run for each of several folds",
    "{}.json": "best.json or last.json of a run",
    "_config.json": "an ending",
    ".index.json": "an ending",
}
# Parts whose files are of a data set or of a run, not of a checkpoint.
OF_RUNS = ("data", "train", "training", "cli", "evaluate", "evaluation", "folds")
# Families of names that a reader takes from elsewhere than a literal.
READ_BY_PATTERN = {"additional_chat_templates/*.jinja": ("additional_chat_templates", "*.jinja")}


def names_in(path: Path) -> set[str]:
    """The file names among the texts of a source file; `{}` for what an f-string fills in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        if isinstance(text, str) and NAME.fullmatch(text):
            found.add(text)
    return found


FILES = [path for path in SOURCE.rglob("*.py") if path != LIST and path.relative_to(SOURCE).parts[0] not in OF_RUNS]
READ = {name for path in FILES for name in names_in(path)}


def test_every_file_that_is_read_is_downloaded() -> None:
    asked = READ - set(OTHERS) - set(WEIGHT_FILES) - {name for names in READ_BY_PATTERN.values() for name in names}
    assert len(asked) > 20
    missing = [name for name in sorted(asked) if not pick_small_files([name.replace("{}", "bert")])]
    assert not missing, f"add to SMALL_FILES, or to OTHERS with the reason: {missing}"


def test_every_file_that_is_downloaded_is_read() -> None:
    idle = [
        pattern
        for pattern in SMALL_FILES
        if not any(fnmatchcase(name.replace("{}", "bert"), pattern) for name in READ)
        and not set(READ_BY_PATTERN.get(pattern, ("nobody's",))) <= _texts()
    ]
    assert not idle, f"nobody reads them: {idle}"


def _texts() -> set[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py") if path != LIST)
    return {
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_other_folders_stay_where_they_are() -> None:
    names = ["original/tokenizer.model", "onnx/config.json", "vocab.json", "kenlm.model", "a/b/vocab.txt", "x.jinja"]
    assert pick_small_files(names) == ["vocab.json"]


def test_steps_that_are_not_there(tmp_path: Path) -> None:
    modules = tmp_path / "modules.json"
    modules.write_text('[{"path": ""}, {"path": "../up"}, {"path": 3}, {}, {"path": "1_Pooling/"}]')
    assert pick_module_files(["1_Pooling/config.json", "up/config.json"], modules) == ["1_Pooling/config.json"]
