"""Speech recognition by connectionist temporal classification (Graves et al. 2006): all alignments of a text count.

Shapes: B batch, T frames, V vocabulary, N labels, M numbers that a metric is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from plainformer.errors import CheckpointError
from plainformer.train.losses import wide
from plainformer.train.objectives.base import (
    Arrays,
    Batch,
    Column,
    Dropped,
    Encoded,
    Loss,
    Metric,
    Objective,
    SpeechInputs,
)
from plainformer.train.objectives.hearing import AUDIO, Clips, Hearing, clips_apart, frames_of, hidden
from plainformer.train.objectives.reading import single
from plainformer.train.objectives.words import text_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.model.transformer import Transformer

TRANSCRIPT = Column(
    "text", ("transcript", "transcription", "sentence", "normalized_text"), help="What is said.", target=True
)
SPACE = "|"  # the label between words, where the vocabulary has no space

LACKING = "character that the vocabulary lacks"


class CtcSpeechRecognition(Objective):
    """A clip and its transcript in characters of the model's vocabulary.

    A clip needs as many frames as its text has characters, and one more between each two equal ones: shorter ones could
    never be aligned, and are dropped. The loss of a clip is minus the log-probability of its text; a step's is divided by
    the number of characters.
    """

    name = "ctc"
    head = "ctc"
    reads = "speech"
    columns: ClassVar[tuple[Column, ...]] = (AUDIO, TRANSCRIPT)
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("wer", "lower"), Metric("cer", "lower"), Metric("loss", "lower"))
    processor: SpeechInputs

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: SpeechInputs) -> None:
        super().__init__(config, model, processor)
        self.hearing, tokenizer = Hearing(processor.audio), processor.tokenizer
        if tokenizer.pad_id is None:
            raise CheckpointError(
                "the tokenizer has no pad token, the blank of CTC", "name it in tokenizer_config.json"
            )
        self.blank = tokenizer.pad_id
        tokens = [tokenizer.id_to_token(number) or "" for number in range(tokenizer.vocab_size)]
        self.letters = {token: number for number, token in enumerate(tokens) if len(token) == 1}
        self.space = self.letters.get(SPACE, self.letters.get(" "))
        self.written = [" " if number == self.space else token for number, token in enumerate(tokens)]

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a clip and the characters of its text."""
        labels = self._spelt(text_of(row))
        example = {**self.hearing.arrays(row.get("audio")), "labels": labels}
        repeats = int((labels[1:] == labels[:-1]).sum())
        if self.length(example) < len(labels) + repeats:
            raise Dropped("clip too short for its text")
        return Encoded([example])

    def _spelt(self, text: str) -> npt.NDArray[np.int64]:
        """Return a text in characters, as it is, in capitals or in small letters: as the vocabulary has them."""
        words = text.split()
        for form in (words, [word.upper() for word in words], [word.lower() for word in words]):
            ids = [self.space if letter == " " else self.letters.get(letter) for letter in " ".join(form)]
            if ids and None not in ids:
                return np.array(ids, dtype=np.int64)
        raise Dropped(LACKING if words else "no text")

    def length(self, example: Arrays) -> int:
        """Return how many frames a clip becomes."""
        return frames_of(self.hearing.size(example), self.model_config)

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Clips:
        """Return clips padded on the right, and their texts one after the other."""
        examples = single(rows)
        texts = [example["labels"].astype(np.int64) for example in examples]
        targets = {
            "labels": torch.from_numpy(np.concatenate(texts)),
            "per_row": torch.tensor(list(map(len, texts))),
        }
        batch = self.hearing.batch(examples, targets, sum(map(len, texts)), sum(map(self.length, examples)))
        return replace(batch, letters=tuple(map(len, texts)))

    def hidden(self, batch: Batch, draws: Sequence[np.random.Generator]) -> Batch:
        """Hide spans of time and bands of features (SpecAugment)."""
        return hidden(batch, draws, self.config.augment, self.model_config)

    def apart(self, batch: Batch) -> list[Clips]:
        """Return clips of each length."""
        return clips_apart(batch)

    def _frames(self, model: Transformer, batch: Clips) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the rows that ran together, and their log-probabilities, (B, T, V) fp32."""
        for rows, inputs in batch.runs():
            logits_BTV = model(**inputs, only_logits=True).logits
            assert logits_BTV is not None
            yield rows, wide(logits_BTV).log_softmax(-1)

    def _losses(self, frames: Sequence[tuple[list[int], Tensor]], batch: Clips) -> Tensor:
        """Return minus the log-probability of each text, (B,)."""
        texts = _texts(batch)
        found: dict[int, Tensor] = {}
        for rows, logs_BTV in frames:
            own = [texts[row] for row in rows]
            lengths = torch.tensor([frames_of(batch.samples[row], self.model_config) for row in rows])
            losses_B = F.ctc_loss(
                logs_BTV.transpose(0, 1),
                torch.cat(own),
                lengths,
                torch.tensor(list(map(len, own))),
                blank=self.blank,
                reduction="none",
            )
            found.update(zip(rows, losses_B, strict=True))
        return torch.stack([found[row] for row in range(len(found))])

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        assert isinstance(batch, Clips)
        losses_B = self._losses(list(self._frames(model, batch)), batch)
        return Loss(losses_B, labels=batch.targets["per_row"])

    @torch.no_grad()
    def statistics(self, model: Transformer, batch: Batch) -> npt.NDArray[np.float64]:
        """Return each clip's loss and characters, then the edits and the numbers of characters and of words, (B, 6)."""
        assert isinstance(batch, Clips)
        frames, texts = list(self._frames(model, batch)), _texts(batch)
        losses = self._losses(frames, batch).double().cpu().numpy()
        found = {row: ids for rows, logs in frames for row, ids in zip(rows, logs.argmax(-1).tolist(), strict=True)}
        lines = []
        for row, text in enumerate(texts):
            heard = found[row][: frames_of(batch.samples[row], self.model_config)]
            ids = [number for number, _ in groupby(heard) if number != self.blank]
            said, right = (self.text(one) for one in (ids, text.tolist()))
            words = edits(said.split(), right.split())
            lines.append((losses[row], len(text), edits(said, right), len(right), words, len(right.split())))
        return np.array(lines, dtype=np.float64)

    def text(self, ids: Sequence[int]) -> str:
        """Return what characters spell."""
        return "".join(self.written[number] for number in ids)

    def measured(self, sums: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return the mean loss of a character, and the error rates of characters and of words, of the best path's text."""
        loss, labels, letters_wrong, letters, words_wrong, words = (float(value) for value in sums)
        rates = {"cer": (letters_wrong, letters), "wer": (words_wrong, words), "loss": (loss, labels)}
        return {name: wrong / number if number else math.nan for name, (wrong, number) in rates.items()}

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return the clip's length and its text."""
        return [(f"clip of {self.hearing.size(example):,} samples", self.text(example["labels"].tolist()))]


def _texts(batch: Clips) -> list[Tensor]:
    """Return each clip's labels; their lengths are known without asking the device."""
    return list(batch.targets["labels"].split(list(batch.letters)))


def edits(found: Sequence[Any], right: Sequence[Any]) -> int:
    """Return the fewest insertions, deletions and replacements between two sequences (Levenshtein 1966)."""
    row = list(range(len(right) + 1))
    for number, one in enumerate(found, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(right, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (one != other))
    return row[-1]
