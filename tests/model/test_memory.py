"""What a pass keeps alive: no earlier layer's output unless it was asked for, and nothing that the output does not show."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plainformer.families import config_from_dict
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.models import BART, BERT, GPT2, LABELS, VIT

LAYERS = 4
KINDS: dict[str, dict[str, Any]] = {
    "encoder": {**BERT, **LABELS, "num_hidden_layers": LAYERS, "architectures": ["BertForSequenceClassification"]},
    "decoder": {**GPT2, "n_layer": LAYERS, "architectures": ["GPT2LMHeadModel"]},
    "encoder-decoder": {**BART, "decoder_layers": LAYERS, "architectures": ["BartForConditionalGeneration"]},
    "images": {**VIT, **LABELS, "num_hidden_layers": LAYERS, "architectures": ["ViTForImageClassification"]},
}


def run(model: Transformer, kind: str, **options: Any) -> Any:
    ids = torch.arange(5, 17).view(2, 6)
    if kind == "images":
        return model(pixel_values=torch.zeros(2, 3, 32, 32), **options)
    if kind == "encoder":
        return model(ids, **options)
    cache = KeyValueCache(model.config, 2)
    inputs = {"input_ids": ids} if kind == "decoder" else {"input_ids": ids, "decoder_input_ids": ids}
    return model(**inputs, cache=cache, logits_to_keep=1, **options)


def outputs_of(modules: list[nn.Module]) -> tuple[list[weakref.ref[Tensor]], list[list[bool]]]:
    """References to the outputs of modules that run one after the other; when each is called, which earlier ones live."""
    kept: list[weakref.ref[Tensor]] = []
    alive: list[list[bool]] = []

    def before(module: nn.Module, inputs: Any) -> None:
        alive.append([reference() is not None for reference in kept])

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    for module in modules:
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
    return kept, alive


@torch.inference_mode()
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_output_is_alive(kind: str, prepared: bool) -> None:
    model = initialise(Transformer(config_from_dict(KINDS[kind]))).eval()
    if prepared:
        prepare_for_inference(model)
    kept, alive = outputs_of([model.main.frontend, *model.main.layers])
    output = run(model, kind, only_logits=True)
    # Called: the frontend, then each layer, with the output before it still there as its input.
    assert alive == [[False] * (called - 1) + [True] * (called > 0) for called in range(LAYERS + 1)]
    assert output.logits is not None and all(reference() is None for reference in kept)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_hidden_states_go_with_only_logits(kind: str) -> None:
    model = initialise(Transformer(config_from_dict(KINDS[kind]))).eval()
    kept, _ = outputs_of([model.main])
    model.main.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output.last_hidden_state)))
    for only, alive in ((True, False), (False, True)):
        kept.clear()
        output = run(model, kind, only_logits=only)
        assert (kept[-1]() is not None) == alive and output.logits is not None


@torch.inference_mode()
def test_hidden_states_that_are_asked_for_are_kept() -> None:
    model = initialise(Transformer(config_from_dict(KINDS["decoder"]))).eval()
    kept, _ = outputs_of([model.main.frontend, *model.main.layers])
    output = run(model, "decoder", output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1
    # All but the last, which is shown after the final norm.
    assert [reference() is not None for reference in kept] == [True] * LAYERS + [False]
