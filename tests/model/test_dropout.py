"""Dropout costs nothing outside training, layers are left out as often as they should be, and one value sets all places."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from plainformer.config import Dropout, NormConfig
from plainformer.errors import CheckpointError, UsageError
from plainformer.families import config_from_dict
from plainformer.model.attention import attend, attend_eagerly
from plainformer.model.block import Block
from plainformer.model.dropout import drop, set_dropout
from plainformer.model.fast import compiled
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.flow import Mask
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support import step
from tests.support.close import close
from tests.support.dropout import placements
from tests.support.models import BART, BERT, LABELS

EVERYWHERE = Dropout(*[0.1] * len(dataclasses.fields(Dropout)))


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(model: Transformer, *, cached: bool) -> Counter[str]:
    with Operations() as seen, torch.no_grad():
        if cached:
            step.decode(model, step.ids_of(2))
        else:
            model(step.ids_of(2))
    return seen.count


def test_the_share_of_zeros_and_the_scale() -> None:
    torch.manual_seed(0)
    x = torch.ones(200, 500)
    dropped = drop(x, 0.2, True)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert abs(float((dropped == 0).double().mean()) - 0.2) < 5 * (0.2 * 0.8 / x.numel()) ** 0.5
    assert drop(x, 0.2, False) is x and drop(x, 0.0, True) is x


@pytest.mark.parametrize(
    "changes", [{}, {"residual": "parallel"}, {"ffn": "gated", "norm": NormConfig("rms", bias=False)}]
)
@pytest.mark.parametrize("cached", [False, True])
def test_no_operation_outside_training(changes: dict[str, Any], cached: bool) -> None:
    """An evaluation, a prompt and decoding steps ask torch for exactly what they do without dropout."""
    models = [step.make(dropout=dropout, **changes) for dropout in (Dropout(), EVERYWHERE)]
    without, with_it = (operations(model, cached=cached) for model in models)
    assert with_it == without
    for model in models:
        prepare_for_inference(model)
    without, with_it = (operations(model, cached=cached) for model in models)
    assert with_it == without


def test_compiled_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with dropout decodes through the kernel: no layer's own modules run after the prompt."""
    if compiled.kernels() is None:
        pytest.skip("no Numba with OpenMP or TBB here")
    model = step.make(dropout=EVERYWHERE)
    prepare_for_inference(model)
    lengths: list[int] = []
    forward = Block.forward

    def counted(self: Block, x_BTD: Tensor, layer: int, flow: Any) -> Any:
        lengths.append(x_BTD.size(1))
        return forward(self, x_BTD, layer, flow)

    monkeypatch.setattr(Block, "forward", counted)
    step.decode(model, step.ids_of(2))
    assert lengths == [6, 6]


def test_both_attentions_drop_alike() -> None:
    """The same seed drops the same probabilities, with heads that share keys too; those returned are the ones before."""
    generator = torch.Generator().manual_seed(0)
    for heads, kv_heads in ((4, 4), (4, 2)):
        q, k, v = (torch.randn(2, n, 5, 8, generator=generator) for n in (heads, kv_heads, kv_heads))
        torch.manual_seed(1)
        fused = attend(q, k, v, Mask(causal=True), 0.3, 0.5)
        torch.manual_seed(1)
        context, probabilities = attend_eagerly(q, k, v, Mask(causal=True), 0.3, dropout=0.5)
        close(fused, context)
        close(probabilities.sum(-1), torch.ones(2, heads, 5))


def bert(**changes: Any) -> Transformer:
    raw = {**BERT, **LABELS, "architectures": ["BertForSequenceClassification"], **changes}
    return initialise(Transformer(config_from_dict(raw)), std=0.3)


def test_one_value_for_all_places() -> None:
    model, ids = bert().train(), torch.arange(5, 13).view(2, 4)

    def values() -> set[float]:
        return {p for p, _ in placements(lambda: model(ids))}

    count = len(placements(lambda: model(ids)))
    assert values() == {0.1}
    set_dropout(model, 0.3)
    assert values() == {0.3} and len(placements(lambda: model(ids))) == count
    set_dropout(model, 0)
    assert values() == set()
    set_dropout(model, None)
    assert values() == {0.1}


def test_one_value_where_the_checkpoint_has_none() -> None:
    """The four usual places; layers are left out as before, and not at all with 0."""
    raw = {**BART, "dropout": 0.0, "encoder_layerdrop": 0.2, "architectures": ["BartForConditionalGeneration"]}
    model, ids = initialise(Transformer(config_from_dict(raw))).train(), torch.arange(5, 13).view(2, 4)
    set_dropout(model, 0.25)
    found = Counter(placements(lambda: model(ids)))
    # Two layers on each side: 2 inputs, 2 + 2 * 2 outputs of attention, 4 of FFN; 6 attentions.
    assert found == {(0.2, ()): 2, (0.25, (2, 4, 32)): 12, (0.25, (2, 4, 4, 4)): 6}
    set_dropout(model, 0.0)
    assert placements(lambda: model(ids)) == []


@pytest.mark.parametrize("p", [1, 1.0, -0.1, "abc", float("nan"), True])
def test_refused_values(p: Any) -> None:
    with pytest.raises(UsageError, match="dropout"):
        set_dropout(bert(), p)
    if p != 1:
        with pytest.raises(CheckpointError, match="attention"):
            Dropout(attention=p)


def test_layers_are_left_out() -> None:
    """A layer that is left out passes on its input and gets no gradient; the share of such layers is as stated."""
    raw = {**BART, "decoder_layerdrop": 0.3, "dropout": 0.0, "architectures": ["BartForConditionalGeneration"]}
    model, ids = initialise(Transformer(config_from_dict(raw)), std=0.3).train(), torch.arange(5, 13).view(2, 4)
    assert model.decoder is not None
    torch.manual_seed(0)
    left_out = 0
    for _ in range(100):
        model.zero_grad()
        output = model(ids, output_hidden_states=True)
        output.logits.sum().backward()
        for index, layer in enumerate(model.decoder.layers):
            states = output.hidden_states[index : index + 2]
            if layer.attention.qkv.q.weight.grad is None:
                left_out += 1
                assert states[0] is states[1] or index == 1
    assert abs(left_out / 200 - 0.3) < 5 * (0.3 * 0.7 / 200) ** 0.5
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_part_in_eval_mode_drops_nothing() -> None:
    """A frozen backbone, in eval mode, is computed as in inference, while its head is trained with dropout."""
    model, ids = bert().train(), torch.arange(5, 13).view(2, 4)
    assert isinstance(model.encoder, nn.Module)
    model.encoder.eval()
    assert placements(lambda: model(ids)) == [(0.1, (2, 32))]


def test_generating_in_training_mode_drops() -> None:
    """Even after a model has been prepared, steps are then computed by the layers' own modules, and layers left out."""
    model, ids = step.make(dropout=Dropout(ffn_output=0.2, layer=0.1)), step.ids_of(2)
    prepare_for_inference(model)
    step.decode(model, ids)
    passes = 1 + ids.size(1) - 6
    found = Counter(p for p, _ in placements(lambda: step.decode(model.train(), ids)))
    assert found == {0.1: 2 * passes, 0.2: 2 * passes}
