"""Two tensor parallel ranks write what one process writes: every way to search, every backend. One launch walks all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.config.layout import Layout
from plainformer.errors import UsageError
from plainformer.generation.search import generate
from plainformer.loading import load_model
from plainformer.model.fast import step
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh, start
from plainformer.parallel.tensor import part_of
from plainformer.saving import save_model
from tests.support.ranks import run_ranks
from tests.support.shares import config_of, inputs_of, own_part, whole

WRITERS = ("llama", "gpt2", "gemma2", "t5", "whisper")
BACKENDS = ("plain", "fused", "onednn", "compiled", "int8")
LENGTH: dict[str, Any] = dict(max_new_tokens=6, eos_ids=[])
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": dict(num_beams=3, num_return_sequences=2),
    "sample": dict(do_sample=True, seed=[3, 4, 5], temperature=0.8, top_k=20),
    "contrastive": dict(penalty_alpha=0.6, top_k=4),
    "lookup": dict(prompt_lookup=2, num_draft_tokens=3),
    "guided": dict(guidance_scale=1.5),
    "dola": dict(dola_layers="low"),
    "int8 cache": dict(cache_kind="int8"),
}
NO = {("t5", "lookup"), ("whisper", "guided"), ("t5", "dola"), ("whisper", "dola")}


def _prompt(name: str, model: Transformer) -> dict[str, Any]:
    inputs = inputs_of(model.config)
    if name == "whisper":
        encoded = model.encode(input_features=inputs["input_features"])
        return {"encoder_output": encoded, "decoder_input_ids": inputs["decoder_input_ids"][:, :2]}
    return {key: value for key, value in inputs.items() if not key.startswith("decoder")}


def _write(name: str, model: Transformer, mode: dict[str, Any], **draft: Any) -> tuple[Any, Any]:
    found = generate(model, **_prompt(name, model), **LENGTH, **mode, **draft)
    return found.token_ids, found.stop_reasons


def _loads(folder: Path, mesh: Mesh) -> None:
    """Load a checkpoint's rows, prepared as asked: GPT-2's has q, k and v in one tensor, the wrong way round."""
    for name in ("gpt2", "llama"):
        asked: list[Any] = [{"backend": "compiled"}, {"backend": "auto"}, {"quantize": "int8"}, {"dtype": "bf16"}]
        for options in asked:
            ours = load_model(folder / name, make=part_of(mesh), **options)
            theirs = load_model(folder / name, **options)
            assert ours.local is not None and ours.num_parameters == theirs.num_parameters
            assert _write(name, ours, {}) == _write(name, theirs, {}), (name, options)


def _walk(rank: int, folder: Path) -> None:
    mesh = start(Layout(tp=2))
    _loads(folder, mesh)
    for name in WRITERS:
        alone = whole(config_of(name), scale=0.3).eval()
        model = own_part(alone, mesh)
        for way, mode in MODES.items():
            if (name, way) not in NO:
                assert _write(name, model, mode) == _write(name, alone, mode), (name, way)
        if name == "llama":
            draft = whole(config_of(name), seed=1, scale=0.3).eval()
            mode = dict(num_draft_tokens=3)
            assert _write(name, model, mode, draft_model=draft) == _write(name, alone, mode, draft_model=draft)
        for backend in BACKENDS:
            ours, theirs = own_part(alone, mesh), copy.deepcopy(alone)
            for each in (ours, theirs):
                prepare_for_inference(each, backend)
            assert not any(type(module) is step.FastStack for module in ours.modules())
            for way in ("greedy", "beams"):
                assert _write(name, ours, MODES[way]) == _write(name, theirs, MODES[way]), (name, backend, way)
            if backend != "int8":
                ours.train()
                ours.eval()
                assert _write(name, ours, {}) == _write(name, theirs, {}), (name, backend, "plain again")


def test_writes_the_same(tmp_path: Path) -> None:
    for name in ("gpt2", "llama"):
        save_model(whole(config_of(name), scale=0.3), tmp_path / name)
    run_ranks(_walk, 2, tmp_path)


def test_says_which_division_would_work(tmp_path: Path) -> None:
    save_model(whole(config_of("llama")), tmp_path)
    mesh = Mesh(Layout(tp=3), 0, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"4 attention heads of the decoder cannot be divided by .*3"):
        load_model(tmp_path, make=part_of(mesh))
