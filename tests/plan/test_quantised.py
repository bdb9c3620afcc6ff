"""Weights that are rounded, or stay in a file's blocks: what `plan` and `info` say is what loading and running allocate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.config.layout import Layout
from plainformer.errors import UsageError
from plainformer.generation.search import generate
from plainformer.info import inspect_checkpoint
from plainformer.loading import load_model
from plainformer.measuring import measure
from plainformer.model.empty import Embedding
from plainformer.model.fast import compiled
from plainformer.model.fast.blocks import KIND_CODES, Blocks
from plainformer.model.fast.packed import BlockWeight, Int8Weight
from plainformer.model.linear import outermost
from plainformer.model.transformer import Transformer
from plainformer.plan.inference import loading_of
from plainformer.plan.stored import READ_AS_THEY_ARE
from plainformer.plan.weights import weights
from plainformer.planning import plan
from plainformer.saving import save_model
from tests.support.gguf_files import save_as, write_gguf
from tests.support.memory import allocated, peak_bytes
from tests.support.models import make

needs_kernels = pytest.mark.skipif(compiled.kernels() is None, reason="no Numba with OpenMP or TBB here")
WIDTH = 256  # numbers of the longest block


def held(model: Transformer) -> int:
    """Bytes of all weights of a model, each once: plain ones, and those that are packed."""
    tensors: dict[int, torch.Tensor] = {p.data_ptr(): p for p in model.parameters()}
    blocks: list[Blocks] = [
        t.packed for t in model.modules() if isinstance(t, Embedding) and isinstance(t.packed, Blocks)
    ]
    for linear in outermost(model):
        if isinstance(linear.packed, BlockWeight):
            blocks += linear.packed.parts
        elif isinstance(linear.packed, Int8Weight):
            own = (linear.packed.stored_OI, linear.packed.scales_O)
            tensors |= {one.data_ptr(): one for one in own if one is not None}
    tensors |= {one.stored_OW.data_ptr(): one.stored_OW for one in blocks}
    return sum(one.nbytes for one in tensors.values())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("plain") / "plain.gguf", WIDTH, 2 * WIDTH)


def test_kinds_are_those_of_the_kernels() -> None:
    assert ("F32", *READ_AS_THEY_ARE) == tuple(KIND_CODES)


FILES = [(kind, "keep") for kind in (*READ_AS_THEY_ARE, "Q3_K")]
FILES += [(kind, quantize) for kind in ("Q4_1", "Q6_K", "F16") for quantize in ("int8", "int4")]


@pytest.mark.parametrize(("kind", "quantize"), FILES)
def test_a_file(kind: str, quantize: str, plain: Path, tmp_path: Path) -> None:
    """Of every kind, tied and of one block or more: held in the end, and at the worst moment of loading."""
    path = tmp_path / "model.gguf"
    save_as(plain, path, kind)
    if quantize == "keep" and kind not in READ_AS_THEY_ARE:
        for refuses in (load_model, plan):
            with pytest.raises(UsageError, match="blocks that are read"):
                refuses(path, quantize=quantize)
        assert list(inspect_checkpoint(path).quantized) == ["int8", "int4"]
        return
    made = plan(path, quantize=quantize)
    keep: list[Any] = []
    load_model(path, quantize=quantize)
    found = allocated(lambda: keep.append(load_model(path, quantize=quantize)))
    expected = weights(made.config, loading_of(made.config, made.workload, made.stored))
    assert expected.bytes == held(keep[0]) == inspect_checkpoint(path).quantized[quantize]
    assert 0 <= found.left - expected.own < 4096 and abs(found.peak - expected.peak) < 16384
    load = made.worst.phases[0]
    assert load.name == "load" and load.bytes == expected.peak + expected.mapped
    assert sum(one.loaded or 0 for one in made.file) == expected.bytes == load.parts()["weights"]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bart", "t5"])
def test_a_folder(name: str, quantize: str, tmp_path: Path) -> None:
    """Biases, tied tables, both stacks, heads of other kinds; rows that are not whole blocks."""
    save_model(make(name), tmp_path)
    model = load_model(tmp_path, quantize=quantize)
    made = plan(tmp_path, quantize=quantize)
    assert made.parts["load"]["weights"] == held(model) == inspect_checkpoint(tmp_path).quantized[quantize]


@needs_kernels
@pytest.mark.parametrize("length", [20, 200])
@pytest.mark.parametrize("quantize", ["int4", "keep"])
def test_a_prompt(quantize: str, length: int, plain: Path, tmp_path: Path) -> None:
    """Few rows are multiplied by blocks; of many the input is rounded, and the weight made wide in pieces."""
    path = tmp_path / "model.gguf"
    save_as(plain, path, "Q4_1")
    model = load_model(path, quantize=quantize)
    ids = torch.randint(5, 200, (2, length), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        generate(model, ids, max_new_tokens=1, eos_ids=())

    run()
    made = plan(path, quantize=quantize, batch=2, prompt=length, new=1, padded=False)
    prefill = made.parts["prefill"]
    assert sum(prefill.values()) - prefill["weights"] == pytest.approx(peak_bytes(run), rel=0.01)


@needs_kernels
def test_measured() -> None:
    """`--measure` of a real file: the prompt, and tokens after it."""
    found = measure(plan("smollm2-135m-instruct", quantize="keep", prompt=100, new=4))
    assert found.difference == pytest.approx(0, abs=0.02)
    assert found.predicted["decode"] == pytest.approx(found.found["decode"], rel=0.02)


def test_int8_by_either_name() -> None:
    made = plan("smollm2-135m-instruct", quantize="int8")
    assert made.parts == plan("smollm2-135m-instruct", dtype="int8").parts
    assert made.rule.said.startswith("135M x 1 byte")


def test_what_kept_blocks_save() -> None:
    """The file is what people reckon with; a token reads its matrices, as they are."""
    made = plan("smollm2-135m-instruct", quantize="keep", device="this machine")
    assert made.rule.bytes == made.file[0].bytes + sum(one.bytes for one in made.file[1:]) + made.stored.rest  # type: ignore[union-attr]
    assert abs(made.parts["load"]["weights"] / made.rule.bytes - 1) < 0.02
    wide = plan("smollm2-135m-instruct", device="this machine")
    if made.time is not None and wide.time is not None:
        assert wide.time.seconds["token"] > 3 * made.time.seconds["token"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "int4", "dtype": "bf16"}, "computes in fp32"),
        ({"quantize": "int8", "dtype": "int8"}, "computes in fp32"),
        ({"quantize": "int4", "layout": Layout(tp=3)}, "one process"),
        ({"quantize": "keep", "layout": Layout(pp=2)}, "one process"),
        ({"quantize": "int4", "device": "H100"}, "on a CPU alone"),
        ({"quantize": "keep", "purpose": "training"}, "has no effect on training"),
        ({"quantize": "int2"}, "int2"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan("smollm2-135m-instruct", **options)
    if "layout" not in options and "dtype" not in options:
        with pytest.raises(UsageError):
            plan(params="7B", quantize="keep")
