"""Tiny models that cover what matters to a layout, and the training loop's own steps over them, on one process or several.

V is odd: no number of ranks divides it. Rows are padded, the number of micro-batches is not a multiple of the ranks.

Shapes: B rows, T positions, N labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from plainformer.config import (
    Dropout,
    HeadConfig,
    ModelConfig,
    NormConfig,
    RelativeBias,
    RopeConfig,
    StackConfig,
    TokenFrontend,
)
from plainformer.config.learning import OptimizerConfig
from plainformer.config.local import local
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.parallel.apply import parallelize
from plainformer.parallel.data import Gradients, Replicas
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.pipeline import Pipeline, connect
from plainformer.parallel.sync import Ranks
from plainformer.train.finite import Finite
from plainformer.train.history import History
from plainformer.train.loop import learn
from plainformer.train.losses import word_losses
from plainformer.train.objectives.base import Batch, Loss
from plainformer.train.optimizer import Average, make_optimizer, shrinks
from plainformer.train.pipelined import Pipelined
from plainformer.train.plan import Piece, Step

V, D, LAYERS, MICRO = 1003, 32, 2, 5


def _stack(dropout: float, **changes: Any) -> StackConfig:
    base: dict[str, Any] = dict(
        frontend=TokenFrontend(vocab_size=V, embedding_size=D),
        hidden_size=D,
        num_layers=LAYERS,
        num_heads=4,
        ffn_size=48,
        norm_place="pre",
        final_norm="norm",
        direction="causal",
    )
    rates = Dropout(embedding=dropout, attention=dropout, attention_output=dropout, ffn_output=dropout)
    return StackConfig(**{**base, "dropout": rates, **changes})


def _causal(name: str, stack: StackConfig) -> ModelConfig:
    head = HeadConfig("causal_lm", out_size=V, out_bias=False)
    return ModelConfig(name, decoder=stack, head=head, tied=(("head.out.weight", "decoder.frontend.tokens.weight"),))


def llama(dropout: float = 0.1, qk_norm: str = "none") -> ModelConfig:
    stack = _stack(
        dropout,
        num_heads=8,
        num_kv_heads=2,
        activation="silu",
        ffn="gated",
        norm=NormConfig("rms", 1e-6),
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        qk_norm=qk_norm,
        rope=(RopeConfig(10000.0, D // 8),) * LAYERS,
    )
    return _causal("llama", stack)


def gpt2(dropout: float = 0.1) -> ModelConfig:
    table = TokenFrontend(vocab_size=V, embedding_size=D, positions="learned", max_positions=64)
    return _causal("gpt2", _stack(dropout, frontend=table, activation="gelu_tanh", norm=NormConfig(eps=1e-5)))


def bert(dropout: float = 0.1, **changes: Any) -> ModelConfig:
    table = TokenFrontend(
        vocab_size=V, embedding_size=D, positions="learned", max_positions=64, token_types=2, norm=NormConfig()
    )
    stack = _stack(dropout, frontend=table, norm_place="post", final_norm="none", direction="both", **changes)
    head = HeadConfig(
        "masked_lm", transform_size=D, transform_activation="gelu", transform_norm=NormConfig(), out_size=V
    )
    tied = (("head.out.weight", "encoder.frontend.tokens.weight"),)
    return ModelConfig("bert", encoder=stack, head=head, tied=tied)


def t5(dropout: float = 0.1) -> ModelConfig:
    def side(name: str) -> StackConfig:
        return _stack(
            dropout,
            attention_scale=1.0,
            activation="gelu_tanh",
            ffn="gated",
            norm=NormConfig("rms", 1e-6),
            direction="causal" if name == "decoder" else "both",
            qkv_bias=False,
            out_bias=False,
            ffn_bias=False,
            relative_bias=RelativeBias(),
            cross_attention=name == "decoder",
        )

    table = "encoder.frontend.tokens.weight"
    return ModelConfig(
        "t5",
        encoder=side("encoder"),
        decoder=side("decoder"),
        head=HeadConfig("seq2seq_lm", out_size=V, out_bias=False, scale=D**-0.5),
        tied=(("decoder.frontend.tokens.weight", table), ("head.out.weight", table)),
        decoder_start_id=0,
        pad_id=0,
    )


CONFIGS: dict[str, Callable[..., ModelConfig]] = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
    "t5": t5,
    "albert": lambda dropout=0.1: bert(dropout, layer_ids=(0,) * LAYERS),
    "qwen3": lambda dropout=0.1: llama(dropout, "head"),
}


def batches_of(config: ModelConfig, step: int, micro: int = MICRO, rows: int = 2, length: int = 11) -> list[Batch]:
    """Micro-batches of a step, padded, with other numbers of labels each."""
    made = []
    for number in range(micro):
        draw = torch.Generator().manual_seed(1000 * step + number)
        mask_BT = torch.arange(length) < torch.randint(3, length + 1, (rows, 1), generator=draw)
        ids_BT = torch.randint(1, V, (rows, length), generator=draw)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT.long()}
        seen_BT = mask_BT
        if config.kind == "encoder-decoder":
            inputs["decoder_input_ids"] = torch.randint(1, V, (rows, length - 4), generator=draw)
            seen_BT = mask_BT[:, : length - 4]
        places_N = seen_BT.flatten().nonzero().flatten()
        targets = {
            "places": places_N,
            "labels": torch.randint(1, V, (len(places_N),), generator=draw),
            "counts": seen_BT.sum(1),
        }
        examples = tuple(range(number * rows, (number + 1) * rows))
        made.append(Batch(inputs, targets, len(places_N), int(mask_BT.sum()), examples))
    return made


def words_loss(model: Any, batch: Batch) -> Loss:
    """What objectives of words do: the head scores what `states` has given, after it has returned."""
    states_ND = model.states(**batch.inputs).last_hidden_state.flatten(0, 1)[batch.targets["places"]]
    return Loss(word_losses(model, states_ND, batch.targets["labels"]), batch.targets["counts"])


def filled(model: Transformer, config: ModelConfig) -> Transformer:
    """Give a model, or a rank's part of one, the weights that the whole one has in one process."""
    whole = initialise(Transformer(config), seed=0, std=0.08)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    values = dict(whole.named_parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = None if model.local is None else model.local.parts[name]
            value: Tensor = values[name if part is None else part.name]
            if part is not None and part.dim is not None:
                value = value.narrow(part.dim, part.start, part.stop - part.start)
            parameter.copy_(value)
    return model.train()


@dataclass
class Ran:
    """What some steps gave: losses of a label, norms, the first step's gradients by name (None: has none), weights."""

    losses: list[float]
    norms: list[float]
    gradients: dict[str, Any]
    weights: dict[str, Any]
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
        if mesh is not None and mesh.layout.tp * mesh.layout.pp > 1:
            model = filled(Transformer(config, local(config, mesh.layout, mesh.rank)), config)
        else:
            model = filled(Transformer(config), config)
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
            objective=SimpleNamespace(loss=words_loss, apart=lambda batch: [batch]),
            plan=SimpleNamespace(step=None),
            device=cpu,
            trimming=trimming,
            history=History(10, 6.5),
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
            run.pipeline = Pipelined(run, Pipeline(connect(model, mesh), mesh))

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
                gradients = self.whole({name: p.grad for name, p in self.model.named_parameters()})
        self.run.history.settle(self.ranks.everywhere)
        weights = self.whole({name: p.detach() for name, p in self.model.named_parameters()})
        return Ran(losses, norms, gradients, weights, self.run.history.last.copy())  # type: ignore[arg-type]

    def whole(self, tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """The same tensors as the whole model has them, by its names: this rank's alone, if they are cut."""
        here, found = self.model.local, {}
        for name, tensor in tensors.items():
            part = None if here is None else here.parts[name]
            full = whole(tensor)
            if part is not None and part.dim is not None and full is not None:
                full = (full, part)
            found[name if part is None else part.name] = full
        return found


def whole(tensor: Any) -> Any:
    """A tensor that FSDP has divided, as all ranks have it together; any other as it is."""
    if tensor is None:
        return None
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().clone()


def differences(found: Ran, expected: Ran) -> list[str]:
    """What of a run is not as in one process: losses to 5e-6, norms to 1e-5, gradients to 1e-5 of their size."""
    said = []
    for name, own, other, limit in (
        ("loss", found.losses, expected.losses, 5e-6),
        ("norm", found.norms, expected.norms, 1e-5),
    ):
        worst = max(abs(a - b) / abs(b) for a, b in zip(own, other, strict=True))
        said += [f"{name} differs by {worst:.1e}"] if not worst <= limit else []
    floor = 1e-6 * max(expected.norms[0], 1.0)
    for name, gradient in expected.gradients.items():
        own_gradient = found.gradients.get(name)
        if isinstance(own_gradient, tuple) and gradient is not None:  # the part that is here
            own_gradient, part = own_gradient
            gradient = gradient.narrow(part.dim, part.start, part.stop - part.start)
        if gradient is None or own_gradient is None:
            said += [f"{name}: one has no gradient"] if (gradient is None) != (own_gradient is None) else []
        elif (own_gradient - gradient).norm() > 1e-5 * gradient.norm() + floor:
            said.append(f"gradient of {name} differs by {(own_gradient - gradient).norm() / gradient.norm():.1e}")
    return said


def with_dropout(config: ModelConfig, **rates: float) -> ModelConfig:
    """The same configuration with other dropout."""
    stacks: Mapping[str, Any] = {
        name: replace(stack, dropout=replace(stack.dropout, **rates))
        for name, stack in (("encoder", config.encoder), ("decoder", config.decoder))
        if stack is not None
    }
    return replace(config, **stacks)
