"""Which files of a repository a model needs beside its weights. A test compares the names with those that the readers ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from plainformer.checkpoint.formats.source import WEIGHT_FILES, read_json_objects

MODULES = "modules.json"  # sentence-transformers' list of steps, each with a folder of its own
# Patterns; `*` does not cross a folder here.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "target_vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
    "spm.model",
    "source.spm",
    "target.spm",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    MODULES,
    "sentence_*_config.json",
    "config_sentence_transformers.json",
)
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.spm")
_NEEDED = {"Pooling": ("config.json",), "Dense": ("config.json", "weights"), "LayerNorm": ("config.json", "weights")}


def holds_tokenizer(names: Iterable[str]) -> bool:
    """Return whether a tokenizer's vocabulary is among the names of files; it needs no config.json."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in _VOCABULARIES)


def pick_small_files(names: Iterable[str]) -> list[str]:
    """Return a repository's configuration, tokenizer and processor files that a model needs."""
    return [
        name
        for name in names
        if any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in SMALL_FILES)
    ]


def pick_module_files(names: Collection[str], modules: Path) -> list[str]:
    """Return the files of the steps that a modules.json lists: configurations, and one file of weights each."""
    picked = []
    for folder, _ in _steps(modules):
        weights = next((name for name in WEIGHT_FILES if f"{folder}/{name}" in names), None)
        picked += [f"{folder}/{name}" for name in ("config.json", weights) if f"{folder}/{name}" in names]
    return picked


def missing_module_file(folder: Path) -> str:
    """Return the name of a file that a step of a folder's modules.json lacks; "" where all are there."""
    modules = folder / MODULES
    for step, kind in _steps(modules) if modules.is_file() else ():
        for name in _NEEDED.get(kind, ()):
            found = any((folder / step / weights).is_file() for weights in WEIGHT_FILES)
            if not (found if name == "weights" else (folder / step / name).is_file()):
                return f"{step}/{name}"
    return ""


def not_a_transformer(modules: Path) -> str:
    """Return what a modules.json lists instead of a transformer, as a hint; "" if it lists nothing else."""
    first = next((kind for _, kind in _listed(modules)), "")
    return "" if first in ("", "Transformer") else f"{MODULES} lists {first!r}, which is not supported"


def _steps(modules: Path) -> list[tuple[str, str]]:
    """Return the folder and the kind of each step that has a folder."""
    return [(folder, kind) for folder, kind in _listed(modules) if folder]


def _listed(modules: Path) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else ""

    entries = read_json_objects(modules)
    return [(text(entry.get("path")).strip("/"), text(entry.get("type")).rpartition(".")[2]) for entry in entries]
