"""What tasks on images and on audio share: an input is a path, bytes or an array; the checkpoint has a preprocessor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from plainformer.config import PatchFrontend, WaveFrontend
from plainformer.config.values import no_effect
from plainformer.errors import InputError, UsageError, opt
from plainformer.inputs.audio.processors import AudioBatch, MelProcessor, WaveProcessor
from plainformer.inputs.image import MAX_PIXELS, ImageProcessor
from plainformer.model.frontend import frames_of
from plainformer.tasks.base import Task
from plainformer.tasks.speech.options import AudioOptions
from plainformer.tasks.vision.options import ImageOptions

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class MediaTask(Task):
    """Reads files, their bytes, or arrays."""

    needs_tokenizer = False
    companions: tuple[str, ...] = PREPROCESSOR_FILES

    def is_one(self, inputs: Any) -> bool:
        """A path, bytes, an array or tensor, a PIL image, or a dictionary (audio with its rate)."""
        known = isinstance(inputs, str | os.PathLike | bytes | bytearray | memoryview | Mapping)
        return known or hasattr(inputs, "ndim") or type(inputs).__module__.startswith("PIL.")

    def checked(self, inputs: Any, options: Any) -> Any:
        if hasattr(inputs, "read"):  # it would be iterated over in lines
            raise InputError(f"an open file is not an input for {self.name}", "give its path or its bytes")
        return super().checked(inputs, options)

    def size(self, item: Any) -> int:
        """Of a file its bytes, which say little of different formats and much of one."""
        if isinstance(item, str | os.PathLike):
            try:
                return os.path.getsize(item)
            except (OSError, ValueError):  # whoever reads the file says what is wrong
                return 0
        return super().size(item)


class ImageTask(MediaTask):
    """Images → `pixel_values` by the checkpoint's preprocessor. An array of four dimensions is a list of images."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.processor = ImageProcessor.from_folder(
            self.checkpoint.need_folder("preprocessor"), self.config.source, self.config.image_defaults
        )

    def checked(self, inputs: Any, options: ImageOptions) -> Any:
        inputs = super().checked(inputs, options)
        self._size(options)
        return list(inputs) if getattr(inputs, "ndim", 0) == 4 else inputs

    def encode(self, inputs: Sequence[Any], options: ImageOptions) -> Tensor:
        size = self._size(options)
        processor = self.processor if size is None else replace(self.processor, size=size, crop=None)
        return processor(list(inputs)).to(self.model.device)

    def _size(self, options: ImageOptions) -> tuple[int, int] | None:
        """Return a size in whole patches: the model would not see the rest of an image."""
        image_size = options.image_size
        if image_size is None:
            return None
        edges = (image_size, image_size) if isinstance(image_size, int) else image_size
        frontend = self.config.input_frontend
        assert isinstance(frontend, PatchFrontend)
        if any(edge % patch for edge, patch in zip(edges, frontend.patch_size, strict=True)):
            near = tuple(max(1, round(e / p)) * p for e, p in zip(edges, frontend.patch_size, strict=True))
            raise UsageError(f"{opt('image_size', image_size)} is not a whole number of patches", f"for example {near}")
        if edges[0] * edges[1] > MAX_PIXELS:
            raise UsageError(f"{opt('image_size', image_size)} is more than {MAX_PIXELS:,} pixels", "give less")
        return edges[0], edges[1]


class AudioTask(MediaTask):
    """Clips → waves or mel spectrograms as the checkpoint's preprocessor makes them.

    Attributes:
        reads_long: whether the task reads clips that are longer than a window of the model; otherwise they are an error.
    """

    reads_long = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        frontend = self.config.input_frontend
        maker = WaveProcessor if isinstance(frontend, WaveFrontend) else MelProcessor
        self.processor: WaveProcessor | MelProcessor = maker.from_folder(
            self.checkpoint.need_folder("preprocessor"), self.config.source
        )

    def checked(self, inputs: Any, options: AudioOptions) -> Any:
        idle = options.truncate and not isinstance(self.processor, MelProcessor)
        no_effect(idle, "truncate", ": this model hears clips of any length")
        return super().checked(inputs, options)

    def encode(self, inputs: Sequence[Any], options: AudioOptions) -> AudioBatch:
        for place, clip in enumerate(inputs):
            if not self.is_one(clip):
                raise self.not_an_input(clip, place)
        rate = options.sampling_rate
        if isinstance(self.processor, MelProcessor):
            keeps = self.reads_long
            return self.processor(list(inputs), sampling_rate=rate, truncate=options.truncate, keep_long=keeps)
        return self.processor(list(inputs), sampling_rate=rate)

    def runs(self, batch: AudioBatch) -> list[dict[str, Tensor]]:
        """Return the model's inputs: for all clips at once, or for each by itself where a batch would change its answer.

        Models with a group norm over time (wav2vec2-base) were trained without a mask, and count padding as sound.
        """
        device = self.model.device
        if batch.input_features is not None:
            return [{"input_features": batch.input_features.to(device)}]
        assert batch.input_values is not None and isinstance(self.processor, WaveProcessor)
        waves, mask = batch.input_values.to(device), batch.attention_mask.to(device)
        lengths = batch.attention_mask.sum(-1).tolist()
        if len(set(lengths)) == 1:
            return [{"input_values": waves}]
        frontend = self.config.input_frontend
        assert isinstance(frontend, WaveFrontend)
        if self.processor.return_attention_mask and frontend.conv_norm == "layer":
            return [{"input_values": waves, "attention_mask": mask}]
        return [{"input_values": waves[row : row + 1, :length]} for row, length in enumerate(lengths)]

    def frames(self, batch: AudioBatch) -> list[int]:
        """Return how many of the encoder's vectors belong to each clip's own sound."""
        lengths = batch.attention_mask.sum(-1)
        if batch.input_features is not None:
            return ((lengths + 1) // 2).tolist()  # the second of Whisper's convolutions takes every other mel frame
        frontend = self.config.input_frontend
        assert isinstance(frontend, WaveFrontend)
        return frames_of(frontend, lengths).tolist()
