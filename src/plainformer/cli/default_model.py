"""`plainformer run TEXT`: which model answers where none is named.

The only argument of `run` is a text to complete, not a model, if there is white space within it: no bundled name and no Hub id has
any. A file or folder of that name comes first, and what begins like a path is one. A model is never left out before several texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from plainformer.cli.options import is_file, is_folder
from plainformer.cli.progress import screen

DEFAULT = "code-completion"
OPTIONS = {"heal": True}  # a text that ends in a blank, or within a word, is gone on with as if it had been read in one
# A string with its quotes, maybe unfinished; a comment; what the shell leaves of a line end, a tab or a backslash.
_PYTHON = re.compile(
    r"""(?P<string>(?P<quote>"{3}|'{3}|"|')(?:\\.|(?!(?P=quote)).)*(?:(?P=quote)|\Z))|\#(?P<comment>(?:(?!\\n).)*)|\\(?P<escape>[nt])""",
    re.DOTALL,
)


def with_model(ref: str, inputs: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the model and the inputs of `run`; where no model was named, the bundled one, and say so."""
    if inputs or not is_text(ref):
        return ref, tuple(inputs)
    screen.say(f"no model is named before the text: {DEFAULT} goes on with it")
    return DEFAULT, (unescaped(ref),)


def is_text(value: str) -> bool:
    """Whether a value cannot be meant as a model."""
    if len(value.split()) < 2 or is_file(value) or is_folder(value):
        return False
    path_like = value.startswith(("/", "./", "../", "~", ".\\", "..\\", "hf://", "http://", "https://"))
    return not path_like and not ("/" in value and is_folder(str(Path(value).parent)))


def unescaped(code: str) -> str:
    r"""Return Python code in which \n and \t outside of strings are what they stand for.

    A shell leaves them as they are between double quotes. Outside of strings Python has no such thing, so nothing else can be
    meant; within strings they are Python's own. Code with real line ends is left alone.
    """
    if "\n" in code:
        return code
    return _PYTHON.sub(lambda match: {"n": "\n", "t": "\t"}.get(match["escape"] or "", match[0]), code)
