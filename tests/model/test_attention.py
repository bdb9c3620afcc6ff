"""Attention against plain loops over the formula: softmax(q k / scale + mask) v, one query at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plainformer.config import StackConfig, TokenFrontend
from plainformer.model.attention import CrossAttention, SelfAttention, attend, attend_eagerly, merge_heads, split_heads
from plainformer.model.flow import Attentions, Flow, Mask

SCALE = 0.3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Context vectors and probabilities, one head and one query at a time."""
    batch, heads, queries, _ = q_BHTE.shape
    kv_heads, keys = k_BKSE.shape[1:3]
    context, probabilities = torch.zeros_like(q_BHTE), torch.zeros(batch, heads, queries, keys)
    for b in range(batch):
        for h in range(heads):
            k, v = k_BKSE[b, h * kv_heads // heads], v_BKSE[b, h * kv_heads // heads]
            for t in range(queries):
                scores = [float(q_BHTE[b, h, t] @ k[s]) * SCALE for s in range(keys)]
                if softcap is not None:
                    scores = [softcap * math.tanh(score / softcap) for score in scores]
                if mask.bias is not None:
                    bias = mask.bias.expand(batch, heads, queries, keys)[b, h, t]
                    scores = [score + float(bias[s]) for s, score in enumerate(scores)]
                if mask.causal:
                    scores = [score if s <= t else -math.inf for s, score in enumerate(scores)]
                weights = [math.exp(score - max(scores)) for score in scores]
                probabilities[b, h, t] = torch.tensor([weight / sum(weights) for weight in weights])
                context[b, h, t] = sum(probabilities[b, h, t, s] * v[s] for s in range(keys))
    return context, probabilities


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def hidden(*shape: int) -> Tensor:
    """A bias that hides some keys, never all, and weighs the others."""
    bias = random(*shape, seed=9)
    return bias.masked_fill(bias > 1, torch.finfo(torch.float32).min)


MASKS = {
    "none": Mask(),
    "causal": Mask(causal=True),
    "one for all": Mask(hidden(4, 4)[None, None]),
    "each row": Mask(hidden(2, 1, 4, 4)),
    "each head": Mask(hidden(2, 4, 4, 4)),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", MASKS)
def test_both_ways_are_the_formula(name: str, kv_heads: int) -> None:
    mask = MASKS[name]
    q, k, v = random(2, 4, 4, 3), random(2, kv_heads, 4, 3, seed=1), random(2, kv_heads, 4, 3, seed=2)
    context, probabilities = by_hand(q, k, v, mask)
    near(attend(q, k, v, mask, SCALE), context)
    found, seen = attend_eagerly(q, k, v, mask, SCALE, None)
    near(found, context)
    near(seen, probabilities)
    near(attend_eagerly(q, k, v, mask, SCALE, 0.7)[0], by_hand(q, k, v, mask, 0.7)[0])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("heads", [0, 1, 4])
def test_one_query_among_many_keys(heads: int, kv_heads: int) -> None:
    """The case of decoding, which has a way of its own; `heads` of the mask, 0 for no mask."""
    mask = Mask(hidden(2, heads, 1, 5)) if heads else Mask()
    q, k, v = random(2, 4, 1, 3), random(2, kv_heads, 5, 3, seed=1), random(2, kv_heads, 5, 3, seed=2)
    near(attend(q, k, v, mask, SCALE), by_hand(q, k, v, mask)[0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_shared_prefix_is_as_if_each_row_had_it(kv_heads: int, masked: bool) -> None:
    q, k, v = random(6, 4, 2, 3), random(6, kv_heads, 3, 3, seed=1), random(6, kv_heads, 3, 3, seed=2)
    prefix = random(2, kv_heads, 5, 3, seed=3), random(2, kv_heads, 5, 3, seed=4)
    mask = Mask(hidden(6, 1, 2, 8)) if masked else Mask()
    whole = [torch.cat((part.repeat_interleave(3, 0), own), dim=2) for part, own in zip(prefix, (k, v), strict=True)]
    found, seen = attend_eagerly(q, k, v, mask, SCALE, prefix=prefix)
    near(found, by_hand(q, *whole, mask)[0])
    near(seen, by_hand(q, *whole, mask)[1])


@pytest.mark.parametrize("length", [1, 3])
def test_heads_are_neighbouring_channels(length: int) -> None:
    x_BTD = random(2, length, 6)
    x_BHTE = split_heads(x_BTD, 2)
    for h in range(2):
        assert torch.equal(x_BHTE[:, h], x_BTD[..., 3 * h : 3 * h + 3])
    assert torch.equal(merge_heads(x_BHTE), x_BTD)


def test_the_mask_of_some_queries() -> None:
    bias = random(1, 1, 4, 4)
    assert torch.equal(Mask(bias).of(slice(-1, None)).bias, bias[..., -1:, :])  # type: ignore[arg-type]
    assert Mask(bias[..., :1, :]).of(slice(-1, None)).bias is not None  # one row that serves all queries
    last = Mask(causal=True).of(slice(-1, None))  # the last query sees every key
    assert last.bias is None and not last.causal


def config(**values: object) -> StackConfig:
    tokens = TokenFrontend(vocab_size=5, embedding_size=12)
    given = {"num_heads": 4, "num_kv_heads": 2, "ffn_size": 8, "attention_scale": SCALE, **values}
    return StackConfig(frontend=tokens, hidden_size=12, num_layers=2, **given)  # type: ignore[arg-type]


def filled(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@torch.no_grad()
def test_self_attention_projects_attends_and_projects_back() -> None:
    layer, x_BTD = filled(SelfAttention(config())), random(2, 4, 12)
    flow = Flow(masks=[Mask(causal=True)] * 2, rotations=[None] * 2, length=4)
    q, k, v = (x_BTD @ part.weight.T + part.bias for part in layer.qkv.parts())
    heads = split_heads(q, 4), split_heads(k, 2), split_heads(v, 2)
    context, probabilities = by_hand(*heads, flow.masks[1])
    output, seen = layer(x_BTD, 1, flow)
    near(output, merge_heads(context) @ layer.out.weight.T + layer.out.bias)
    assert seen is None
    flow.output_attentions = True
    again, seen = layer(x_BTD, 1, flow)
    near(again, output)
    near(seen, probabilities)
    flow.head_mask_LH = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0.5, 1]])
    context[:, 1], context[:, 2] = 0, context[:, 2] / 2
    near(layer(x_BTD, 1, flow)[0], merge_heads(context) @ layer.out.weight.T + layer.out.bias)


@torch.no_grad()
def test_only_the_wanted_positions_of_a_layer() -> None:
    layer, x_BTD = filled(SelfAttention(config())), random(2, 4, 12)
    flow = Flow(masks=[Mask(causal=True)] * 2, rotations=[None] * 2, length=4)
    whole = layer(x_BTD, 1, flow)[0]
    flow.only = (1, slice(-1, None))
    near(layer(x_BTD, 1, flow)[0], whole[:, -1:])
    near(layer(x_BTD, 0, flow)[0], whole)
    assert torch.equal(flow.residual(x_BTD, 1), x_BTD[:, -1:]) and flow.residual(x_BTD, 0) is x_BTD


@torch.no_grad()
def test_cross_attention_reads_the_encoders_output() -> None:
    layer, x_BTD = (
        filled(CrossAttention(config(num_kv_heads=4, cross_attention=True, direction="causal"))),
        random(2, 3, 12),
    )
    encoder_BSD, mask = random(2, 5, 12, seed=1), Mask(hidden(2, 1, 1, 5))
    flow = Flow(
        masks=[Mask()] * 2,
        rotations=[None] * 2,
        length=3,
        encoder_BSD=encoder_BSD,
        encoder_mask=mask,
        output_attentions=True,
    )
    q = split_heads(x_BTD @ layer.q.weight.T + layer.q.bias, 4)
    k, v = (split_heads(encoder_BSD @ part.weight.T + part.bias, 4) for part in layer.kv.parts())
    context, probabilities = by_hand(q, k, v, mask)
    output, seen = layer(x_BTD, 0, flow)
    near(output, merge_heads(context) @ layer.out.weight.T + layer.out.bias)
    near(seen, probabilities)
    assert Attentions() == (None, None)
