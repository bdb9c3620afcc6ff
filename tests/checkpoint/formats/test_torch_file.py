"""PyTorch `.bin` files: weights come in, code does not."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.checkpoint.formats import open_torch, open_weights
from plainformer.errors import CheckpointError, UsageError
from tests.support.fuzz import Outcomes

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def saved(value: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


SMALL = {zipped: saved(TENSORS, zipped=zipped) for zipped in (True, False)}


class Evil:
    """What a hostile pickle does: name a function and its arguments."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_both_generations(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    tied = torch.ones(2, 2)
    tensors = collections.OrderedDict({**TENSORS, "p": torch.nn.Parameter(tied), "tied": tied, "t": TENSORS["a"].T})
    tensors |= {"scalar": torch.tensor(3), "empty": torch.empty(0, 2), "bool": torch.tensor([True, False])}
    path.write_bytes(saved(tensors, zipped=zipped))
    source = open_weights([path])
    assert source.names() == list(tensors)
    for name, tensor in tensors.items():
        assert source.shape(name) == tuple(tensor.shape) and source.stored(name) == str(tensor.dtype)[6:]
        assert torch.equal(source.read(name), tensor) and not source.read(name).requires_grad
    assert source.describe()["format"].startswith("pytorch .bin")
    source.close()
    with pytest.raises((UsageError, CheckpointError)):
        source.read("a")


def test_zip_files_are_mapped_privately(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(SMALL[True])
    tensor = open_torch(path).read("a")
    tensor[0, 0] = 99.0
    assert path.read_bytes() == SMALL[True]


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "nested"])
def test_code_never_runs(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    evil: Any = {"a": torch.ones(1), "b": Evil(marker)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(Evil(marker), protocol=2))
    elif kind == "nested":
        path.write_bytes(saved({"state_dict": {"a": [Evil(marker)]}}))
    else:
        path.write_bytes(saved(evil, zipped=kind == "zip"))
    with pytest.raises(CheckpointError, match=r"contains code .*refused; nothing was executed") as caught:
        open_weights([path])
    assert not marker.exists()
    assert os.system.__module__ + ".system" in str(caught.value) and "safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "value, cause",
    [
        ({"state_dict": TENSORS, "epoch": 3}, "training checkpoint: its weights are under the key 'state_dict'"),
        ({"model": TENSORS, "optimizer": {}}, "under the key 'model'"),
        ({"a": torch.ones(1), "step": 3}, "'step' is an int, not a tensor"),
        ({"a": [torch.ones(1)]}, "'a' is a list"),
        ({1: torch.ones(1)}, "the key 1 is not a tensor name"),
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({"a": torch.ones(1).expand(10**12)}, "claims 4,000,000,000,000 bytes"),
        ({"a": torch.eye(3).to_sparse()}, "not a plain dense tensor"),
        ({"a": torch.ones(3, device="meta")}, "device meta"),
    ],
)
def test_what_is_not_a_flat_dictionary_of_tensors(tmp_path: Path, value: object, cause: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(saved(value))
    with pytest.raises(CheckpointError, match=cause):
        open_torch(path)


def test_shape_beyond_its_storage(tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.storage.TypedStorage(
                wrap_storage=torch.UntypedStorage(16), dtype=torch.float32, _internal=True
            )
            return torch._utils._rebuild_tensor_v2, (storage, 0, (2**40,), (1,), False, collections.OrderedDict())

    for zipped in (True, False):
        path = tmp_path / f"{zipped}.bin"
        path.write_bytes(saved({"a": Forged()}, zipped=zipped))
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            open_torch(path)


def rezip(data: bytes, compression: int = zipfile.ZIP_STORED, extra: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for name, content in (extra or {}).items():
            new.writestr(name, content)
    return buffer.getvalue()


def test_forged_archives(tmp_path: Path) -> None:
    bomb = saved({"a": torch.zeros(10**7)})
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("readme.txt", "hello")
    script = rezip(SMALL[True], extra={"archive/code/__torch__.py": b"", "archive/constants.pkl": b""})
    for content, cause in (
        (rezip(bomb, zipfile.ZIP_DEFLATED), "compressed records"),
        (plain.getvalue(), "not one from torch.save"),
        (script, "TorchScript"),
        (b"PK\x03\x04" + b"\0" * 100, "zip directory"),
        (SMALL[True][:-30], "zip directory"),
        (SMALL[False][:-10], "damaged"),
        (b"\x80\x02}q\x00.", "damaged"),
        (b"", "is empty"),
        (b"<html></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ):
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=cause):
            open_weights([path])


@pytest.mark.parametrize("zipped", [True, False])
def test_fuzz(tmp_path: Path, zipped: bool) -> None:
    outcomes = Outcomes()

    @settings(max_examples=250, deadline=None)
    @given(draw=st.data())
    def check(draw: st.DataObject) -> None:
        data = bytearray(SMALL[zipped])
        for _ in range(draw.draw(st.integers(0, 4))):
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        if draw.draw(st.booleans()):
            data = data[: draw.draw(st.integers(0, len(data)))]
        path = tmp_path / "pytorch_model.bin"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        with outcomes.one():
            source = open_weights([path])
            for name in source.names():
                tensor = source.read(name).clone()
                assert tuple(tensor.shape) == source.shape(name)

    check()
    outcomes.check()
