"""A tiny run from scratch for every objective: what each reads, the files beside it, the options it varies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import models
from tests.support.models import MARKS, SEQ2SEQ
from tests.support.vocabularies import (
    BYTE_VOCABULARY,
    save_audio,
    save_bytes,
    save_chat,
    save_image,
    save_json,
    save_speech,
    save_wordpiece,
)

Save = Callable[[Path], None]


def _infilled(folder: Path) -> None:
    save_bytes(folder, end=True, mask_token="<unk>")


def _ended(folder: Path) -> None:
    save_bytes(folder, end=True)


def _heard(folder: Path) -> None:
    """Whisper's files, with a window of one second."""
    save_bytes(folder, extra=(*MARKS, "<|notimestamps|>"))
    settings = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, "chunk_length": 1}
    save_json(folder, "preprocessor_config.json", {**settings, "sampling_rate": 16000, "n_fft": 400, "hop_length": 160})


MARK_IDS = {mark: BYTE_VOCABULARY + place for place, mark in enumerate((*MARKS, "<|notimestamps|>"))}
WHISPER: dict[str, Any] = dict(
    SEQ2SEQ,
    model_type="whisper",
    vocab_size=BYTE_VOCABULARY + len(MARK_IDS),
    num_mel_bins=16,
    max_source_positions=50,
    max_target_positions=40,
    pad_token_id=2,
    bos_token_id=2,
    eos_token_id=2,
    decoder_start_token_id=MARK_IDS[MARKS[0]],
    dropout=0.1,
    is_encoder_decoder=True,
)
RUNS: dict[str, tuple[dict[str, Any], Save, dict[str, Any]]] = {
    "causal-lm": (models.GPT2, save_bytes, {"batches": {"row_length": 40}}),
    "masked-lm": (models.BERT, save_wordpiece, {"loss": {"whole_words": True}}),
    "denoising": (models.BART, _infilled, {}),
    "seq2seq": (models.BART, _ended, {"loss": {"label_smoothing": 0.1}}),
    "instruction": ({**models.LLAMA, "attention_dropout": 0.1}, save_chat, {"schedule": {"kind": "cosine"}}),
    "text-classification": (models.BERT, save_wordpiece, {"batches": {"micro": 4}}),
    "token-classification": (models.BERT, save_wordpiece, {"optimizer": {"layer_decay": 0.9}}),
    "question-answering": (models.BERT, save_wordpiece, {"schedule": {"kind": "wsd", "warmup": 3}}),
    "multiple-choice": (models.BERT, save_wordpiece, {}),
    "ctc": (models.WAVE, save_speech, {}),
    "speech-to-text": (WHISPER, _heard, {}),
    "image-classification": ({**models.VIT, "hidden_dropout_prob": 0.1}, save_image, {}),
    "audio-classification": (models.WAVE, save_audio, {}),
}
