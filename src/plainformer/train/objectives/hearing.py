"""Clips as a model's input: waves with their lengths, or spectrograms without the silence that fills them up.

Shapes: B batch, M mel bands, N samples or frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plainformer.config import ModelConfig, WaveFrontend
from plainformer.config.training import AugmentConfig
from plainformer.inputs.audio.processors import MelProcessor, WaveProcessor
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped
from plainformer.train.specaugment import hidden_spans, masks

AUDIO = Column("audio", ("file", "path", "clip"), help="A file, or an array with its rate.")


@dataclass(frozen=True)
class Clips(Batch):
    """A batch of clips.

    Attributes:
        samples: each clip's own length. letters: how many labels each clip's text has, of objectives with such.
        apart: whether clips of different lengths run apart, because the model, which was trained without a mask, would hear
            the padding.
        frames: of waves, how many frames each clip becomes; of batches in which some are hidden.
    """

    samples: tuple[int, ...] = ()
    letters: tuple[int, ...] = ()
    apart: bool = False
    frames: tuple[int, ...] = ()

    @property
    def passes(self) -> int:
        return len(set(self.samples)) if self.apart else 1

    def runs(self) -> list[tuple[list[int], dict[str, Tensor]]]:
        """Return the rows that run together, and their inputs: all of them, or those of one length at a time."""
        if not self.apart or len(set(self.samples)) == 1:
            return [(list(range(len(self.samples))), self.inputs)]
        found = []
        for length in sorted(set(self.samples)):
            rows = [row for row, own in enumerate(self.samples) if own == length]
            inputs = {"input_values": self.inputs["input_values"][rows, :length]}
            if "hidden_frames" in self.inputs:
                inputs["hidden_frames"] = self.inputs["hidden_frames"][rows, : self.frames[rows[0]]]
            if "hidden_features" in self.inputs:
                inputs["hidden_features"] = self.inputs["hidden_features"][rows]
            found.append((rows, inputs))
        return found


def clips_apart(batch: Batch) -> list[Clips]:
    """Return a batch as those of the rows that run together."""
    assert isinstance(batch, Clips)
    found = []
    for rows, inputs in batch.runs():
        targets = {
            name: values[rows] for name, values in batch.targets.items() if not batch.letters or name != "labels"
        }
        if batch.letters:
            texts = batch.targets["labels"].split(list(batch.letters))
            targets["labels"] = torch.cat([texts[row] for row in rows])
        own: dict[str, Any] = {
            name: tuple(values[row] for row in rows)
            for name in ("samples", "letters", "frames", "examples")
            if (values := getattr(batch, name))
        }
        count = sum(own["letters"]) if batch.letters else len(rows)
        found.append(replace(batch, inputs=inputs, targets=targets, count=count, tokens=0, **own))
    return found


@dataclass(frozen=True)
class Hearing:
    """How a model hears: by the processor of its checkpoint, waves or spectrograms.

    Examples are kept before they are scaled as a training set's numbers ask, which are known once all examples are.
    """

    processor: WaveProcessor | MelProcessor

    @cached_property
    def plain(self) -> WaveProcessor | MelProcessor:
        """The processor without that scaling."""
        return replace(self.processor, mean=None, std=None)

    def arrays(self, clip: Any) -> Arrays:
        """Return one clip as the model takes it; see `load_audio` for what a clip is. Raises InputError, or Dropped for None."""
        if clip is None:
            raise Dropped("no audio")
        batch = self.plain(clip)
        if batch.input_values is not None:
            return {"input_values": batch.input_values[0].numpy()}
        assert batch.input_features is not None
        return {"input_features": _trimmed(batch.input_features[0].numpy())}

    def size(self, example: Arrays) -> int:
        """Return the length of a clip: samples, or frames."""
        return int(next(example[name] for name in ("input_values", "input_features") if name in example).shape[-1])

    def batch(self, examples: Sequence[Arrays], targets: dict[str, Tensor], count: int, tokens: int) -> Clips:
        """Return clips padded on the right, as the processor would give them."""
        samples = tuple(map(self.size, examples))
        if isinstance(self.processor, MelProcessor):
            rows = [_filled(example["input_features"], self.processor.window_frames) for example in examples]
            features_BMN = self.processor.scaled(torch.from_numpy(np.stack(rows)))
            return Clips({"input_features": features_BMN}, targets, count, tokens, samples=samples)
        longest = max(samples)
        values_BN = np.full((len(examples), longest), self.processor.padding_value, dtype=np.float32)
        real_BN = np.zeros((len(examples), longest), dtype=np.int64)
        for row, example in enumerate(examples):
            values_BN[row, : samples[row]] = self.processor.scaled(example["input_values"])
            real_BN[row, : samples[row]] = 1
        inputs = {"input_values": torch.from_numpy(values_BN)}
        masked = self.processor.return_attention_mask
        if masked and min(samples) < longest:
            inputs["attention_mask"] = torch.from_numpy(real_BN)
        return Clips(inputs, targets, count, tokens, samples=samples, apart=not masked)


def hidden(batch: Batch, draws: Sequence[np.random.Generator], config: AugmentConfig, model: ModelConfig) -> Clips:
    """Return a batch of clips with what SpecAugment hides of each: see `hidden_spans`."""
    assert isinstance(batch, Clips)
    spans = hidden_spans(config, model)
    if spans[0].share == spans[1].share == 0:
        return batch
    if not isinstance(model.input_frontend, WaveFrontend):
        features_BMN = batch.inputs["input_features"]
        bands, longest = features_BMN.shape[1:]
        time_BN, bands_BM = map(torch.from_numpy, masks(batch.samples, longest, bands, spans, draws))
        hidden_BMN = time_BN[:, None, :] | bands_BM[:, :, None]
        return replace(batch, inputs={**batch.inputs, "input_features": features_BMN.masked_fill(hidden_BMN, 0)})
    frames = tuple(frames_of(size, model) for size in batch.samples)
    made = masks(frames, max(frames), model.input_stack.hidden_size, spans, draws)
    names = ("hidden_frames", "hidden_features")
    found = {name: torch.from_numpy(mask) for name, mask, of in zip(names, made, spans, strict=True) if of.share > 0}
    return replace(batch, inputs={**batch.inputs, **found}, frames=frames)


def frames_of(samples: int, config: ModelConfig) -> int:
    """Return how many frames a wave of that many samples becomes."""
    frontend = config.input_frontend
    assert isinstance(frontend, WaveFrontend)
    for kernel, stride in zip(frontend.kernels, frontend.strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return max(samples, 0)


def _trimmed(features_MN: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a spectrogram without the equal frames at its end, but for one."""
    differs_N = (features_MN != features_MN[:, -1:]).any(0)
    last = int(differs_N.nonzero()[0][-1]) if differs_N.any() else -1
    return np.ascontiguousarray(features_MN[:, : last + 2])


def _filled(features_MN: np.ndarray[Any, Any], frames: int) -> np.ndarray[Any, Any]:
    """Return a spectrogram of that many frames: its last one goes on to the end."""
    missing = frames - features_MN.shape[1]
    return np.concatenate((features_MN, np.repeat(features_MN[:, -1:], missing, axis=1)), axis=1)
