"""What is evaluated, as hashes: the same weights, configuration and tokenizer have the same, wherever they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plainformer.checkpoint.opened import AdaptedCheckpoint, Checkpoint

_KINDS = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".spm",
    ".bpe",
    ".tiktoken",
}
# Of a folder's files those that change no answer.
_OTHERS = {"MANIFEST.json", "calibration.json", "trainer_state.json", "data.json", "environment.json"}
_PART = re.compile(r"-\d{5}-of-\d{5}")


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Return a hash of the bytes of all files that decide what a checkpoint answers: weights, configuration, tokenizer."""
    state = hashlib.blake2b(digest_size=16)
    adapters = [one.folder for one in checkpoint.adapters] if isinstance(checkpoint, AdaptedCheckpoint) else []
    for root in (checkpoint.path, *adapters):
        for path in _files(root):
            name = path.name if root.is_file() else path.relative_to(root).as_posix()
            state.update(name.encode("utf-8", "surrogateescape") + b"\0")
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "blake2b").digest())
    return state.hexdigest()


def _files(root: Path) -> Iterable[Path]:
    if root.is_file():  # a GGUF file, perhaps in several parts
        pattern = _PART.sub("-*-of-*", root.name)
        return sorted(root.parent.glob(pattern)) if pattern != root.name else [root]
    found = (path for path in root.rglob("*") if path.suffix in _KINDS and path.name not in _OTHERS)
    hidden = ("training", "evaluations")  # what a run goes on from
    return sorted(
        path
        for path in found
        if path.is_file()
        and not any(part.startswith(".") or part in hidden for part in path.relative_to(root).parts[:-1])
    )


def digest_of(value: Any) -> str:
    """Return a hash of plain values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON holds them, without those that change no answer."""
    left_out = ("batch_size", "token")
    return {
        name: value if isinstance(value, str | int | float | bool | list | tuple | dict | None) else _said(value)
        for name, value in sorted(options.items())
        if name not in left_out
    }


def _said(value: Any) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(getattr(value, "ref", value))
