"""One opened checkpoint, whatever it is kept in: a folder with `config.json`, or a single GGUF file.

    with open_checkpoint("all-minilm-l6-v2") as checkpoint:
        config = checkpoint.config()
        load_weights(Transformer(config), checkpoint.tensors(), checkpoint.rows(config))

Its files are read when they are asked for, and the configuration and a GGUF file's header once. Nothing here needs torch
until a tensor is read.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.adapters import ADAPTER_CONFIG, adapter_error
from plainformer.checkpoint.formats import (
    find_weights,
    open_gguf_model,
    open_weights,
    read_json_object,
    read_json_objects,
    with_scales,
)
from plainformer.checkpoint.formats.source import WEIGHT_FILES
from plainformer.checkpoint.hub import Part
from plainformer.checkpoint.references import Files, resolve
from plainformer.config import ModelConfig
from plainformer.config.checks import reading
from plainformer.config.values import no_effect
from plainformer.errors import CheckpointError, UsageError
from plainformer.families import CONVENTIONS, completed, config_from_dict, from_gguf, refuse_own_code, table_for
from plainformer.families.hf_config import HfConfig
from plainformer.families.quantised import block_size

if TYPE_CHECKING:
    from typing import Self

    from plainformer.checkpoint.formats import TensorSource
    from plainformer.checkpoint.rows import WeightTable
    from plainformer.inputs.text.tokenizer import Tokenizer

CONFIG = "config.json"


def open_checkpoint(
    ref: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    family: str | None = None,
    part: Part = "model",
) -> Checkpoint:
    """Open a reference, downloading it first when it names a Hub repository; arguments and errors as `resolve`'s.

    `family` is the `model_type` to read a folder's `config.json` as, whatever it says itself.
    """
    files = resolve(ref, revision=revision, token=token, part=part)
    if files.path.is_dir():
        return FolderCheckpoint(files, family)
    no_effect(family is not None, "family", "on a GGUF file, which names its architecture")
    return GgufCheckpoint(files)


class Checkpoint(ABC):
    """A checkpoint's configuration, weights, tokenizer and companion files.

    Attributes:
        ref: the reference as it was given. revision: the Hub's commit, None for local files.
        path: the folder or the GGUF file. folder: the folder, None where there is only one file.
    """

    config_name = CONFIG  # what messages call the place that the configuration was read from

    def __init__(self, files: Files) -> None:
        self.ref, self.path, self.revision = files.ref, files.path, files.revision
        self.folder = self.path if self.path.is_dir() else None
        self._source: TensorSource | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ref!r})"

    # ---- the configuration

    @cached_property
    @abstractmethod
    def raw_config(self) -> dict[str, Any]:
        """`config.json` as it is, or what it would hold."""

    @property
    def model_type(self) -> str:
        """Return the family's name in `config.json`; "" where there is none."""
        return str(self.raw_config.get("model_type") or "")

    @property
    def architecture(self) -> str:
        """Return the class name in `config.json`, which tells the head; "" where there is none."""
        with reading(self.config_name):
            return next(iter(HfConfig(self.raw_config).texts("architectures")), "")

    @abstractmethod
    def config(self, head: str | None = None) -> ModelConfig:
        """Return the model's configuration; `head` as for `config_from_dict`, which also says what it raises."""

    @abstractmethod
    def config_of(self, raw: dict[str, Any], head: str) -> ModelConfig:
        """Return the configuration that `raw`, a changed `raw_config`, gives a model with that head."""

    # ---- weights

    @abstractmethod
    def rows(self, config: ModelConfig) -> WeightTable:
        """Return the weight rows that map this checkpoint's tensors to a model's parameters."""

    def tensors(self) -> TensorSource:
        """Return the weights, opened once and closed with the checkpoint. Raises CheckpointError."""
        if self._source is None:
            self._source = self._open()
        return self._source

    @abstractmethod
    def _open(self) -> TensorSource: ...

    # ---- what comes with them

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Raises CheckpointError where there is none."""

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a companion file such as "generation_config.json"; None where there is none."""
        path = self._companion(name)
        return read_json_object(path) if path is not None else None

    def json_list(self, name: str) -> list[dict[str, Any]] | None:
        """Return the objects that a companion file such as "modules.json" lists; None where there is none."""
        path = self._companion(name)
        return read_json_objects(path) if path is not None else None

    def _companion(self, name: str) -> Path | None:
        path = self.folder / name if self.folder is not None else None
        return path if path is not None and path.is_file() else None

    def tensors_in(self, name: str) -> TensorSource:
        """Return the weights of a part that has a folder of its own; the caller closes them. Raises CheckpointError."""
        return open_weights(find_weights(self.need_folder(f"folder {name!r}") / name))

    def need_folder(self, what: str) -> Path:
        """Return the folder, for what can only be in one. Raises UsageError where there is only one file."""
        if self.folder is None:
            raise UsageError(f"{self.ref} has no {what}: it is a single file", "load the model from a folder")
        return self.folder

    def save_companions(self, folder: str | os.PathLike[str], names: Iterable[str]) -> None:
        """Copy those of the named companion files that exist. Raises CheckpointError."""
        for name in names if self.folder is not None else ():
            source, target = self.path / name, Path(folder) / name
            if not source.is_file() or source.resolve() == target.resolve():
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
            except OSError as error:
                raise CheckpointError(f"cannot write {target}: {error.strerror}", "choose another folder") from None

    # ---- an open file

    def close(self) -> None:
        """Let go of the weight files; tensors that were read stay valid. Asking for more opens them again."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FolderCheckpoint(Checkpoint):
    """A folder as Hugging Face libraries write it."""

    def __init__(self, files: Files, family: str | None = None) -> None:
        super().__init__(files)
        self._family = family

    def config(self, head: str | None = None) -> ModelConfig:
        with reading(self.config_name):
            if self._family is None:
                refuse_own_code(self.raw_config)
        return config_from_dict(self.raw_config, head, self.config_name)

    def config_of(self, raw: dict[str, Any], head: str) -> ModelConfig:
        with reading(self.config_name):
            if self._family is None:
                refuse_own_code(self.raw_config)
        return config_from_dict(raw, head, self.config_name)

    def rows(self, config: ModelConfig) -> WeightTable:
        return table_for(config).for_names(self.tensors().names())

    def tokenizer(self) -> Tokenizer:
        from plainformer.inputs.text.tokenizer import Tokenizer

        there = (self.path / CONFIG).is_file()
        config = self.raw_config if there else completed({}, self._family)  # a tokenizer needs none
        return Tokenizer.from_folder(self.path, config, CONVENTIONS)

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        return completed(read_json_object(self.path / CONFIG), self._family)

    def _open(self) -> TensorSource:
        adapter = self.path / ADAPTER_CONFIG
        if adapter.is_file() and not any((self.path / name).exists() for name in WEIGHT_FILES):
            raise adapter_error(repr(self.ref), adapter)
        return with_scales(open_weights(find_weights(self.path)), block_size(self.raw_config))


class GgufCheckpoint(Checkpoint):
    """A GGUF file, which holds the weights, the configuration and the tokenizer."""

    config_name = from_gguf.WHERE

    def config(self, head: str | None = None) -> ModelConfig:
        return from_gguf.model_config(self.raw_config, self._gguf_architecture, head)

    def config_of(self, raw: dict[str, Any], head: str) -> ModelConfig:
        return config_from_dict(raw, head, self.config_name)

    def rows(self, config: ModelConfig) -> WeightTable:
        return from_gguf.table_for(config, self._gguf_architecture)

    def tokenizer(self) -> Tokenizer:
        from plainformer.inputs.text.tokenizer import Tokenizer

        return Tokenizer.from_gguf(self.tensors().metadata)

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        return from_gguf.config_json(self.tensors())

    @cached_property
    def _gguf_architecture(self) -> str:
        return from_gguf.Metadata(self.tensors()).architecture

    def _open(self) -> TensorSource:
        return open_gguf_model(self.path)
