"""A compiled step computes what the layer's own modules compute, and leaves alone what it is not made for."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plainformer.config import NormConfig, RelativeBias, RopeConfig
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model.fast import compiled, packed, prepare, step
from plainformer.model.fast.kernels import ACTIVATION_CODES
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.flow import Attentions
from plainformer.model.norm import ACTIVATION_FUNCTIONS
from plainformer.model.stack import Stack
from tests.support import ROOT
from tests.support.close import apart, close
from tests.support.step import decode, ids_of, make

RMS = NormConfig(kind="rms", bias=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"norm": RMS, "ffn": "gated", "activation": "silu", "num_kv_heads": 2, "qkv_bias": False, "out_bias": False,
              "ffn_bias": False, "rope": (RopeConfig(theta=1e4, dim=6),) * 2},
    "neox": {"residual": "parallel", "rope": (RopeConfig(theta=1e4, dim=2),) * 2},
    "gemma": {"norm": dataclasses.replace(RMS, weight_offset=1.0), "norm_place": "both", "ffn": "gated", "score_softcap": 5.0,
              "head_dim": 8, "num_kv_heads": 1, "attention_scale": 0.2, "windows": (None, 4)},
    "qwen3": {"norm": RMS, "qk_norm": "head", "rope": (RopeConfig(theta=1e4, dim=6), None)},
    "olmo2": {"norm": RMS, "qk_norm": "all", "norm_place": "branch"},
    "post": {"norm_place": "post", "final_norm": "none", "first_norm": "norm"},
    "buckets": {"norm": RMS, "relative_bias": RelativeBias(buckets=8, max_distance=16), "attention_scale": 1.0},
    "window": {"windows": (3, 5)},
    "shared weights": {"layer_ids": (0, 0)},
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each layer had that went through the kernel."""
    module = compiled.kernels()
    if module is None:
        pytest.skip("no Numba here")
    made: list[int] = []
    run = module.run_layers

    def counted(layers: int, steps: int, count: int, rows: int, size: int, x: int) -> None:
        made.extend([rows] * count)
        run(layers, steps, count, rows, size, x)

    monkeypatch.setattr(module, "run_layers", counted)
    yield made


@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_is_the_layer(name: str, rows: int, calls: list[int]) -> None:
    model, ids = make(**VARIANTS[name]), ids_of(rows)
    expected = decode(model, ids)
    assert not calls
    prepare_for_inference(model)
    close(decode(model, ids), expected)
    assert calls == [rows] * 16


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "buckets"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(name: str, side: str, calls: list[int]) -> None:
    model, ids = make(**VARIANTS[name]), ids_of(3)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 2, 5)):
        columns = slice(0, padding) if side == "left" else slice(6 - padding, 6)
        mask[row, columns] = 0
    expected = decode(model, ids, mask)
    prepare_for_inference(model, "compiled")
    close(decode(model, ids, mask), expected)
    assert calls


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "buckets"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_shared_prompt(name: str, padded: bool, calls: list[int]) -> None:
    model = make(**VARIANTS[name])
    ids = ids_of(6)
    ids[:, :6] = ids[::3, :6].repeat_interleave(3, 0)
    mask = torch.ones_like(ids) if padded else None
    if mask is not None:
        mask[:3, :2] = 0
    expected = decode(model, ids, mask, copies=3)
    prepare_for_inference(model, "compiled")
    close(decode(model, ids, mask, copies=3), expected)
    assert calls == [6] * 16


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["gpt2", "post", "gemma", "buckets"])
def test_with_an_encoder(name: str, rows: int, calls: list[int]) -> None:
    model, source = make(encoder=True, **VARIANTS[name]), ids_of(2, 9)
    real = torch.ones_like(source)
    real[1, 7:] = 0
    target = ids_of(2 * rows, 5)

    def run() -> Tensor:
        encoded = model.encode(source, real)
        cache = KeyValueCache(model.config, 2, 5)
        if rows > 1:
            cache.share(rows)
        steps = [
            model(decoder_input_ids=target[:, i : i + 1], encoder_output=encoded, cache=cache).logits for i in range(5)
        ]
        return torch.cat(steps, dim=1)

    expected = run()
    prepare_for_inference(model)
    close(run(), expected)
    assert calls


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_every_activation(name: str, calls: list[int]) -> None:
    assert set(ACTIVATION_CODES) == set(ACTIVATION_FUNCTIONS)
    model, ids = make(activation=name), ids_of(1)
    expected = decode(model, ids)
    prepare_for_inference(model)
    close(decode(model, ids), expected)
    assert calls


def test_what_is_left_to_the_modules(calls: list[int]) -> None:
    model, ids = make(), ids_of(2)
    masked = {"head_mask": torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1]])}
    expected = [decode(model, ids, **options) for options in ({"output_attentions": True}, masked, {"kind": "int8"})]
    prepare_for_inference(model)
    found = [decode(model, ids, **options) for options in ({"output_attentions": True}, masked, {"kind": "int8"})]
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)
    decode(model, ids_of(compiled.FEW_ROWS + 1))
    assert not calls


def test_hidden_states_are_those_of_each_layer(calls: list[int]) -> None:
    """A step must not write into what an earlier layer gave."""
    model, ids = make(), ids_of(2)

    def states() -> tuple[Tensor, ...]:
        cache = KeyValueCache(model.config, 2, 14)
        with torch.no_grad():
            model(ids[:, :6], cache=cache)
            return model(ids[:, 6:7], cache=cache, output_hidden_states=True).hidden_states

    expected = states()
    prepare_for_inference(model)
    for ours, theirs in zip(states(), expected, strict=True):
        close(ours, theirs)
    assert calls


def test_all_layers_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless each one's output is asked for, or one of them is watched: with the same bits."""
    module = compiled.kernels()
    if module is None:
        pytest.skip("no Numba here")
    model, ids, made, run = make(num_layers=5, layer_ids=(0, 1, 2, 1, 0)), ids_of(2), list[int](), module.run_layers
    prepare_for_inference(model)
    monkeypatch.setattr(module, "run_layers", lambda *given: (made.append(given[2]), run(*given)))

    def step(**options: Any) -> Tensor:
        cache = KeyValueCache(model.config, 2, 14)
        with torch.no_grad():
            model(ids[:, :6], cache=cache)
            made.clear()
            return model(ids[:, 6:7], cache=cache, **options).logits

    expected = step()
    assert made == [5]
    assert torch.equal(step(output_hidden_states=True), expected) and made == [1] * 5
    model.decoder.layers[2].register_forward_hook(lambda *_: None)
    close(step(), expected)
    assert made == [2, 2]


def test_changed_weights_are_seen(calls: list[int]) -> None:
    """A norm changed in place or replaced, and linears that were given back, packed again or copied."""
    model, ids = make(), ids_of(1)
    prepare_for_inference(model)
    before = decode(model, ids)
    norm = model.decoder.layers[0].ffn_norm
    with torch.no_grad():
        norm.weight.mul_(2)
    doubled = decode(model, ids)
    assert apart(doubled, before) > 1e-3
    norm.weight = torch.nn.Parameter(norm.weight / 2, requires_grad=False)
    close(decode(model, ids), before)
    other = copy.deepcopy(model)
    other.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})
    prepare_for_inference(other)
    close(decode(model, ids), before)
    assert apart(decode(other, ids), before) > 1e-3
    with torch.no_grad():
        model.train().eval()
        norm.weight.mul_(2)
    close(decode(model, ids), doubled)


def test_hooks_of_inner_modules_are_called(calls: list[int]) -> None:
    model, ids = make(), ids_of(1)
    prepare_for_inference(model)
    expected, seen = decode(model, ids), []
    before = len(calls)
    for module in (model.decoder.layers[0].attention, model.decoder.layers[1].ffn.down):
        module.register_forward_hook(lambda *_: seen.append(1))
    close(decode(model, ids), expected)
    assert len(seen) == 2 * 9 and len(calls) == before


def test_hooks_of_layers_are_called(calls: list[int]) -> None:
    """A layer with a hook of its own goes through its modules, the other one does not."""
    model, ids = make(), ids_of(1)
    prepare_for_inference(model)
    expected, seen = decode(model, ids), []
    before = len(calls)
    model.decoder.layers[0].register_forward_hook(lambda *_: seen.append(1))
    close(decode(model, ids), expected)
    assert len(seen) == 9 and len(calls) == before + 8


def test_layers_that_change_places_or_go(calls: list[int]) -> None:
    plain, ours, ids = make(), make(), ids_of(1)
    prepare_for_inference(ours)
    decode(ours, ids)
    for model in (plain, ours):
        model.decoder.layers = nn.ModuleList(reversed(model.decoder.layers))
    close(decode(ours, ids), decode(plain, ids))
    assert len(calls) == 2 * 16


def test_a_stack_is_plain_again() -> None:
    """`unprepare` takes away what was installed; a copy, pickled or not, has it as the original does."""
    model, ids = make(), ids_of(1)
    expected = decode(model, ids)
    prepare_for_inference(model, "compiled")
    if compiled.kernels() is None:
        pytest.skip("no Numba here")
    decode(model, ids)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.decoder) is step.FastStack
        assert all(mine is not theirs for mine, theirs in zip(other.decoder.steps, model.decoder.steps, strict=True))
        close(decode(other, ids), expected)
    prepare.unprepare(model)
    assert type(model.decoder) is Stack and not hasattr(model.decoder, "steps")
    close(decode(model, ids), expected)


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no kernels, torch does everything, int8 included."""
    model, ids = make(**VARIANTS["llama"]), ids_of(2)
    expected = decode(model, ids)
    monkeypatch.setattr(compiled, "_found", [None])
    assert "compiled" not in prepare_for_inference(model).values()
    close(decode(model, ids), expected)
    prepare_for_inference(model, "compiled")
    close(decode(model, ids), expected)
    prepare_for_inference(model, "int8")
    rounded = decode(model, ids)
    monkeypatch.undo()
    close(decode(model, ids), rounded)


@pytest.mark.parametrize("rows", [1, 4, 7, 24, 25, 90])
@pytest.mark.parametrize("layout", [packed.CompiledWeight, packed.Int8Weight])
def test_products(layout: type[packed.CompiledWeight | packed.Int8Weight], rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(size, 37, generator=generator) for size in (5, 8)]
    bias, x = torch.randn(13, generator=generator), torch.randn(rows, 37, generator=generator)
    x[0, 0] = float("inf")
    x[-1, 1] = float("nan")
    weight = torch.cat(weights)
    if layout is packed.Int8Weight:
        scale = weight.abs().amax(1, keepdim=True) / 127
        weight = (weight / scale).round() * scale
    found, expected = layout(weights, bias)(x), torch.nn.functional.linear(x, weight, bias)
    known = ~expected.isnan()
    assert torch.equal(found.isnan(), ~known)
    close(found[known], expected[known])
    assert layout(weights, None)(x[:0]).shape == (0, 13)
    assert layout(weights, None)(x.T.contiguous().T[1:, None]).shape == (rows - 1, 1, 13)


class Louder(nn.Module):
    """Someone's wrapper around a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any) -> Tensor:
        return self.inner(*inputs) * 1.5


def _norm_bias(layer: Any) -> None:
    layer.ffn_norm.bias[3] += 2


def _another_forward(layer: Any) -> None:
    plain = type(layer).forward
    layer.forward = lambda *inputs: (plain(layer, *inputs)[0] * 1.5, Attentions())


def _no_norm(layer: Any) -> None:
    layer.ffn_norm = nn.Identity()


def _another_norm(layer: Any) -> None:
    layer.ffn_norm = nn.LayerNorm(24)


def _another_attention(layer: Any) -> None:
    layer.attention = make(num_heads=4).decoder.layers[1].attention


def _wrapped_linear(layer: Any) -> None:
    layer.attention.out = Louder(layer.attention.out)


def _wrapped_network(layer: Any) -> None:
    layer.ffn = Louder(layer.ffn)


@torch.no_grad()
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    "edit",
    [_another_forward, _norm_bias, _no_norm, _another_norm, _another_attention, _wrapped_linear, _wrapped_network],
)
def test_changed_modules_are_seen(edit: Callable[[Any], None], warm: bool) -> None:
    """Before the first step, and after."""
    plain, ours, ids = make(), make(), ids_of(2)
    before = decode(plain, ids)
    prepare_for_inference(ours)
    if warm:
        decode(ours, ids)
    for model in (plain, ours):
        edit(model.decoder.layers[0])
    expected = decode(plain, ids)
    assert apart(expected, before) > 1e-3
    close(decode(ours, ids), expected)


def test_hooks_of_all_modules_are_called(calls: list[int]) -> None:
    model, ids = make(), ids_of(1)
    prepare_for_inference(model)
    decode(model, ids)
    before, seen = len(calls), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        decode(model, ids)
    finally:
        handle.remove()
    assert seen.count("SelfAttention") == 2 * 9 and len(calls) == before


AFTER_A_FORK = """
import os, torch
from tests.support.close import apart
from tests.support.step import decode, ids_of, make
from plainformer.model.fast import compiled
from plainformer.model.fast.prepare import prepare_for_inference
torch.set_num_threads(2)
model, rounded, ids = make(), make(), ids_of(2)
prepare_for_inference(model)
prepare_for_inference(rounded, "int8")
expected = decode(model, ids), decode(rounded, ids)
child = os.fork()
if not child:
    torch.set_num_threads(1)  # of torch's own: its OpenMP does not survive a fork
    fits = all(apart(decode(m, ids), e) < 1e-5 for m, e in zip((model, rounded), expected))
    os._exit(0 if fits and compiled.kernels() is not None else 1)
print(os.waitpid(child, 0)[1], compiled.kernels() is not None)
"""


def _run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_kernels_too() -> None:
    """The threads that helped the one before it are not there."""
    if compiled.kernels() is None:
        pytest.skip("no Numba here")
    assert _run(AFTER_A_FORK).split() == ["0", "True"]


def test_a_setting_that_rules_kernels_out() -> None:
    script = "from plainformer.model.fast import compiled; print(compiled.kernels())"
    assert _run(script, NUMBA_DISABLE_JIT="1").strip() == "None"


NOT_KEPT = """
import logging
import numba.core.caching as caching

def full(*_):
    raise OSError(28, "No space left on device")

{fault}
said = []
logging.getLogger("plainformer.model.fast.jit").addFilter(lambda record: said.append(record.getMessage()) or True)
from tests.support.close import apart
from tests.support.step import decode, ids_of, make
from plainformer.model.fast import compiled
from plainformer.model.fast.prepare import prepare_for_inference
model, ids = make(), ids_of(2)
expected = decode(model, ids)
prepare_for_inference(model)
print(compiled.kernels() is not None, apart(decode(model, ids), expected) < 1e-5, *said, sep="\\n")
"""
A_FULL_DISK = "caching.IndexDataCacheFile.save = full"
# As in a container: the package is read-only and there is no home.
NO_FOLDER = "for locator in caching.CacheImpl._locator_classes: locator.ensure_cache_path = full"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(A_FULL_DISK, "No space left on device"), (NO_FOLDER, "neither the package's folder nor the user's cache folder")],
)
def test_what_cannot_be_kept_is_compiled_all_the_same_and_said_once(fault: str, cause: str, tmp_path: Path) -> None:
    if compiled.kernels() is None:
        pytest.skip("no Numba here")
    works, fits, *said = _run(NOT_KEPT.format(fault=fault), NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert (works, fits) == ("True", "True")
    assert len(said) == 1 and cause in said[0] and "set NUMBA_CACHE_DIR" in said[0]
