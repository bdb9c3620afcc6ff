"""SpecAugment: how much is hidden, of what, and that the model sees what the reference does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from plainformer.config import MelFrontend, WaveFrontend
from plainformer.config.training import AugmentConfig
from plainformer.model.frontend import frames_of
from plainformer.saving import save_model
from plainformer.train.draws import generator
from plainformer.train.objectives.hearing import Clips, hidden
from plainformer.train.specaugment import Spans, hidden_spans, masks
from tests.support.cases.vision_and_speech import STABLE, WAVE, case
from tests.support.close import close
from tests.support.parity import build, load_ours

WAVES = WaveFrontend(channels=(8,), kernels=(4,), strides=(2,))


def model_of(frontend: Any = WAVES, **source: Any) -> Any:
    return SimpleNamespace(input_frontend=frontend, source=source)


def test_how_much_is_hidden() -> None:
    """Spans of the asked length, of which the mean number is the share; as many frames as in the reference's masks."""
    size, spans = 400, Spans(0.2, 10)
    found = np.stack([spans.mask(size, generator(0, 0, number)) for number in range(3000)])
    theirs = np.concatenate([_compute_mask_indices((3000, size), 0.2, 10)])
    assert found.mean() == pytest.approx(theirs.mean(), rel=0.02)
    assert 0.15 < found.mean() < 0.2  # spans overlap
    middle = found.mean(0)[10:-10]
    assert middle.std() < 0.02 and abs(middle.mean() - theirs.mean(0)[10:-10].mean()) < 0.01
    edges = np.diff(np.pad(found.astype(int), ((0, 0), (1, 1))), axis=1)
    runs = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    assert runs.min() == 10


def test_short_clips_and_the_least_number() -> None:
    draw = generator(0, 0, 0)
    assert not Spans(0.5, 10).mask(9, draw).any()
    assert Spans(0.5, 10, least=2).mask(10, draw).all()
    assert Spans(0.001, 10, least=2).mask(100, draw).sum() in range(11, 21)
    assert not Spans(0.0, 10, least=2).mask(100, draw).any()


def test_padding_is_never_chosen_and_rows_do_not_depend_on_each_other() -> None:
    spans, sizes = (Spans(0.3, 5), Spans(0.2, 4)), [40, 25, 60]
    whole = masks(sizes, 60, 32, spans, [generator(0, 3, n) for n in range(3)])
    for row, size in enumerate(sizes):
        assert not whole[0][row, size:].any()
        alone = masks([size], size, 32, spans, [generator(0, 3, row)])
        assert (alone[0][0] == whole[0][row, :size]).all() and (alone[1][0] == whole[1][row]).all()
    other = masks(sizes, 60, 32, spans, [generator(0, 4, n) for n in range(3)])
    assert (other[0] != whole[0]).any()


def test_what_the_checkpoint_states_is_done_and_what_is_asked_wins() -> None:
    stated = {"mask_time_prob": 0.05, "mask_time_length": 8, "mask_feature_prob": 0.1, "mask_feature_min_masks": 1}
    assert hidden_spans(AugmentConfig(), model_of(**stated)) == (Spans(0.05, 8, 2), Spans(0.1, 10, 1))
    assert hidden_spans(AugmentConfig(time_mask=0.3), model_of(**stated))[0] == Spans(0.3, 8)
    assert hidden_spans(AugmentConfig(time_mask_length=4), model_of(**stated))[0] == Spans(0.05, 4, 2)
    nothing = tuple(
        one.share for one in hidden_spans(AugmentConfig(time_mask=0.0, feature_mask=0.0), model_of(**stated))
    )
    assert nothing == (0, 0)
    off = hidden_spans(AugmentConfig(), model_of(**stated, apply_spec_augment=False))
    assert [one.share for one in off] == [0, 0]
    mel = MelFrontend(mels=80, max_positions=1500)  # Whisper's configuration hides nothing unless it says so
    assert [one.share for one in hidden_spans(AugmentConfig(), model_of(mel, **stated))] == [0, 0]
    assert hidden_spans(AugmentConfig(), model_of(mel, **stated, apply_spec_augment=True))[0].share == 0.05
    assert [one.share for one in hidden_spans(AugmentConfig(), model_of())] == [0, 0]


@pytest.mark.parametrize("changes", [{}, STABLE], ids=["base", "large"])
@torch.no_grad()
def test_hidden_frames_are_the_references(changes: dict[str, Any], tmp_path: Path) -> None:
    """The checkpoint's vector is in their place, padding is zeros all the same; saved, the vector is there again."""
    made = case("hidden", "Wav2Vec2Model", "wave", {**WAVE, "mask_time_prob": 0.05}, **changes)
    reference = build(made)
    ours = load_ours(reference, tmp_path)
    waves = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9000, dtype=torch.int64)
    mask[1, 6000:] = 0
    frames = frames_of(ours.config.input_frontend, 9000)
    hidden = torch.rand(2, int(frames), generator=torch.Generator().manual_seed(1)) < 0.4
    theirs = reference(input_values=waves, attention_mask=mask, mask_time_indices=hidden).last_hidden_state
    found = ours(input_values=waves, attention_mask=mask, hidden_frames=hidden).last_hidden_state
    real = frames_of(ours.config.input_frontend, 6000)
    close(found[0], theirs[0], "whole clip")
    close(found[1, :real], theirs[1, :real], "padded clip")
    plain = ours(input_values=waves, attention_mask=mask).last_hidden_state
    assert (plain[0] - found[0]).abs().max() > 0.1
    save_model(ours, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(
        saved["wav2vec2.masked_spec_embed" if "wav2vec2.masked_spec_embed" in saved else "masked_spec_embed"],
        reference.masked_spec_embed,
    )


@torch.no_grad()
def test_hidden_features_are_zero(tmp_path: Path) -> None:
    """As if the projection had nothing for them."""
    ours = load_ours(build(case("bands", "Wav2Vec2Model", "wave", WAVE)), tmp_path)
    waves, bands = torch.randn(2, 5000), torch.zeros(2, 32, dtype=torch.bool)
    bands[:, 3:9] = True
    found = ours(input_values=waves, hidden_features=bands).last_hidden_state
    project = ours.encoder.frontend.project
    project.weight[3:9], project.bias[3:9] = 0, 0
    close(found, ours(input_values=waves).last_hidden_state, "hidden features")


def clips_of(inputs: dict[str, torch.Tensor], samples: tuple[int, ...], apart: bool) -> Clips:
    return Clips(inputs, {}, len(samples), 0, samples=samples, apart=apart)


def test_clips_that_run_apart_are_hidden_as_they_are_together() -> None:
    """Of wave models without a mask: each length runs alone, with its own frames' masks; lengths stay."""
    stack = SimpleNamespace(hidden_size=6)
    model = SimpleNamespace(input_frontend=WAVES, input_stack=stack, source={})
    config = AugmentConfig(time_mask=0.4, time_mask_length=3, feature_mask=0.4, feature_mask_length=2)
    waves = {"input_values": torch.zeros(3, 80)}
    made = hidden(clips_of(waves, (40, 80, 40), True), [generator(0, 0, n) for n in range(3)], config, model)
    assert made.frames == (19, 39, 19) and made.inputs["hidden_frames"].shape == (3, 39)
    for rows, inputs in made.runs():
        frames = made.frames[rows[0]]
        assert inputs["input_values"].shape[1] == made.samples[rows[0]]
        assert torch.equal(inputs["hidden_frames"], made.inputs["hidden_frames"][rows, :frames])
        assert torch.equal(inputs["hidden_features"], made.inputs["hidden_features"][rows])
    assert made.inputs["hidden_frames"].any() and not made.inputs["hidden_frames"][0, 19:].any()
    alone = hidden(clips_of({"input_values": torch.zeros(1, 40)}, (40,), True), [generator(0, 0, 2)], config, model)
    assert torch.equal(alone.inputs["hidden_frames"][0], made.inputs["hidden_frames"][2, :19])
    nothing = clips_of(waves, (40, 80, 40), True)
    assert hidden(nothing, [], AugmentConfig(), model) is nothing


def test_spectrograms_are_hidden_within_the_sound() -> None:
    """Zeros, in whole bands and in spans of the clip's own frames; all else keeps its bits."""
    model = model_of(MelFrontend(mels=16, max_positions=50))
    features = torch.rand(2, 16, 100) + 1
    config = AugmentConfig(time_mask=0.3, feature_mask=0.3, feature_mask_length=3)
    made = hidden(
        clips_of({"input_features": features}, (60, 100), False), [generator(0, 0, n) for n in range(2)], config, model
    )
    found = made.inputs["input_features"]
    zeros = found == 0
    assert torch.equal(found[~zeros], features[~zeros])
    bands, frames = zeros.all(2), zeros[:, ~zeros.all(2).all(0)].all(1)
    assert bands.any() and frames.any() and not frames[0, 60:].any()
    assert torch.equal(zeros, bands[:, :, None] | zeros.all(1)[:, None, :])
