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
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.tensor import part_of
from plainformer.saving import save_model
from tests.support.ranks import run_ranks
from tests.support.shares import config_of, inputs_of, joined, own_part, whole

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


def _loaded(folder: Path, mesh: Mesh | None) -> dict[str, Any]:
    """Load a checkpoint's rows, prepared as asked: GPT-2's has q, k and v in one tensor, the wrong way round."""
    found: dict[str, Any] = {}
    for name in ("gpt2", "llama"):
        asked: list[Any] = [{"backend": "compiled"}, {"backend": "auto"}, {"quantize": "int8"}, {"dtype": "bf16"}]
        for options in asked:
            model = load_model(folder / name, make=Transformer if mesh is None else part_of(mesh), **options)
            assert (model.local is None) == (mesh is None)
            found[f"{name}, {options}"] = (*_write(name, model, {}), model.num_parameters)
    return found


def written(folder: Path, mesh: Mesh | None = None) -> dict[str, Any]:
    """Everything that is written by one process, or by this one of two: what, how → ids and reasons to stop."""
    found = _loaded(folder, mesh)
    for name in WRITERS:
        whole_model = whole(config_of(name), scale=0.3).eval()
        model = whole_model if mesh is None else own_part(whole_model, mesh)
        for way, mode in MODES.items():
            if (name, way) not in NO:
                found[f"{name}, {way}"] = _write(name, model, mode)
        if name == "llama":
            draft = whole(config_of(name), seed=1, scale=0.3).eval()
            found["llama, draft"] = _write(name, model, dict(num_draft_tokens=3), draft_model=draft)
        for backend in BACKENDS:
            model = copy.deepcopy(whole_model) if mesh is None else own_part(whole_model, mesh)
            prepare_for_inference(model, backend)
            assert mesh is None or not any(type(module) is step.FastStack for module in model.modules())
            for way in ("greedy", "beams"):
                found[f"{name}, {backend}, {way}"] = _write(name, model, MODES[way])
            if backend != "int8":
                model.train()
                model.eval()
                found[f"{name}, {backend}, plain again"] = _write(name, model, {})
    return found


def _on_ranks(rank: int, folder: Path) -> dict[str, Any]:
    return written(folder, joined(Layout(tp=2)))


def test_writes_the_same(tmp_path: Path) -> None:
    for name in ("gpt2", "llama"):
        save_model(whole(config_of(name), scale=0.3), tmp_path / name)
    expected = written(tmp_path)
    for found in run_ranks(_on_ranks, 2, tmp_path):
        assert [what for what, text in expected.items() if found.pop(what) != text] == []
        assert found == {}


def test_says_which_division_would_work(tmp_path: Path) -> None:
    save_model(whole(config_of("llama")), tmp_path)
    mesh = Mesh(Layout(tp=3), 0, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"4 attention heads of the decoder cannot be divided by .*3"):
        load_model(tmp_path, make=part_of(mesh))
