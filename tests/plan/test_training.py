"""Phases of a training step: their bytes are those that the allocator hands out while our own step runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from plainformer.checkpoint.low_rank import add_adapters
from plainformer.config import HeadConfig, ModelConfig, NormConfig, PatchFrontend, WaveFrontend
from plainformer.config.layout import Layout
from plainformer.config.learning import OptimizerConfig
from plainformer.config.local import local
from plainformer.config.training import LoraConfig
from plainformer.families import config_from_dict, table_for
from plainformer.model.block import set_ffn_chunk_size
from plainformer.model.initial import initialise
from plainformer.model.recompute import set_checkpointing
from plainformer.model.transformer import Transformer
from plainformer.plan.training import training_phases
from plainformer.plan.workload import Workload
from plainformer.planning.options import adapted
from plainformer.train.losses import label_losses, wide, word_losses
from plainformer.train.optimizer import Average, clip_gradients, make_optimizer
from tests.support.memory import peaks_by_phase, phase
from tests.support.planned_families import FAMILIES, LENGTH, ROWS, TARGET, WORDS, beyond, stack_of

SECONDS = 0.4


class Step(NamedTuple):
    """A training step as the loop takes it, with its phases named."""

    model: Transformer
    workload: Workload

    def batch(self) -> dict[str, torch.Tensor]:
        config, asked = self.model.config, self.workload
        kind = config.input_frontend.kind
        given: dict[str, torch.Tensor] = {
            "tokens": lambda: {"input_ids": torch.randint(1, WORDS, (asked.batch, asked.length))},
            "patches": lambda: {"pixel_values": torch.randn(asked.batch, 3, *(asked.pixels or (96, 96)))},
            "wave": lambda: {"input_values": torch.randn(asked.batch, round(asked.seconds * 16000))},
            "mel": lambda: {"input_features": torch.randn(asked.batch, 40, 200)},
        }[kind]()
        if config.kind == "encoder-decoder":
            given["decoder_input_ids"] = torch.randint(1, WORDS, (asked.batch, asked.target_length))
        if asked.padded:
            given["attention_mask"] = torch.ones(asked.batch, asked.length, dtype=torch.long)
            given["attention_mask"][1, -3:] = 0
            if config.kind == "encoder-decoder":
                given["decoder_attention_mask"] = given["attention_mask"][:, -asked.target_length :].contiguous()
        return given

    def micro_batch(self) -> torch.Tensor:
        """Run forward pass and loss."""
        config, given = self.model.config, self.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.workload.precision == "bf16"):
            if config.head.kind.endswith("lm"):
                with phase("forward"):
                    ids = given.get("decoder_input_ids", given.get("input_ids"))
                    n = ids.numel() if config.head.kind != "masked_lm" else round(ids.numel() * 0.15)
                    states = self.model.states(**given).last_hidden_state.flatten(0, 1)[torch.arange(n)]
                with phase("loss"):
                    return word_losses(
                        self.model, states, torch.randint(0, WORDS, (n,)), chunk=self.workload.loss_chunk
                    )
            with phase("forward"):
                logits = self.model(**given, only_logits=True).logits
            with phase("loss"):
                return (
                    ctc(logits)
                    if config.head.kind == "ctc"
                    else label_losses(wide(logits), torch.randint(0, 9, (ROWS,)))
                )

    def run(self, optimizer: torch.optim.AdamW, average: Average | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(self.workload.accumulate):
            losses = self.micro_batch()
            with phase("backward"):
                (losses.sum() / 7).backward()
            del losses
        with phase("clip"):
            clip_gradients(optimizer, 1e-3)
        with phase("step"):
            optimizer.step()
            if average is not None:
                average.update(1)


def ctc(logits: torch.Tensor) -> torch.Tensor:
    letters = round(SECONDS * 15)
    logs = wide(logits).log_softmax(-1).transpose(0, 1)
    lengths, counts = torch.full((ROWS,), len(logs)), torch.full((ROWS,), letters)
    return F.ctc_loss(logs, torch.randint(1, 9, (ROWS * letters,)), lengths, counts, reduction="none")


def measured(config: ModelConfig, workload: Workload) -> dict[str, int]:
    """Return the peak of each phase of a later step, beyond weights and optimizer."""
    torch.manual_seed(0)
    model = initialise(Transformer(config)).train()
    set_checkpointing(
        model, workload.checkpointing if workload.checkpointing in ("none", "all") else int(workload.checkpointing)
    )  # type: ignore[arg-type]
    set_ffn_chunk_size(model, workload.ffn_chunk)
    if workload.trainable == "lora":
        targets = workload.lora_targets
        lora = LoraConfig(rank=workload.lora_rank, targets=None if targets is None else tuple(targets.split(",")))
        add_adapters(model, table_for(config), lora)
    elif workload.trainable == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    optimizer = make_optimizer(model, OptimizerConfig(), 1e-3)
    average = Average(model, 0.9) if workload.average else None
    step = Step(model, workload)
    step.run(optimizer, average)
    optimizer.zero_grad(set_to_none=True)
    return peaks_by_phase(lambda: step.run(optimizer, average))


def planned(config: ModelConfig, workload: Workload) -> dict[str, int]:
    """Return the same of a plan."""
    return {one.name: beyond(one) for one in training_phases(local(config, Layout(), 0), workload)}


def check(config: ModelConfig, workload: Workload, bound: float = 0.01) -> None:
    found, expected = measured(config, workload), planned(config, workload)
    off = {name: round(expected[name] / found[name] - 1, 4) for name in found}
    assert set(found) == {"forward", "loss", "backward", "clip", "step"}
    assert all(abs(share) < bound for share in off.values()), (off, expected, found)


def usual(**changes: Any) -> Workload:
    given: dict[str, Any] = dict(
        purpose="training", batch=ROWS, length=LENGTH, target_length=TARGET, padded=False, seconds=SECONDS
    )
    return Workload(**{**given, **changes})


@pytest.mark.parametrize("checkpointing", ["none", "all", "2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_phases_of_every_family(family: str, checkpointing: str) -> None:
    check(FAMILIES[family](), usual(checkpointing=checkpointing))


@pytest.mark.parametrize(
    "changes",
    [
        {"padded": True},
        {"accumulate": 2},
        {"accumulate": 2, "checkpointing": "all"},
        {"average": True},
        {"loss_chunk": 32},
        {"loss_chunk": 0},
        {"ffn_chunk": 32},
        {"ffn_chunk": 32, "checkpointing": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_phases_of_every_option(family: str, changes: dict[str, Any]) -> None:
    check(FAMILIES[family](), usual(**changes))


def images(width: int, patch: int) -> ModelConfig:
    frontend = PatchFrontend(image_size=(32, 32), patch_size=(patch, patch))
    stack = stack_of(2, frontend=frontend, hidden_size=width, ffn_size=2 * width)
    return ModelConfig("vit", encoder=stack, head=HeadConfig("image", pick="first", out_size=10))


def clips(conv_norm: Any) -> ModelConfig:
    """As wav2vec2, whose convolution of positions reads 128 frames in 16 groups."""
    frontend = WaveFrontend(
        channels=(64,) * 7, kernels=(10, 3, 3, 3, 3, 2, 2), strides=(5, 2, 2, 2, 2, 2, 2), conv_norm=conv_norm,
        position_kernel=128, position_groups=16, norm=NormConfig(eps=1e-5),
    )  # fmt: skip
    stack = stack_of(2, frontend=frontend, hidden_size=128, norm_place="post", final_norm="none")
    return ModelConfig("wav2vec2", encoder=stack, head=HeadConfig("ctc", out_size=32))


@pytest.mark.parametrize(
    "config",
    [images(32, 8), images(16, 8), images(32, 16), images(64, 4), clips("group"), clips("layer")],
    ids=("small", "narrow", "large patches", "many patches", "clips", "normed clips"),
)
def test_gradients_of_convolutions(config: ModelConfig) -> None:
    """They take more than anything else where layers are few: weights and columns in another order."""
    if torch.get_num_threads() > 1:
        pytest.skip("counted for one thread")
    size = {} if config.head.kind == "ctc" else {"image_size": "32"}
    check(config, usual(**size), bound=0.015)


SMALL = dict(
    model_type="llama", vocab_size=WORDS, hidden_size=64, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, intermediate_size=176, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": "head"},
        {"trainable": "lora", "lora_rank": 4},
        {"trainable": "lora", "lora_rank": 4, "lora_targets": "q_proj,down_proj"},
        {"trainable": "lora", "lora_rank": 4, "lora_targets": "model.layers.2.self_attn.v_proj"},
    ],
    ids=str,
)
def test_phases_where_little_is_trained(changes: dict[str, Any]) -> None:
    config, workload = config_from_dict(SMALL | {"architectures": ["LlamaForCausalLM"]}), usual(**changes)
    found = measured(config, workload)
    expected = planned(config, adapted(config, workload))
    off = {name: round(expected[name] / found[name] - 1, 4) for name in found if found[name] > 100_000}
    assert set(off) >= {"forward", "loss", "backward"} and all(abs(share) < 0.01 for share in off.values()), off
