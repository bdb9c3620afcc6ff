"""Activation checkpointing: the same gradients, dropout included, with fewer values kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plainformer.errors import UsageError
from plainformer.families import config_from_dict
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model.initial import initialise
from plainformer.model.recompute import set_checkpointing
from plainformer.model.transformer import Transformer
from tests.support.close import close
from tests.support.models import BART, BERT, GPT2, VIT, WAVE

IDS = torch.arange(5, 17).view(2, 6)
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "encoder": ({**BERT, "num_hidden_layers": 4, "architectures": ["BertForMaskedLM"]}, {"input_ids": IDS}),
    "decoder": ({**GPT2, "n_layer": 4, "architectures": ["GPT2LMHeadModel"]}, {"input_ids": IDS}),
    "encoder-decoder": (
        {**BART, "encoder_layers": 4, "encoder_layerdrop": 0.4, "architectures": ["BartForConditionalGeneration"]},
        {"input_ids": IDS},
    ),
    "images": ({**VIT, "hidden_dropout_prob": 0.1, "architectures": ["ViTModel"]}, {"pixel_values": torch.ones(2, 3, 32, 32)}),
    "speech": ({**WAVE, "architectures": ["Wav2Vec2ForCTC"]}, {"input_values": torch.ones(2, 900)}),
}  # fmt: skip


def model_of(kind: str) -> Transformer:
    return initialise(Transformer(config_from_dict(KINDS[kind][0])), std=0.3).train()


def step(model: Transformer, inputs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a training step, and how many bytes it keeps for them besides the weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if (place := x.untyped_storage().data_ptr()) not in own:
            kept[place] = x.untyped_storage().nbytes()
        return x

    model.zero_grad()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = model(**inputs)
        result = output.logits if output.logits is not None else output.last_hidden_state
        loss = result.float().square().mean()
        size = sum(kept.values())  # before the layers run again
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, size


@pytest.mark.parametrize("kind", KINDS)
def test_equal_gradients_of_fewer_values(kind: str) -> None:
    model, inputs = model_of(kind), KINDS[kind][1]
    expected, most = step(model, inputs)
    sizes = []
    for layers in ("all", 2):
        set_checkpointing(model, layers)  # type: ignore[arg-type]
        found, size = step(model, inputs)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            close(gradient, expected[name], name, rel=1e-6)
        sizes.append(size)
    assert sizes[0] < sizes[1] < most
    set_checkpointing(model, "none")
    assert step(model, inputs)[1] == most


def test_attentions_and_hidden_states_are_the_same() -> None:
    model = model_of("encoder")
    outputs = []
    for layers in ("none", "all"):
        set_checkpointing(model, layers)  # type: ignore[arg-type]
        torch.manual_seed(0)
        outputs.append(model(IDS, output_hidden_states=True, output_attentions=True))
    before, after = outputs
    for name in ("hidden_states", "attentions"):
        close(getattr(after, name), getattr(before, name), name)


def test_only_in_training_with_gradients() -> None:
    model = model_of("decoder")
    set_checkpointing(model, "all")
    calls: list[int] = []
    model.main.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(IDS, cache=KeyValueCache(model.config, 2))
    model.eval()(IDS).logits.sum().backward()
    assert len(calls) == 2
    model.train()(IDS).logits.sum().backward()
    assert len(calls) == 4


def test_refused() -> None:
    model = model_of("decoder")
    for layers in ("some", 0, -1, 1.5, True, None):
        with pytest.raises(UsageError, match="checkpointing"):
            set_checkpointing(model, layers)  # type: ignore[arg-type]
    set_checkpointing(model, 1)
    with pytest.raises(UsageError, match="cache"):
        model(IDS, cache=KeyValueCache(model.config, 2))
