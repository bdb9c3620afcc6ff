"""Files and folders of inputs: a checkpoint's preprocessor settings, a file that exists, a folder to write to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from plainformer.errors import CheckpointError, InputError, UsageError, did_you_mean


def read_preprocessor(folder: Path, section: str) -> dict[str, Any] | None:
    """The settings of a checkpoint's image or audio front end, or None where the folder has none.

    Args:
        folder: the checkpoint's folder.
        section: "image_processor" or "feature_extractor": the key inside `processor_config.json`, which wins over
            `preprocessor_config.json` as in the reference.

    Raises:
        CheckpointError: a file is unreadable, is not JSON, or does not hold an object.
    """
    for name, key in (("processor_config.json", section), ("preprocessor_config.json", None)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}", "fetch the file again") from error
        if key is not None and isinstance(content, dict):
            if key not in content:
                continue
            content = content[key]
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object", "fetch the file again")
        return content
    return None


def existing_file(source: str | os.PathLike[str], what: str) -> Path:
    """The path of an existing regular file; `what` ("image", "audio") names it in messages. Raises InputError."""
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
        hint = did_you_mean(path.name, siblings)
    except (OSError, RuntimeError, ValueError):  # no such folder, no such user, a NUL in the name
        hint = ""
    raise InputError(f"{what} {text[:200]!r} is not a file", hint if "did you mean" in hint else "check the path")


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """A folder to write to, made with its parents if need be. Raises UsageError, CheckpointError."""
    try:
        if not (path := os.fspath(folder)):
            raise ValueError
        made = Path(path)
        made.mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError):  # no path at all, an empty one, or one with a NUL or half a character in it
        raise UsageError(f"{folder!r} is not the path of a folder", "pass a str or a Path") from None
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}", "choose another folder") from None
    return made
