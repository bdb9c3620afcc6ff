"""NEFTune: noise on the embeddings of what is learnt from (Jain et al. 2023).

To each number of a text's token vectors comes one from uniform(-1, 1) · α / sqrt(T · W), T the text's own tokens. An
encoder-decoder has it where it reads. What a text gets depends on seed, epoch and example alone: not on its batch, nor on
where it is run.

Shapes: R rows that the model reads, T positions, W width of the token vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from plainformer.model.frontend import TokenEmbedding
from plainformer.model.transformer import Transformer
from plainformer.train.draws import generator
from plainformer.train.objectives.base import Batch, Objective

_NOISE = 1  # the last number of a place, whose random numbers are then no one else's


def noisy(objective: Objective, batch: Batch, places: Sequence[tuple[int, ...]], alpha: float) -> Batch:
    """Return a batch with noise for its texts, (R, T, W).

    Args:
        places: of each row, all that its noise depends on: seed, epoch, and example with its first token.
    """
    ids = batch.inputs["input_ids"]
    documents_RT = _documents(batch)
    width: int = objective.model_config.input_frontend.embedding_size  # type: ignore[union-attr]  # it reads tokens
    noise = np.zeros((*documents_RT.shape, width), dtype=np.float32)
    for place, texts in zip(places, objective.texts(batch), strict=True):
        draws = generator(*place, _NOISE)
        for text in texts:
            of_text_T = documents_RT[text]
            real_T = of_text_T >= 0
            lengths = np.bincount(of_text_T[real_T])[of_text_T[real_T]]  # of each token's own document
            drawn = draws.random((len(lengths), width), dtype=np.float32) * 2 - 1
            noise[text, real_T] = drawn * (alpha / np.sqrt(lengths * width, dtype=np.float64))[:, None]
    assert noise.shape[:2] == ids.flatten(0, -2).shape
    return replace(batch, noise=torch.from_numpy(noise))


def _documents(batch: Batch) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return the number of each position's text within its row, (R, T), -1 on padding."""
    inputs = batch.inputs
    if "document_ids" in inputs:
        found = inputs["document_ids"]
    elif "attention_mask" in inputs:
        found = inputs["attention_mask"] - 1
    else:
        found = torch.zeros_like(inputs["input_ids"])
    return found.flatten(0, -2).numpy()


@contextmanager
def noised(model: Transformer, noise: Tensor | None) -> Iterator[None]:
    """Within, a model adds noise, (R, T, W), to the token vectors of what it reads; None: nothing."""
    stack = model.encoder if model.encoder is not None else model.main
    frontend = stack.frontend
    if noise is None or not isinstance(frontend, TokenEmbedding):
        yield
        return
    frontend.noise = noise
    try:
        yield
    finally:
        frontend.noise = None
