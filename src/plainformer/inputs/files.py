"""What all kinds of inputs share: a checkpoint's small files, files and folders that a caller names, batches, arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from plainformer.config.checks import json_hint, reading, require_text
from plainformer.config.fields import Fields
from plainformer.errors import CheckpointError, InputError, UsageError, a_type, did_you_mean, nth

if TYPE_CHECKING:
    import numpy.typing as npt

Prepared = TypeVar("Prepared")


def read_text(path: Path) -> str:
    """Return a checkpoint file's text, which is UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 text (byte {error.start})",
            "save it as UTF-8; a file that you have not edited is damaged: download it again",
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "check the path and its permissions") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return a checkpoint file's JSON object, or {} where there is no such file."""
    if not path.is_file():
        return {}
    written = read_text(path)
    try:
        content = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", json_hint(written, error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds {a_type(content)}, not an object", f"take the {path.name} of the original checkpoint"
        )
    with reading(str(path)):
        require_text(written, content)
    return content


def read_preprocessor(folder: Path, section: str) -> dict[str, Any] | None:
    """Return the settings of a checkpoint's image or audio preprocessor, or None where the folder has none.

    Args:
        folder: the checkpoint's folder.
        section: "image_processor" or "feature_extractor": the key inside `processor_config.json`, which wins over
            `preprocessor_config.json` as in transformers.

    Raises:
        CheckpointError: a file is unreadable, is not JSON, or does not hold an object.
    """
    path = folder / "processor_config.json"
    content = read_object(path)
    if section in content:
        with reading(str(path)):
            return Fields(content).object(section)
    path = folder / "preprocessor_config.json"
    return read_object(path) if path.is_file() else None


def each(what: str, given: Any, prepare: Callable[[Any], Prepared]) -> list[Prepared]:
    """Apply `prepare` to one input, or to each of a list; an error names its place in a list (`what` is "image")."""
    if not isinstance(given, list | tuple):
        return [prepare(given)]
    if not given:
        raise InputError(f"an empty list of {what}s", f"give at least one {what}")
    prepared = []
    for index, item in enumerate(given):
        try:
            prepared.append(prepare(item))
        except InputError as error:
            raise error.within(nth(index)) from error
    return prepared


def as_array(source: Any, what: str, axes: int, layouts: tuple[str, str]) -> tuple[npt.NDArray[Any], str]:
    """Return a numpy array or a torch tensor, channels last, and the layout that such an input has, for messages.

    Args:
        source: the input.
        what: "an image", for messages.
        axes: how many axes an input with channels has; a tensor has them first, and they are moved.
        layouts: of arrays and of tensors.
    """
    import numpy as np

    if isinstance(source, np.ndarray):
        return source, layouts[0]
    if not (hasattr(source, "detach") and hasattr(source, "cpu")):  # a torch tensor, told without importing torch
        raise InputError(
            f"{what} cannot be {a_type(source)}", f"give {what} as a path, bytes, a numpy array or a tensor"
        )
    tensor = source.detach().cpu()
    array: npt.NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == axes else array, layouts[1]


def existing_file(source: str | os.PathLike[str], what: str) -> Path:
    """Return the path of an existing regular file; `what` ("image", "audio") names it in messages. Raises InputError."""
    text = os.fspath(source)
    if text.startswith(("http://", "https://", "data:")):
        raise InputError(
            f"{what} {text[:80]!r} is an address, not a file", "download it and give its path or its bytes"
        )
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return path
        siblings = [p.name for p in path.parent.iterdir() if p.is_file()]
        hint = did_you_mean(path.name, siblings, few=False)
    except (OSError, RuntimeError, ValueError):  # no such folder, no such user, a NUL in the name
        hint = ""
    raise InputError(f"{what} {text[:200]!r} is not a file", hint or "check the path")


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder to write to, made with its parents if need be. Raises UsageError, CheckpointError."""
    try:
        if not (path := os.fspath(folder)):
            raise ValueError
        made = Path(path)
        made.mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError):  # no path at all, an empty one, or one with a NUL or half a character in it
        raise UsageError(f"{folder!r} is not the path of a folder", "pass a str or a Path") from None
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder} cannot be a folder: a file has that name", "choose another folder") from None
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}", "choose another folder") from None
    return made
