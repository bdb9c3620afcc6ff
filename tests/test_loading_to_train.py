"""`purpose="train"`: weights of one's own, which the file they came from can no longer reach."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import plainformer as pf
from plainformer.errors import UsageError
from tests.support import models
from tests.support.gguf_files import write_gguf

Folder = Callable[[str], Path]
KINDS = ("fill-mask", "text-generation", "text2text", "image-classification", "speech")


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_in_memory_of_their_own(tiny: Folder, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny(name), tmp_path / "model"))
    model, expected = pf.load_model(folder, purpose="train"), pf.load_model(tiny(name), prepare=False)
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\xff" * file.stat().st_size)
    file.unlink()
    for (key, own), kept in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(own, kept), key
        assert own.data_ptr() % 64 == 0, key
        assert own.is_contiguous(), key
        assert own.requires_grad == (key not in model.config.fixed), key
        assert own.dtype == torch.float32
    assert model.training
    assert all(module.product is None for module in model.modules() if hasattr(module, "product"))


def test_a_tied_parameter_is_one(tiny: Folder) -> None:
    model = pf.load_model(tiny("text2text"), purpose="train")
    assert model.encoder is not None
    assert model.head.out.weight is model.encoder.frontend.tokens.weight is model.main.frontend.tokens.weight


def test_half_precision_and_gguf_become_fp32(tiny: Folder, tmp_path: Path) -> None:
    halves = pf.load_model(tiny("fill-mask"), dtype="bf16", prepare=False)
    pf.save(halves, tmp_path / "halves")
    single = write_gguf(tmp_path / "model.gguf")
    for ref in (tmp_path / "halves", single):
        model = pf.load_model(ref, purpose="train")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(p.requires_grad and p.data_ptr() % 64 == 0 for p in model.parameters())
    single.write_bytes(b"\xff" * single.stat().st_size)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_what_is_not_learned(tmp_path: Path) -> None:
    """As in the reference: a Whisper's sinusoids have no gradient, nor have the biases of keys, which it does not have."""
    reference = models.whisper(tmp_path)
    fixed = {name for name, parameter in reference.named_parameters() if not parameter.requires_grad}
    model = pf.load_model(tmp_path, purpose="train")
    ours = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"model.encoder.embed_positions.weight"}
    assert {name for name in ours if not name.endswith(".k.bias")} == {"encoder.frontend.positions"}
    assert sum(name.endswith(".k.bias") for name in ours) == 2 + 2 * 2  # in 2 layers of the encoder, 2 of the decoder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "dtype='bf16' with purpose='train'.*trained in fp32"),
        ({"dtype": torch.float16}, "dtype=torch.float16 with purpose='train'"),
        ({"quantize": "int8"}, "quantize='int8' is for inference"),
        ({"backend": "plain"}, "backend='plain' is for inference"),
        ({"prepare": False}, "prepare=False is for inference"),
        ({"purpose": "training"}, "purpose='training'"),
    ],
)
def test_what_cannot_be_trained(tiny: Folder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        pf.load_model(tiny("fill-mask"), **{"purpose": "train", **options})
    pf.load_model(tiny("fill-mask"), purpose="train", dtype="fp32")
    pf.load_model(tiny("fill-mask"), purpose="train", dtype=torch.float32)


def test_a_task_is_not_trained(tiny: Folder) -> None:
    with pytest.raises(UsageError, match=r"(?s)purpose='train': a task answers.*load_model"):
        pf.load(tiny("fill-mask"), purpose="train")
