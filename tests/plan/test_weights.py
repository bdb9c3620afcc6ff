"""Bytes of weights, counted, are those of the storages of a loaded model, and those of its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import nn

from plainformer.checkpoint.formats.gguf_file import QUANTISED, STORED, open_gguf
from plainformer.config.layout import Layout
from plainformer.config.local import local
from plainformer.families import config_from_dict
from plainformer.loading import load_model
from plainformer.model.fast.packed import KernelWeight
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.initial import initialise
from plainformer.model.linear import outermost
from plainformer.model.transformer import Transformer
from plainformer.plan.inference import loading_of
from plainformer.plan.stored import BLOCKS, NUMBERS, stored_bytes
from plainformer.plan.weights import Loading, usual_backend, weights
from plainformer.plan.workload import Workload
from plainformer.planning import plan
from plainformer.saving import save_model
from tests.support.every_config import every_config
from tests.support.gguf_files import save_as, write_gguf
from tests.support.memory import allocated
from tests.support.models import make

SOME = list(every_config())[::14]


def storages(model: nn.Module) -> int:
    """Bytes of all storages of parameters and packed weights, each once."""
    tensors: list[torch.Tensor] = list(model.parameters())
    for linear in outermost(model):
        packed = linear.packed
        if isinstance(packed, KernelWeight):
            tensors += [t for t in (packed.stored_OI, packed.scales_O, packed.bias_O) if t is not None]
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def filled(name: str) -> Transformer:
    return initialise(Transformer(every_config()[name]), seed=0).eval()


@pytest.mark.parametrize("backend", ["plain", "fused", "compiled", "int8"])
@pytest.mark.parametrize("name", SOME)
def test_a_prepared_model(name: str, backend: str) -> None:
    model = filled(name)
    prepare_for_inference(model, backend)
    found = weights(every_config()[name], Loading(backend=backend, mapped=False))
    assert found.bytes == found.own == storages(model)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bart", "t5"])
def test_a_loaded_model(name: str, backend: str, dtype: str, tmp_path: Path) -> None:
    """Own memory is what the allocator has given out; the rest are pages of the file."""
    model = make(name)
    save_model(model, tmp_path)
    kept: list[Any] = []
    load_model(tmp_path, backend=backend, dtype=dtype)  # what is imported on the way
    found = allocated(lambda: kept.append(load_model(tmp_path, backend=backend, dtype=dtype)))
    chosen = usual_backend(model.config, dtype) if backend == "auto" else backend
    expected = weights(model.config, Loading(dtype=dtype, backend=chosen, transposed=name == "gpt2"))
    assert expected.bytes == sum(p.nbytes for p in kept[0].parameters()) or chosen != "plain"
    assert 0 <= found.left - expected.own < 100  # rotations' frequencies, epsilons
    assert found.peak <= expected.peak + 16384
    assert expected.mapped == 0 or dtype == "fp32"


@pytest.mark.parametrize("kind", ["int8", "onednn", "fused", "compiled"])
def test_the_peak_of_preparing(kind: str) -> None:
    """Loading needs more than what is held in the end: a weight's old and its new form, one weight after the other."""
    raw = dict(
        model_type="llama", vocab_size=300, hidden_size=256, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config = config_from_dict(raw)
    keep: list[Transformer] = []

    def run() -> None:
        keep.append(initialise(Transformer(config), seed=0))
        prepare_for_inference(keep[0], kind)

    found, expected = allocated(run), weights(config, Loading(backend=kind, mapped=False))
    assert found.left == pytest.approx(expected.own, rel=0.01)
    assert found.peak == pytest.approx(expected.peak, rel=0.02)


def test_eight_bits_by_tensor() -> None:
    """A small tied model in int8 is far from a byte for each parameter."""
    sizes: dict[str, Any] = dict(
        model_type="llama", vocab_size=49152, hidden_size=576, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    smollm2 = config_from_dict({**sizes, "num_hidden_layers": 30})
    found = weights(smollm2, Loading(backend="int8"))
    assert 247e6 < found.bytes < 249e6  # 135 million parameters
    plain = weights(smollm2)
    assert plain.mapped == plain.bytes == 4 * 134_515_008
    part = weights(config_from_dict({**sizes, "num_hidden_layers": 6}), Loading(backend="int8")).bytes
    assert part / (weights(config_from_dict({**sizes, "num_hidden_layers": 6})).bytes / 4) == pytest.approx(
        3.29, abs=0.01
    )


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def test_block_sizes_are_those_of_the_format() -> None:
    theirs = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {*BLOCKS} == {*QUANTISED}
    assert all(BLOCKS[name] == theirs[name] for name in QUANTISED)
    assert all(NUMBERS[name] == theirs[name][1] for name in STORED)


def quantised(path: Path, kinds: list[str]) -> Path:
    """A file with a tensor of each kind."""
    writer = gguf.GGUFWriter(path, "llama")
    for place, kind in enumerate(kinds):
        type_ = gguf.GGMLQuantizationType[kind]
        raw = np.zeros((3 + place, 2 * gguf.GGML_QUANT_SIZES[type_][1]), np.uint8)
        writer.add_tensor(f"t{place}", raw, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_without_its_metadata(tmp_path: Path) -> None:
    kinds = [kind for kind in QUANTISED if kind != "NVFP4"]
    for path in (quantised(tmp_path / "all.gguf", kinds), write_gguf(tmp_path / "tiny.gguf")):
        source, reader = open_gguf(path), gguf.GGUFReader(path)
        sizes = [stored_bytes(source.stored(name), source.shape(name)) for name in source.names()]
        assert sizes == [int(tensor.n_bytes) for tensor in reader.tensors]
        aligned = sum(-(-size // 32) * 32 for size in sizes)
        assert path.stat().st_size - reader.data_offset in (aligned, aligned - (-sizes[-1] % 32))


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "F32", "BF16"])
def test_a_file_as_it_is_held(kind: str, tmp_path: Path) -> None:
    """Whatever the file packs, memory holds it in the model's dtype: fp32 on a CPU."""
    path = tmp_path / "model.gguf"
    save_as(write_gguf(tmp_path / "plain.gguf"), path, kind)
    keep: list[Any] = []
    load_model(path, backend="plain")
    found = allocated(lambda: keep.append(load_model(path, backend="plain")))
    expected = weights(keep[0].config, Loading(stored=plan(path).stored))
    assert expected.bytes == sum(p.nbytes for p in keep[0].parameters())
    assert 0 <= found.left - expected.own < 4096 and 0 <= found.peak - expected.peak < 8192


@pytest.mark.parametrize("asked", ["fp32", "bf16", "int8", "training"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16", "F32"])
def test_the_plan_of_a_file_is_what_loading_does(kind: str, asked: str, tmp_path: Path) -> None:
    """Held in the end, and at the worst moment of loading: blocks are unpacked, put in another order, and converted."""
    path = tmp_path / "model.gguf"
    save_as(write_gguf(tmp_path / "plain.gguf"), path, kind)
    options: dict[str, Any] = {"quantize": "int8"} if asked == "int8" else {"dtype": asked}
    options = {"purpose": "train"} if asked == "training" else options
    workload = Workload(purpose="training") if asked == "training" else Workload(dtype=asked)
    made = plan(path, workload)
    keep: list[Any] = []
    load_model(path, **options)
    found = allocated(lambda: keep.append(load_model(path, **options)))
    loading = loading_of(made.config, workload, made.stored)
    expected = weights(made.config, loading)
    assert 0 <= found.left - expected.own < 4096 and abs(found.peak - expected.peak) < 8192
    load = made.worst.phases[0]
    assert load.name == "load" and load.bytes == expected.peak + expected.mapped
    assert sum(one.loaded or 0 for one in made.file) == expected.bytes == load.parts()["weights"]


def test_the_plan_has_the_bytes_of_a_file_by_type(tmp_path: Path) -> None:
    """All of the file: its tensors by their types, and what no tensor has. `gguf` says the same of each."""
    path = tmp_path / "model.gguf"
    save_as(write_gguf(tmp_path / "plain.gguf"), path, "Q5_1")
    made, reader = plan(path), gguf.GGUFReader(path)
    theirs: dict[str, list[Any]] = {}
    for tensor in reader.tensors:
        theirs.setdefault(tensor.tensor_type.name, []).append(tensor)
    assert {one.kind: one.bytes for one in made.file} == {
        kind: sum(int(tensor.n_bytes) for tensor in tensors) for kind, tensors in theirs.items()
    }
    assert [one.tensors for one in made.file] == [len(theirs[one.kind]) for one in made.file]
    assert [one.numbers for one in made.file] == [
        sum(int(tensor.n_elements) for tensor in theirs[one.kind]) for one in made.file
    ]
    said = made.to_dict()["file"]
    padding = sum(-int(tensor.n_bytes) % 32 for tensor in reader.tensors)
    assert said["bytes"] == path.stat().st_size == said["rest"] + sum(one["bytes"] for one in said["types"].values())
    assert 0 <= said["rest"] - reader.data_offset <= padding
    assert plan(tmp_path / "plain.gguf", tp=2).file[0].loaded is None  # no device has all of it


# ---- layouts ------------------------------------------------------------------------------------------------------

# Feed-forward sizes that two and four ranks can divide.
DIVISIBLE: dict[str, dict[str, int]] = {
    "llama": {"intermediate_size": 64},
    "gpt2": {},
    "bart": {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    "t5": {"d_ff": 64},
}


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(pp=2), Layout(tp=2, pp=2), Layout(tp=4)], ids=str)
@pytest.mark.parametrize("name", DIVISIBLE)
def test_a_rank_of_a_layout(name: str, layout: Layout) -> None:
    """Each rank's own, as its `Local` says; together they have every parameter at least once."""
    config = make(name, **DIVISIBLE[name]).config
    layout.check(config)
    total = 0
    for rank in range(layout.world):
        mine = local(config, layout, rank)
        held = weights(config, Loading(mapped=False), mine)
        assert held.bytes == sum(4 * math.prod(part.local_shape) for part in mine.parts.values())
        total += held.bytes
    assert total >= weights(config).bytes


def test_shares_of_zero() -> None:
    config = make("llama").config
    whole = weights(config, Loading(mapped=False)).bytes
    third = weights(config, Loading(mapped=False), zero=3, dp=3).bytes
    assert whole / 3 <= third < whole / 3 * 1.1
    assert weights(config, Loading(mapped=False), zero=1, dp=3).bytes == whole
