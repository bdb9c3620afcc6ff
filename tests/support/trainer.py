"""The reference's Trainer on the batches of a run of ours: its losses, and the weights that it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.data import Dataset
from transformers.utils import logging

from plainformer.config.training import TrainConfig
from plainformer.train.draws import torch_seed
from plainformer.train.feeder import collated
from plainformer.train.objectives.base import Batch
from plainformer.train.schedule import warmup_steps
from plainformer.training import prepare

IGNORED = -100  # their label of what is not to be learnt
Inputs = dict[str, Tensor]


class _Batches(Dataset[Inputs]):
    """Each entry is a whole batch."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Inputs:
        return self.batches[number]


class RecordingTrainer(transformers.Trainer):
    """Keeps each step's loss as it was computed, and each gradient's norm; draws dropout of the seeds of a run of ours."""

    def __init__(self, *args: Any, run_seed: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.run_seed = run_seed
        self.losses: list[float] = []
        self.norms: list[float] = []

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        torch.manual_seed(torch_seed(self.run_seed, self.state.global_step, 0))
        loss: Tensor = super().training_step(*args, **options)
        self.losses.append(float(loss))
        return loss

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Without ViT's class token, a vector in a table of one row: ours pulls no vectors towards zero."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("cls_token")]

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.norms.append(float(norm))
        return norm


def batches_of(config: TrainConfig) -> list[list[Batch]]:
    """The micro-batches of each step of a run, as the loop gets them."""
    made = prepare(config)
    found = []
    for number in range(made.plan.total_steps):
        step = made.plan.step(number)
        found.append([collated(made.objective, made.examples, rows, config.seed, step.epoch) for rows in step.micro])
    return found


def trained_by_reference(
    model: Any, batches: Sequence[Inputs], config: TrainConfig, folder: Path, **changes: Any
) -> RecordingTrainer:
    """Train a reference model on these batches, one after the other, with the options of a run of ours."""
    logging.set_verbosity_error()
    optimizer = config.optimizer
    options: dict[str, Any] = dict(
        output_dir=str(folder / "reference"),
        per_device_train_batch_size=1,  # an entry is a batch
        train_sampling_strategy="sequential",
        max_steps=len(batches),
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=optimizer.max_grad_norm,
        lr_scheduler_type=config.schedule.kind,
        warmup_steps=warmup_steps(config.schedule, len(batches)),
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    arguments = transformers.TrainingArguments(**{**options, **changes})
    given: Any = dict(train_dataset=_Batches(batches), data_collator=lambda batch: batch[0], run_seed=config.seed)
    trainer = RecordingTrainer(model, arguments, **given)
    trainer.train()
    return trainer


# ---- what they take of a batch of ours


def table(batch: Batch) -> Tensor:
    """Labels as (B, T), where the objective's are (N,) with their places."""
    ids = batch.inputs.get("decoder_input_ids", batch.inputs.get("input_ids"))
    assert ids is not None
    labels = torch.full_like(ids, IGNORED).flatten()
    labels[batch.targets["places"]] = batch.targets["labels"]
    return labels.view_as(ids)


def shifted(batch: Batch) -> Inputs:
    """Of causal models, which predict the label of the place after."""
    labels = table(batch)
    assert bool((labels[:, -1] == IGNORED).all())
    return {**batch.inputs, "labels": labels.roll(1, 1)}
