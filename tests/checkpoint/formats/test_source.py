"""Finding the weight files of a folder, indexes that lie, and shards that do not belong together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plainformer.checkpoint.formats import find_weights, open_weights, read_json_object, write_safetensors
from plainformer.errors import CheckpointError, UsageError

INDEX = "model.safetensors.index.json"


def sharded(folder: Path) -> list[Path]:
    return write_safetensors([(f"t{i}", torch.full((4,), float(i))) for i in range(2)], folder, max_shard_bytes=16)


def index(folder: Path, table: Any, name: str = INDEX) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"weight_map": table}))
    return folder


def test_order_of_preference(tmp_path: Path) -> None:
    names = ["pytorch_model.bin.index.json", "pytorch_model.bin", INDEX, "model.safetensors"]
    shard = {INDEX: "x.safetensors", "pytorch_model.bin.index.json": "x.bin"}
    (tmp_path / "x.bin").write_bytes(b"1")
    (tmp_path / "x.safetensors").write_bytes(b"1")
    for name in names:
        if name in shard:
            index(tmp_path, {"a": shard[name]}, name)
        else:
            (tmp_path / name).write_bytes(b"1")
        assert find_weights(tmp_path) == [tmp_path / shard.get(name, name)]


def test_both_kinds_of_shards(tmp_path: Path) -> None:
    paths = sharded(tmp_path)
    assert find_weights(tmp_path) == paths and len(paths) == 2
    folder = tmp_path / "bin"
    index(folder, {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}, "pytorch_model.bin.index.json")
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model-1.bin")
    torch.save({"b": torch.ones(2)}, folder / "pytorch_model-2.bin")
    source = open_weights(find_weights(folder))
    assert source.names() == ["a", "b"] and source.shape("b") == (2,) and source.read("a").dtype == torch.float32


def test_links_as_in_the_download_cache(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "blob")
    snapshot = index(tmp_path / "snapshot", {"a": "model-1.safetensors"})
    (snapshot / "model-1.safetensors").symlink_to("../blob")
    source = open_weights(find_weights(snapshot))
    assert source.read("a").tolist() == [1.0, 1.0]
    (tmp_path / "blob").unlink()
    with pytest.raises(CheckpointError, match=r"missing: model-1\.safetensors"):
        find_weights(snapshot)
    (snapshot / "model.safetensors").symlink_to("../blob")
    with pytest.raises(CheckpointError, match="link to a file that is gone"):
        find_weights(snapshot)


@pytest.mark.parametrize(
    "shard, cause",
    [
        ("../../etc/passwd", "plain file name"),
        ("/etc/passwd", "plain file name"),
        ("sub/model.safetensors", "plain file name"),
        ("..\\model.safetensors", "plain file name"),
        ("C:model.safetensors", "plain file name"),
        ("..", "plain file name"),
        (".hidden.safetensors", "plain file name"),
        ("", "plain file name"),
        ("a\0.safetensors", "plain file name"),
        (INDEX, "not a .safetensors file"),
        ("pytorch_model.bin", "not a .safetensors file"),
        (3, "plain file name"),
        (["a.safetensors"], "plain file name"),
        ("gone.safetensors", "are missing"),
    ],
)
def test_shard_names(tmp_path: Path, shard: Any, cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause):
        find_weights(index(tmp_path, {"a": shard}))


def test_a_shard_that_is_a_folder_or_the_index_itself(tmp_path: Path) -> None:
    folder = index(tmp_path, {"a": "x.safetensors"})
    (folder / "x.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="are missing"):
        find_weights(folder)
    (folder / "x.safetensors").rmdir()
    (folder / "x.safetensors").symlink_to(INDEX)  # an index that leads back to itself
    with pytest.raises(CheckpointError, match="JSON"):
        open_weights(find_weights(folder))
    (folder / "y.safetensors").symlink_to("y.safetensors")
    with pytest.raises(CheckpointError, match="are missing"):
        find_weights(index(folder, {"a": "y.safetensors"}))


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "is empty"),
        (b"not json", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "object was expected, not a list"),
        (b"{}", "no 'weight_map'"),
        (b'{"weight_map": []}', "no 'weight_map'"),
        (b'{"weight_map": {}}', "no 'weight_map'"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<html>", "HTML"),
    ],
)
def test_damaged_indexes(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=cause):
        find_weights(tmp_path)


def test_json_of_absurd_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 2**34)
    with pytest.raises(CheckpointError, match="too much"):
        read_json_object(path)


def test_index_and_shards_of_different_checkpoints(tmp_path: Path) -> None:
    paths = sharded(tmp_path)
    index(tmp_path, {"t0": paths[0].name, "t1": paths[1].name, "t2": paths[1].name})
    with pytest.raises(CheckpointError, match="index says that this file holds t2, but it does not"):
        open_weights(find_weights(tmp_path))
    index(tmp_path, {"t0": paths[1].name, "t1": paths[0].name})
    with pytest.raises(CheckpointError, match="different checkpoints"):
        open_weights(find_weights(tmp_path))
    index(tmp_path, {"t0": paths[0].name, "other": paths[1].name})
    with pytest.raises(CheckpointError, match="holds other"):
        open_weights(find_weights(tmp_path))


def test_the_same_name_in_two_shards(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"a": torch.ones(1)}, tmp_path / f"{number}.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' is in both 1\.safetensors and 2\.safetensors"):
        open_weights([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])


def test_nothing_usable_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights that can be loaded: nothing"):
        find_weights(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"no weights that can be loaded: notes\.txt"):
        find_weights(tmp_path)
    why = {
        "tf_model.h5": "TensorFlow weights",
        "flax_model.msgpack": "Flax weights",
        "model.onnx": "ONNX",
        "adapter_model.safetensors": "LoRA",
        "model.fp16.safetensors": "not under the name",
        "m.gguf": "pass the file itself",
    }
    for name in why:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"m.gguf") as caught:
        find_weights(tmp_path)
    assert all(f"{name} ({cause}" in str(caught.value) or cause in str(caught.value) for name, cause in why.items())
    with pytest.raises(CheckpointError, match="is not a folder"):
        find_weights(tmp_path / "notes.txt")


def test_open_refuses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weight file"):
        open_weights([])
    with pytest.raises(CheckpointError, match=r"known: \.safetensors"):
        open_weights([tmp_path / "model.h5"])
