"""A checkpoint that some processes wrote is that of one process, and any others go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from plainformer.checkpoint import spread
from plainformer.checkpoint.low_rank import add_adapters
from plainformer.config.layout import Layout
from plainformer.config.local import zero1_owners
from plainformer.config.training import LoraConfig, OptimizerConfig, StartConfig
from plainformer.errors import TrainingError
from plainformer.families import table_for
from plainformer.model.transformer import Transformer
from plainformer.parallel.gather import Share, Team, local_of, shares
from plainformer.starting import from_fragment
from plainformer.train.checkpoint import Checkpoints, Files, damage
from plainformer.train.history import History
from plainformer.train.optimizer import Average, make_optimizer
from plainformer.training.going import Going
from plainformer.training.models import Start
from tests.support.ranks import run_ranks
from tests.support.shares import joined, own_part

SIZES = {"hidden_size": 16, "vocab_size": 43, "num_attention_heads": 4, "num_hidden_layers": 4}
# Grouped keys; transposed, fused matrices; both stacks, tied tables, a bias that stages share; one layer for all.
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({**SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "tie_word_embeddings": True}, "causal_lm"),
    "gpt2": ({"n_embd": 16, "vocab_size": 43, "n_head": 4, "n_layer": 4, "n_positions": 32}, "causal_lm"),
    "t5": (
        {
            "d_model": 16,
            "d_kv": 4,
            "d_ff": 24,
            "num_heads": 4,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "vocab_size": 43,
        },
        "seq2seq_lm",
    ),
    "albert": ({**SIZES, "embedding_size": 8, "intermediate_size": 24, "max_position_embeddings": 32}, "masked_lm"),
}
LAYOUTS = {
    1: [Layout()],
    2: [Layout(dp=2), Layout(dp=2, zero=3), Layout(tp=2), Layout(pp=2)],
    4: [Layout(dp=2, zero=3, tp=2), Layout(dp=2, zero=1, pp=2), Layout(tp=2, pp=2), Layout(tp=4), Layout(dp=4, zero=3)],
}


def made(family: str) -> Transformer:
    fragment, head = FAMILIES[family]
    return from_fragment({"model_type": family, **fragment}, head, seed=1)


def gradient(name: str, shape: tuple[int, ...], step: int) -> Tensor:
    """What a step learns, of a parameter of the whole model."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(hash_of(f"{name} {step}")))


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**31


class Rank:
    """What one process of a run has, without the loop: a step's gradient is given."""

    def __init__(self, family: str, layout: Layout, folder: Path, lora: LoraConfig | None) -> None:
        mesh = joined(layout)
        self.team = Team.of(mesh)
        whole = made(family).train()
        whole.requires_grad_(True)
        self.model = own_part(whole, mesh)
        if lora is not None:
            add_adapters(self.model, table_for(whole.config), lora, seed=3)
        if layout.zero == 3:
            devices = DeviceMesh.from_group(mesh.dp, "cpu")  # type: ignore[arg-type]
            for stack in (self.model.encoder, self.model.decoder):
                for layer in () if stack is None else stack.layers:
                    if any(True for _ in layer.parameters()):
                        fully_shard(layer, mesh=devices)
            fully_shard(self.model, mesh=devices)
        self.of, self.mesh, self.owners = shares(self.model), mesh, dict[str, int]()
        self.optimizer = make_optimizer(self.model, OptimizerConfig(), 1e-2)
        if layout.zero == 1:
            self.keep_own(layout.dp, mesh.place.dp)
        self.going = Going(self.model, self.optimizer, Average(self.model, 0.9), History(3, None), self.team)
        self.start = Start(StartConfig(ref="base", lora=lora), whole.config, None, None, {}, {})
        self.checkpoints = Checkpoints(folder, team=self.team)

    def keep_own(self, dp: int, index: int) -> None:
        """Take the steps of a part of the parameters alone, as ZeRO-1 does."""
        self.owners = zero1_owners({name: p.numel() for name, p in self.model.named_parameters()}, dp)
        mine = {id(p) for name, p in self.model.named_parameters() if self.owners[name] == index}
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) in mine]

    def learn(self, step: int) -> None:
        states = dict(self.model.named_parameters())
        for name, parameter in states.items():
            if not parameter.requires_grad:
                continue
            share: Share = self.of[name]
            parameter.grad = torch.empty_like(parameter)
            local_of(parameter.grad).copy_(share.of(gradient(share.name, share.shape, step)))
        self.optimizer.step()
        for name, owner in self.owners.items():
            assert self.mesh.dp is not None
            dist.broadcast(states[name].data, dist.get_global_rank(self.mesh.dp, owner), self.mesh.dp)
        if self.going.average is not None:
            self.going.average.update(step + 1)

    def save(self, step: int) -> None:
        self.checkpoints.save(
            step, lambda folder: self.start.save(self.model, folder, self.team), self.going.tensors(), {"best": None}
        )


KINDS = {"whole": None, "adapter": LoraConfig(rank=2, targets=["all-linear"]), "merged": LoraConfig(rank=2, merge=True)}
RUNS = [(family, kind) for family in FAMILIES for kind in KINDS if kind == "whole" or family in ("llama", "gpt2")]


def layouts_of(family: str, kind: str, world: int) -> list[Layout]:
    """The layouts that a run goes through: one of them all, the others every second one, in turn."""
    number = RUNS.index((family, kind))
    return LAYOUTS[world][(number + world // 4) % 2 :: 2] if number and world > 1 else LAYOUTS[world]


def walk(rank: int, folder: str, world: int) -> None:
    """In each of its layouts, a run takes a step from the checkpoint of the layout before, and saves."""
    for family, kind in RUNS:
        for layout in layouts_of(family, kind, world):
            one = Rank(family, layout, Path(folder, f"{family}-{kind}"), KINDS[kind])
            saved, passed_over = one.checkpoints.newest()
            assert passed_over == []
            step = 0 if saved is None else saved.step
            if saved is not None:
                one.going.load(saved)
            one.learn(step)
            one.save(step + 1)


def fail(rank: int, folder: str) -> list[str]:
    """What goes wrong on one rank, all say alike; and all pass over a damaged checkpoint."""
    one = Rank("llama", Layout(dp=2, zero=3), Path(folder, "run"), None)
    one.learn(0)
    one.save(1)
    said = []
    for broken, number in (("write_file", 1), ("facts", 0)):
        with pytest.MonkeyPatch.context() as patch:
            if rank == number:
                patch.setattr(spread, broken, no_space)
            with pytest.raises(TrainingError) as error:
                one.save(2)
            said.append(error.value.what)
    with pytest.MonkeyPatch.context() as patch:  # what the first alone does
        patch.setattr(Files, "write", no_space)
        with pytest.raises(TrainingError) as error:
            one.save(2)
        said.append(error.value.what)
    assert one.team is not None
    one.team.gather(None)
    assert [path.name for path in Path(folder, "run/checkpoints").iterdir()] == ["step-00000001"]
    one.team.gather(None)  # both have looked
    one.save(2)
    if rank == 0:
        path = Path(folder, "run/checkpoints/step-00000002/training/optimizer-00002-of-00002.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    one.team.gather(None)
    saved, passed_over = one.checkpoints.newest()
    assert saved is not None and saved.step == 1
    return [*said, *passed_over]


def no_space(*given: object, **more: object) -> None:
    raise OSError(28, "No space left on device")


def test_one_rank_without_space_and_a_damaged_file(tmp_path: Path) -> None:
    first, second = run_ranks(fail, 2, str(tmp_path))
    assert first == second and len(first) == 4
    for said in first[:3]:
        assert "the checkpoint of step 2 cannot be saved" in said and "the disk is full" in said
        assert "step-00000001 is the last good one" in said
    assert "rank 1" in first[0] and "SHA-256 differs" in first[3]


def tensors_in(folder: Path, stem: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted([*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*.safetensors")]):
        found |= load_file(path)
    return found


def test_any_layout_goes_on_with_what_any_other_saved(tmp_path: Path) -> None:
    """Some steps on two processes, some on four, the last on one: the last checkpoint is that of as many steps on one."""
    for layout in (*LAYOUTS[2], *LAYOUTS[4]):
        assert sum(layout in layouts_of(*run, layout.world) for run in RUNS) >= 4, layout
    run_ranks(walk, 2, str(tmp_path), 2)
    run_ranks(walk, 4, str(tmp_path), 4)
    walk(0, str(tmp_path), 1)
    for family, kind in RUNS:
        steps = sum(len(layouts_of(family, kind, world)) for world in LAYOUTS)
        run, alone = tmp_path / f"{family}-{kind}", tmp_path / f"alone-{family}-{kind}"
        one = Rank(family, Layout(), alone, KINDS[kind])
        for step in range(steps):
            one.learn(step)
            if step >= steps - 2:
                one.save(step + 1)
        for step in (steps - 1, steps):
            check_equal(*(folder / f"checkpoints/step-{step:08d}" for folder in (run, alone)))


def check_equal(path: Path, expected: Path) -> None:
    assert damage(path) == ""
    for stem in ("model", "adapter_model", "training/optimizer", "training/ema", "training/weights"):
        found, wanted = tensors_in(path, stem), tensors_in(expected, stem)
        assert found.keys() == wanted.keys(), (path, stem)
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            far = (found[name].double() - tensor.double()).abs().max()
            assert far <= 2e-6 + 1e-5 * tensor.abs().max(), (path, stem, name)
    others = {one.name for one in path.glob("*.json")} - {"model.safetensors.index.json"}
    assert others == {one.name for one in expected.glob("*.json")}
