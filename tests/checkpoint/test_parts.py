"""Ranks load their own rows: bit for bit those of the whole model, without the others' in memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.checkpoint.formats.source import StoredTensor
from plainformer.checkpoint.opened import open_checkpoint
from plainformer.checkpoint.weights import load_weights
from plainformer.config import ModelConfig
from plainformer.config.layout import Layout
from plainformer.config.local import Local, Part, local
from plainformer.errors import CheckpointError
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.saving import save_model
from plainformer.starting import with_head
from tests.support.shares import config_of, rows_of, whole

LAYOUTS = [Layout(tp=2), Layout(tp=4), Layout(pp=2), Layout(tp=2, pp=2)]
ZERO = [Layout(dp=3, zero=3), Layout(tp=2, dp=2, zero=2)]  # whose parameters are whole, with their own rows filled
# Fused q, k, v (GPT-2), tied tables, shared layers, fewer key-value heads than ranks, both stacks.
MODELS = ("gpt2", "llama", "bert", "albert", "t5", "whisper", "deberta", "vit")


def _here(tensor: torch.Tensor, here: Local, part: Part) -> torch.Tensor:
    """The rows of a part that a rank fills."""
    rows = here.rows(part)
    return tensor if rows is None else tensor[slice(*rows)]


def _filled(folder: Path, layout: Layout, rank: int, **options: Any) -> Transformer:
    with open_checkpoint(folder) as checkpoint:
        config = checkpoint.config()
        model = Transformer(config, local(config, layout, rank))
        load_weights(model, checkpoint.tensors(), checkpoint.rows(config), **options)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_parts_are_rows_of_the_whole(name: str, tmp_path: Path) -> None:
    model = whole(config_of(name))
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if name == "whisper" and own.endswith(".k.bias"):  # their checkpoints have none
                parameter.zero_()
    save_model(model, tmp_path)
    values = dict(model.named_parameters(remove_duplicate=False))
    for layout in LAYOUTS + ZERO:
        for rank in range(layout.world):
            for options in ({}, {"trainable": True}, {"dtype": torch.bfloat16}):
                part_model = _filled(tmp_path, layout, rank, **options)
                here = part_model.local
                assert here is not None
                for own, parameter in part_model.named_parameters():
                    part = here.parts[own]
                    value, found = (_here(x, here, part) for x in (rows_of(values[part.name], part), parameter))
                    assert torch.equal(found, value.to(parameter.dtype)), (own, rank)
                    assert parameter.shape == part.local_shape
                    assert part.dim is None or parameter.is_contiguous()
                    assert parameter.requires_grad == ("trainable" in options and values[part.name].requires_grad)


def test_what_is_not_here_is_not_read(tmp_path: Path) -> None:
    save_model(whole(config_of("gpt2")), tmp_path)
    reads: Counter[str] = Counter()
    layout = Layout(tp=2, pp=2)
    with open_checkpoint(tmp_path) as checkpoint:
        config, source = checkpoint.config(), checkpoint.tensors()
        for name, stored in list(source.tensors.items()):

            def read(name: str = name, stored: StoredTensor = stored) -> torch.Tensor:
                reads[name] += 1
                return stored.read()

            source.tensors[name] = replace(stored, read=read)
        model = Transformer(config, local(config, layout, 0))
        load_weights(model, source, checkpoint.rows(config), trainable=True)
    assert reads and max(reads.values()) == 1
    assert not any(".h.1." in name or "ln_f" in name for name in reads), reads
    assert any(".h.0." in name for name in reads)
    # Memory of its own is that of its rows alone; from the file itself, rows of a mapped tensor are views.
    kept = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(kept.values()) == sum(p.numel() * 4 for p in model.parameters())
    mapped = _filled(tmp_path, layout, 0)
    table = mapped.get_parameter("decoder.frontend.tokens.weight")
    assert table.untyped_storage().nbytes() > table.numel() * 4
    columns = mapped.get_parameter("decoder.layers.0.attention.out.weight")
    assert columns.untyped_storage().nbytes() == columns.numel() * 4


def test_a_table_that_is_not_tied_in_the_file(tmp_path: Path) -> None:
    """Both tensors of a pair that should be tied are used where the file has two, on every rank."""
    model = whole(config_of("llama", tie_word_embeddings=False))
    save_model(model, tmp_path)
    said = (tmp_path / "config.json").read_text()
    assert '"tie_word_embeddings": false' in said
    (tmp_path / "config.json").write_text(said.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    values = dict(model.named_parameters())
    for layout in (Layout(tp=2), Layout(pp=2), Layout(dp=2, zero=3)):
        for rank in range(2):
            found = _filled(tmp_path, layout, rank)
            here = found.local
            assert found.config.tied == () and here is not None and here.tied == ()
            for own, parameter in found.named_parameters():
                part = here.parts[own]
                value = _here(rows_of(values[part.name], part), here, part)
                assert torch.equal(_here(parameter, here, part), value), (layout, rank, own)


def test_a_wrong_file_is_refused_by_all_ranks(tmp_path: Path) -> None:
    save_model(whole(config_of("llama")), tmp_path)
    said = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(said.replace('"vocab_size": 103', '"vocab_size": 104'))
    for rank in range(2):
        with pytest.raises(CheckpointError, match=r"shape \(103, 32\), and the configuration asks for \(104, 32\)"):
            _filled(tmp_path, Layout(tp=2), rank)


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_of_a_part_are_those_of_the_whole(name: str) -> None:
    config = config_of(name)
    model = initialise(Transformer(config), seed=3)
    values = dict(model.named_parameters(remove_duplicate=False))
    for layout in LAYOUTS + ZERO:
        for rank in range(layout.world):
            here = local(config, layout, rank)
            for own, parameter in initialise(Transformer(config, here), seed=3).named_parameters():
                part = here.parts[own]
                value = _here(rows_of(values[part.name], part), here, part)
                assert torch.equal(_here(parameter, here, part), value), (layout, rank, own)


def test_a_new_head_of_a_part_is_that_of_the_whole(tmp_path: Path) -> None:
    """The backbone's rows come from the file, the head's first numbers are drawn; every rank reports all that is new."""
    save_model(whole(config_of("bert")), tmp_path)
    labels = ["a", "b", "c"]
    alone = with_head(tmp_path, "sequence", labels=labels, seed=4)
    values = dict(alone.model.named_parameters(remove_duplicate=False))
    for layout in LAYOUTS + ZERO:
        for rank in range(layout.world):

            def make(config: ModelConfig, layout: Layout = layout, rank: int = rank) -> Transformer:
                return Transformer(config, local(config, layout, rank))

            made = with_head(tmp_path, "sequence", labels=labels, seed=4, make=make)
            assert (made.initialised, made.dropped) == (alone.initialised, alone.dropped)
            here = made.model.local
            assert here is not None
            for own, parameter in made.model.named_parameters():
                part = here.parts[own]
                value = _here(rows_of(values[part.name], part), here, part)
                assert torch.equal(_here(parameter, here, part), value), (layout, rank, own)
                assert parameter.requires_grad
