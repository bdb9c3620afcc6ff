"""Classification of images and of audio clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from plainformer.config import PatchFrontend, WaveFrontend
from plainformer.errors import InputError
from plainformer.train.augment import augmented
from plainformer.train.losses import wide
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped, Encoded, Labels
from plainformer.train.objectives.hearing import AUDIO, Clips, Hearing, clips_apart, frames_of, hidden
from plainformer.train.objectives.labels import LABEL, LabelObjective
from plainformer.train.objectives.reading import single

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.model.transformer import Transformer


class ImageClassification(LabelObjective):
    """An image and its label. An example keeps the 8-bit levels of the resized image."""

    name = "image-classification"
    head = "image"
    reads = "image"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("image", ("images", "img", "file", "path"), help="A file, or an array."),
        LABEL,
    )

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return an image's levels and its label."""
        label, image = self.answer(row), row.get("image")
        if image is None:
            raise Dropped("no image")
        return Encoded([{"levels": self.processor.levels(image), "label": label}])

    def length(self, example: Arrays) -> int:
        """Return how many patches an image has."""
        frontend = self.model_config.input_frontend
        assert isinstance(frontend, PatchFrontend)
        height, width = (
            side // patch for side, patch in zip(example["levels"].shape[-2:], frontend.patch_size, strict=True)
        )
        return height * width + frontend.class_tokens

    def augmented(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> list[list[Arrays]]:
        """Return images that are mirrored, turned, resized and shifted."""
        examples = _of_one_size(single(rows))
        changed = augmented([example["levels"] for example in examples], draws, self.config.augment)
        return [[{**example, "levels": levels}] for example, levels in zip(examples, changed, strict=True)]

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return the pixels of images, and their labels."""
        examples = _of_one_size(single(rows))
        pixels = torch.from_numpy(np.stack([self.processor.scaled(example["levels"]) for example in examples]))
        tokens = sum(map(self.length, examples))
        return Batch({"pixel_values": pixels}, self.targets(examples), len(examples), tokens)

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return the image's size and its label."""
        channels, height, width = example["levels"].shape
        return [(f"image of {width} x {height} pixels, {channels} channels", self.said_label(example))]


def _of_one_size(examples: list[Arrays]) -> list[Arrays]:
    if len({example["levels"].shape for example in examples}) > 1:
        what = "images of different sizes cannot form one batch; this checkpoint's processor does not make them equal"
        raise InputError(what, "resize them to one size first")
    return examples


class AudioClassification(LabelObjective):
    """A clip and its label."""

    name = "audio-classification"
    head = "audio"
    reads = "audio"
    columns: ClassVar[tuple[Column, ...]] = (AUDIO, LABEL)

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        self.hearing = Hearing(processor)

    @classmethod
    def labels_of(cls, config: TrainConfig, rows: Iterable[Mapping[str, Any]]) -> Labels:
        """Return the labels; a head for sound knows one kind of problem, and config.json has no word for it."""
        return replace(super().labels_of(config, rows), problem=config.model.problem)

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a clip and its label."""
        label = self.answer(row)
        return Encoded([{**self.hearing.arrays(row.get("audio")), "label": label}])

    def length(self, example: Arrays) -> int:
        """Return how many frames a clip becomes."""
        size = self.hearing.size(example)
        return (
            frames_of(size, self.model_config) if isinstance(self.model_config.input_frontend, WaveFrontend) else size
        )

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Clips:
        """Return clips padded on the right, and their labels."""
        examples = single(rows)
        tokens = sum(map(self.length, examples))
        return self.hearing.batch(examples, self.targets(examples), len(examples), tokens)

    def hidden(self, batch: Batch, draws: Sequence[np.random.Generator]) -> Batch:
        """Hide spans of time and bands of features (SpecAugment)."""
        return hidden(batch, draws, self.config.augment, self.model_config)

    def apart(self, batch: Batch) -> list[Clips]:
        """Return clips of each length."""
        return clips_apart(batch)

    def scores(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the model's answers, (B, C) fp32."""
        assert isinstance(batch, Clips)
        found: dict[int, Tensor] = {}
        for rows, inputs in batch.runs():
            logits = model(**inputs, only_logits=True).logits
            assert logits is not None
            found.update(zip(rows, wide(logits), strict=True))
        return torch.stack([found[row] for row in range(len(found))])

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return the clip's length and its label."""
        name = "samples" if "input_values" in example else "frames"
        return [(f"clip of {self.hearing.size(example):,} {name}", self.said_label(example))]
