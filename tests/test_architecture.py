"""Who may import whom, and the other habits of the house that a machine can check.

The source is read, not run: imports inside functions and under TYPE_CHECKING count as well, because they too say what a
part knows of. A part is a package (`model`) or a module (`loading`) right below `plainformer`.

docs/architecture.md tells readers the same; `python -m tests.test_architecture` writes the table of imports into it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import plainformer
from plainformer.families import FAMILIES
from tests.support import ROOT
from tests.support.processes import modules_after

SOURCE = Path(plainformer.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = Path(__file__).parent

# What each part may import; itself always.
BASE = {"config", "errors", "replacing"}
TOP = BASE | {"families", "checkpoint", "inputs", "model", "parallel", "generation", "tasks", "loading", "saving"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "replacing": set(),
    "config": {"errors"},
    "model": BASE,
    "checkpoint": BASE | {"families", "model", "parallel"},
    "families": BASE | {"checkpoint"},
    "inputs": BASE | {"checkpoint"},
    "data": BASE,
    "generation": BASE | {"model"},
    "tasks": BASE | {"inputs", "model", "generation", "checkpoint"},
    "train": BASE | {"inputs", "data", "model", "checkpoint", "parallel", "evaluate"},
    "parallel": BASE | {"model"},
    "plan": BASE,
    "evaluate": BASE,
    "entities": BASE,
    "choosing": BASE | {"families", "checkpoint", "tasks"},
    "loading": TOP | {"choosing"},
    "saving": TOP,
    "starting": TOP,
    "training": TOP | {"plan", "planning", "starting", "train", "data", "evaluate", "__init__"},
    "evaluation": TOP | {"starting", "train", "data", "evaluate", "training", "__init__"},
    "folds": TOP | {"starting", "train", "data", "evaluate", "evaluation", "training", "__init__"},
    "harness": TOP | {"__init__"},
    "info": TOP | {"plan", "planning"},
    "planning": TOP | {"plan", "starting"},
    "measuring": TOP | {"plan", "train"},
    "explanation": TOP,
    "serve": TOP | {"plan", "explanation", "entities", "__init__"},
    "cli": TOP
    | {"info", "plan", "planning", "measuring", "explanation", "entities", "evaluate", "data", "train", "starting"}
    | {"training", "evaluation", "folds", "serve"}
    | {"__init__"},
    "__init__": TOP
    | {
        "plan",
        "planning",
        "explanation",
        "starting",
        "train",
        "training",
        "evaluation",
        "folds",
        "harness",
        "evaluate",
        "serve",
    },
    "__main__": {"cli"},
}
# Single files that need one thing more than their part, and why.
EXTRA: dict[str, set[str]] = {
    # An opened checkpoint gives its tokenizer, which reads files by the formats below it.
    "checkpoint/opened.py": {"inputs"},
    # `plainformer.train(config)` calls this package.
    "train/__init__.py": {"training"},
    # `plainformer.evaluate(ref, data)` calls that package.
    "evaluate/__init__.py": {"evaluation"},
    # `plainformer.plan(ref)` calls that module.
    "plan/__init__.py": {"planning"},
}
# Parts that may be imported before torch has been: what the command line shows without a model must not wait for it.
TORCH_FREE = {
    "__init__",
    "config",
    "errors",
    "replacing",
    "families",
    "data",
    "plan",
    "entities",
    "evaluate",
    "cli",
} | {"planning"}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
# Files that have outgrown the bound, and where they stop. An entry that is no longer needed fails the test.
LONG_FILES: dict[str, int] = {}


@dataclass(frozen=True)
class Import:
    """One imported module, whether importing the file executes the import, and whether only type checkers do."""

    module: str
    line: int
    at_import: bool
    for_types: bool = False

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def part_of(path: Path) -> str:
    return name_of(path).split("/")[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file, relative ones made absolute."""
    package = ["plainformer", *path.relative_to(SOURCE).parts[:-1]]

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*above, *([child.module] if child.module else [])])
                # `from plainformer import hub` imports plainformer.hub.
                names = [f"{module}.{alias.name}" for alias in child.names] if module == "plainformer" else [module]
                yield from (Import(name, child.lineno, at_import) for name in names)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, False)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for statement in child.body:
                    yield from (replace(found, for_types=True) for found in walk(ast.Module([statement], []), False))
                for statement in child.orelse:
                    yield from walk(ast.Module([statement], []), at_import)
            else:
                yield from walk(child, at_import)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def our_part(module: str) -> str | None:
    """The part that a module name leads to; None for other people's modules."""
    parts = module.split(".")
    if parts[0] != "plainformer":
        return None
    known = len(parts) > 1 and ((SOURCE / parts[1]).is_dir() or (SOURCE / f"{parts[1]}.py").is_file())
    return parts[1] if known else "__init__"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is new: add to MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[part] | EXTRA.get(name_of(path), set()) | {part}
    for found in imports_of(path):
        target = our_part(found.module)
        assert target is None or target in allowed, (
            f"{name_of(path)}:{found.line} imports {found.module}; {part} may import {sorted(allowed)}"
        )


def test_no_module_needs_one_that_needs_it() -> None:
    """Imports inside functions count; those for type checkers alone do not."""
    dotted = {name_of(path).removesuffix(".py").replace("/", "."): path for path in FILES}
    modules = {f"plainformer.{name}".removesuffix(".__init__"): path for name, path in dotted.items()}
    graph = {
        name: {found.module for found in imports_of(path) if not found.for_types} & set(modules) - {name}
        for name, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_the_walk_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above is only as good as its eyes."""
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "file.py"
    file.write_text(
        "import a\n"
        "from ..b import c\n"
        "from . import d\n"
        "if TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "def g():\n    from plainformer.h import i\n"
        "class J:\n    import k\n    def l(self):\n        import m.n\n"
        "try:\n    import o\nexcept ImportError:\n    pass\n"
    )
    found = {(each.module, each.at_import) for each in imports_of(file)}
    later = {("e", False), ("plainformer.h", False), ("m.n", False)}
    assert found == later | {(name, True) for name in ("a", "plainformer.b", "plainformer.part", "f", "k", "o")}


def test_the_plain_model_does_not_know_the_fast_one() -> None:
    """`model/fast/` is installed from outside, so that nobody has to read it to understand a layer."""
    fast = "plainformer.model.fast"
    for path in sorted((SOURCE / "model").glob("*.py")):
        known = [found.line for found in imports_of(path) if (found.module + ".").startswith(fast + ".")]
        assert not known, f"{name_of(path)}:{known} imports {fast}"


def test_tasks_and_training_do_not_know_each_other() -> None:
    assert "train" not in MAY_IMPORT["tasks"] and "tasks" not in MAY_IMPORT["train"]


def test_test_modules_do_not_import_test_modules() -> None:
    """What they share is in tests/support; strings count too, because some hold a program for another process."""
    for path in sorted(TESTS.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^\s*(?:from|import) (tests(?:\.\w+)*\.test_\w+)", text, re.MULTILINE)
        assert not found, f"{path.relative_to(TESTS)} imports {found}: move what it needs to tests/support"
        assert "noqa: " + "F811" not in text, (
            f"{path.relative_to(TESTS)}: fixtures that are shared belong in conftest.py"
        )


def test_the_oracle_is_for_tests_alone() -> None:
    users = [
        name_of(path) for path in FILES for found in imports_of(path) if found.module.split(".")[0] == "transformers"
    ]
    assert not users, f"transformers is a test-only dependency; imported in {users}"


def test_torch_is_imported_late_where_it_may_not_be_needed() -> None:
    for path in FILES:
        if part_of(path) in TORCH_FREE:
            early = [
                found.line for found in imports_of(path) if found.at_import and found.module.split(".")[0] == "torch"
            ]
            assert not early, f"{name_of(path)}:{early} imports torch when it is imported itself"


HEAVY = {"torch", "numpy", "tokenizers", "safetensors", "huggingface_hub", "gguf", "jinja2", "rich", "cyclopts"}


def test_nothing_happens_at_import() -> None:
    assert not modules_after("import plainformer; dir(plainformer); plainformer.__version__") & HEAVY
    # The configuration of any model, and what is known of families and references, need no torch either.
    families = "; ".join(f"import plainformer.families.{name}" for name in sorted(set(FAMILIES.values())))
    assert not modules_after(f"import plainformer.config, plainformer.tasks\n{families}") & {"torch", "numpy"}
    assert "torch" not in modules_after("import plainformer.checkpoint.opened, plainformer.checkpoint.rows")
    assert not modules_after("import plainformer.generation.options") & {"torch", "numpy"}


def test_the_command_line_starts_without_torch() -> None:
    shown = modules_after("from plainformer.cli.main import run_app\nfor verb in ('models', 'tasks'): run_app([verb])")
    assert "torch" not in shown


def code_words(path: Path) -> Iterator[tuple[int, str]]:
    """Words of a file's code with their lines: identifiers cut at humps and underscores, and words of strings.

    Comments and docstrings are left out: they may cite papers and say which family needs something.
    """
    text = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield from ((token.start[0], word) for word in re.findall(r"[A-Z]+[a-z0-9]*|[a-z0-9]+", token.string))
            yield token.start[0], token.string
        kinds = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))  # FSTRING_MIDDLE: Python 3.12
        if token.type in kinds and token.start[0] not in docstrings:
            yield from ((token.start[0], word) for word in re.findall(r"[\w-]+", token.string))


def families_named(path: Path, but: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    """Family names in a file's code; lines with a word of `but` are passed over."""
    families = {name.lower() for name in FAMILIES} | set(FAMILIES.values())
    families |= {name.replace("-", "_") for name in families} | {name.replace("-", "") for name in families}
    lines = path.read_text(encoding="utf-8").splitlines()
    named = {(line, word) for line, word in code_words(path) if word.lower() in families}
    return sorted((line, word) for line, word in named if not any(allowed in lines[line - 1] for allowed in but))


def test_the_model_knows_no_family() -> None:
    for path in sorted((SOURCE / "model").rglob("*.py")):
        assert not families_named(path), f"{name_of(path)}: say it with a value of the configuration"


# Names of GGUF's vocabularies and of their ways to cut words, which are families' names by chance of history.
NAMED_BY_GGUF = {"inputs/text/gguf_vocabulary.py", "inputs/text/pre_tokenizers.py"}
# Classes of the tokenizers library.
LIBRARY_CLASSES = ("BertNormalizer", "BertPreTokenizer", "RobertaProcessing")


def test_inputs_know_no_family() -> None:
    """What a family's files mean is declared in the family's file: `TOKENIZERS`, image defaults."""
    for path in sorted((SOURCE / "inputs").rglob("*.py")):
        if name_of(path) not in NAMED_BY_GGUF:
            assert not families_named(path, LIBRARY_CLASSES), f"{name_of(path)}: declare it in the family's file"


def test_the_search_for_family_names_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text('"""Of Bert."""\nx = 1  # gpt2\nuse_t5_bias = "llama" if BertLayer else f"{x} vit"\n')
    words = {word.lower() for _, word in code_words(file)}
    assert {"t5", "llama", "bert", "vit"} <= words and "gpt2" not in words and "of" not in words


def test_the_library_does_not_print() -> None:
    for path in FILES:
        if part_of(path) == "cli":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not lines, f"{name_of(path)}:{lines} prints; use logging"


def test_files_are_short() -> None:
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    offenders = {name: n for name, n in lines.items() if n > LONG_FILES.get(name, MAX_FILE_LINES)}
    assert not offenders, f"longer than {MAX_FILE_LINES} lines: {offenders}"
    needless = [name for name in LONG_FILES if lines.get(name, 0) <= MAX_FILE_LINES]
    assert not needless, f"no longer long: take {needless} out of LONG_FILES"


def test_the_package_ships_every_file_that_it_reads() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = settings["tool"]["setuptools"]["package-data"]["plainformer"]
    there = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = {name_of(path) for path in there if path.suffix != ".py"}
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in shipped)] == []
    assert [one for one in shipped if "*" not in one and one not in names] == []


def test_functions_are_short() -> None:
    """Docstrings count: a function that needs a long one does too much."""
    offenders = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    offenders[f"{name_of(path)}:{node.name}"] = length
    assert not offenders, f"longer than {MAX_FUNCTION_LINES} lines: {offenders}"


# ---- docs/architecture.md says the same

PAGE = ROOT / "docs" / "architecture.md"
IMPORTS = re.compile(r"(?<=<!-- imports -->\n).*?(?=<!-- end -->)", re.DOTALL)


# Files whose letters mean something of their own yet: rename the letters, then take the file out.
OLD_LEGENDS: set[str] = set()


def import_table() -> str:
    """MAY_IMPORT and EXTRA as a table, without the parts that do not exist yet."""
    parts = {part_of(path) for path in FILES}
    lines = [
        f"| `{part}` | {', '.join(f'`{name}`' for name in sorted(MAY_IMPORT[part] & parts - {part})) or 'nothing'} |"
        for part in MAY_IMPORT
        if part in parts
    ]
    lines += [f"| `{file}` | also {', '.join(f'`{name}`' for name in sorted(more))} |" for file, more in EXTRA.items()]
    return "\n".join(["", "| part | may import |", "|---|---|", *lines, "", ""])


def test_the_page_has_the_table_of_imports() -> None:
    found = IMPORTS.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None and found[0] == import_table(), "python -m tests.test_architecture"


def test_the_tree_has_every_part() -> None:
    tree = PAGE.read_text(encoding="utf-8").split("src/plainformer/\n", 1)[1].split("```")[0]
    named = set(re.findall(r"[├└]── ([\w.-]+)", tree))
    there = {path.name for path in SOURCE.rglob("*") if path.is_dir() and path.name != "__pycache__"}
    there |= {path.name for path in SOURCE.glob("*.py")}
    assert named == there


def names_in(path: Path, name: str) -> bool:
    """Whether a file defines `name` or `Class.name`."""
    node: ast.AST | None = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        node = next((child for child in getattr(node, "body", ()) if part in _defined(child)), None)
    return node is not None


def _defined(node: ast.AST) -> set[str]:
    targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
    return {getattr(node, "name", ""), *(target.id for target in targets if isinstance(target, ast.Name))}


@pytest.mark.parametrize(
    "place", sorted(set(re.findall(r"`([\w/]+\.py(?::[\w.]+)?)`", PAGE.read_text(encoding="utf-8"))))
)
def test_the_tours_lead_somewhere(place: str) -> None:
    file, _, name = place.partition(":")
    path = SOURCE / file if (SOURCE / file).is_file() else ROOT / file
    assert path.is_file(), f"{PAGE.name} names {file}"
    assert not name or names_in(path, name), f"{PAGE.name} names {name} in {file}"


def the_legend() -> dict[str, list[str]]:
    """Letter → the words that a file's legend may say of it; none where the file itself decides."""
    section = PAGE.read_text(encoding="utf-8").split("## Shape letters", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    legend = {}
    for letters, _, words in rows[2:]:
        for letter in letters.split(", "):
            legend[letter] = [word for word in words.split(", ") if word]
    return legend


def legend_of(path: Path) -> Iterator[tuple[str, str]]:
    """The letters of a file's legend and what it says of each: from "Shapes:" to the end of the paragraph."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = re.search(r"Shapes: (.*?)(?:\n\n|\Z)", docstring, re.DOTALL)
    text = re.sub(r"\([^()]*\)", "", " ".join(found[1].split())) if found else ""
    for part in re.split(r"[,;]", text):
        entry = re.match(r" *([A-Z])\b(?: = [^ ]+ \* \w+)? +(.+?)[ .]*$", part)
        if entry is not None:
            yield entry[1], entry[2]


@pytest.mark.parametrize("path", [path for path in FILES if list(legend_of(path))], ids=name_of)
def test_legends_are_parts_of_the_one(path: Path, request: pytest.FixtureRequest) -> None:
    if name_of(path) in OLD_LEGENDS:
        request.applymarker(pytest.mark.xfail(reason="old letters", strict=False))
    legend = the_legend()
    for letter, said in legend_of(path):
        assert letter in legend, f"{name_of(path)}: {letter} is not in {PAGE.name}"
        words = legend[letter]
        assert not words or any(word in said for word in words), (
            f"{name_of(path)}: {letter} is {said!r}; {PAGE.name} says {', '.join(words)}"
        )


def test_a_legend_is_read_letter_by_letter(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        '"""What.\n\nShapes: B prompts, R = B * copies rows (of\nbeams), E channels of a head.\n\nMore: T no."""\n'
    )
    assert list(legend_of(file)) == [("B", "prompts"), ("R", "rows"), ("E", "channels of a head")]


if __name__ == "__main__":
    PAGE.write_text(IMPORTS.sub(lambda _: import_table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
