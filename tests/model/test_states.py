"""States and scores apart: the head runs where labels are, and the gradient is that of running it everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from plainformer.errors import UsageError
from plainformer.model.dropout import set_dropout
from plainformer.model.transformer import Transformer
from plainformer.train.losses import word_losses
from tests.support.cases import decoders, encoder_decoders, encoders, vision_and_speech
from tests.support.close import close
from tests.support.parity import Case, build, load_ours, make_inputs

ALL = [
    *decoders.LLAMA,
    *decoders.OTHERS,
    *encoders.ALL,
    *encoder_decoders.BART,
    *encoder_decoders.SINUSOIDAL,
    *encoder_decoders.T5,
    *vision_and_speech.WAVES,
    *vision_and_speech.MELS,
]
WORD_HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration", "MTModel")


def one_of_each_family(cases: list[Case]) -> list[Case]:
    """The first case of each family that has a head over words, and those whose head is special."""
    first = {case.name: case for case in reversed(cases) if case.model_class.endswith(WORD_HEADS)}
    return list(first.values())


CASES = one_of_each_family(ALL)


def trainable(case: Case, folder: Path) -> Transformer:
    model = load_ours(build(case), folder).double().train().requires_grad_()  # rounding aside
    set_dropout(model, 0)
    return model


def gradients(model: Transformer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_head_at_labelled_positions_gives_the_whole_gradient(case: Case, tmp_path: Path) -> None:
    model, inputs = trainable(case, tmp_path), make_inputs(case)
    logits = model(**inputs).logits
    assert logits is not None
    rows, length, words = logits.shape
    where = torch.tensor([1, 3, length, rows * length - 1])
    labels = torch.randint(words, where.shape, generator=torch.Generator().manual_seed(0))
    ignored = torch.full((rows * length,), -100).scatter(0, where, labels)
    whole = F.cross_entropy(logits.flatten(0, 1), ignored, reduction="sum")
    expected = gradients(model, whole)
    for chunk in (None, 3):
        states_ND = model.states(**inputs).last_hidden_state.flatten(0, 1)[where]
        close(model.score(states_ND), logits.flatten(0, 1)[where], "scores")
        losses = word_losses(model, states_ND, labels, chunk=chunk)
        close(losses.sum(), whole, "loss", rel=1e-6)
        found = gradients(model, losses.sum())
        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name], name, rel=1e-6)


def test_every_kind_of_head_over_words_is_among_them() -> None:
    assert len(CASES) > 25


@pytest.mark.parametrize("case", [c for c in ALL if "ForSequenceClassification" in c.model_class][:4], ids=str)
def test_states_are_what_the_head_reads(case: Case, tmp_path: Path) -> None:
    """Of classifiers too, whose head reads a row as a whole: `score` refuses those."""
    model, inputs = load_ours(build(case), tmp_path), make_inputs(case)
    output, whole = model.states(**inputs), model(**inputs)
    torch.testing.assert_close(output.last_hidden_state, whole.last_hidden_state, rtol=0, atol=0)
    with pytest.raises(UsageError, match="reads each row as a whole"):
        model.score(output.last_hidden_state)


def test_states_of_a_head_that_mixes_layers_are_the_mixture(tmp_path: Path) -> None:
    case = next(case for case in vision_and_speech.WAVES if case.name.endswith("-mixed"))
    model, inputs = load_ours(build(case), tmp_path), make_inputs(case)
    states = model.states(**inputs)
    mixed = model.head.mix(model(**inputs, output_hidden_states=True).hidden_states)
    close(states.last_hidden_state, mixed)


def test_states_of_an_encoder_decoder_take_an_encoder_output(tmp_path: Path) -> None:
    model, inputs = load_ours(build(encoder_decoders.BART[0]), tmp_path), make_inputs(encoder_decoders.BART[0])
    encoded = model.encode(inputs["input_ids"])
    given = model.states(encoder_output=encoded, decoder_input_ids=inputs["decoder_input_ids"])
    assert torch.equal(given.last_hidden_state, model.states(**inputs).last_hidden_state)


def test_a_model_without_a_head_has_no_scores(tmp_path: Path) -> None:
    case = next(case for case in decoders.LLAMA if case.name == "llama-base")
    model = load_ours(build(case), tmp_path)
    with pytest.raises(UsageError, match="has no head"):
        model.score(model.states(**make_inputs(case)).last_hidden_state)
    with pytest.raises(UsageError, match="'pixels' is not an input"):
        model.states(pixels=torch.zeros(1))
