"""Runs that learn from sound: from scratch, without a preprocessor's file, and with frames hidden."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import plainformer as pf
from plainformer.config.building import as_config, as_data
from plainformer.errors import CheckpointError
from plainformer.train.record import read_lines
from plainformer.training import train
from tests.support import models
from tests.support.close import close
from tests.support.learning import config_of, rows_of

WAVE = {**models.TINY, **models.CONVOLUTIONS}
MEL: dict[str, Any] = dict(models.SEQ2SEQ, num_mel_bins=16, max_source_positions=50, max_target_positions=40)
WORDS = dict(vocab_size=60, pad_token_id=2, bos_token_id=2, eos_token_id=2, decoder_start_token_id=3)  # of its decoder
FRAGMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2 classifies": ("audio-classification", {"model_type": "wav2vec2", **WAVE}),
    "hubert classifies": ("audio-classification", {"model_type": "hubert", **WAVE, **models.STABLE}),
    "whisper classifies": (
        "audio-classification",
        {"model_type": "whisper", **MEL, **WORDS, "classifier_proj_size": 24},
    ),
    "wav2vec2 writes": ("ctc", {"model_type": "wav2vec2", **WAVE, **models.STABLE}),
    "whisper writes": ("speech-to-text", {"model_type": "whisper", **MEL}),
}
CLASSES = {
    "audio-classification": transformers.AutoModelForAudioClassification,
    "ctc": transformers.AutoModelForCTC,
    "speech-to-text": transformers.AutoModelForSpeechSeq2Seq,
}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than these runs."""
    monkeypatch.setattr("plainformer.train.record.draw_plots", lambda folder: [])


def tokenizer_alone(folder: Path, objective: str) -> Path:
    """A folder with a tokenizer, and nothing that says how sound is read."""
    whole = folder / "whole"
    models.whisper(whole) if objective == "speech-to-text" else models.wav2vec2(whole, "Wav2Vec2ForCTC")
    kept = folder / "tokenizer"
    kept.mkdir()
    for path in whole.iterdir():
        if path.name not in ("config.json", "model.safetensors", "preprocessor_config.json", "generation_config.json"):
            shutil.copy(path, kept)
    return kept


@pytest.mark.parametrize("name", FRAGMENTS)
def test_from_scratch_without_a_preprocessor(name: str, tmp_path: Path) -> None:
    """Both libraries load what comes of it, and read sound alike with it."""
    objective, fragment = FRAGMENTS[name]
    rows = rows_of(tmp_path, objective)
    model: dict[str, Any] = {"config": fragment}
    if objective != "audio-classification":
        model["tokenizer"] = str(tokenizer_alone(tmp_path, objective))
    folder = train(config_of(tmp_path, objective, rows, model=model, length={"steps": 2})).folder / "last"
    clip = str(tmp_path / "clips" / "0.wav")
    task = pf.load(folder, backend="plain")
    assert task(clip) is not None
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    reference = CLASSES[objective].from_pretrained(folder).eval()
    ours = task.processor(clip)
    wave = transformers.audio_utils.load_audio(clip, sampling_rate=16_000)
    theirs = extractor(wave, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    field = "input_features" if fragment["model_type"] == "whisper" else "input_values"
    values = getattr(ours, field)
    close(values, theirs[field], "what is read", rel=1e-4)
    if objective == "speech-to-text":
        assert values.shape == (1, 16, 100)  # a second: as long as the model hears
        return
    inputs = {field: values}
    with torch.no_grad():
        close(task.model(**inputs).logits, reference(**inputs).logits, "logits")


def test_a_model_hears_whole_seconds(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "audio-classification")
    model = {"config": {"model_type": "whisper", **MEL, **WORDS, "max_source_positions": 70}}
    with pytest.raises(CheckpointError, match="max_source_positions=70 is not a whole number of seconds"):
        train(config_of(tmp_path, "audio-classification", rows, model=model, length={"steps": 2}))


def run_hiding(folder: Path, objective: str, model: Path, augment: Mapping[str, Any]) -> tuple[Path, list[float]]:
    changes = {"model": {"ref": str(model)}, "length": {"steps": 2}, "augment": augment}
    rows = rows_of(folder, objective)
    result = train(config_of(folder, objective, rows, **changes))
    return result.folder / "last", [line["loss"] for line in read_lines(result.folder / "metrics.jsonl")]


@pytest.mark.parametrize("kind", ["Wav2Vec2ForCTC", "HubertForCTC", "WhisperForConditionalGeneration"])
def test_two_steps_with_frames_hidden(kind: str, tmp_path: Path) -> None:
    """The vector in their place is learnt, saved, and read by the reference, which has one of wave models alone."""
    waves, model = kind.endswith("CTC"), tmp_path / "model"
    models.wav2vec2(model, kind, masked=True, mask_time_prob=0.05, **models.STABLE) if waves else models.whisper(model)
    objective = "ctc" if waves else "speech-to-text"
    hidden = {"time_mask": 0.3, "time_mask_length": 3, "feature_mask": 0.2, "feature_mask_length": 2}
    folder, losses = run_hiding(tmp_path / "hidden", objective, model, hidden)
    nothing = {"time_mask": 0.0, "feature_mask": 0.0}
    plain, others = run_hiding(tmp_path / "plain", objective, model, nothing)
    assert losses[0] != others[0]
    assert all(value == value for value in losses)
    reference, info = CLASSES[objective].from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    if not waves:
        return
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("masked_spec_embed"))
    first, saved, unread = (load_file(one / "model.safetensors")[name] for one in (model, folder, plain))
    assert torch.equal(reference.get_parameter(name), saved)
    assert not torch.equal(saved, first) and torch.equal(unread, first)
    mine = pf.load_model(folder, backend="plain").encoder
    assert mine is not None and torch.equal(mine.frontend.hidden, saved)


def test_the_file_that_is_written_says_all_that_is_used(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "audio-classification")
    config = config_of(tmp_path, "audio-classification", rows, model={"config": FRAGMENTS["wav2vec2 classifies"][1]})
    config = as_config({**as_data(config), "length": {"steps": 1}})
    stated = json.loads((train(config).folder / "last" / "preprocessor_config.json").read_text())
    assert stated == {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16_000,
        "do_normalize": True,
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
