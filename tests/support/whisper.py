"""A tiny Whisper of real proportions: windows of 30 s, all 1501 timestamps, and noise in which it hears segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.support import tasks as make

RATE = 16_000
LANGUAGES = ("en", "de", "fr")
NAMES = ("<|startoftranscript|>", *(f"<|{name}|>" for name in LANGUAGES), "<|translate|>", "<|transcribe|>")
NAMES = (*NAMES, "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
TIMES = tuple(f"<|{place * 0.02:.2f}|>" for place in range(1501))
IDS = {mark: make.BYTE_VOCABULARY + place for place, mark in enumerate((*NAMES, *TIMES))}
FIRST_TIME = IDS["<|0.00|>"]


def long_whisper(
    folder: Path, *, seed: int = 3, multilingual: bool = True, text: float = 1.5, times: float = 1.0, **generation: Any
) -> Any:
    """The reference model, with its checkpoint in the folder."""
    config = transformers.WhisperConfig(
        **make.SEQ2SEQ,
        vocab_size=make.BYTE_VOCABULARY + len(IDS),
        num_mel_bins=16,
        max_source_positions=1500,
        max_target_positions=48,
        pad_token_id=2,
        bos_token_id=2,
        eos_token_id=2,
        decoder_start_token_id=IDS["<|startoftranscript|>"],
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    settings: dict[str, Any] = dict(
        is_multilingual=multilingual,
        no_timestamps_token_id=IDS["<|notimestamps|>"],
        prev_sot_token_id=IDS["<|startofprev|>"],
        suppress_tokens=[5, 9, *(IDS[name] for name in NAMES)],
        begin_suppress_tokens=[2, 36],
        max_initial_timestamp_index=50,
        max_length=48,
    )
    if multilingual:
        settings["lang_to_id"] = {f"<|{name}|>": IDS[f"<|{name}|>"] for name in LANGUAGES}
        settings["task_to_id"] = {name: IDS[f"<|{name}|>"] for name in ("transcribe", "translate")}
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config)
    make.randomise(model, seed)
    # Texts of some tokens: among so many timestamps one would nearly always be likelier than any text.
    embeddings = model.model.decoder.embed_tokens.weight.data
    embeddings[:FIRST_TIME] *= text
    embeddings[FIRST_TIME:] *= times
    model.tie_weights()
    for key, value in {**settings, **generation}.items():
        setattr(model.generation_config, key, value)
    model.eval().save_pretrained(folder)
    make.save_bytes(folder, extra=(*NAMES, *TIMES))
    transformers.WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    return model


def noise(seconds: float, seed: int = 0) -> dict[str, Any]:
    """Tones that come and go in noise of changing loudness."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    time = np.arange(samples) / RATE
    pitch = 200 + 150 * np.sin(2 * np.pi * 0.21 * time + generator.uniform(0, 6))
    wave = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) * (np.sin(2 * np.pi * 0.13 * time) > 0)
    wave = 0.3 * wave + 0.05 * generator.standard_normal(samples) * (1 + np.sin(2 * np.pi * 0.05 * time))
    return {"array": wave.astype(np.float32), "sampling_rate": RATE}
