"""Image and speech families against the reference, for each head and each value that changes the computation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.families import config_from_dict, head_of
from plainformer.loading import load_model
from plainformer.model.transformer import Transformer
from tests.support.cases.vision_and_speech import IMAGE, IMAGES, MEL, MELS, STABLE, WAVE, WAVES, case, image, wave
from tests.support.parity import (
    Case,
    build,
    check_everything,
    close,
    load_ours,
    make_inputs,
    reference_logits,
)


@pytest.mark.parametrize("case", [*IMAGES, *WAVES, *MELS], ids=str)
def test_vision_and_speech(case: Case, tmp_path: Path) -> None:
    check_everything(case, tmp_path)


SIZES = [(32, 48), (48, 32), (16, 16), (61, 35), (8, 72)]


@pytest.mark.parametrize("model", ["ViTModel", "DeiTForImageClassificationWithTeacher"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_other_image_sizes(model: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Positions are stretched as the reference does with interpolate_pos_encoding=True."""
    made = image("sizes", model, shape=(3, *size))
    reference = build(made)
    ours = load_ours(reference, tmp_path)
    pixels = make_inputs(made)["pixel_values"]
    theirs = reference(pixel_values=pixels, interpolate_pos_encoding=True)
    mine = ours(pixel_values=pixels)
    logits = reference_logits(theirs)
    close(mine.last_hidden_state if logits is None else mine.logits, theirs[0] if logits is None else logits, str(size))


def padded_waves(lengths: tuple[int, ...] = (900, 1337, 400)) -> dict[str, torch.Tensor]:
    """Clips of unequal length, zeros behind each, and the mask of their samples."""
    generator = torch.Generator().manual_seed(5)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return {"input_values": torch.randn(mask.shape, generator=generator) * mask, "attention_mask": mask}


@pytest.mark.parametrize("case", WAVES, ids=str)
@torch.no_grad()
def test_padded_audio(case: Case, tmp_path: Path) -> None:
    """Unequal clips with their mask equal those of the reference's own batch; with layer norms, each clip alone too."""
    reference = build(case)
    ours = load_ours(reference, tmp_path)
    batch = padded_waves()
    theirs = reference(**batch, output_hidden_states=True)
    mine = ours(**batch, output_hidden_states=True)
    logits = reference_logits(theirs)
    real = ours.states(**batch).real_BT  # what padding becomes is nobody's answer
    assert real is not None and not bool(real.all())
    if logits is None:
        close(mine.last_hidden_state[real], theirs.last_hidden_state[real], "last hidden state")
    elif logits.dim() == 3:
        close(mine.logits[real], logits[real], "logits")
    else:
        close(mine.logits, logits, "logits")
    for index in range(len(theirs.hidden_states) - 1):
        close(mine.hidden_states[index][real], theirs.hidden_states[index][real], f"hidden state {index}")
    if reference.config.feat_extract_norm == "layer":  # a group norm averages over the padding too
        check_alone(ours, batch)


def check_alone(ours: Transformer, batch: dict[str, torch.Tensor]) -> None:
    """Each clip by itself gives its rows of the batch."""
    together = ours(**batch)
    for row, samples in enumerate(batch["attention_mask"].sum(-1).tolist()):
        alone = ours(input_values=batch["input_values"][row : row + 1, :samples])
        frames = alone.last_hidden_state.size(1)
        close(together.last_hidden_state[row : row + 1, :frames], alone.last_hidden_state, f"clip {row}")
        if alone.logits is not None:
            whole = together.logits[row : row + 1]
            close(whole if whole.dim() == 2 else whole[:, :frames], alone.logits, f"clip {row}, logits")


@pytest.mark.parametrize("case", [WAVES[1], wave("stable", "HubertForCTC", **STABLE)], ids=str)
@torch.no_grad()
def test_a_full_mask_is_no_mask(case: Case, tmp_path: Path) -> None:
    ours = load_ours(build(case), tmp_path)
    values = make_inputs(case)["input_values"]
    found = ours(input_values=values, attention_mask=torch.ones_like(values, dtype=torch.long))
    close(found.last_hidden_state, ours(input_values=values).last_hidden_state, "a mask of ones")


def rename(folder: Path, change: Any, **more: torch.Tensor) -> None:
    """The folder's weights under other names, and more of them."""
    path = folder / "model.safetensors"
    save_file({change(name): value for name, value in load_file(path).items()} | more, path, {"format": "pt"})


@torch.no_grad()
def test_weight_norm_under_both_spellings(tmp_path: Path) -> None:
    """The reference writes torch's parametrization names; published checkpoints have weight_g and weight_v."""
    reference = build(WAVES[1])
    before = load_ours(reference, tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert any(name.endswith("parametrizations.weight.original0") for name in names)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    rename(tmp_path, lambda name: next((name.replace(a, b) for a, b in old.items() if a in name), name))
    after = load_model(tmp_path, backend="plain")
    inputs = make_inputs(WAVES[1])
    close(after(**inputs).logits, before(**inputs).logits, "logits")


def new_vit_name(name: str) -> str:
    """A published name as transformers 5 calls the parameter inside."""
    pairs = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for old, new in pairs.items():
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize("case", [IMAGES[0], IMAGES[1], IMAGES[10]], ids=str)
@torch.no_grad()
def test_vit_under_both_spellings(case: Case, tmp_path: Path) -> None:
    reference = build(case)
    before = load_ours(reference, tmp_path)
    rename(tmp_path, new_vit_name)
    assert set(load_file(tmp_path / "model.safetensors")) == set(reference.state_dict())
    after = load_model(tmp_path, backend="plain")
    inputs = make_inputs(case)
    close(after(**inputs).last_hidden_state, before(**inputs).last_hidden_state, "last hidden state")


@torch.no_grad()
def test_what_only_pretraining_reads(tmp_path: Path) -> None:
    """Mask vectors, quantizers and their projections are known extras: a pre-trained checkpoint is a base model."""
    made = case("pretraining", "Wav2Vec2ForPreTraining", "wave", WAVE, mask_time_prob=0.05, codevector_dim=16)
    reference = build(made)
    ours = load_ours(reference, tmp_path)
    assert ours.config.head.kind == "none"
    inputs = make_inputs(made)
    close(ours(**inputs).last_hidden_state, reference.wav2vec2(**inputs).last_hidden_state, "last hidden state")
    masked = image("mask-token", "ViTModel")
    before = load_ours(build(masked), tmp_path / "vit")
    extras = {"embeddings.mask_token": torch.ones(1, 1, 32), "decoder.0.bias": torch.ones(3)}
    rename(tmp_path / "vit", lambda name: name, **extras)
    after = load_model(tmp_path / "vit", backend="plain")
    inputs = make_inputs(masked)
    close(after(**inputs).pooler_output, before(**inputs).pooler_output, "pooler")


@pytest.mark.parametrize("model", ["Wav2Vec2ForSequenceClassification", "HubertForSequenceClassification"])
@torch.no_grad()
def test_mixed_states_end_after_the_final_norm(model: str, tmp_path: Path) -> None:
    """The large layout's last state: the reference (5.23) takes it before its norm, training and 4.x after."""
    made = wave("mixed-stable", model, use_weighted_layer_sum=True, **STABLE)
    reference = build(made)
    ours = load_ours(reference, tmp_path)
    inputs = make_inputs(made)
    base = reference.base_model(**inputs, output_hidden_states=True)
    states = torch.stack((*base.hidden_states[:-1], base.last_hidden_state))
    mixed = (states * reference.layer_weights.softmax(-1)[:, None, None, None]).sum(0)
    found = ours(**inputs)
    close(found.logits, reference.classifier(reference.projector(mixed).mean(1)), "logits")
    assert found.hidden_states is None


@torch.no_grad()
def test_whisper_encoder_is_run_once(tmp_path: Path) -> None:
    """`encode` then `encoder_output=` decodes as the whole does; padded prompts count from their first real word."""
    reference = build(MELS[1])
    ours = load_ours(reference, tmp_path)
    inputs = make_inputs(MELS[1])
    encoded = ours.encode(input_features=inputs["input_features"])
    ids = inputs["decoder_input_ids"]
    close(ours(decoder_input_ids=ids, encoder_output=encoded).logits, reference(**inputs).logits, "encoded before")
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    theirs = reference(
        **inputs, decoder_attention_mask=mask, decoder_position_ids=(mask.cumsum(-1) - 1).clamp_min(0)
    ).logits
    found = ours(**inputs, decoder_attention_mask=mask).logits
    close(found[0, 2:], theirs[0, 2:], "padded on the left")
    close(found[1], theirs[1], "the row without padding")


@pytest.mark.parametrize(
    ("made", "inputs", "says"),
    [
        (IMAGES[1], {"pixel_values": torch.zeros(1, 1, 32, 32)}, "not (B, 3, H, W)"),
        (IMAGES[1], {"pixel_values": torch.zeros(3, 32, 32)}, "not (B, 3, H, W)"),
        (IMAGES[1], {"pixel_values": torch.zeros(1, 3, 32, 7)}, "smaller than a patch (8, 8)"),
        (WAVES[1], {"input_values": torch.zeros(1, 399)}, "at least N = 400"),
        (WAVES[1], {"input_values": torch.zeros(800)}, "not (B, N)"),
        (WAVES[1], padded_waves((900, 399)), "399 real samples"),
        (WAVES[1], {name: value.flip(1) for name, value in padded_waves().items()}, "before real ones"),
        (MELS[1], {"input_features": torch.zeros(1, 9, 40), "decoder_input_ids": torch.ones(1, 1).long()}, "(B, 8,"),
        (MELS[1], {"input_features": torch.zeros(1, 8, 41), "decoder_input_ids": torch.ones(1, 1).long()}, "1 to 40"),
        (MELS[1], {"input_features": torch.zeros(1, 8, 0), "decoder_input_ids": torch.ones(1, 1).long()}, "1 to 40"),
    ],
)
def test_inputs_that_do_not_fit(made: Case, inputs: dict[str, torch.Tensor], says: str, tmp_path: Path) -> None:
    ours = load_ours(build(made), tmp_path)
    with pytest.raises(InputError, match=re.escape(says)):
        ours(**inputs)


def test_a_mask_of_another_shape(tmp_path: Path) -> None:
    ours = load_ours(build(WAVES[1]), tmp_path)
    with pytest.raises(UsageError, match="attention_mask of shape"):
        ours(input_values=torch.zeros(1, 800), attention_mask=torch.ones(1, 700).long())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"add_adapter": True}, "add_adapter=True is not supported"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim=16 is not supported"),
        ({"model_type": "hubert", "conv_pos_batch_norm": True}, "conv_pos_batch_norm=True is not supported"),
        ({"conv_stride": [5, 2]}, "conv_dim, conv_kernel and conv_stride differ in length"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm='batch' is not supported"),
        ({"num_conv_pos_embedding_groups": 5}, "5 groups of position channels do not divide 32"),
        ({"num_conv_pos_embedding_groups": 0}, "0 groups of position channels do not divide 32"),
    ],
    ids=str,
)
def test_wave_configurations_that_are_refused(changes: dict[str, Any], says: str) -> None:
    raw = {"model_type": "wav2vec2", **WAVE, **changes}
    with pytest.raises(CheckpointError, match=says):
        config_from_dict(raw, "audio")


@pytest.mark.parametrize(
    ("model_type", "values", "head"),
    [("vit", IMAGE, "ctc"), ("deit", IMAGE, "token"), ("hubert", WAVE, "image"), ("whisper", MEL, "causal_lm")],
)
def test_heads_that_a_family_lacks(model_type: str, values: dict[str, Any], head: str) -> None:
    with pytest.raises(UsageError, match=head):
        config_from_dict({"model_type": model_type, **values}, head)


def test_heads_by_architecture() -> None:
    assert head_of("Wav2Vec2ForAudioFrameClassification", "wav2vec2") == "token"
    assert head_of("HubertForSequenceClassification", "hubert") == "audio"
    assert head_of("Wav2Vec2ForPreTraining", "wav2vec2") == "none"
    for architecture in ("Wav2Vec2ForXVector", "ViTForMaskedImageModeling"):
        with pytest.raises(CheckpointError, match=f"{architecture!r} is not supported"):
            head_of(architecture, "wav2vec2")
