"""Passes of a model that nothing comes of: processes that share out its weights (ZeRO-2, 3) run each layer equally often."""

from __future__ import annotations

from torch import Tensor

from plainformer.model.transformer import Transformer
from plainformer.train.objectives.base import Batch
from plainformer.train.objectives.hearing import Clips


def idle(model: Transformer, batch: Batch, passes: int) -> Tensor | None:
    """Run a model some more times for a micro-batch, as often as other processes run it beyond what this one has done.

    Returns:
        zero, (), whose gradient goes through these passes; None if there are none.
    """
    if not passes:
        return None
    assert isinstance(batch, Clips)
    _, inputs = batch.runs()[0]  # the shortest clips
    one = {name: values[:1] for name, values in inputs.items()}
    total: Tensor | None = None
    for _ in range(passes):
        logits = model(**one, only_logits=True).logits
        assert logits is not None
        nothing = logits.float().sum() * 0
        total = nothing if total is None else total + nothing
    return total
