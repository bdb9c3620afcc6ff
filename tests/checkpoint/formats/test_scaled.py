"""Eight-bit weights with scales: what is read is weight * scale, number by number, and the model computes with that."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from plainformer.checkpoint.formats import open_safetensors, with_scales
from plainformer.errors import CheckpointError
from plainformer.info import inspect_checkpoint
from plainformer.loading import load_model
from plainformer.saving import save_model
from tests.support import models

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16], "fmt": "e4m3"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}
LLAMA = dict(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)


def meant(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """The numbers that a weight and its scales mean, one by one."""
    found = torch.empty(weight.shape)
    for i, j in itertools.product(*map(range, weight.shape)):
        found[i, j] = float(weight[i, j].float()) * float(scale[i // block[0], j // block[1]])
    return found


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
@pytest.mark.parametrize(
    ("shape", "scales", "block"),
    [
        ((24, 20), (3, 2), (8, 10)),  # divided by its scales
        ((24, 20), (2, 2), (16, 16)),  # the last block of each row and column is a part
        ((24, 20), (24, 1), (1, 20)),  # one for each row
        ((24, 20), (24, 4), (1, 5)),  # groups
        ((24, 20), (1, 1), (24, 20)),
    ],
)
def test_numbers(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, int], scales: tuple[int, int], block: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(shape, generator=generator) * 9).to(dtype)
    scale = torch.rand(scales, generator=generator) + 0.01
    extra = {"a.weight_scale": scale, "a.input_scale": torch.ones(()), "a.bias": torch.ones(3)}
    save_file({"a.weight": weight, **extra}, tmp_path / "m.safetensors")
    source = with_scales(open_safetensors(tmp_path / "m.safetensors"), block)
    assert source.names() == ["a.bias", "a.weight"]
    assert torch.equal(source.read("a.weight"), meant(weight, scale, block))
    assert source.stored("a.weight") == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("scale", [torch.tensor(0.25), torch.tensor([0.25]), torch.full((6,), 0.25)])
def test_one_scale_and_one_axis_of_scales(tmp_path: Path, scale: Tensor) -> None:
    weight = torch.arange(24.0).reshape(6, 4)
    save_file({"w": weight.to(torch.float8_e4m3fn), "w_scale_inv": scale}, tmp_path / "m.safetensors")
    read = with_scales(open_safetensors(tmp_path / "m.safetensors")).read("w")
    assert torch.equal(read, weight.to(torch.float8_e4m3fn).float() * 0.25)


def test_exponents_as_scales(tmp_path: Path) -> None:
    weight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    for number, scale in enumerate((torch.tensor([[126], [129]], dtype=torch.uint8), torch.tensor([[0.5], [4.0]]))):
        stored = scale if number == 0 else scale.to(torch.float8_e8m0fnu)
        save_file({"w": weight, "w_scale_inv": stored}, tmp_path / "m.safetensors")
        read = with_scales(open_safetensors(tmp_path / "m.safetensors")).read("w")
        assert torch.equal(read, torch.tensor([[0.5], [0.5], [4.0], [4.0]]).expand(4, 4))


def test_scales_that_do_not_divide(tmp_path: Path) -> None:
    save_file({"w": torch.ones(6, 4).to(torch.float8_e4m3fn), "w_scale": torch.ones(4, 1)}, tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=r"tensor 'w' has shape \(6, 4\), and its scales \(4, 1\) do not divide it"
    ):
        with_scales(open_safetensors(tmp_path / "m.safetensors")).read("w")


def test_files_without_scales_are_left_alone(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 2), "w_scale": torch.ones(2)}, tmp_path / "m.safetensors")
    source = open_safetensors(tmp_path / "m.safetensors")
    assert with_scales(source) is source and source.dtype is None


def quantised(folder: Path, config: dict[str, Any], block: tuple[int, int] | None, name: str) -> Any:
    """Save a tiny Llama in eight bits; return the reference model with the numbers that its file means."""
    model = models.reference("LlamaForCausalLM", transformers.LlamaConfig(**LLAMA))  # type: ignore[arg-type]
    model.save_pretrained(folder)
    state, exact = load_file(folder / "model.safetensors"), {}
    for key, weight in list(state.items()):
        exact[key] = weight
        if "proj" not in key:
            continue
        rows, columns = block or (1, weight.size(1))
        scale = torch.rand(-(-weight.size(0) // rows), -(-weight.size(1) // columns)) + 0.5
        whole = scale.repeat_interleave(rows, 0)[: weight.size(0)].repeat_interleave(columns, 1)[:, : weight.size(1)]
        state[key] = (weight / whole).to(torch.float8_e4m3fn)
        exact[key] = state[key].float() * whole
        state[key.replace("weight", name)] = scale
    save_file(state, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    model.load_state_dict(exact)
    return model


@pytest.mark.parametrize(
    ("config", "block", "name"),
    [(FP8, (16, 16), "weight_scale_inv"), (COMPRESSED, None, "weight_scale")],
    ids=["fp8 in blocks", "compressed-tensors by rows"],
)
@torch.no_grad()
def test_a_model_computes_with_the_numbers_meant(
    tmp_path: Path, config: dict[str, Any], block: tuple[int, int] | None, name: str
) -> None:
    reference = quantised(tmp_path, config, block, name)
    ids = torch.arange(9)[None]
    ours, theirs = load_model(tmp_path), reference(ids).logits
    assert (ours(ids).logits - theirs).abs().max() < 1e-5 * theirs.abs().max()
    found = inspect_checkpoint(tmp_path)
    assert found.stored_dtypes == {"float32": 7, "float8_e4m3fn": 14} and not found.unused_tensors
    save_model(ours, tmp_path / "saved")  # what is saved is not quantised, and says so
    raw = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in raw
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(ids).logits
    assert (again - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_type_to_compute_in_is_that_of_the_other_tensors(tmp_path: Path) -> None:
    eight, norm = torch.ones(4, 4).to(torch.float8_e4m3fn), torch.ones(4, dtype=torch.bfloat16)
    save_file({"w": eight, "w_scale": torch.ones(4, 1), "n": norm}, tmp_path / "m.safetensors")
    assert with_scales(open_safetensors(tmp_path / "m.safetensors")).dtype == "bfloat16"


REFUSED: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "torchao": {"quant_method": "torchao"},
    "mxfp4": {"quant_method": "mxfp4"},
    r"compressed-tensors \('pack-quantized'\)": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    r"modelopt \('NVFP4'\)": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "a method that is not named": {"bits": 4},
}


@pytest.mark.parametrize("method", REFUSED)
def test_other_methods_are_refused_by_name(tmp_path: Path, method: str) -> None:
    quantised(tmp_path, REFUSED[method], None, "weight_scale")
    for reads in (load_model, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=f"quantization_config: weights quantised by {method}") as caught:
            reads(tmp_path)
        assert "unquantised repository" in caught.value.fix and "ownload" not in str(caught.value)


def test_a_merged_model_with_the_mark_of_bitsandbytes(tmp_path: Path) -> None:
    quantised(tmp_path, {"quant_method": "bitsandbytes", "load_in_8bit": True}, None, "weight_scale")
    with pytest.raises(CheckpointError, match="remove quantization_config"):
        load_model(tmp_path)
