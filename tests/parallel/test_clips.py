"""Clips that run one length at a time: ranks that share out the weights make as many passes, and learn what one process does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plainformer.config.layout import Layout
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh, start
from plainformer.train.evaluating import _scored
from plainformer.train.loop import learn
from plainformer.train.objectives.base import Loss
from plainformer.train.objectives.hearing import Clips, clips_apart
from plainformer.train.plan import Piece, Step
from tests.support.parallel import Steps
from tests.support.ranks import run_ranks
from tests.support.shares import config_of

MICRO = 3  # of two or three lengths each, dealt out over two ranks; four have no even share
NO_CHANCE = {f"{name}_dropout": 0.0 for name in ("hidden", "attention", "feat_proj", "final")}
QUIET: dict[str, Any] = {
    **NO_CHANCE,
    "feat_extract_norm": "group",
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
LAYOUTS = (Layout(dp=4, zero=2), Layout(dp=4, zero=3), Layout(dp=2, pp=2, zero=3), Layout(dp=4))


def clips(step: int, micro: int) -> Clips:
    draw = torch.Generator().manual_seed(100 * step + micro)
    samples = [200, 240, 300, 240][: 2 + (step + micro) % 3]
    values = torch.randn(len(samples), max(samples), generator=draw)
    examples = tuple(range(4 * micro, 4 * micro + len(samples)))
    return Clips({"input_values": values}, {}, len(samples), 0, examples, samples=tuple(samples), apart=True)


def losses(model: Transformer, batch: Any) -> Loss:
    found: dict[int, torch.Tensor] = {}
    for rows, inputs in batch.runs():
        logits = model(**inputs, only_logits=True).logits
        assert logits is not None
        found.update(zip(rows, -logits.log_softmax(-1)[..., 3].mean(-1), strict=True))
    return Loss(torch.stack([found[row] for row in range(len(found))]))


def learnt(mesh: Mesh | None) -> list[float]:
    """The losses and norms of some steps, and then those of an evaluation."""
    steps, found = Steps(config_of("wav2vec2", **QUIET), mesh), []
    run = steps.run
    run.objective = SimpleNamespace(
        loss=losses, apart=clips_apart, statistics=lambda model, batch: losses(model, batch).values[:, None].numpy()
    )
    for number in range(3):
        every = [clips(number, micro) for micro in range(MICRO)]
        rows = tuple(tuple((Piece(example),) for example in batch.examples) for batch in every)
        run.loss_sum.zero_()
        mine = [every[turn.micro] for turn in run.ranks.dealt(MICRO)]
        norm, labels, _ = learn(run, Step(number, 0, rows), mine)
        found += [run.loss_sum.item() / labels, norm.item()]
    run.stop = lambda: False
    side: Any = SimpleNamespace(
        count=MICRO, batches=lambda micro: clips(9, micro), by_example=lambda sums, examples: sums.sum()
    )
    run.model.eval()
    with torch.no_grad():
        found.append(float(_scored(run, side)))  # type: ignore[arg-type]
    return found


def on_ranks(rank: int) -> list[list[float]]:
    return [learnt(start(layout)) for layout in LAYOUTS]


def test_clips_of_many_lengths_on_many_ranks() -> None:
    expected = learnt(None)
    for found in run_ranks(on_ranks, 4):
        for layout, own in zip(LAYOUTS, found, strict=True):
            assert own == pytest.approx(expected, rel=1e-5), layout
