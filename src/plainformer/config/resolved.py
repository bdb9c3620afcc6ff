"""The configuration that a run folder keeps: values that depend on others are written out, paths are absolute."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from plainformer.config.building import as_data, helps
from plainformer.config.training import PRETRAINING, SourceConfig, SplitConfig, TrainConfig
from plainformer.config.yaml import write_yaml

Text = TypeVar("Text", str, str | None)

# Peak rates: BERT's authors fine-tune with 2e-5 to 5e-5; small encoders stand, and want, more (MiniLM on SST-2: 1e-4).
FROM_SCRATCH, FINE_TUNING, HEAD_ALONE, ADAPTERS = 5e-4, 5e-5, 1e-3, 2e-4
_RATES = {
    "instruction": 2e-5,
    "speech-to-text": 1e-5,
    "ctc": 1e-4,
}  # Alpaca's; Whisper's and wav2vec2's, for small data
PATIENCE = 2


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the configuration with its defaults by objective written out and local paths made absolute.

    What it returns is resolved already: doing it again changes nothing.
    """
    length, optimizer, evaluate = config.length, config.optimizer, config.evaluate
    if optimizer.learning_rate is None:
        optimizer = replace(optimizer, learning_rate=learning_rate(config))
    if length.epochs is None and length.steps is None and length.tokens is None:
        length = replace(length, epochs=1 if config.objective in PRETRAINING else 3)
    data = config.data
    if config.folds is not None and data.split is None:
        data = replace(data, split=SplitConfig())
    validated = data.validation is not None or data.split is not None
    by_epoch = (length.epochs or 0) > 1 and evaluate.every is None
    if evaluate.patience is None and validated and by_epoch and config.objective not in PRETRAINING:
        evaluate = replace(evaluate, patience=PATIENCE)
    return _with_absolute_paths(replace(config, data=data, length=length, optimizer=optimizer, evaluate=evaluate))


def learning_rate(config: TrainConfig) -> float:
    """Return the default peak rate: by what is trained, and by the objective."""
    if config.model.lora is not None:
        return ADAPTERS
    if config.model.train == "head":
        return HEAD_ALONE
    return FROM_SCRATCH if config.model.config is not None else _RATES.get(config.objective, FINE_TUNING)


def resolved_yaml(config: TrainConfig, *, comments: bool = True) -> str:
    """Return a configuration as YAML, every default written out, each option with what it does.

    `build(TrainConfig, parse_yaml(text))` gives an equal configuration.
    """
    return write_yaml(as_data(config), helps(TrainConfig) if comments else None)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    data = config.data
    data = replace(
        data,
        train=_source(data.train),
        validation=None if data.validation is None else _source(data.validation),
        test=None if data.test is None else _source(data.test),
        cache=None if data.cache is None else _absolute(data.cache),
    )
    model = replace(config.model, ref=_if_local(config.model.ref), tokenizer=_if_local(config.model.tokenizer))
    loss = replace(config.loss, teacher=_if_local(config.loss.teacher))
    return replace(config, folder=_absolute(config.folder), data=data, model=model, loss=loss)


def _source(source: SourceConfig) -> SourceConfig:
    pattern = any(mark in source.path for mark in "*?[")
    path = source.path if source.format == "hub" else _absolute(source.path) if pattern else _if_local(source.path)
    return replace(source, path=path)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _if_local(path: Text) -> Text:
    """Return the absolute path of a file or folder that is there; the name of a checkpoint or data set elsewhere as it is."""
    if path is None:
        return path
    try:
        return _absolute(path) if Path(path).expanduser().exists() else path
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, a ~user who is not known
        return path
