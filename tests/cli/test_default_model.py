"""`plainformer run TEXT`: what is a text and what is a model, line ends from a shell, and that it is said which model answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.checkpoint import bundled
from plainformer.cli.default_model import DEFAULT, is_text, unescaped, with_model
from tests.support.cli import Cli, done, refused

CODE = r"import pandas as pd\ndf = "


@pytest.mark.parametrize(
    "text", [CODE, "import pandas as pd\ndf = ", "def f(x):\n\treturn", "a / b", "x = a/b + c", "- 1"]
)
def test_what_has_white_space_is_a_text(text: str) -> None:
    assert is_text(text)


@pytest.mark.parametrize(
    "ref",
    [
        "gpt2",
        "owner/name",
        "print(",
        " gpt2",
        "gpt2 ",
        "gpt2\n",
        "./my model",
        "~/my model",
        "/no such/model",
        "https://hub.example/a b",
        "hf://owner/my name",
        "",
        " ",
    ],
)
def test_what_may_be_a_model_is_one(ref: str) -> None:
    assert not is_text(ref) and with_model(ref, ()) == (ref, ())


def test_a_folder_with_a_blank_in_its_name_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_text("my model") and is_text("my models/bert base")
    (tmp_path / "my model").mkdir()
    (tmp_path / "my models").mkdir()
    assert not is_text("my model") and not is_text("my models/bert base")  # a misspelt path


def test_a_model_is_never_left_out_before_several_texts() -> None:
    assert with_model("my modle", ("a text",)) == ("my modle", ("a text",))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (CODE, "import pandas as pd\ndf = "),
        (r"if x:\n\treturn y\n", "if x:\n\treturn y\n"),
        (r"print('a\n')\nprint(", "print('a\\n')\nprint("),
        (r'print("it\'s\n" + "b\t")\nx', 'print("it\\\'s\\n" + "b\\t")\nx'),
        (r"# don't\nx = 1\ny", "# don't\nx = 1\ny"),
        (r'"""a\nb"""\nx = "un\nfinished', '"""a\\nb"""\nx = "un\\nfinished'),
        ("x = 1\ny = '\\n'\\n", "x = 1\ny = '\\n'\\n"),  # there are real line ends
        (r"a\\b", r"a\\b"),
    ],
)
def test_line_ends_and_tabs_from_a_shell(typed: str, meant: str) -> None:
    assert unescaped(typed) == meant


@pytest.fixture
def shipped(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tiny model in the place of the one in the package."""
    package = tmp_path / "path" / "ships_code"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model").symlink_to(tiny("text-generation"))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(bundled.BUNDLED, DEFAULT, ("ships_code", "model", "ships-code"))
    return package / "model"


def test_it_goes_on_with_the_text_and_says_which_model_does(cli: Cli, shipped: Path) -> None:
    typed = r"the cat\nthe dog "
    found = cli("run", typed, "--max-new-tokens", 4)
    named = done(cli("run", shipped, "the cat\nthe dog ", "--heal", "--max-new-tokens", 4))
    assert found.code == 0 and found.out == named.out
    assert DEFAULT in found.err and DEFAULT not in named.err


def test_a_name_alone_is_still_a_model_without_an_input(cli: Cli, shipped: Path) -> None:
    refused(cli("run", DEFAULT), "run needs at least one INPUT")
    refused(cli("run", "print("), f"run {DEFAULT} CODE")
