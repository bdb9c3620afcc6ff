"""Data parallel and ZeRO where they differ from one process in what they do: penalties, averages, layers left out, evaluations.

That all families learn the same is in `test_steps.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plainformer.config import Dropout, ModelConfig
from plainformer.config.learning import LossConfig
from plainformer.errors import UsageError
from plainformer.model.flow import Flow
from plainformer.model.heads import FIRST
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.sync import Turn, dealt
from plainformer.train.trimming import Trimming
from tests.support.parallel import Ran, Steps, batches_of, differences, dropping, loss_of, whole
from tests.support.ranks import run_ranks
from tests.support.shares import config_of, mesh_of, with_dropout


def _with(zero: int) -> Mesh:
    return mesh_of(dp=torch.distributed.get_world_size(), zero=zero)


def _compared(said: str, mesh: Mesh, config: ModelConfig, expected: Ran, **options: Any) -> list[str]:
    own = Steps(config, mesh, **options).learn(len(expected.losses))
    found = [f"{said}, zero {mesh.layout.zero}: {one}" for one in differences(own, expected)]
    if not torch.equal(torch.tensor(own.history).isnan(), torch.tensor(expected.history).isnan()):
        found.append(f"{said}: other examples in the history")
    return found


def _regularised() -> list[str]:
    """The average of the weights, an L1 penalty, no clipping; and what FSDP would break: logits that are edited in place."""
    config = dropping("gpt2")
    config = replace(config, head=replace(config.head, softcap=5.0))
    options: dict[str, Any] = {"ema": 0.9, "l1": 0.1, "max_grad_norm": None}
    alone = Steps(config, **options)
    expected, found = alone.learn(3), []
    kept = alone.run.average.tensors()
    for zero in (1, 2, 3):
        steps = Steps(config, _with(zero), **options)
        found += [f"regularised, zero {zero}: {one}" for one in differences(steps.learn(3), expected)]
        for name, average in steps.run.average.tensors().items():
            own = whole(average)
            if (own - kept[name]).abs().max() > 2e-3 or (own == 0).float().mean() < 0.9 * (
                kept[name] == 0
            ).float().mean():
                found.append(f"zero {zero}: the average of {name} is another")
        before = {name: whole(p.detach()) for name, p in steps.model.named_parameters()}
        with steps.run.average.in_place():
            name, parameter = next(iter(steps.model.named_parameters()))
            if not torch.equal(whole(parameter.detach()), whole(steps.run.average.tensors()[name])):
                found.append(f"zero {zero}: the average is not in place")
        if not all(torch.equal(whole(p.detach()), before[name]) for name, p in steps.model.named_parameters()):
            found.append(f"zero {zero}: the weights did not come back")
    return found


def _layers_left_out() -> list[str]:
    """Each rank leaves out other layers; ZeRO-2 and 3 would wait for the others for ever, and say so before."""
    config = with_dropout(config_of("gpt2"), replace(Dropout().everywhere(0.1), layer=0.5))
    expected, found = Steps(config).learn(4), []
    for zero in (0, 1):
        found += _compared("layers left out", _with(zero), config, expected)
    for zero in (2, 3):
        with pytest.raises(UsageError, match="leaves out layers"):
            Steps(config, _with(zero))
    one = Steps(config).learn(1, micro=1)
    return found + [f"one micro-batch: {d}" for d in differences(Steps(config, _with(1)).learn(1, micro=1), one)]


def _last_layer_alone() -> list[str]:
    """What brings a layer's weights does not watch it: the last one may leave out positions, as in one process."""
    stack, flow = Steps(dropping("bert"), _with(3)).model.encoder, Flow(masks=[], rotations=[], length=4)
    assert stack is not None
    alone = stack._can_leave_out(FIRST, flow)
    stack.layers[-1].register_forward_hook(lambda *given: None)
    return [] if alone and not stack._can_leave_out(FIRST, flow) else ["the last layer runs for all positions"]


def _evaluated() -> list[str]:
    """Weights that were gathered for an evaluation are not those of the step after."""
    config, expected = dropping("llama"), Steps(dropping("llama")).learn(4)
    found = []
    for zero in (2, 3):
        steps = Steps(config, _with(zero))
        steps.learn(2)
        steps.model.eval()
        with torch.no_grad():
            loss_of(steps.model, batches_of(config, 0)[0])
        steps.model.train()
        steps.run.gradients.evaluated()
        losses = steps.learn(2, first=2).losses
        found += [f"zero {zero}: {losses}"] if losses != pytest.approx(expected.losses[2:], rel=5e-6) else []
    return found


def _trimmed(folder: Path) -> list[str]:
    """The highest losses of all ranks are left out."""
    config, found = dropping("bert"), []
    plan = SimpleNamespace(steps_per_epoch=1)

    def steps(mesh: Mesh | None, name: str) -> tuple[Ran, Any]:
        trimming = Trimming(LossConfig(trim=0.3, trim_after=0), plan, folder / name, None, mesh is None)  # type: ignore[arg-type]
        ran = Steps(config, mesh, trimming=trimming).learn(2)
        left_out = [(examples, worst.tolist(), int(out)) for examples, worst, out in trimming._steps.values()]
        return ran, left_out

    (folder / str(torch.distributed.get_rank())).mkdir()
    expected, left_out = steps(None, str(torch.distributed.get_rank()))
    for zero in (0, 3):
        own, its = steps(_with(zero), "none")
        found += [f"trimmed, zero {zero}: {one}" for one in differences(own, expected)]
        found += [] if its == left_out else [f"trimmed, zero {zero}: {its}, not {left_out}"]
    return found


def _two(rank: int, folder: Path) -> list[str]:
    return _regularised() + _layers_left_out() + _last_layer_alone() + _evaluated() + _trimmed(folder)


def test_ranks_equal_one_process(tmp_path: Path) -> None:
    assert run_ranks(_two, 2, tmp_path) == [[]] * 2


@pytest.mark.parametrize(
    ("count", "ranks", "turns"),
    [
        (4, 2, [[(0, True), (2, True)], [(1, True), (3, True)]]),
        (3, 2, [[(0, True), (2, True)], [(1, True), (0, False)]]),
        (1, 3, [[(0, True)], [(0, False)], [(0, False)]]),
    ],
)
def test_micro_batches_are_dealt_out_by_their_number(
    count: int, ranks: int, turns: list[list[tuple[int, bool]]]
) -> None:
    assert [dealt(count, ranks, rank) for rank in range(ranks)] == [[Turn(*turn) for turn in own] for own in turns]


def test_devices_of_one_process_equal_one_device() -> None:
    for name in ("qwen3", "t5"):
        config: Any = dropping(name)
        own, expected = Steps(config, devices=["cpu", "cpu"]).learn(4), Steps(config).learn(4)
        assert differences(own, expected) == []
