"""Attach low-rank adapters to a model, and write them as PEFT's files: `adapter_config.json`, `adapter_model.safetensors`.

An adapter belongs to a matrix of the checkpoint, not to a parameter of ours: its rows say which linears it is, and how.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from plainformer.checkpoint.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BEFORE
from plainformer.checkpoint.matrices import Matrix, check_rank, chosen, is_meant, matrices_of
from plainformer.checkpoint.rows import WeightTable
from plainformer.config.training import LoraConfig
from plainformer.errors import CheckpointError
from plainformer.model.initial import generator_of
from plainformer.model.linear import Linear
from plainformer.model.lora import Adapter, LowRank, Parts, adapted
from plainformer.model.transformer import Transformer
from plainformer.parallel.gather import Gathered, Team, held, shares

# Heads that a base model may lack are trained whole; those of language models belong to it.
_OWN_HEADS = ("sequence", "token", "span", "choice", "image", "audio", "ctc")
_TASK_TYPES = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "none": "FEATURE_EXTRACTION",
}


def parts_of(matrix: Matrix) -> Parts:
    """Return what divides B, (O, M), among our linears: as the checkpoint's matrix is divided, rows by rows."""
    op = matrix.row.op
    if matrix.transposed:
        return lambda b: op.load(b.t())
    return op.load


def matrices(model: Transformer, table: WeightTable) -> list[Matrix]:
    """Return every matrix of the checkpoint that is made of linears here, the head's too."""
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    return matrices_of(model.config, names, table)


def add_adapters(model: Transformer, table: WeightTable, config: LoraConfig, *, seed: int = 0) -> list[str]:
    """Freeze a model, and give its target matrices adapters that do nothing yet: A random, B zero.

    Heads that a base model lacks stay trainable: they would be noise without training.

    Args:
        config: rank, alpha, dropout and `targets`: last parts of names in the checkpoint, whole names, or "all-linear";
            None takes attention's.
    Returns:
        the checkpoint's names of what has an adapter.
    Raises:
        UsageError: a target that is not a linear layer of this model, or is tied to another tensor.
    """
    found = chosen(matrices(model, table), config.targets, "model.lora.targets")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and _stays(model, name))
    for matrix in found:
        _attach(model, matrix, config, seed)
    return [matrix.theirs for matrix in found]


def _stays(model: Transformer, name: str) -> bool:
    return name.startswith("head.") and model.config.head.kind in _OWN_HEADS


def _attach(model: Transformer, matrix: Matrix, config: LoraConfig, seed: int) -> None:
    weight, sizes = model.get_parameter(f"{matrix.ours[0]}.weight"), model.sizes()
    shapes = [sizes[f"{name}.weight"] for name in matrix.ours]
    inputs, outputs = shapes[0][1], sum(shape[0] for shape in shapes)
    check_rank(config.rank, matrix, outputs, inputs, "model.lora.rank")
    bound = 1 / math.sqrt(inputs)
    draw = generator_of(seed, matrix.theirs)
    a = torch.empty(config.rank, inputs).uniform_(-bound, bound, generator=draw)
    put_adapter(
        model, matrix, a.to(weight), weight.new_zeros(outputs, config.rank), config.alpha / config.rank, config.dropout
    )


def put_adapter(model: Transformer, matrix: Matrix, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> None:
    """Give the linears of a matrix an adapter with these factors."""
    low = LowRank(a, b, scale, dropout, parts_of(matrix))
    for number, name in enumerate(matrix.ours):
        linear = model.get_submodule(name)
        assert isinstance(linear, Linear)
        linear.adapter = Adapter(low, number, linear.cut, linear.leave.draws if linear.leave is not None else None)


# ------------------------------------------------------------------------------------------------------------------ saving


class Saved(NamedTuple):
    """A matrix of the checkpoint; of one with an adapter, the names of its factors among our parameters."""

    theirs: str
    transposed: bool
    factors: tuple[str, str] | None


def save_adapters(
    model: Transformer, table: WeightTable, folder: Path, config: LoraConfig, base: str, team: Team | None = None
) -> None:
    """Write a model's adapters, and what is trained beside them, into a folder that PEFT and this library load.

    Args:
        base: the reference of the base model, which the files name.
        team: processes that have the model together: all of them call it, and the first writes.
    """
    known, own = _here(model, table), {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    if team is not None:
        known, own = _together(model, team, known, own)
        if not team.is_first:
            return
    chosen = [one for one in known if one.factors is not None]
    tensors: dict[str, Tensor] = {}
    for one in chosen:
        for name, factor in zip(("lora_A", "lora_B"), one.factors or (), strict=True):
            tensors[f"{BEFORE}{one.theirs}.{name}.weight"] = own[factor]
    trained = _trained_whole(own, table)
    tensors |= {BEFORE + name: tensor for name, tensor in trained.items()}
    heads = sorted({name.removeprefix(table.prefix).partition(".")[0] for name in trained})
    values = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES.get(model.config.head.kind),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _shortest(known),
        "modules_to_save": heads or None,
        "fan_in_fan_out": any(one.transposed for one in chosen),
        "bias": "none",
    }
    try:
        save_file({name: x.contiguous() for name, x in tensors.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the adapter to {folder}: {error}", "choose another folder") from None


def _here(model: Transformer, table: WeightTable) -> list[Saved]:
    """Return the matrices of the checkpoint that are here."""
    has, names = dict(adapted(model)), {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for matrix in matrices(model, table):
        adapter = has[matrix.ours[0]].adapter if matrix.ours[0] in has else None
        low = adapter.low if isinstance(adapter, Adapter) else None
        factors = None if low is None else (names[id(low.a)], names[id(low.b)])
        found.append(Saved(matrix.theirs, matrix.transposed, factors))
    return found


def _together(
    model: Transformer, team: Team, known: list[Saved], own: dict[str, Tensor]
) -> tuple[list[Saved], dict[str, Tensor]]:
    """Return the matrices of all processes, and to the first one what is trained, whole."""
    gathered = Gathered(team, held(own, shares(model)))
    merged = {one.theirs: one for theirs in team.gather(known) for one in theirs}
    found = {name: gathered.fetch(name, 0) for name in gathered}
    return list(merged.values()), {name: tensor for name, tensor in found.items() if tensor is not None}


def _trained_whole(own: Mapping[str, Tensor], table: WeightTable) -> Mapping[str, Tensor]:
    """Return what is trained and is not a factor, by the checkpoint's names."""
    own = {name: tensor for name, tensor in own.items() if ".adapter." not in name}
    return {
        theirs: row.op.save([own[name] for name in ours]).contiguous()
        for row in table.rows
        if row.kind == "map"
        for theirs, ours in row.instances(own)
    }


def _shortest(known: Sequence[Saved]) -> list[str]:
    """Return names that mean the matrices with adapters and no other: last parts, or else whole names."""
    chosen = [one.theirs for one in known if one.factors is not None]
    leaves = sorted({theirs.rpartition(".")[2] for theirs in chosen})
    meant = [one for one in known if any(is_meant(one.theirs, leaf) for leaf in leaves)]
    return leaves if len(meant) == len(chosen) else chosen
