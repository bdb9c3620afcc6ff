"""`--measure`: whatever a plan says of one process can be run here, and comes to what was planned."""

from __future__ import annotations

from typing import Any

import pytest

import plainformer as pf
from plainformer.config import ModelConfig
from plainformer.errors import UsageError
from plainformer.families import config_from_dict
from plainformer.measuring import measure
from tests.support.configs import tiny

SIZES = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256)
GPT2 = dict(n_embd=128, n_layer=3, n_head=4, n_positions=256)


def model(family: str, architecture: str, **sizes: Any) -> ModelConfig:
    return config_from_dict({**tiny(family, architecture), **sizes})


LLAMA = model("llama", "LlamaForCausalLM", **SIZES)
LABELS = model("bert", "BertForSequenceClassification", **SIZES)
MODELS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "lora": (LLAMA, {"trainable": "lora"}),
    "lora, all linears, layers run again": (
        LLAMA,
        {"trainable": "lora", "lora_targets": "all-linear", "lora_rank": 4, "checkpointing": "all"},
    ),
    "lora on fused matrices": (model("gpt2", "GPT2LMHeadModel", **GPT2), {"trainable": "lora"}),
    "lora and a new head": (LABELS, {"trainable": "lora"}),
    "head": (LABELS, {"trainable": "head"}),
    "masked words": (model("bert", "BertForMaskedLM", **SIZES), {}),
    "sgd-momentum": (LLAMA, {"optimizer": "sgd-momentum"}),
    "adafactor": (LLAMA, {"optimizer": "adafactor"}),
    "pure-bf16": (LLAMA, {"precision": "pure-bf16"}),
    "dropout": (LLAMA, {"dropout": 0.1}),
    "average": (LLAMA, {"average": True, "accumulate": 2}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step(name: str) -> None:
    config, options = MODELS[name]
    made = pf.plan(config, purpose="training", batch=4, length=32, **options)
    assert abs(measure(made).difference) < 0.02


def test_a_head_that_is_the_table_of_words() -> None:
    tied = model("gpt2", "GPT2LMHeadModel", **GPT2)
    with pytest.raises(UsageError, match="trainable='head'"):
        measure(pf.plan(tied, purpose="training", trainable="head"))
