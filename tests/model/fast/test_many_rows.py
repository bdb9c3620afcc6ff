"""Products of many rows, and feed-forward networks a part at a time: the same numbers as all at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plainformer.config import StackConfig, TokenFrontend
from plainformer.model import block
from plainformer.model.fast import packed
from plainformer.model.fast.packed import CompiledWeight, Int8Weight
from tests.support.close import close


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("shape", [(300, 24), (2, 40, 24), (25, 24), (2, 24), (1, 24)], ids=str)
def test_either_product(onednn: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    generator = torch.Generator().manual_seed(0)
    x, weight_OI, bias_O = (torch.randn(size, generator=generator) for size in (shape, (40, 24), (40,)))
    with torch.inference_mode():
        for bias in (bias_O, None):
            exact = F.linear(x.double(), weight_OI.double(), None if bias is None else bias.double())
            close(CompiledWeight([weight_OI], bias)(x), exact.float())
            strided = x.mT.contiguous().mT
            close(CompiledWeight([weight_OI], bias)(strided), exact.float())
            rounded = Int8Weight([weight_OI], bias)
            assert rounded.scales_O is not None
            wide = (rounded.stored_OI.float() * rounded.scales_O[:, None]).double()
            exact = F.linear(x.double(), wide, None if bias is None else bias.double())
            close(rounded(x), exact.float())
            assert packed.multiply_many(x.bfloat16(), weight_OI.bfloat16(), None).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize("layout", [CompiledWeight, Int8Weight])
def test_a_row_has_the_same_bits_among_any_others(layout: type[CompiledWeight | Int8Weight]) -> None:
    """However many come with it, from two on: a prompt may be cut anywhere."""
    weight = layout([torch.randn(96, 80)], torch.randn(96))
    x = torch.randn(1, 700, 80)
    with torch.inference_mode():
        whole = weight(x)
        for count in (2, 3, 5, 8, 17, 24, 25, 64, 255, 256, 500):
            assert torch.equal(weight(x[:, 64 : 64 + count]), whole[:, 64 : 64 + count]), count


@pytest.mark.parametrize("ffn", ["plain", "gated"])
def test_parts_of_the_rows(ffn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenFrontend(vocab_size=9, embedding_size=12)
    config = StackConfig(frontend=tokens, hidden_size=12, num_layers=1, num_heads=2, ffn_size=20, ffn=ffn)  # type: ignore[arg-type]
    network = block.FeedForward(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_BTD = torch.randn(3, 11, 12)
    sizes: list[int] = []
    network.down.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[:-1].numel()))
    whole = network(x_BTD)
    monkeypatch.setattr(block, "ROWS_AT_ONCE", 8)
    with torch.inference_mode():
        close(network(x_BTD), whole.detach())
        network(x_BTD[:1, :8])
    assert network(x_BTD).equal(whole)  # a gradient may be wanted
    assert sizes == [33, 9, 9, 9, 6, 8, 33]  # no row is left alone
