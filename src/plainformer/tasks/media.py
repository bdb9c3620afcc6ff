"""What tasks on images and on audio share: an input is a path, bytes or an array; the checkpoint has a preprocessor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from plainformer.config import WaveFrontend
from plainformer.errors import InputError, UsageError
from plainformer.inputs.audio import AudioBatch, MelProcessor, WaveProcessor
from plainformer.inputs.image import ImageProcessor
from plainformer.model.frontend import WaveEmbedding
from plainformer.tasks.base import Task

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class MediaTask(Task):
    """Reads files, their bytes, or arrays."""

    needs_tokenizer = False
    companions: tuple[str, ...] = PREPROCESSOR_FILES

    def is_one(self, inputs: Any) -> bool:
        """A path, bytes, an array or tensor, a PIL image, or a dictionary (audio with its rate)."""
        known = isinstance(inputs, str | os.PathLike | bytes | bytearray | memoryview | Mapping)
        return known or hasattr(inputs, "ndim") or type(inputs).__module__.startswith("PIL.")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        if hasattr(inputs, "read"):  # it would be iterated over in lines
            raise InputError(f"an open file is not an input for {self.name}", "give its path or its bytes")
        return super().__call__(inputs, **options)

    def size(self, item: Any) -> int:
        """Of a file its bytes, which say little of different formats and much of one."""
        if isinstance(item, str | os.PathLike):
            try:
                return os.path.getsize(item)
            except (OSError, ValueError):  # whoever reads the file says what is wrong
                return 0
        return super().size(item)

    def _folder(self) -> Path:
        if self.folder is None:
            raise UsageError(
                f"{self.ref or 'this checkpoint'} has no folder with a preprocessor", "load it from a folder"
            )
        return self.folder


class ImageTask(MediaTask):
    """Images → `pixel_values` by the checkpoint's preprocessor. An array of four dimensions is a list of images."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.processor = ImageProcessor.from_folder(self._folder(), self.config.source)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        return super().__call__(list(inputs) if getattr(inputs, "ndim", 0) == 4 else inputs, **options)

    def encode(self, inputs: Sequence[Any]) -> Tensor:
        return self.processor(list(inputs)).to(self.model.device)


class AudioTask(MediaTask):
    """Clips → waves or mel spectrograms as the checkpoint's preprocessor makes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        frontend = (self.config.encoder or self.config.main_stack).frontend
        maker = WaveProcessor if isinstance(frontend, WaveFrontend) else MelProcessor
        self.processor: WaveProcessor | MelProcessor = maker.from_folder(self._folder(), self.config.source)

    def encode(self, inputs: Sequence[Any], *, sampling_rate: int | None = None, truncate: bool = False) -> AudioBatch:
        """`sampling_rate`: of plain arrays, in hertz. `truncate`: keep what a model of limited hearing can take."""
        for clip in inputs:
            if not self.is_one(clip):
                raise InputError(f"a {type(clip).__name__} is not an input for {self.name}", f"give {self.reads()}")
        if isinstance(self.processor, MelProcessor):
            return self.processor(list(inputs), sampling_rate=sampling_rate, truncate=truncate)
        if truncate:
            raise UsageError("truncate has no effect: this model hears clips of any length", "leave it out")
        return self.processor(list(inputs), sampling_rate=sampling_rate)

    def runs(self, batch: AudioBatch) -> list[dict[str, Tensor]]:
        """The model's inputs: for all clips at once, or for each by itself where a batch would change its answer.

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
        frontend = (self.config.encoder or self.config.main_stack).frontend
        assert isinstance(frontend, WaveFrontend)
        if self.processor.return_attention_mask and frontend.conv_norm == "layer":
            return [{"input_values": waves, "attention_mask": mask}]
        return [{"input_values": waves[row : row + 1, :length]} for row, length in enumerate(lengths)]

    def frames(self, batch: AudioBatch) -> list[int]:
        """How many of the encoder's vectors belong to each clip's own sound."""
        lengths = batch.attention_mask.sum(-1)
        if batch.input_features is not None:
            return ((lengths + 1) // 2).tolist()  # the second of Whisper's convolutions takes every other mel frame
        embedding = self.model.encoder.frontend if self.model.encoder is not None else None
        assert isinstance(embedding, WaveEmbedding)
        return embedding.frames(lengths).tolist()
