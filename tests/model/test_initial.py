"""First weights: the distributions that the papers name, the same for the same seed, in every kind of model."""

from __future__ import annotations

import math

import pytest
import torch

from plainformer.config import ModelConfig, StackConfig, TokenFrontend
from plainformer.families import config_from_dict
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.models import BART, BERT, CHECKPOINTS


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_parameter_is_filled(name: str) -> None:
    config = config_from_dict(CHECKPOINTS[name][0])
    one, same, other = (initialise(Transformer(config), seed=seed) for seed in (1, 1, 2))
    for (key, a), b in zip(one.named_parameters(), same.parameters(), strict=True):
        assert not a.is_meta and torch.isfinite(a).all() and torch.equal(a, b), key
        assert a.requires_grad == (key not in config.fixed)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.training


def test_the_distribution() -> None:
    model = initialise(Transformer(config_from_dict({**BERT, "architectures": ["BertForMaskedLM"]})), std=0.05)
    layer = model.main.layers[0]
    assert layer.attention.out.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert layer.attention.out.bias.abs().max() == 0
    assert torch.equal(layer.ffn_norm.weight, torch.ones(32))


def test_ties_hold() -> None:
    model = initialise(Transformer(config_from_dict({**BART, "architectures": ["BartForConditionalGeneration"]})))
    assert model.encoder is not None
    assert model.head.out.weight is model.encoder.frontend.tokens.weight


def test_an_untrained_language_model_knows_nothing() -> None:
    """Its perplexity is the size of the vocabulary."""
    from plainformer.config import HeadConfig
    from plainformer.generation.score import score_tokens

    stack = StackConfig(
        frontend=TokenFrontend(vocab_size=200, embedding_size=32),
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        ffn_size=64,
        norm_place="pre",
        final_norm="norm",
        direction="causal",
    )
    config = ModelConfig("test", decoder=stack, head=HeadConfig("causal_lm", out_size=200, out_bias=False))
    model = initialise(Transformer(config)).eval()
    scores = score_tokens(model, torch.randint(0, 200, (1, 500), generator=torch.Generator().manual_seed(0)))[0]
    assert math.log(scores.perplexity) == pytest.approx(math.log(200), abs=0.05)
