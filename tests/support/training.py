"""What tests of training share: configurations, batches of a few examples, gradients however they are batched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from plainformer.config import HeadConfig, ModelConfig, StackConfig, TokenFrontend
from plainformer.config.training import (
    BatchConfig,
    DataConfig,
    LossConfig,
    SourceConfig,
    StartConfig,
    TrainConfig,
)
from plainformer.model.transformer import Transformer
from plainformer.train.draws import generator
from plainformer.train.objectives.base import Arrays, Batch, Objective
from tests.support import models
from tests.support.close import close
from tests.support.parity import load_ours
from tests.support.tokenizers import unigram


def train_config(
    objective: str,
    *,
    loss: Mapping[str, Any] = {},
    batches: Mapping[str, Any] = {},
    data: Mapping[str, Any] = {},
    **more: Any,
) -> TrainConfig:
    """A configuration of which an objective reads the sections given."""
    return TrainConfig(
        objective=objective,
        folder="run",
        model=StartConfig(ref="model"),
        data=DataConfig(train=SourceConfig(path="rows.jsonl"), **data),
        batches=BatchConfig(**batches),
        loss=LossConfig(**loss),
        **more,
    )


def examples_of(objective: Objective, rows: Sequence[Mapping[str, Any]]) -> list[Arrays]:
    """The examples of rows, one after another."""
    return [example for row in rows for example in objective.encode(row).examples]


def batch_of(objective: Objective, examples: Sequence[Arrays], first: int = 0, epoch: int = 0) -> Batch:
    """Examples as rows of their own; the random numbers of each are those of its number from `first`."""
    draws = [generator(0, epoch, first + number) for number in range(len(examples))]
    return objective.collate([[example] for example in examples], draws)


def gradients(model: Any, objective: Objective, examples: Sequence[Arrays], sizes: Sequence[int]) -> dict[str, Tensor]:
    """The gradient of a step whose micro-batches have these numbers of examples, by the parameter's name."""
    starts = np.cumsum([0, *sizes])[:-1]
    batches = [batch_of(objective, examples[s : s + n], int(s)) for s, n in zip(starts, sizes, strict=True)]
    total = sum(batch.count for batch in batches)
    model.zero_grad()
    model.eval()  # without dropout, which differs from batch to batch
    for batch in batches:
        (objective.loss(model, batch).total / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_batching(model: Any, objective: Objective, examples: Sequence[Arrays]) -> None:
    """Eight examples give one gradient in any micro-batches, and one evaluation in any batches."""
    assert len(examples) >= 8
    model, examples = model.double(), examples[:8]  # so that nothing but the sums' order remains
    whole = gradients(model, objective, examples, [8])
    assert whole and any(grad.abs().max() > 0 for grad in whole.values())
    scale = max(float(grad.abs().max()) for grad in whole.values())
    for sizes in ([4, 4], [2, 2, 2, 2], [5, 3], [1, 7]):
        found = gradients(model, objective, examples, sizes)
        assert found.keys() == whole.keys()
        for name, grad in whole.items():
            off = float((found[name] - grad).abs().max())
            assert off <= 1e-6 * max(1.0, scale), f"{name} in {sizes}: {off} of {scale}"
    model.eval()
    alone = [objective.statistics(model, batch_of(objective, [one], number)) for number, one in enumerate(examples)]
    together = objective.statistics(model, batch_of(objective, examples))
    close(together, np.concatenate(alone), "statistics", rel=1e-6)


def fresh(model: Any) -> Any:
    """A model whose parameters may change."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.train()


def step(model: Any, objective: Objective, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """One step on a batch; returns its mean loss."""
    optimizer.zero_grad()
    loss = objective.loss(model, batch).total / batch.count
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def word_model(words: int, size: int, dtype: torch.dtype = torch.float32, **head: Any) -> Transformer:
    """A model whose head, which scores words, is what matters; random weights."""
    heads = HeadConfig(**{"kind": "causal_lm", "out_size": words, **head})
    frontend = TokenFrontend(vocab_size=words, embedding_size=size)
    stack = StackConfig(frontend=frontend, hidden_size=size, num_layers=1, num_heads=2, ffn_size=8)
    model = Transformer(ModelConfig("test", encoder=stack, head=heads)).to_empty(device="cpu")
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return model.to(dtype).train().requires_grad_()


def small_t5(folder: Path) -> tuple[Any, Any]:
    """A T5 with `unigram`'s vocabulary that may be trained, and the reference's with the same weights."""
    sizes = dict(d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=unigram().vocab_size)
    config = transformers.T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
    theirs = models.reference("T5ForConditionalGeneration", config)
    return fresh(load_ours(theirs, folder)).eval(), theirs
