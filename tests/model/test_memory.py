"""What a pass keeps alive: no earlier layer's output unless it was asked for, and nothing that the output does not show."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plainformer.families import config_from_dict
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model.attention import attend_eagerly
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.flow import Mask
from plainformer.model.initial import initialise
from plainformer.model.inputs import StackInput
from plainformer.model.transformer import Transformer
from tests.support.memory import peak_bytes
from tests.support.models import BART, BERT, GPT2, LABELS, VIT
from tests.support.models import make as model_of

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


@torch.inference_mode()
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("kind", ["nothing hidden", "causal", "a mask", "a prefix"])
def test_attention_by_steps_holds_two_matrices_of_scores(kind: str, softcap: float | None) -> None:
    """Each step takes the place of the one before; nothing that is done with is kept until the context is there."""
    rows, heads, length, size = 2, 4, 128, 8
    q, k, v = torch.randn(3, rows, heads, length, size, generator=torch.Generator().manual_seed(0))
    mask = Mask(torch.zeros(rows, 1, length, length)) if kind == "a mask" else Mask(causal=kind == "causal")
    prefix = (k[:1], v[:1]) if kind == "a prefix" else None
    scores = rows * heads * length * (length if prefix is None else 2 * length) * 4
    peak = peak_bytes(lambda: attend_eagerly(q, k, v, mask, 0.3, softcap, prefix))
    assert 2 * scores <= peak < 2.3 * scores


@torch.inference_mode()
def test_a_bias_of_distances_is_laid_out_once() -> None:
    """As the fused kernel reads it: else it would copy the bias, which is as large as all scores, in every layer."""
    model, ids = model_of("t5").eval(), torch.arange(5, 45).view(2, 20)
    padded = torch.ones_like(ids)
    padded[1, 15:] = 0
    for stack in (model.encoder, model.decoder):
        for real in (None, padded):
            assert stack is not None
            memory = model.encode(ids) if stack is model.decoder else None
            flow = stack.begin(StackInput(input_ids=ids, attention_mask=real), encoder_output=memory)[1]
            assert all(mask.bias is not None and mask.bias.is_contiguous() for mask in flow.masks)
    own = model.config.input_stack.num_heads * 256 * 256 * 4
    ids, real = torch.randint(5, 60, (4, 256)), torch.ones(4, 256, dtype=torch.long)
    real[1, 200:] = 0
    assert peak_bytes(lambda: model.encode(ids, real)) < 5.5 * own  # each row's, and the one that they are made of
