"""What `scale` asks for: statistics of the rows to learn from, put where the model's users find them.

Images: into `preprocessor_config.json` as mean and deviation, which transformers reads too. Audio: into the same file, under
names that transformers passes over. Targets: into `config.json`; the weights stay those of scaled answers, and transformers
gives these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config.scaling import Scaling
from plainformer.config.training import TrainConfig
from plainformer.data.moments import Moments
from plainformer.data.store import Store
from plainformer.errors import UsageError, opt
from plainformer.inputs.audio.processors import MelProcessor, WaveProcessor
from plainformer.inputs.image import ImageProcessor
from plainformer.train.objectives.base import Arrays, SpeechInputs
from plainformer.training.models import PREPROCESSOR, Start, as_json, described, with_targets

_SECTIONS = {ImageProcessor: "image_processor", WaveProcessor: "feature_extractor", MelProcessor: "feature_extractor"}


def unscaled(config: TrainConfig, start: Start) -> Start:
    """Return a start whose clips stay as loud as they are, if all of them are to be scaled alike."""
    audio = _media(start)
    if config.scale.inputs is None or not isinstance(audio, WaveProcessor):
        return start
    return _with(start, replace(audio, do_normalize=False))


def scaled(config: TrainConfig, start: Start, examples: Store) -> Start:
    """Return the start with the scaling that is asked for, of the examples of train.

    Raises:
        UsageError: there is nothing to scale, or the head that goes on answers in units of an earlier scaling.
    """
    if config.scale.targets is not None:
        head = start.config.head
        if head.problem != "regression":
            what = f"{opt('scale.targets', config.scale.targets)} has no effect on labels: this head is {head.problem}"
            raise UsageError(what, f"leave it out, or give {opt('model.problem', 'regression')}")
        if head.scaling is not None:
            what = f"the checkpoint's head already answers in scaled units ({head.scaling.line()})"
            raise UsageError(what, f"leave {opt('scale.targets')} out: they are kept")
        found = _fitted(examples, "targets", config.scale.targets, lambda one: one["label"][None], head.out_size)
        start = replace(start, config=with_targets(start.config, found))
    if config.scale.inputs is not None:
        start = _with_inputs(config.scale.inputs, start, examples)
    return start


def _with_inputs(kind: str, start: Start, examples: Store) -> Start:
    media = _media(start)
    if isinstance(media, ImageProcessor):
        factor, channels = 1.0 if media.rescale_factor is None else media.rescale_factor, media.channels
        found = _fitted(examples, "inputs", kind, lambda one: one["levels"].reshape(channels, -1).T * factor, channels)
        media = replace(media, mean=found.offset, std=found.scale)
        return _with(start, media, do_normalize=True, image_mean=list(found.offset), image_std=list(found.scale))
    if isinstance(media, WaveProcessor):
        found = _fitted(examples, "inputs", kind, lambda one: one["input_values"][:, None], 1)
        (mean,), (std,) = found.offset, found.scale
        media = replace(media, mean=mean, std=std)
        return _with(start, media, do_normalize=False, waveform_mean=mean, waveform_std=std)
    assert isinstance(media, MelProcessor)
    found = _fitted(examples, "inputs", kind, lambda one: one["input_features"].T, media.n_mels)
    media = replace(media, mean=found.offset, std=found.scale)
    return _with(start, media, mel_mean=list(found.offset), mel_std=list(found.scale))


def _media(start: Start) -> Any:
    return start.processor.audio if isinstance(start.processor, SpeechInputs) else start.processor


def _with(start: Start, media: Any, **settings: Any) -> Start:
    """Return a start with another processor of images or audio, and what its file says anew."""
    processor = replace(start.processor, audio=media) if isinstance(start.processor, SpeechInputs) else media
    companions = _stated(start, media, settings) if settings else start.companions
    return replace(start, processor=processor, companions=companions)


def _stated(start: Start, media: Any, settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the companions with settings in the file that counts; in a new one where there is none."""
    section, both = _SECTIONS[type(media)], "processor_config.json"
    whole = json.loads(start.companions[both]) if both in start.companions else {}
    if section in whole:
        return {**start.companions, both: as_json({**whole, section: {**whole[section], **settings}})}
    if PREPROCESSOR in start.companions:
        content = json.loads(start.companions[PREPROCESSOR])
    else:
        content = described(media, start.config)
    return {**start.companions, PREPROCESSOR: as_json({**content, **settings})}


def _fitted(examples: Store, what: str, kind: str, rows: Any, columns: int) -> Scaling:
    """Return the scaling of examples, of one pass over them that is made once and kept with them."""
    path = examples.folder / f"_scaling-{what}-{kind}.json"
    if path.is_file():
        return Scaling.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def blocks() -> Iterator[npt.NDArray[np.generic]]:
        for number in range(len(examples)):
            example: Arrays = examples[number]
            yield rows(example)

    found = Moments.of(blocks(), columns).scaling(kind)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps(found.to_dict()), encoding="utf-8")
    new.replace(path)
    return found
