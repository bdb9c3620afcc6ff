"""A decoding step on a GPU never waits for it: no value of a tensor is read between one token and the next.

On the meta device, whose tensors have no values, every look at one is an error: what runs there reads none. With a GPU, torch
itself reports any waiting, buffers stay where they are, and tokens are those of a CPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plainformer.families import config_from_dict
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.draw import Draws
from plainformer.generation.modes.token_loop import SYNC_EVERY, Picker, process
from plainformer.generation.options import GenerationOptions
from plainformer.generation.order import make_processors
from plainformer.generation.prompt import Prompt
from plainformer.generation.search import generate
from plainformer.generation.sessions.session import Session
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer
from tests.support.models import CONFIGS, make

PROMPT, NEW = 7, 12
HEADS = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration", "bart": "BartForConditionalGeneration"}
SAMPLERS = dict(do_sample=True, temperature=0.8, top_k=5, top_p=0.9, min_p=0.01)
RULES = dict(repetition_penalty=1.2, min_new_tokens=2)


def nowhere(name: str) -> Transformer:
    """A model on the meta device."""
    raw = {**CONFIGS[name], "architectures": [HEADS.get(name, f"{name.capitalize()}ForCausalLM")]}
    return Transformer(config_from_dict(raw)).eval().requires_grad_(False)


def read(session: Session, model: Transformer) -> None:
    """Let the cache hold a prompt, as a prefill leaves it; that looks at the prompt's ids once."""
    stack = model.config.decoder
    assert stack is not None
    keys = torch.empty(len(session.ids), stack.num_kv_heads, PROMPT, stack.head_dim, device="meta")
    for layer in range(stack.num_layers):
        session.cache.update(layer, keys, keys)
    session.cache.advance(PROMPT)


def buffers(cache: KeyValueCache) -> list[torch.Tensor]:
    """What the cache keeps its numbers in."""
    return [part for layer in cache.layers for store in (layer.keys, layer.values) for part in store.parts]


@pytest.mark.parametrize(
    "options", [{}, SAMPLERS, RULES, {**SAMPLERS, **RULES}], ids=["greedy", "sample", "rules", "all"]
)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_decoding_step_reads_no_values(name: str, padded: bool, options: dict[str, Any]) -> None:
    model, asked = nowhere(name), GenerationOptions(**options)
    ids = torch.zeros(2, PROMPT, dtype=torch.long, device="meta")
    encoded = None
    if model.config.encoder is not None:
        encoded = StackOutput(torch.empty(2, 5, model.config.encoder.hidden_size, device="meta"), None)
    session = Session(model, Prompt(ids, torch.ones_like(ids) if padded else None, encoded), budget=NEW)
    read(session, model)
    picker = Picker(Draws(0, 2, 1) if asked.do_sample else None)
    processors = make_processors(asked, model.config)
    tokens_R = torch.zeros(2, dtype=torch.long, device="meta")
    places = buffers(session.cache)
    with torch.inference_mode():
        for _ in range(NEW - 1):
            logits_RV = process(session.decode_step(tokens_R), session.context, processors)
            tokens_R, _ = picker(logits_RV, session)
    assert session.length == PROMPT + NEW - 1 and tokens_R.shape == (2,)
    assert all(a is b for a, b in zip(places, buffers(session.cache), strict=True))


def test_the_watch_sees_a_look_at_a_value() -> None:
    """A prompt's ids are looked at, and the test above would see it."""
    model = nowhere("llama")
    session = Session(model, Prompt(torch.zeros(2, PROMPT, dtype=torch.long, device="meta")), budget=NEW)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        session.prefill()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")
@pytest.mark.parametrize("options", [{}, SAMPLERS, RULES], ids=["greedy", "sample", "rules"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_decoding_on_a_gpu_waits_for_no_token(name: str, options: dict[str, Any]) -> None:
    model, asked = make(name).cuda(), GenerationOptions(**options)
    ids = torch.randint(5, 40, (2, PROMPT), generator=torch.Generator().manual_seed(0)).cuda()
    encoded = model.encode(ids) if model.config.encoder is not None else None
    session = Session(model, Prompt(ids, None, encoded), budget=NEW)
    picker, processors = Picker(Draws(0, 2, 1) if asked.do_sample else None), make_processors(asked, model.config)
    with torch.inference_mode():
        logits_RV = session.prefill()
        tokens_R, _ = picker(process(logits_RV, session.context, processors), session)
        session.decode_step(tokens_R)  # moves constants, and fills cross-attention's keys
        places = buffers(session.cache)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(NEW - 3):
                tokens_R, _ = picker(process(session.decode_step(tokens_R), session.context, processors), session)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(a is b for a, b in zip(places, buffers(session.cache), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")
@pytest.mark.parametrize("options", [{}, dict(SAMPLERS, seed=1), dict(num_beams=3)], ids=["greedy", "sample", "beams"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_tokens_of_a_gpu_are_those_of_a_cpu(name: str, options: dict[str, Any]) -> None:
    """Over more steps than are fetched at once, in fp32."""
    ids = torch.randint(5, 40, (2, PROMPT), generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "cuda"):
        model = make(name).to(device)
        found.append(
            generate(model, ids.to(device), max_new_tokens=2 * SYNC_EVERY + 3, eos_ids=(), **options).token_ids
        )
    assert found[0] == found[1]


def test_a_cache_on_a_device_is_there() -> None:
    config = nowhere("llama").config
    cache = KeyValueCache(config, 2, 8, device="meta")
    assert {part.device.type for part in buffers(cache)} == {"meta"}
