"""Golden curves: the losses of 20 steps of a tiny run for every objective, as they were when they were written down.

A change of any part of training that changes what is learnt shows here: data, order, masks, dropout, gradients, AdamW. Models
begin from scratch, dropout is on, and masks are drawn anew in each pass. Compared are 4 digits, so that other instructions
of a processor, which sum in another order, give the same. First weights and dropout are torch's numbers for a seed on a CPU
(`normal_`, `uniform_`, `bernoulli_` with MKL), which do not change between its versions; masks and order are numpy's Philox.

`python -m tests.train.test_golden_curves` writes them anew; look at the difference, and say in the commit what changed them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.config.training import OBJECTIVES
from tests.support import models
from tests.support.learning import config_of, learnt, rows_of
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

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4

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


def curve(objective: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    fragment, save, changes = RUNS[objective]
    save(folder / "inputs")
    save_json(folder / "inputs", "config.json", fragment)
    model = {"config": fragment, "tokenizer": str(folder / "inputs")}
    changes = {"optimizer": {"learning_rate": 3e-3, **changes.get("optimizer", {})}, **changes}
    config = config_of(folder, objective, rows_of(folder, objective), model=model, threads=1, **changes)
    return [line["loss"] for line in learnt(config, monkeypatch)]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="without MKL, torch draws dropout otherwise")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_curves_are_as_they_were(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads((GOLDEN / f"{objective}.json").read_text(encoding="utf-8"))
    assert curve(objective, tmp_path, monkeypatch) == pytest.approx(expected, rel=TOLERANCE)


def main(names: list[str]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for objective in names or OBJECTIVES:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            losses = [float(f"{loss:.7g}") for loss in curve(objective, Path(folder), monkeypatch)]
        (GOLDEN / f"{objective}.json").write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
        print(f"{objective}: {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
