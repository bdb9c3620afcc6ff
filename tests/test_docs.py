"""The examples in the documentation, executed: what a page says is printed is what is printed.

In each page, in order: a ```python block is executed, and the ```text block that is the next block of the page must be
its output; all blocks of a page share their variables. In a ```console block the lines after "$ " are commands, and
what follows each is its output, stdout and stderr together; a block of commands alone is not executed. Trailing blanks
do not count, and a line of "[...]" stands for any lines. Nothing else is lenient: examples round their numbers. What a model
says that the page itself trains differs a little from processor to processor: in a block marked "roughly" numbers are not
compared. The folder that commands run in has `examples` and `recipes`,
as a clone has.

`python -m tests.test_docs` (`make docs`) writes the outputs anew into the pages of docs/; look at the difference before
you keep it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import plainformer
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("pictures")


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """A page may show how to hear less of the library; the tests after it hear all."""
    loggers = logging.getLogger(), logging.getLogger("plainformer")
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(page for page in (ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "README.md") if page.is_file()),
]
# What pages and examples may import: names of the top level, and these packages, which have many names of one subject.
DOCUMENTED = (
    "plainformer.explanation",
    "plainformer.entities",
    "plainformer.evaluate",
    "plainformer.tasks.speech.ctc_decoding",
)
BLOCK = re.compile(r"^```(\w*)( roughly)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ANYTHING = "[...]"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its content, and where the content stands in the page."""

    language: str
    text: str
    start: int
    line: int
    roughly: bool = False


def blocks_of(page: str) -> list[Block]:
    return [
        Block(match[1], match[3], match.start(3), page.count("\n", 0, match.start(3)) + 1, bool(match[2]))
        for match in BLOCK.finditer(page)
    ]


def run_python(code: str, line: int, name: str, variables: dict[str, Any]) -> str:
    """What the code prints; its errors name the page and its line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * (line - 1) + code, name, "exec"), variables)
    return out.getvalue()


def run_command(command: str, folder: Path) -> str:
    """What a command prints. Plain calls of the program run in this process, which has torch already."""
    from plainformer.cli.main import run_app

    words = shlex.split(command)
    if words[0] == "plainformer" and not set(command) & set("|<>$`;&="):
        out = io.StringIO()
        before = Path.cwd()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                run_app(words[1:])
        finally:
            os.chdir(before)
        return out.getvalue()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        timeout=300,
    )
    return done.stdout.decode()


def run_console(text: str, folder: Path) -> str:
    """The block as it should stand: each command with what it prints."""
    commands = [line for line in text.splitlines() if line.startswith("$ ")]
    return "".join(f"{line}\n{run_command(line[2:], folder)}" for line in commands)


def states_output(block: Block) -> bool:
    return not all(line.startswith("$ ") for line in block.text.splitlines())


def found_and_expected(page: Path, folder: Path, *, fill: bool = False) -> Iterator[tuple[Block, str]]:
    """Every block that states an output, with the output that there really is; `fill`: also those that state none."""
    variables: dict[str, Any] = {"__name__": "__docs__"}
    pending: tuple[Block, str] | None = None
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if pending is not None and block.language != "text":
            assert not pending[1], f"{page.name}:{pending[0].line} prints, and no ```text block follows:\n{pending[1]}"
        if block.language == "text" and pending is not None:
            yield block, pending[1]
        pending = None
        if block.language == "python":
            pending = block, run_python(block.text, block.line, str(page), variables)
        elif block.language == "console" and (fill or states_output(block)):
            yield block, run_console(block.text, folder)
    assert pending is None or not pending[1], f"{page.name}: the last block prints, and no ```text block follows"


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def agrees(expected: list[str], found: list[str], roughly: bool = False) -> bool:
    """Line by line; a line of "[...]" stands for any lines. `roughly`: whatever the numbers, and the widths that follow."""
    if roughly:
        expected, found = ([_without_numbers(line) for line in lines] for lines in (expected, found))
    parts = [r"(?:.*\n)*" if line == ANYTHING else re.escape(line) + r"\n" for line in expected]
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in found)) is not None


def _without_numbers(line: str) -> str:
    return re.sub(r"─+", "─", re.sub(r" +", " ", re.sub(r"\d+([.,]\d+)*", "0", line)))


def furnish(folder: Path) -> None:
    """Put into a folder what the commands of a page find in a clone."""
    for name in ("examples", "recipes"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_page_says_what_happens(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / ".state"))  # the ledger of test sets
    monkeypatch.delenv("PLAINFORMER_DEBUG", raising=False)
    furnish(tmp_path)
    for block, found in found_and_expected(page, tmp_path):
        expected = lines_of(block.text)
        assert agrees(expected, lines_of(found), block.roughly), (
            f"{page.name}:{block.line} says\n{block.text}\nand this happens:\n{found}"
        )


def anchors_of(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, blanks to hyphens, no punctuation."""
    anchors: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", BLOCK.sub("", page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        repeats = sum(
            known == anchor or re.fullmatch(re.escape(anchor) + r"-\d+", known) is not None for known in anchors
        )
        anchors.append(f"{anchor}-{repeats}" if repeats else anchor)
    return set(anchors)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name) if name else page
        assert there.exists(), f"{page.name} links to {target}, and there is no {name}"
        known = anchors_of(there.read_text(encoding="utf-8")) if anchor else {anchor}
        assert anchor in known, f"{page.name} links to {target}; {there.name} has {sorted(known)}"


def imported(code: str) -> Iterator[str]:
    """What Python code imports from plainformer: "module" of `import module`, "module:name" of each imported name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "plainformer")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "plainformer":
            yield from (f"{node.module}:{alias.name}" for alias in node.names)


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "examples").glob("*.py"))], ids=lambda page: page.name)
def test_only_public_names_are_imported(page: Path) -> None:
    """Of CONTRIBUTING.md, what is executed: the code of the library that it shows imports as the library does."""
    text = page.read_text(encoding="utf-8")
    codes = [text] if page.suffix == ".py" else [block.text for block in blocks_of(text) if block.language == "python"]
    for each in (found for code in codes for found in imported(code)):
        module, _, name = each.partition(":")
        if module == "plainformer":
            assert not name or name in plainformer.__all__, f"{page.name} imports {name}, which is not public"
        else:
            assert module in DOCUMENTED, f"{page.name} imports from {module}; documented are plainformer, {DOCUMENTED}"


def definitions(code: str) -> dict[str, str]:
    """The classes and functions of code, by name, without docstrings and layout."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return {node.name: ast.dump(node) for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_the_recipes_show_code_that_exists() -> None:
    """Whole classes and functions in CONTRIBUTING.md (```py) are those of the library, wherever it has one of that name."""
    known: dict[str, list[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for name, code in definitions(path.read_text(encoding="utf-8")).items():
            known.setdefault(name, []).append(code)
    shown = [
        block for block in blocks_of((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) if block.language == "py"
    ]
    found = {name: code for block in shown for name, code in definitions(block.text).items()}
    assert {"MinP", "tasks"} <= set(found)
    for name, code in found.items():
        assert name not in known or code in known[name], f"CONTRIBUTING.md shows {name} as it is no longer"


@pytest.mark.parametrize("name", [name for name in plainformer.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(plainformer, name)
    assert name.isupper() or value.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("module", DOCUMENTED)
def test_documented_packages_say_what_is_public(module: str) -> None:
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in found.__all__)


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs" / "facts").glob("*.md") if f"facts/{page.name}" not in index]
    assert not missing, f"docs/index.md does not link {missing}"


# What README says can be read in an afternoon: from a text to a task's answer.
PATH = (
    *(
        "inputs/text/tokenizer.py",
        "inputs/text/encoding.py",
        "model/frontend.py",
        "model/stack.py",
        "model/attention.py",
        "model/flow.py",
    ),
    *("model/position.py", "model/norm.py", "model/linear.py", "model/block.py", "model/heads.py"),
    *("model/transformer.py", "tasks/base.py", "tasks/text/classification.py"),
)


def path_length() -> str:
    source = ROOT / "src" / "plainformer"
    lines = sum((source / name).read_text(encoding="utf-8").count("\n") for name in PATH)
    return f"{round(lines, -2):,} lines in {len(PATH)} files"


def test_readme_counts_the_path() -> None:
    assert path_length() in (ROOT / "README.md").read_text(encoding="utf-8"), f"it is {path_length()}"


def test_readme_shows_what_the_demo_prints() -> None:
    shown = re.findall(r"^\d\. .+", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    program = (ROOT / "examples" / "demo.py").read_text(encoding="utf-8")
    assert len(shown) == 3 and [line for line in shown if line not in program] == []


def test_anchors_are_those_of_github() -> None:
    page = "# A `b`, c\n## [Link](x) & more\n## Twice\n```text\n# not a heading\n```\n## Twice\n"
    assert anchors_of(page) == {"a-b-c", "link--more", "twice", "twice-1"}


def test_the_comparison_can_fail() -> None:
    assert agrees(["a", ANYTHING, "d"], ["a", "b", "c", "d"]) and agrees([ANYTHING], [])
    assert agrees(["F1 0.71", "──"], ["F1  0.7203", "───"], roughly=True) and not agrees(["F1 1"], ["F2"], roughly=True)
    assert not agrees(["a"], ["a", "b"]) and not agrees(["a", "b"], ["a"]) and not agrees(["."], ["x"])


def rewrite(page: Path, folder: Path) -> None:
    """Put the real outputs into a page; blocks with "[...]" are left alone."""
    text = page.read_text(encoding="utf-8")
    for block, found in reversed(list(found_and_expected(page, folder, fill=True))):
        if ANYTHING not in block.text.splitlines():
            clean = "\n".join(lines_of(found)) + "\n"
            text = text[: block.start] + clean + text[block.start + len(block.text) :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    os.environ["HF_HUB_OFFLINE"] = "1"
    wanted = sys.argv[1:]
    for each in PAGES:
        if each.name != "README.md" and (not wanted or any(word in each.name for word in wanted)):
            with tempfile.TemporaryDirectory() as there:
                os.chdir(there)
                os.environ["PLAINFORMER_STATE"] = str(Path(there) / ".state")
                furnish(Path(there))
                rewrite(each, Path(there))
                os.chdir(ROOT)
