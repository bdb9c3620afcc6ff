"""What errors advise exists: options, verbs, flags, pages and installs that hints and --help name are tried here."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plainformer
from plainformer.checkpoint.bundled import BUNDLED
from plainformer.cli.main import _VERBS, app, run_app
from plainformer.config.building import all_names
from plainformer.config.loading import LoadOptions
from plainformer.config.options import specs
from plainformer.config.training import TrainConfig
from plainformer.errors import InputError, PlainformerError, UsageError, opt, plural, spelling_of, to_install
from plainformer.families import FAMILIES
from plainformer.tasks import option_classes
from tests.support import ROOT
from tests.support.models import CHECKPOINTS

SOURCES = sorted((ROOT / "src").rglob("*.py"))
# Calls whose last argument, or `fix=`, is a hint.
RAISED = {"UsageError", "InputError", "CheckpointError", "HubError", "MissingDependencyError", "PlainformerError"}
CHECKS = {"no_effect", "check_whole", "check_number", "whole", "number"}


def hints() -> Iterator[tuple[str, ast.AST]]:
    """Every hint in the source: where it is, and its expression; a name that is one is looked up in its function."""
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            named = {
                target.id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in RAISED | CHECKS:
                    given = [word.value for word in call.keywords if word.arg == "fix"]
                    given += (
                        call.args[1:2]
                        if call.func.id in RAISED
                        else call.args[3:4]
                        if call.func.id == "no_effect"
                        else []
                    )
                    for hint in given:
                        found = named.get(hint.id, hint) if isinstance(hint, ast.Name) else hint
                        yield f"{path.relative_to(ROOT)}:{call.lineno}", found


HINTS = list(hints())


def texts(hint: ast.AST) -> str:
    """The words of a hint; what is put into it is a blank."""
    parts = [
        str(node.value) for node in ast.walk(hint) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return " ".join(parts)


def test_the_hints_are_found() -> None:
    assert len(HINTS) > 300
    assert any("plainformer tasks" in texts(hint) for _, hint in HINTS)


def known_names() -> set[str]:
    """Options of tasks, of loading and of a run, and parameters of functions, which flags are, too."""
    names = {name for kind in [*option_classes(), LoadOptions] for name in specs(kind)} | set(all_names(TrainConfig))
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names |= {each.arg for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


def test_options_that_hints_name_exist() -> None:
    known = known_names() | {"csv"}  # --csv is `as_csv`
    for where, hint in HINTS:
        for call in ast.walk(hint):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "opt":
                name = call.args[0]
                assert not isinstance(name, ast.Constant) or name.value in known, f"{where}: {ast.unparse(call)}"


@pytest.fixture(scope="module")
def flags() -> Callable[[str], set[str]]:
    """verb → its flags."""

    def of(verb: str) -> set[str]:
        found: set[str] = set()
        for argument in app(verb)[verb].assemble_argument_collection():
            found |= set(argument.names)
        return found

    return of


def commands() -> Iterator[tuple[str, str]]:
    """Every `plainformer ...` in backticks, in hints, help and docstrings of verbs."""
    for where, hint in HINTS:
        for command in re.findall(r"`plainformer ([^`]*)`", texts(hint)):
            yield where, command
    for path in (ROOT / "src/plainformer/cli").glob("*.py"):
        for command in re.findall(r"`plainformer ([a-z][^`{]*)`", path.read_text(encoding="utf-8")):
            yield path.name, command


def test_commands_that_hints_name_exist(flags: Any) -> None:
    found = list(commands())
    assert len(found) > 5
    for where, command in found:
        verb, *rest = command.split()
        if verb.isupper() or verb.startswith("-"):
            continue
        assert verb in _VERBS, (where, command)
        unknown = {word for word in rest if word.startswith("--")} - flags(verb) - {"--help"}
        assert not unknown, (where, command)


def test_pages_that_messages_name_exist() -> None:
    for where, hint in HINTS:
        for page in re.findall(r"docs/[\w/.-]+\.md", texts(hint)):
            assert (ROOT / page).is_file(), (where, page)


def test_what_hints_install_can_be_installed() -> None:
    """We are not on PyPI: a hint names the packages that an extra stands for."""
    for path in SOURCES:
        if path.name != "errors.py":
            assert "pip install plainformer[" not in path.read_text(encoding="utf-8"), path
    assert re.fullmatch(r"pip install 'soundfile>=\S+' 'soxr>=\S+'", to_install("audio"))
    assert re.fullmatch(r"pip install 'pillow>=\S+'", to_install("image"))


# ---- help ---------------------------------------------------------------------------------------------------------


def example(verb: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert run_app([verb, "--help"]) == 0
    shown = re.search(r"Example: (plainformer .*?)\n\s*\n", capsys.readouterr().out, re.DOTALL)
    assert shown is not None, f"{verb} --help shows no example"
    return shlex.split(shown[1].partition(" >")[0])[1:]


@pytest.mark.parametrize("verb", _VERBS)
def test_every_verb_has_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = example(verb, capsys)
    assert words[0] == verb
    command, _, _ = app(verb).parse_args(words, exit_on_error=False, print_error=False)
    assert command.__name__ == verb
    if verb in ("tasks", "models", "glossary", "completion"):
        assert run_app(words) == 0 and capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["run", "explain", "info"])
def test_examples_with_a_bundled_model_run(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = example(verb, capsys)
    assert words[1] in BUNDLED
    assert run_app(words) == 0 and capsys.readouterr().out


@pytest.mark.parametrize("verb", _VERBS)
def test_help_is_of_the_command_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_app([verb, "--help"])
    text = capsys.readouterr().out
    assert "Python" not in text and "--empty-" not in text and "--no-json" not in text and " / " not in text
    for argument in app(verb)[verb].assemble_argument_collection():
        assert argument.parameter.help or not argument.show, argument.names


def test_chat_has_no_options_of_speech(flags: Any) -> None:
    assert "--temperature" in flags("chat") and "--language" not in flags("chat")
    assert "--timestamps" not in flags("chat") and "--decoder-prefix" not in flags("chat")


# ---- what a task's errors advise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_errors_of_a_task_advise_its_own_options(name: str, tiny: Callable[[str], Path]) -> None:
    task: Any = plainformer.load(tiny(name), backend="plain")
    known = {*task.options(), *specs(LoadOptions), "task"}
    long = "the cat sat " * 100
    seen = 0
    for item in (long, (long, long), (long, [long, "b"]), "", 3, None, {"a": 1}, [None], ("a",), b"\0", "nofile.wav"):
        try:
            task(item)
        except PlainformerError as error:
            seen += 1
            assert set(error.fix_options) <= known, (item, str(error))
    for option in task.options():
        for value in ("five", 0, -1, [], 2.5, True):
            try:
                task("a", **{option: value})
            except PlainformerError as error:
                seen += 1
                assert set(error.fix_options) <= known, (option, value, str(error))
    assert seen > 5


def test_the_check_sees_wrong_advice() -> None:
    error = InputError("too long", f"pass {opt('stride', 3)} or {opt('max_length')}")
    assert error.fix_options == ("stride", "max_length") and UsageError("no").fix_options == ()


# ---- suggestions ----------------------------------------------------------------------------------------------------


def test_families_are_suggested_for_the_same_name_alone() -> None:
    assert spelling_of("Gemma-2", FAMILIES) == "did you mean 'gemma2'?"
    assert spelling_of("gpt-neox", FAMILIES) == "did you mean 'gpt_neox'?"
    for other in ("camemberta", "umt5x", "brt", "flaubert", "bertt"):
        assert spelling_of(other, FAMILIES) == ""


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("minilm", "did you mean 'all-minilm-l6-v2'?"),
        ("all-minilm-l6-v3", "did you mean 'all-minilm-l6-v2'?"),
        ("MiniLM-L6", "did you mean 'all-minilm-l6-v2'?"),
        ("smollm2", "did you mean 'smollm2-135m-instruct'?"),
        ("./smollm2", "did you mean 'smollm2-135m-instruct'?"),
        ("./nope", "check the path"),
    ],
)
def test_bundled_names_are_suggested(ref: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PlainformerError) as caught:
        plainformer.load(ref)
    assert says in str(caught.value) and "diary" not in str(caught.value)


def test_plurals() -> None:
    assert [plural(n, "document") for n in (0, 1, 2000)] == ["0 documents", "1 document", "2,000 documents"]
    assert plural(1, "entity", "entities") == "1 entity" and plural(3, "entity", "entities") == "3 entities"
