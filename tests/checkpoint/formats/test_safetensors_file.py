"""Safetensors: what is read and written, and that no forged header does more than raise a CheckpointError."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from plainformer.checkpoint.formats import find_weights, open_safetensors, open_weights, write_safetensors
from plainformer.errors import CheckpointError, UsageError
from tests.support import ROOT
from tests.support.fuzz import Outcomes

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
SMALL = save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}, {"format": "pt"})


def forge(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: str, shape: list[Any], start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_every_dtype_shape_and_metadata(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt", "more": "é"})
    source = open_safetensors(tmp_path / "model.safetensors")
    assert set(source.names()) == set(tensors) and source.metadata == {"format": "pt", "more": "é"}
    for name, tensor in tensors.items():
        assert source.shape(name) == tuple(tensor.shape) and source.stored(name) == str(tensor.dtype)[6:]
        read = source.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    assert source.describe()["tensors"] == str(len(tensors))
    with pytest.raises(CheckpointError, match=r"did you mean 'scalar'"):
        source.read("scalr")


def test_data_that_is_not_aligned(tmp_path: Path) -> None:
    header = json.dumps({"a": entry("F32", [2], 0, 8)}).encode()
    for padding in range(8):
        path = tmp_path / f"{padding}.safetensors"
        source = open_safetensors(forge(path, header + b" " * padding, b"\0\0\x80\x3f\0\0\0\x40"))
        assert (source.read("a") + 1).tolist() == [2.0, 3.0]


def test_reading_maps_the_file_and_writing_to_a_tensor_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    source = open_safetensors(path)
    tensor = source.read("w")
    source.close()
    tensor[0] = 7.0
    assert tensor[0] == 7.0 and path.read_bytes() == before
    with pytest.raises(UsageError, match="closed"):
        source.read("w")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_the_pages_touched(tmp_path: Path) -> None:
    save_file({f"w{i}": torch.zeros(4 * 2**20) for i in range(8)}, tmp_path / "model.safetensors")  # 128 MB
    code = (
        "import sys, torch, pathlib; from plainformer.checkpoint.formats import open_safetensors\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return {l.split(':')[0]: int(l.split()[1]) for l in lines if l.startswith(('RssAnon', 'VmRSS'))}\n"
        "s = open_safetensors(pathlib.Path(sys.argv[1])); s.read('w0')[:1].sum(); before = anonymous()\n"
        "ts = [s.read(n) for n in s.names()]; lazy = anonymous()\n"
        "total = sum(float(t.sum()) for t in ts); full = anonymous()\n"
        "print((lazy['VmRSS'] - before['VmRSS']) // 1024, (full['RssAnon'] - before['RssAnon']) // 1024)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "model.safetensors")]
    lazy, copied = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.split()
    assert int(lazy) < 8 and int(copied) < 8  # megabytes: reading loads nothing, summing copies nothing


BAD_HEADERS: list[tuple[str, Any, bytes, str]] = [
    ("out of bounds", {"a": entry("F32", [4], 0, 16)}, b"1234", "truncated"),
    ("overlap", {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"123456", "invalid offset"),
    ("hole", {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123", "invalid offset"),
    ("unclaimed data", {"a": entry("U8", [1], 0, 1)}, b"123", "not fully covered"),
    ("shape and span differ", {"a": entry("F32", [3], 0, 4)}, b"1234", "invalid shape"),
    ("backwards", {"a": entry("U8", [1], 4, 3)}, b"1234", "invalid offset"),
    ("negative offset", {"a": entry("U8", [1], -1, 0)}, b"1234", "integer `-1`"),
    ("negative size", {"a": entry("U8", [-1], 0, 1)}, b"1", "integer `-1`"),
    ("size overflow", {"a": entry("F32", [2**62, 2**62, 4], 0, 0)}, b"", "overflow"),
    ("beyond int64", {"a": entry("U8", [2**64], 0, 0)}, b"", "expected usize"),
    ("too many sizes", {"a": entry("U8", [1] * 100_000, 0, 1)}, b"1", "at most 64"),
    ("boolean size", {"a": entry("U8", [True], 0, 1)}, b"1", "boolean `true`"),
    ("float offset", {"a": entry("U8", [1], 0.0, 1.0)}, b"1", "floating point"),
    ("unknown dtype", {"a": entry("F5_X", [1], 0, 1)}, b"1", "unknown variant `F5_X`"),
    ("dtype without a torch equivalent", {"a": entry("F4", [2], 0, 1)}, b"1", "'F4' is not supported"),
    ("no dtype", {"a": {"shape": [], "data_offsets": [0, 1]}}, b"1", "missing field `dtype`"),
    ("entry is a list", {"a": [1]}, b"", "expected string or map"),
    ("metadata is a list", {"__metadata__": []}, b"", "sequence, expected a map"),
    ("metadata holds numbers", {"__metadata__": {"a": 1}}, b"", "expected a string"),
    ("duplicate name", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"1", "'a' occurs twice"),
    ("deep nesting", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b"", "nested too deeply"),
    ("huge number", b'{"a":' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
    ("not UTF-8", b'{"a\xff":1}', b"", "not valid JSON"),
    ("cut JSON", b'{"a":', b"", "not valid JSON"),
]


@pytest.mark.parametrize("header, data, cause", [bad[1:] for bad in BAD_HEADERS], ids=[bad[0] for bad in BAD_HEADERS])
def test_forged_headers(tmp_path: Path, header: Any, data: bytes, cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause) as caught:
        open_safetensors(forge(tmp_path / "model.safetensors", header, data))
    assert str(tmp_path / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**12, 3000])
def test_lying_header_length_allocates_nothing(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match="truncated"):
        open_safetensors(forge(tmp_path / "model.safetensors", {"a": 1}, length=length))


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "is empty"),
        (b"abc", "damaged"),
        (b"\0" * 100, "zero bytes"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer"),
        (b"\x80\x02}q\x00.", "Python pickle"),
        (b"PK\x03\x04" + b"\0" * 40, "zip archive"),
        (b"GGUF\x03\0\0\0" + b"\0" * 40, "GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
        (b'{"error": "not found"}', "JSON"),
    ],
)
def test_misnamed_files(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=cause):
        open_weights([path])


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    os.mkfifo(tmp_path / "p.safetensors")
    (tmp_path / "l.safetensors").symlink_to(tmp_path / "gone")
    for name, cause in (("d", "not a regular file"), ("p", "not a regular file"), ("l", "link to a file that is gone")):
        with pytest.raises(CheckpointError, match=cause):
            open_safetensors(tmp_path / f"{name}.safetensors")


def test_fuzz(tmp_path: Path) -> None:
    outcomes = Outcomes()

    @settings(max_examples=300, deadline=None)
    @given(
        cut=st.integers(0, len(SMALL)),
        flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4),
    )
    def check(cut: int, flips: list[tuple[int, int]]) -> None:
        data = bytearray(SMALL)
        for position, value in flips:
            data[position] = value
        path = tmp_path / "model.safetensors"
        path.unlink(missing_ok=True)  # a new inode each time: the last one may still be mapped
        path.write_bytes(data[: cut if cut % 3 == 0 else len(data)])
        with outcomes.one():
            source = open_weights([path])
            for name in source.names():
                assert tuple(source.read(name).shape) == source.shape(name)

    check()
    outcomes.check()


# ------------------------------------------------------------------------------------------------------------ writing


def test_write_one_file(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"a": base, "transposed": base.T, "tied": base, "row": base[1], "half": torch.ones(2).bfloat16()}
    paths = write_safetensors(iter(tensors.items()), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["model.safetensors"] and os.listdir(paths[0].parent) == [
        "model.safetensors"
    ]
    source = open_weights(find_weights(tmp_path / "new" / "folder"))
    assert all(torch.equal(source.read(name), tensor) for name, tensor in tensors.items())
    assert source.metadata == {"format": "pt"}
    assert write_safetensors([], tmp_path / "none")[0].is_file()
    assert open_safetensors(tmp_path / "none" / "model.safetensors").names() == []


def test_write_shards_and_replace_what_was_there(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    (first,) = write_safetensors(tensors.items(), tmp_path)
    paths = write_safetensors(tensors.items(), tmp_path, max_shard_bytes=80)
    assert [path.name for path in paths] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert not first.exists()  # else it would be preferred to the new shards
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200 and index["weight_map"]["t4"] == paths[2].name
    source = open_weights(find_weights(tmp_path))
    assert source.names() == list(tensors) and all(torch.equal(source.read(n), t) for n, t in tensors.items())
    assert source.describe()["files"] == "3"
    write_safetensors([("big", torch.zeros(100))], tmp_path, max_shard_bytes=80)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_overwriting_the_file_one_reads_from(tmp_path: Path) -> None:
    write_safetensors([("w", torch.arange(100.0))], tmp_path)
    source = open_weights(find_weights(tmp_path))
    write_safetensors(((name, source.read(name) * 2) for name in source.names()), tmp_path)
    assert source.read("w")[3] == 3.0 and open_weights(find_weights(tmp_path)).read("w")[3] == 6.0


def test_a_failure_midway_leaves_the_old_weights(tmp_path: Path) -> None:
    write_safetensors([("w", torch.ones(4))], tmp_path)

    def failing() -> Any:
        yield "w", torch.zeros(4)
        yield "v", torch.zeros(4)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match=r"^stop$"):
        write_safetensors(failing(), tmp_path, max_shard_bytes=16)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert open_weights(find_weights(tmp_path)).read("w")[0] == 1.0


def test_write_refuses(tmp_path: Path) -> None:
    one = torch.ones(2)
    bad: list[tuple[list[tuple[str, torch.Tensor]], str]] = [
        ([("a", one), ("a", one)], "given twice"),
        ([("__metadata__", one)], "reserved"),
        ([("a", one.to_sparse())], "no place"),
        ([("a", torch.ones(2, dtype=torch.complex128))], "no place"),
        ([("a", torch.ones(2, device="meta"))], "meta device"),
    ]
    for tensors, cause in bad:
        with pytest.raises(UsageError, match=cause):
            write_safetensors(tensors, tmp_path)
    with pytest.raises(UsageError, match="max_shard_bytes"):
        write_safetensors([], tmp_path, max_shard_bytes=0)
    assert os.listdir(tmp_path) == []


def test_unwritable_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_safetensors([("a", torch.ones(2))], tmp_path / "file" / "folder")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_safetensors([("a", torch.ones(2))], tmp_path / "file")
    if Path("/proc/self").is_dir():  # a folder that not even root can write into
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_safetensors([("a", torch.ones(2))], Path("/proc/self"))
    import shutil

    full = shutil._ntuple_diskusage(100, 100, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(CheckpointError, match="8 bytes are needed, 0 are free"):
        write_safetensors([("a", torch.ones(2))], tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_disk_full_while_writing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, pathlib, torch; from plainformer.checkpoint.formats import write_safetensors\n"
        "from plainformer.errors import CheckpointError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "try: write_safetensors([('a', torch.zeros(2**20))], pathlib.Path(sys.argv[1]))\n"
        "except CheckpointError as error: print(error)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env, check=True
    )
    assert "cannot be written" in out.stdout and os.listdir(tmp_path) == []
