"""Linear backends: the same numbers, plain weights whenever someone looks, and no way to lose a gradient silently."""

from __future__ import annotations

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import Tensor, nn

from plainformer.checkpoint.weights import export_weights
from plainformer.config import HeadConfig, ModelConfig, NormConfig, RopeConfig, StackConfig, TokenFrontend
from plainformer.errors import UsageError
from plainformer.families import table_for
from plainformer.model.fast import compiled
from plainformer.model.fast.packed import LAYOUTS, CompiledWeight, Int8Weight
from plainformer.model.fast.prepare import prepare_for_inference, unprepare
from plainformer.model.linear import Linear, LinearGroup
from plainformer.model.transformer import Transformer
from tests.support.close import close

IDS = torch.tensor([[5, 6, 7, 8]])


def tiny() -> Transformer:
    """A small gated decoder whose output layer is tied to its embeddings."""
    stack = StackConfig(
        frontend=TokenFrontend(vocab_size=50, embedding_size=16), hidden_size=16, num_layers=2, num_heads=4,
        num_kv_heads=2, ffn_size=24, ffn="gated", activation="silu", norm=NormConfig("rms", 1e-6), norm_place="pre",
        final_norm="norm", direction="causal", rope=(RopeConfig(10000.0, 4),) * 2,
    )  # fmt: skip
    head = HeadConfig("causal_lm", out_size=50, out_bias=False)
    config = ModelConfig(
        "llama", decoder=stack, head=head, tied=(("head.out.weight", "decoder.frontend.tokens.weight"),)
    )
    model = Transformer(config).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.mark.parametrize("backend", ["plain", "fused", "compiled", "onednn", "auto"])
def test_backends_agree_and_keep_the_weights(backend: str) -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(IDS).logits.detach()
    choices = prepare_for_inference(model, backend)
    assert set(choices.values()) <= {"plain", "fused", "compiled", "onednn"} and "50x16" in choices
    close(model(IDS).logits, expected)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_preparing_again_changes_the_backend() -> None:
    model = tiny()
    expected = model(IDS).logits.detach()
    for backend in ("onednn", "plain", "compiled", "fused", "compiled", "onednn", "auto"):
        prepare_for_inference(model, backend)
        close(model(IDS).logits, expected)
    unprepare(model)
    assert isinstance(model.head.out, Linear) and model.head.out.weight is not None


def test_a_packed_model_can_be_trained_again() -> None:
    """Weights come back, tied ones as one tensor, and gradients flow."""
    model = tiny()
    prepare_for_inference(model, "onednn")
    assert model.head.out.weight is None
    model.train().requires_grad_(True)
    assert model.head.out.weight is model.decoder.frontend.tokens.weight
    model(IDS).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("layout", ["onednn", "compiled"])
def test_saving_unpacks_one_weight_at_a_time(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    table = table_for(model.config)
    expected = {name: tensor.clone() for name, tensor in export_weights(model, table)}
    prepare_for_inference(model, layout)
    unpacked: list[object] = []
    dense = LAYOUTS[layout].dense
    monkeypatch.setattr(LAYOUTS[layout], "dense", lambda weight: unpacked.append(weight) or dense(weight))
    for taken, (name, tensor) in enumerate(export_weights(model, table), start=1):
        assert len(unpacked) <= taken and torch.equal(tensor, expected.pop(name))
        if tensor.dim() > 1:
            assert tensor.untyped_storage().nbytes() == tensor.nbytes  # no part holds on to its group
    assert unpacked and not expected


def test_a_packed_model_refuses_gradients() -> None:
    model = tiny()
    prepare_for_inference(model, "onednn")
    embeds = model.embed_tokens(IDS).clone().requires_grad_(True)
    with pytest.raises(UsageError, match="prepared for inference"):
        model(inputs_embeds=embeds)


def test_moving_and_loading_unpack() -> None:
    model, other = tiny(), tiny()
    prepare_for_inference(model, "onednn")
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model.head.out.weight is model.decoder.frontend.tokens.weight
    prepare_for_inference(other, "onednn")
    changed = {name: torch.ones_like(value) for name, value in other.state_dict().items()}
    other.load_state_dict(changed)
    assert all(bool((value == 1).all()) for value in other.state_dict().values())


def test_fused_parts_are_views_of_one_weight() -> None:
    """Fusing adds no memory once the parts' old tensors are gone."""
    group = LinearGroup(8, {"a": 4, "b": 6}, bias=True)
    group.fuse()
    weights = [part.weight for part in group.parts()]
    assert weights[0].untyped_storage().data_ptr() == weights[1].untyped_storage().data_ptr()


def test_unknown_backend() -> None:
    with pytest.raises(UsageError, match="onednn"):
        prepare_for_inference(tiny(), "onednm")


BACKENDS = ["plain", "fused", "compiled", "onednn", "int8"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_and_pickles(backend: str) -> None:
    model = tiny()
    prepare_for_inference(model, backend)
    expected = model(IDS).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(other(IDS).logits, expected, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_a_pickle_holds_a_weight_once(layout: type[CompiledWeight | Int8Weight]) -> None:
    packed = layout([torch.ones(100, 90)], None)
    packed(torch.ones(1, 90))
    assert len(pickle.dumps(packed)) < 1.2 * 100 * 90 * (1 if layout is Int8Weight else 4)


class Biased(nn.Module):
    """A group and a linear that all have biases."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.group, self.last = LinearGroup(6, {"a": 4, "b": 3}, bias=True), Linear(6, 5)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((*self.group(x), self.last(x)), dim=-1)


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_edited_in_place_is_seen(backend: str, rows: int) -> None:
    model, x = Biased(), torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))
    prepare_for_inference(model, backend)
    expected = model(x).clone()
    model.group.b.bias += 2
    model.last.bias *= 3
    expected[:, 4:7] += 2
    expected[:, 7:] += model.last.bias * 2 / 3
    close(model(x), expected)


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_default_types_and_autocast(backend: str, rows: int) -> None:
    model, x = Biased(), torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))
    prepare_for_inference(model, backend)
    expected = model(x)
    torch.set_default_dtype(torch.float64)
    try:
        found = model(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    if backend != "onednn":  # its op has no autocast rule
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x.bfloat16())
        assert torch.allclose(found.float(), expected, atol=0.1)


@pytest.mark.parametrize("layout", [CompiledWeight, Int8Weight])
def test_a_weight_that_was_sent_to_a_process(layout: type[CompiledWeight | Int8Weight]) -> None:
    """Sending moves it to shared memory, and frees what a kernel would have read."""
    if compiled.kernels() is None:
        pytest.skip("no Numba with OpenMP or TBB here")
    generator = torch.Generator().manual_seed(0)
    packed, x = layout([torch.randn(40, 30, generator=generator)], None), torch.randn(1, 30, generator=generator)
    expected, before = packed(x), packed.stored_OI.data_ptr()
    ForkingPickler.dumps(packed)
    assert packed.stored_OI.data_ptr() != before
    assert packed.matrix.record["weight"] == packed.stored_OI.data_ptr()
    assert torch.equal(packed(x), expected)
