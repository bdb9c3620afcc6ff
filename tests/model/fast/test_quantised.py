"""Weights in blocks of few bits: kernels against the `gguf` library's numbers, and models that keep a file's blocks."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import plainformer as pf
from plainformer.errors import UsageError
from plainformer.model.fast import blocks, compiled, packed
from plainformer.model.fast.blocks import KIND_CODES, Blocks, rounded, to_4_bits, to_8_bits
from plainformer.model.fast.packed import BlockWeight, Int4HeadWeight, Int4Weight
from plainformer.model.linear import outermost
from tests.support import models as make
from tests.support.close import close

Kind = gguf.GGMLQuantizationType
KINDS = [kind for kind in KIND_CODES if kind != "F32"]
needs_kernels = pytest.mark.skipif(compiled.kernels() is None, reason="no Numba with OpenMP or TBB here")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_blocks(kind: str, rows: int, size: int, seed: int = 0) -> Blocks:
    """Any bytes, with scales that are numbers."""
    elements, width = gguf.GGML_QUANT_SIZES[Kind[kind]]
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 256, (rows * size // elements, width), dtype=np.uint8)
    places = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,))
    for first in places:
        scales = rng.uniform(-0.01, 0.01, len(stored)).astype(np.float16)
        stored[:, first : first + 2] = scales[:, None].view(np.uint8)
    return Blocks(kind, torch.from_numpy(stored.reshape(rows, -1)), size)


def numbers(weight: Blocks) -> torch.Tensor:
    return torch.from_numpy(np.array(gguf.dequantize(weight.stored_OW.numpy(), Kind[weight.kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str) -> None:
    """Made wide: the library's numbers, bit for bit. Multiplied: those times the rounded input, up to fp32's own error."""
    weight = random_blocks(kind, 70, 768)
    exact = numbers(weight)
    assert torch.equal(weight.dense(), exact)
    assert torch.equal(weight.lookup(torch.tensor([[3, 69], [0, 3]])), exact[[3, 69, 0, 3]].view(2, 2, -1))
    for rows in (1, 3, 4, 9, 80):
        x, bias = random(rows, 768, seed=rows), random(70)
        found = BlockWeight([weight], bias)(x)
        close(found, (rounded(x).double() @ exact.double().T + bias).float(), rel=1e-5)
        unrounded = torch.nn.functional.linear(x, exact, bias)
        assert (found - unrounded).norm() / unrounded.norm() < 0.01


def test_parts_of_several_kinds() -> None:
    """As q, k and v of a file may be, one of them in plain numbers: its inputs are exact."""
    parts = [random_blocks("Q4_K", 6, 256), Blocks.plain(random(5, 256)), random_blocks("Q6_K", 40, 256, seed=2)]
    whole = BlockWeight(parts, None)
    x = random(5, 256, seed=3)
    expected = [rounded(x) @ numbers(parts[0]).T, x @ parts[1].dense().T, rounded(x) @ numbers(parts[2]).T]
    close(whole(x), torch.cat(expected, 1), rel=1e-5)
    close(whole(x.repeat(20, 1))[:5], torch.cat(expected, 1), rel=1e-5)
    assert torch.equal(whole.dense(), torch.cat([part.dense() for part in parts]))


@pytest.mark.parametrize("layout", [Int4Weight, Int4HeadWeight])
def test_a_row_does_not_depend_on_its_neighbours(layout: type[Int4Weight]) -> None:
    """Nor on how many there are: on each side of what kernels multiply and of what torch does."""
    layer, x = layout([random(32, 50)], None), random(100, 50, seed=1)
    x[2] *= 1000
    alone = torch.cat([layer(row[None]) for row in x])
    for count in (2, 5, 64, 65, 100):
        close(layer(x[:count]), alone[:count], rel=1e-5)
    assert torch.equal(layer(x[None]), layer(x)[None])


def test_zeros_infinity_and_none() -> None:
    layer = Int4Weight([random(32, 64)], random(32, seed=1))
    assert layer.bias_O is not None
    close(layer(torch.zeros(2, 3, 64)), layer.bias_O.expand(2, 3, 32))
    assert layer(torch.zeros(64)).shape == (32,)
    assert layer(torch.zeros(0, 64)).shape == (0, 32)
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = random(70, 64)
        x[1, 40] = bad
        for rows in (x[:2], x):
            assert not layer(rows)[1].isfinite().any() and layer(rows)[0].isfinite().all()


def test_our_own_rounding() -> None:
    """Nearer than the library's, which takes the range alone, in blocks that it reads; sizes need not be whole blocks."""
    weight = random(64, 96)
    for ours, kind in ((to_4_bits, "Q4_1"), (to_8_bits, "Q8_0")):
        made = ours(weight)
        assert made.kind == kind and torch.equal(made.dense(), numbers(made))
        theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), Kind[kind]), Kind[kind]))
        assert (made.dense() - weight).norm() <= (theirs - weight).norm() * (0.95 if kind == "Q4_1" else 1.001)
        assert ours(weight[:, :50]).dense().shape == (64, 50)
        assert torch.equal(ours(torch.zeros(2, 32)).dense(), torch.zeros(2, 32))
        close(ours(torch.full((2, 32), 3.0)).dense(), torch.full((2, 32), 3.0), rel=1e-3)


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and the library compute the same."""
    weight, x = BlockWeight([random_blocks("Q5_1", 40, 96)], None), random(3, 96)
    expected, wide = weight(x), weight.dense()
    for module in (blocks, packed):
        monkeypatch.setattr(module, "quantised", lambda: None)
    close(weight(x), expected, rel=1e-5)
    assert torch.equal(weight.dense(), wide)


@pytest.fixture(scope="module")
def kept() -> pf.tasks.writing.text_generation.TextGeneration:
    return pf.load("smollm2-135m-instruct", quantize="keep")


@needs_kernels
def test_a_file_stays_in_its_blocks(kept: pf.tasks.writing.text_generation.TextGeneration) -> None:
    """What a loaded model holds of its matrices are the file's own bytes; made plain, they are what loading wide gives."""
    model, wide = kept.model, pf.load_model("smollm2-135m-instruct", dtype="fp32", backend="plain")
    linears = [linear.packed for linear in outermost(model)]
    assert all(type(weight) is BlockWeight for weight in linears)
    parts = {id(part): part for weight in linears for part in weight.parts}  # type: ignore[union-attr]
    stored = sum(part.stored_OW.numel() for part in parts.values())
    matrices = sum(p.numel() for name, p in wide.named_parameters() if p.dim() == 2)
    table = wide.main.frontend.tokens.weight.numel()  # type: ignore[union-attr]
    # Of 32 numbers, Q4_1 makes 20 bytes, and Q8_0, which the tied table is in, 34; it is there once.
    assert stored == (matrices - table) // 32 * 20 + table // 32 * 34
    assert sum(p.numel() for p in model.parameters()) < matrices / 1000  # norms
    state, expected = model.state_dict(), wide.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@needs_kernels
def test_answers_of_a_file_in_blocks(kept: pf.tasks.writing.text_generation.TextGeneration) -> None:
    """Inputs rounded to 8 bits move log-probabilities by hundredths; perplexity of an encyclopedia by about half a percent."""
    wide = pf.load("smollm2-135m-instruct", dtype="fp32", backend="plain")
    text = (Path(__file__).parents[3] / "LICENSE").read_text()[:6000]
    ids = torch.tensor([wide.tokenizer.encode(text).input_ids[:400]])
    with torch.inference_mode():
        found, exact = (task.model(ids).logits.log_softmax(-1)[0, :-1] for task in (kept, wide))
    chosen = ids[0, 1:, None]
    apart = (found.gather(1, chosen) - exact.gather(1, chosen)).abs()
    assert apart.mean() < 0.1
    assert abs((exact.gather(1, chosen) - found.gather(1, chosen)).mean()) < 0.02
    answer = kept("The capital of France is", max_new_tokens=4).text
    assert answer == wide("The capital of France is", max_new_tokens=4).text


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    make.gpt2(tmp_path)
    for ref, options, message in (
        (tmp_path, {}, "holds no matrices in blocks"),
        ("smollm2-135m-instruct", {"dtype": "bf16"}, "one process on a CPU"),
        ("smollm2-135m-instruct", {"purpose": "train"}, "is for inference"),
        ("smollm2-135m-instruct", {"backend": "plain"}, "chooses the backend"),
    ):
        with pytest.raises(UsageError, match=message):
            pf.load_model(ref, quantize="keep", **options)


def test_a_model_rounded_to_4_bits(tmp_path: Path) -> None:
    """It answers nearly alike, generates, and says why it cannot be saved, moved or trained."""
    make.gpt2(tmp_path)
    small, full = pf.load_model(tmp_path, quantize="int4"), pf.load_model(tmp_path)
    ids = torch.arange(5, 25)[None]
    assert isinstance(small.head.out.packed, Int4HeadWeight)
    assert all(isinstance(linear.packed, Int4Weight) for linear in outermost(small))
    with torch.inference_mode():
        exact, found = full(ids).logits, small(ids).logits
    assert 0 < (exact - found).norm() / exact.norm() < 0.2
    assert len(pf.generate(small, ids, max_new_tokens=4, eos_ids=()).token_ids[0]) == 4
    for refused in (small.train, lambda: small.to(torch.bfloat16), lambda: pf.save(small, tmp_path / "x")):
        with pytest.raises(UsageError, match="rounded to 4 bits"):
            refused()
