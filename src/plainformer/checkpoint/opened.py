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
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.adapters import HEADS, AdapterFiles, base_of, is_adapter, read_adapter, with_adapter
from plainformer.checkpoint.formats import (
    find_weights,
    open_gguf_model,
    open_weights,
    read_json_object,
    read_json_objects,
    with_scales,
)
from plainformer.checkpoint.hub import Part
from plainformer.checkpoint.references import Files, resolve
from plainformer.checkpoint.small_files import MODULES, holds_tokenizer
from plainformer.config import ModelConfig
from plainformer.config.checks import reading
from plainformer.config.values import no_effect
from plainformer.errors import CheckpointError, HubError, UsageError, opt
from plainformer.families import (
    CONVENTIONS,
    completed,
    config_from_dict,
    from_gguf,
    refuse_own_code,
    table_for,
    with_architecture,
)
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
    adapters: Sequence[str | os.PathLike[str]] = (),
) -> Checkpoint:
    """Open a reference, downloading it first when it names a Hub repository; arguments and errors as `resolve`'s.

    The reference of an adapter is opened as its base model with it.

    Args:
        family: the `model_type` to read a folder's `config.json` as, whatever it says itself.
        adapters: references of adapters that are added to the weights, one after the other.
    """
    files = resolve(ref, revision=revision, token=token, part=part)
    added = [resolve(adapter, token=_hub_token(adapter, token), part=part) for adapter in adapters]
    if files.path.is_dir() and is_adapter(files.path):
        added, files = [files, *added], _base_files(files, token, part)
    if added and files.path.is_dir():
        return AdaptedCheckpoint(files, added, family)
    if added:
        what = f"{files.ref} is a GGUF file, whose weights have other names than adapters"
        raise UsageError(what, "load the base model from its folder or from the Hub")
    if files.path.is_dir():
        return FolderCheckpoint(files, family)
    no_effect(family is not None, "family", "on a GGUF file, which names its architecture")
    return GgufCheckpoint(files)


def _base_files(adapter: Files, token: str | None, part: Part) -> Files:
    """Return the files of an adapter's base model."""
    base = base_of(adapter.path, repr(adapter.ref))
    try:
        return resolve(base, token=_hub_token(base, token), part=part)
    except (CheckpointError, HubError, UsageError) as error:
        what = f"{adapter.ref!r} is an adapter for {base!r}, which cannot be opened: {error.what}"
        fix = f"load the base model from where it is, with {opt('adapter', adapter.ref)}"
        raise type(error)(what, fix) from error


def _hub_token(ref: str | os.PathLike[str], token: str | None) -> str | None:
    """Return a Hub token for what is not on this machine."""
    return None if Path(ref).expanduser().exists() else token


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
        return with_scales(open_weights(find_weights(self.path)), block_size(self.raw_config))


class AdaptedCheckpoint(FolderCheckpoint):
    """A folder's model with adapters, whose products are added to the weights as they are read."""

    def __init__(self, files: Files, adapters: Sequence[Files], family: str | None = None) -> None:
        super().__init__(files, family)
        self.adapters = [read_adapter(adapter.path, repr(adapter.ref)) for adapter in adapters]
        self._names = [repr(adapter.ref) for adapter in adapters]

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """The base model's config.json, with the head that an adapter brings."""
        raw = completed(read_json_object(self.path / CONFIG), self._family)
        for adapter in self.adapters:
            raw = self._with_head(raw, adapter)
        return raw

    def _with_head(self, raw: dict[str, Any], adapter: AdapterFiles) -> dict[str, Any]:
        own = adapter.folder / CONFIG
        if own.is_file():  # this library writes one beside adapters: it names the labels
            return read_json_object(own)
        head = HEADS.get(str(adapter.values.get("task_type")))
        if head is None or not adapter.whole:
            return raw
        adapted = with_architecture(raw, head)
        if head == "span":
            return adapted
        table = table_for(config_from_dict(adapted, head))
        outputs = (own for name, own in adapter.whole.items() if _is_output(table, name))
        count = next((adapter.source.shape(own)[0] for own in outputs), 0)
        return (
            {**adapted, "id2label": {str(number): f"LABEL_{number}" for number in range(count)}} if count else adapted
        )

    def tokenizer(self) -> Tokenizer:
        for adapter in self.adapters:
            if holds_tokenizer(path.name for path in adapter.folder.iterdir()):
                from plainformer.inputs.text.tokenizer import Tokenizer

                return Tokenizer.from_folder(adapter.folder, self.raw_config, CONVENTIONS)
        return super().tokenizer()

    def _companion(self, name: str) -> Path | None:
        """Return an adapter's own file, else the base model's; the steps after a base model are not those of a new head."""
        own = (adapter.folder / name for adapter in self.adapters)
        found = next((path for path in own if path.is_file()), None)
        if found is None and name == MODULES and any(adapter.whole for adapter in self.adapters):
            return None
        return found or super()._companion(name)

    def _open(self) -> TensorSource:
        source = super()._open()
        for adapter, named in zip(self.adapters, self._names, strict=True):
            source = with_adapter(source, adapter, named)
        return source


def _is_output(table: WeightTable, name: str) -> bool:
    """Return whether a tensor is the matrix that a head gives its answers by."""
    found = table.find(name)
    return found is not None and found[1] == ("head.out.weight",)


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
