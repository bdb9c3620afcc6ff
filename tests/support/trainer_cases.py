"""What is compared with the reference's Trainer: a model of it for each objective, and how it takes a batch of ours.

Each is made with a probability of dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from plainformer.train.objectives.base import Batch
from tests.support import models
from tests.support.learning import LABELS, TAGS
from tests.support.trainer import Inputs, shifted, table
from tests.support.vocabularies import BYTE_VOCABULARY, save_bytes, save_chat, save_image

# Where each kind of model drops numbers.
DROPS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
PAIR_DROPS = ("dropout", "attention_dropout", "activation_dropout")
WAVE_DROPS = (
    *("hidden_dropout", "attention_dropout", "activation_dropout"),
    *("feat_proj_dropout", "final_dropout", "layerdrop"),
)

Make = Callable[[Path, float], Any]  # folder, probability of dropout → a model that is saved there


def named(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


# ---- models of the reference, saved into a folder


def _llama(save: Callable[[Path], None]) -> Make:
    def made(folder: Path, p: float) -> Any:
        ids: dict[str, Any] = dict(vocab_size=BYTE_VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        config = transformers.LlamaConfig(**models.TINY, **ids, num_key_value_heads=2, attention_dropout=p)
        model = models.save_model(folder, "LlamaForCausalLM", config)
        save(folder)
        return model

    return made


def bert(name: str, **changes: Any) -> Make:
    return lambda folder, p: models.bert(folder, name, **dict.fromkeys(DROPS, p), **changes)


def _bart(folder: Path, p: float) -> Any:
    return models.bart(folder, **dict.fromkeys(PAIR_DROPS, p))


def _infilling_bart(folder: Path, p: float) -> Any:
    model = _bart(folder, p)
    save_bytes(folder, end=True, mask_token="<unk>")
    return model


def _vit(folder: Path, p: float) -> Any:
    config = transformers.ViTConfig(
        **models.TINY, **dict.fromkeys(DROPS, p), **named(LABELS), image_size=32, patch_size=8
    )
    model = models.save_model(folder, "ViTForImageClassification", config)
    save_image(folder)
    return model


def _whisper(folder: Path, p: float) -> Any:
    return models.whisper(folder, multilingual=False, **dict.fromkeys(PAIR_DROPS, p))


def _wave(name: str, **changes: Any) -> Make:
    return lambda folder, p: models.wav2vec2(folder, name, **dict.fromkeys(WAVE_DROPS, p), **changes)


# ---- a batch of ours, as theirs


def _tabled(batch: Batch) -> Inputs:
    return {**batch.inputs, "labels": table(batch)}


def labelled(batch: Batch) -> Inputs:
    return {**batch.inputs, "labels": batch.targets["labels"]}


def _spans(batch: Batch) -> Inputs:
    assert "attention_mask" not in batch.inputs  # the reference lets padding be the answer
    first, last = batch.targets["spans"].unbind(1)
    return {**batch.inputs, "start_positions": first, "end_positions": last}


def _choices(batch: Batch) -> Inputs:
    rows, labels = batch.targets["places"].shape, batch.targets["labels"]
    return {**{name: x[0].unflatten(0, rows) for name, x in batch.inputs.items()}, "labels": labels}


def _letters(batch: Batch) -> Inputs:
    """Texts are equally long: the reference's mean over clips of the mean over letters is ours over all letters."""
    return {**batch.inputs, "labels": batch.targets["labels"].view(len(batch.inputs["input_values"]), -1)}


def _apart(batch: Batch) -> Inputs:
    """Documents that share rows, as rows of their own."""
    ids, documents = batch.inputs["input_ids"], batch.inputs["document_ids"]
    rows = [line[own == number] for line, own in zip(ids, documents, strict=True) for number in own[own >= 0].unique()]
    alone = torch.stack(rows)
    return {"input_ids": alone, "labels": alone}


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        even: whether rows are equally long.
        fewer: ours computes less than the reference, only what the head reads, and so draws less dropout.
        undecided: endings of the names of weights that change no loss, besides the biases of keys.
    """

    objective: str
    model: Make
    inputs: Callable[[Batch], Inputs]
    even: bool = False
    fewer: bool = False
    undecided: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


# What adds the same to the scores of all positions.
LEVELS = ("layer.1.output.LayerNorm.bias", "qa_outputs.bias")

CASES = {
    "causal-lm": Case("causal-lm", _llama(save_bytes), shifted, changes={"batches": {"packed": False}}),
    "causal-lm-packed": Case(
        "causal-lm", _llama(save_bytes), _apart, even=True, changes={"batches": {"row_length": 72}}
    ),
    "masked-lm": Case("masked-lm", bert("BertForMaskedLM"), _tabled),
    "denoising": Case("denoising", _infilling_bart, _tabled),
    "seq2seq": Case("seq2seq", _bart, _tabled),
    "seq2seq-t5": Case("seq2seq", lambda folder, p: models.t5(folder, dropout_rate=p), _tabled),
    "instruction": Case("instruction", _llama(save_chat), shifted),
    "text-classification": Case(
        "text-classification", bert("BertForSequenceClassification", **named(LABELS)), labelled, fewer=True
    ),
    "token-classification": Case(
        "token-classification", bert("BertForTokenClassification", **named(TAGS)), _tabled, fewer=True
    ),
    "question-answering": Case(
        "question-answering", bert("BertForQuestionAnswering"), _spans, even=True, undecided=LEVELS
    ),
    "multiple-choice": Case(
        "multiple-choice",
        bert("BertForMultipleChoice"),
        _choices,
        even=True,
        fewer=True,
        undecided=("classifier.bias",),
    ),
    "ctc": Case("ctc", _wave("Wav2Vec2ForCTC", ctc_loss_reduction="mean"), _letters, even=True),
    "speech-to-text": Case("speech-to-text", _whisper, _tabled),
    "image-classification": Case("image-classification", _vit, labelled, fewer=True),
    "audio-classification": Case(
        "audio-classification", _wave("Wav2Vec2ForSequenceClassification", **named(LABELS)), labelled, even=True
    ),
}
