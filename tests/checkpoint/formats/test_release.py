"""Giving mapped pages back: the tensors stay what they are, and the memory is the system's again."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from plainformer.checkpoint.formats import open_weights, write_safetensors


def resident_kib(path: Path) -> int:
    """How much of a file's mapping is in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows, and takes back, a mapping's pages")
def test_released_pages_leave_and_come_back(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(512, 1024, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    write_safetensors(tensors.items(), tmp_path)
    path = tmp_path / "model.safetensors"
    source = open_weights([path])
    read = {name: source.read(name) for name in tensors}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert resident_kib(path) >= 8 * 1024
    source.release()
    assert resident_kib(path) == 0
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    source.close()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    source.release()  # nothing left to give back


def test_release_of_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((64, 64), float(i)) for i in range(3)}
    shards = write_safetensors(tensors.items(), tmp_path, max_shard_bytes=64 * 64 * 4)
    source = open_weights(shards)
    read = {name: source.read(name) for name in tensors}
    source.release()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_tensor_at_an_odd_place(tmp_path: Path) -> None:
    """The format aligns nothing: a tensor may start at any byte."""
    import json
    import struct

    import numpy as np

    value = np.arange(6, dtype=np.float32)
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [3, 27]},
        "c": {"dtype": "F32", "shape": [0, 4], "data_offsets": [27, 27]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\x01\x02\x03" + value.tobytes())
    source = open_weights([path])
    assert source.read("a").tolist() == [1, 2, 3]
    assert source.read("b").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert source.read("c").shape == (0, 4)
