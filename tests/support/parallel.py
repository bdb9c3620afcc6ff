"""The training loop's own steps over tiny models, on one process or several.

Rows are padded, and the number of micro-batches is not a multiple of the ranks.

Shapes: B rows, T positions, N labels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plainformer.checkpoint.low_rank import add_adapters
from plainformer.config import Dropout, ModelConfig
from plainformer.config.learning import OptimizerConfig
from plainformer.config.local import local
from plainformer.config.training import LoraConfig
from plainformer.families import table_for
from plainformer.model.initial import generator_of
from plainformer.model.lora import Adapter, adapted
from plainformer.model.transformer import Transformer
from plainformer.parallel.apply import parallelize
from plainformer.parallel.data import Gradients, Replicas
from plainformer.parallel.gather import Share, local_of, shares
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.pipeline import Pipeline
from plainformer.parallel.sync import Ranks
from plainformer.train.finite import Finite
from plainformer.train.history import History
from plainformer.train.loop import learn
from plainformer.train.losses import word_losses
from plainformer.train.objectives.base import Batch, Loss
from plainformer.train.optimizer import Average, make_optimizer, shrinks
from plainformer.train.pipelined import Pipelined
from plainformer.train.plan import Piece, Step
from tests.support.shares import config_of, inputs_of, own_part, with_dropout
from tests.support.shares import whole as whole_model

FAMILIES = ("llama", "gpt2", "bert", "t5", "albert", "qwen3", "olmo2", "whisper", "vit")
MICRO, SCALE = 5, 0.08


def dropping(name: str, dropout: float = 0.1, layers: int | None = None) -> ModelConfig:
    """Return the configuration of a family, which drops a part of its numbers."""
    return with_dropout(config_of(name, layers=layers), Dropout().everywhere(dropout))


def with_adapters(model: Transformer) -> None:
    """Give a model, or a rank's part of one, adapters that do something, and freeze the rest."""
    add_adapters(model, table_for(model.config), LoraConfig(rank=4, targets=["all-linear"]))
    for name, linear in adapted(model):
        assert isinstance(linear.adapter, Adapter)
        if linear.adapter.number == 0:  # of the linears that share one
            linear.adapter.low.b.data.normal_(0, SCALE, generator=generator_of(0, name))


def batches_of(config: ModelConfig, step: int, micro: int = MICRO, rows: int = 2, length: int = 11) -> list[Batch]:
    """Micro-batches of a step, padded, with other numbers of labels each."""
    return [_batch(config, 1000 * step + number, rows, length, number * rows) for number in range(micro)]


def _batch(config: ModelConfig, seed: int, rows: int, length: int, first: int) -> Batch:
    inputs, draw = inputs_of(config, seed, rows, length), torch.Generator().manual_seed(seed)
    examples = tuple(range(first, first + rows))
    if config.head.pick != "all":  # a class for each row
        labels_B = torch.randint(config.head.out_size, (rows,), generator=draw)
        return Batch(inputs, {"labels": labels_B}, rows, rows, examples)
    scored_BT = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones(rows, 1).bool()
    tokens = int(scored_BT.sum())
    if config.kind == "encoder-decoder":
        count = inputs["decoder_input_ids"].size(1)
        scored_BT = torch.arange(count) < torch.randint(1, count + 1, (rows, 1), generator=draw)
    places_N = scored_BT.flatten().nonzero().flatten()
    labels_N = torch.randint(1, config.head.out_size, (len(places_N),), generator=draw)
    targets = {"places": places_N, "labels": labels_N, "counts": scored_BT.sum(1)}
    return Batch(inputs, targets, len(places_N), tokens, examples)


def loss_of(model: Any, batch: Batch) -> Loss:
    """What objectives do: one of words scores what `states` has given, after it has returned; one of rows calls the model."""
    if "places" not in batch.targets:
        return Loss(F.cross_entropy(model(**batch.inputs).logits, batch.targets["labels"], reduction="none"))
    states_ND = model.states(**batch.inputs).last_hidden_state.flatten(0, 1)[batch.targets["places"]]
    return Loss(word_losses(model, states_ND, batch.targets["labels"]), batch.targets["counts"])


def everything(name: str) -> bool:
    """One process, or one of data-parallel ranks, has all parameters."""
    return True


@dataclass
class Ran:
    """What some steps gave.

    Attributes:
        losses, norms: of each step; a loss is that of a label.
        gradients: of the first step, by the whole model's names: what is here of each, of what it is a part. None: has none.
        holds: whether a parameter, by that name, must be here.
    """

    losses: list[float]
    norms: list[float]
    gradients: dict[str, tuple[Tensor | None, Share]]
    holds: Callable[[str], bool] = everything
    history: Any = None


class Steps:
    """A run, as far as the loop's steps look at it.

    Args:
        options: of the optimizer.
        change: what is done to the model before it is divided.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh | None = None,
        *,
        devices: list[str] | None = None,
        trimming: Any = None,
        change: Callable[[Transformer], object] = lambda model: None,
        **options: Any,
    ) -> None:
        ranks, gradients, replicas = Ranks(mesh), Gradients(), None
        model = whole_model(config, scale=SCALE)
        if mesh is not None:
            model = own_part(model, mesh)
        change(model)
        if mesh is not None:
            gradients = parallelize(model, mesh)
        if devices is not None:
            gradients = replicas = Replicas(model, devices)
        asked = OptimizerConfig(learning_rate=3e-3, **{"max_grad_norm": 1.0, **options})
        self.model, self.ranks = model, ranks
        self.optimizer = make_optimizer(model, asked, 3e-3, keeps=gradients.keeps)
        average = Average(model, asked.ema, shrinks(model) if asked.l1 else ()) if asked.ema else None
        cpu = torch.device("cpu")
        self.run: Any = SimpleNamespace(
            config=SimpleNamespace(seed=3, optimizer=asked),
            folder=Path(),
            model=model,
            objective=SimpleNamespace(loss=loss_of, apart=lambda batch: [batch]),
            plan=SimpleNamespace(step=None),
            device=cpu,
            trimming=trimming,
            history=History(20, 4.5),
            autocast=nullcontext,
            here=lambda batch, model=None: batch,
            optimizer=self.optimizer,
            finite=Finite(self.optimizer, cpu, False),
            rate=lambda step: 3e-3,
            average=average,
            loss_sum=torch.zeros((), dtype=torch.float64),
            ranks=ranks,
            gradients=gradients,
            replicas=replicas,
            pipeline=None,
        )
        if mesh is not None and mesh.pp is not None:
            run: Any = self.run
            run.pipeline = Pipelined(run, Pipeline(model, mesh))

    def learn(self, count: int, micro: int = MICRO, first: int = 0) -> Ran:
        losses, norms, gradients = [], [], {}
        for number in range(first, first + count):
            every = batches_of(self.model.config, number, micro)
            rows = tuple(tuple((Piece(example),) for example in batch.examples) for batch in every)
            step = Step(number, 0, rows)
            mine = [every[turn.micro] for turn in self.ranks.dealt(micro)]
            self.run.loss_sum.zero_()
            norm, labels, _ = learn(self.run, step, mine)
            assert labels == sum(batch.count for batch in every)
            losses.append(self.run.loss_sum.item() / labels)
            norms.append(norm.item())
            if number == first:
                gradients = self.gradients()
        self.run.history.settle(self.ranks.everywhere)
        return Ran(losses, norms, gradients, self.holds(), self.run.history.last.copy())

    def gradients(self) -> dict[str, tuple[Tensor | None, Share]]:
        """What this rank has of each gradient."""
        of, found = shares(self.model), {}
        for name, parameter in self.model.named_parameters():
            gradient = None if parameter.grad is None else local_of(parameter.grad).detach().clone()
            found[of[name].name] = (gradient, of[name])
        return found

    def holds(self) -> Callable[[str], bool]:
        """Whether a parameter must be on this rank, by the description of its layout alone."""
        mesh = self.ranks.mesh
        if mesh is None or mesh.tp is mesh.pp is None:
            return everything
        here = local(self.model.config, mesh.layout, mesh.rank)
        names = {part.name for part in here.parts.values()}
        return lambda name: name in names or (".adapter." in name and here.holds(name))


def whole(tensor: Any) -> Any:
    """A tensor that FSDP has divided, as all ranks have it together; any other as it is."""
    if tensor is None:
        return None
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().clone()


def differences(found: Ran, expected: Ran) -> list[str]:
    """What of a run is not as in one process: losses to 5e-6, norms to 1e-5, gradients to 1e-5 of their size.

    One process may have taken more steps. Gradients are compared of all that this rank must have: a stage has some layers, a
    rank that divides weights has some rows, and no rank may lack a name.
    """
    said = []
    for name, own, other, limit in (
        ("loss", found.losses, expected.losses, 5e-6),
        ("norm", found.norms, expected.norms, 1e-5),
    ):
        worst = max(abs(a - b) / abs(b) for a, b in zip(own, other[: len(own)], strict=True))
        said += [f"{name} differs by {worst:.1e}"] if not worst <= limit else []
    floor = 1e-6 * max(expected.norms[0], 1.0)
    for name, (gradient_here, share) in found.gradients.items():
        if name not in expected.gradients:
            said.append(f"{name} is not known to one process")
            continue
        gradient = expected.gradients[name][0]
        if gradient is None or gradient_here is None:
            said += [f"{name}: one has no gradient"] if (gradient is None) != (gradient_here is None) else []
        elif (far := (gradient_here - share.of(gradient)).norm()) > 1e-5 * gradient.norm() + floor:
            said.append(f"gradient of {name} differs by {far / gradient.norm():.1e}")
    lacking = [name for name in expected.gradients if found.holds(name) and name not in found.gradients]
    return [*said, *(f"{name} is not here" for name in lacking)]
