"""Names and shapes from the configuration alone are those of the model that it builds, in the same order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plainformer.config import HeadConfig, ModelConfig, StackConfig, TokenFrontend
from plainformer.config.model import HEAD_KINDS
from plainformer.config.shapes import every_name, first_names, num_parameters, parameters, shapes
from plainformer.families import config_from_dict
from plainformer.model.linear import Linear
from plainformer.model.transformer import Transformer
from tests.support.every_config import every_config

LARGE: dict[str, dict[str, Any]] = {
    "Llama-2-7B": dict(model_type="llama", intermediate_size=11008, vocab_size=32000),
    "Llama-2-70B": dict(
        model_type="llama",
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=32000,
    ),
    "Qwen2.5-7B": dict(
        model_type="qwen2",
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
    ),
}
# As their cards say.
PUBLISHED = {"Llama-2-7B": 6_738_415_616, "Llama-2-70B": 68_976_648_192, "Qwen2.5-7B": 7_615_616_512}


def built(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in Transformer(config).named_parameters()}


def same(config: ModelConfig) -> bool:
    return list(shapes(config).items()) == list(built(config).items())


@pytest.mark.parametrize("name", every_config())
def test_every_family_head_and_frontend(name: str) -> None:
    config = every_config()[name]
    assert list(shapes(config).items()) == list(built(config).items())
    assert num_parameters(config) == Transformer(config).num_parameters


def test_the_cases_have_all_there_is() -> None:
    configs = every_config().values()
    assert {config.head.kind for config in configs} == set(HEAD_KINDS)
    stacks = [stack for config in configs for stack in (config.encoder, config.decoder) if stack is not None]
    assert {stack.frontend.kind for stack in stacks} == {"tokens", "patches", "wave", "mel"}
    assert {stack.norm_place for stack in stacks} == {"pre", "post", "both", "branch"}
    assert {stack.residual for stack in stacks} == {"sequential", "parallel"}
    assert {stack.qk_norm for stack in stacks} == {"none", "head", "all"}
    assert any(len(set(stack.layer_ids)) < stack.num_layers for stack in stacks)


@pytest.mark.parametrize("name", LARGE)
def test_large_models_have_as_many_parameters_as_their_cards_say(name: str) -> None:
    sizes = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32)
    config = config_from_dict({**sizes, **LARGE[name], "architectures": ["LlamaForCausalLM"]}, head="causal_lm")
    assert same(config)
    assert num_parameters(config) == PUBLISHED[name]


def test_tied_names_in_every_order() -> None:
    """A name may be tied to a later one, and to one that is tied itself."""
    frontend = TokenFrontend(vocab_size=50, embedding_size=16)
    stack = StackConfig(frontend=frontend, hidden_size=16, num_layers=2, num_heads=2, ffn_size=24)
    config = ModelConfig(
        "t", stack, replace(stack, direction="causal"), HeadConfig("causal_lm", out_size=50, out_bias=False)
    )
    encoder, decoder, out = (
        "encoder.frontend.tokens.weight",
        "decoder.frontend.tokens.weight",
        "head.out.weight",
    )
    for tied in [
        ((encoder, out), (decoder, out)),
        ((encoder, decoder), (decoder, out)),
        ((decoder, encoder), (out, decoder)),
        ((out, encoder),),
    ]:
        assert same(replace(config, tied=tied)), tied
    all_three = replace(config, tied=((decoder, encoder), (out, decoder)))
    assert {name for name, first in first_names(all_three).items() if first == encoder} == {encoder, decoder, out}
    assert set(every_name(all_three)) == set(shapes(config))


@pytest.mark.parametrize("name", every_config())
def test_the_kind_of_a_parameter_is_that_of_its_module(name: str) -> None:
    """What int8 rounds is what `Linear` multiplies by."""
    config = every_config()[name]
    model = Transformer(config)
    linears = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Linear)}
    assert {each for each, parameter in every_name(config).items() if parameter.kind == "linear"} == linears
    assert all(parameter.kind != "linear" or len(parameter.shape) == 2 for parameter in parameters(config).values())
