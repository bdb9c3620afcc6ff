"""Peaks of an inference, counted, are those of torch's allocator: within 1 % for a prompt, a little more for a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plainformer.config.layout import Layout
from plainformer.config.local import local
from plainformer.families import config_from_dict
from plainformer.generation.search import generate
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.plan.inference import inference_phases
from plainformer.plan.result import WEIGHTS
from plainformer.plan.workload import Workload
from tests.support.memory import peak_bytes
from tests.support.planned_families import FAMILIES

WORDS = 300
LAYERS: dict[str, Any] = dict(
    hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, vocab_size=WORDS
)
GROUPED: dict[str, Any] = dict(LAYERS, num_key_value_heads=2)
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        model_type="gpt2", n_embd=64, n_layer=4, n_head=4, n_positions=512, vocab_size=WORDS, architectures=["GPT2LMHeadModel"]
    ),
    "llama": dict(GROUPED, model_type="llama", architectures=["LlamaForCausalLM"]),
    "gemma2": dict(
        GROUPED, model_type="gemma2", head_dim=16, query_pre_attn_scalar=16, sliding_window=32, architectures=["Gemma2ForCausalLM"]
    ),
    "mistral": dict(GROUPED, model_type="mistral", sliding_window=8, architectures=["MistralForCausalLM"]),
    "qwen3": dict(GROUPED, model_type="qwen3", head_dim=16, architectures=["Qwen3ForCausalLM"]),
    "olmo2": dict(GROUPED, model_type="olmo2", architectures=["Olmo2ForCausalLM"]),
    "gpt_neox": dict(LAYERS, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"]),
}  # fmt: skip
BOTH: dict[str, dict[str, Any]] = {
    "t5": dict(
        model_type="t5", d_model=64, d_kv=16, d_ff=256, num_layers=3, num_heads=4, vocab_size=WORDS,
        decoder_start_token_id=0, is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"],
    ),
    "bart": dict(
        model_type="bart", d_model=64, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, vocab_size=WORDS, max_position_embeddings=512,
        decoder_start_token_id=2, is_encoder_decoder=True, architectures=["BartForConditionalGeneration"],
    ),
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": dict(LAYERS, model_type="bert", max_position_embeddings=512, architectures=["BertForSequenceClassification"]),
    "bert-words": dict(LAYERS, model_type="bert", max_position_embeddings=512, architectures=["BertForMaskedLM"]),
    "modernbert": dict(
        LAYERS, model_type="modernbert", max_position_embeddings=512, local_attention=32, architectures=["ModernBertForMaskedLM"]
    ),
    "deberta": dict(
        LAYERS, model_type="deberta-v2", max_position_embeddings=512, relative_attention=True, position_buckets=32,
        max_relative_positions=-1, pos_att_type="p2c|c2p", share_att_key=True, norm_rel_ebd="layer_norm",
        position_biased_input=False, type_vocab_size=0, architectures=["DebertaV2ForSequenceClassification"],
    ),
}  # fmt: skip


def built(raw: dict[str, Any], backend: str) -> Transformer:
    model = initialise(Transformer(config_from_dict(raw)), seed=0).eval()
    prepare_for_inference(model, backend)
    return model


def planned(model: Transformer, workload: Workload, backend: str) -> dict[str, int]:
    """Bytes of each phase, weights not counted."""
    phases = inference_phases(local(model.config, Layout(), 0), workload, backend=backend)
    return {phase.name: phase.bytes - phase.parts().get(WEIGHTS, 0) for phase in phases if phase.name != "load"}


def prompts(batch: int, length: int, padded: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    ids = torch.randint(5, WORDS, (batch, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :1] = 0
    return ids, mask if padded else None


CASES = [(name, "plain", kind) for name in DECODERS for kind in ("full", "padded", "int8")]
CASES += [(name, backend, "full") for name in ("gpt2", "llama", "qwen3") for backend in ("fused", "compiled", "int8")]


@pytest.mark.parametrize(("name", "backend", "kind"), CASES)
def test_a_prompt(name: str, backend: str, kind: str) -> None:
    model, (ids, mask) = built(DECODERS[name], backend), prompts(2, 200, kind == "padded")
    cache = "int8" if kind == "int8" else "full"

    def run() -> None:
        generate(model, ids, mask, max_new_tokens=1, eos_ids=(), cache_kind=cache)

    run()
    dtype = "int8" if backend == "int8" else "fp32"
    workload = Workload(batch=2, prompt=200, new=1, cache=cache, padded=mask is not None, dtype=dtype)
    found = planned(model, workload, backend)
    assert max(found, key=lambda name: found[name]) == "prefill"
    assert found["prefill"] == pytest.approx(peak_bytes(run), rel=0.01)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_an_encoder_decoder(name: str, padded: bool) -> None:
    model, (ids, mask) = built(BOTH[name], "plain"), prompts(2, 160, False)
    if padded:
        mask = torch.ones_like(ids)
        mask[0, 159:] = 0

    def run() -> None:
        generate(model, ids, mask, max_new_tokens=1, eos_ids=())

    run()
    found = planned(model, Workload(batch=2, prompt=160, new=1, padded=padded), "plain")
    assert max(found.values()) == pytest.approx(peak_bytes(run), rel=0.01)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder(name: str, padded: bool) -> None:
    model = built(ENCODERS[name], "plain")
    ids, mask = prompts(2, 200, False)
    if padded:
        mask = torch.ones_like(ids)
        mask[0, 199:] = 0

    @torch.no_grad()
    def run() -> None:
        model(ids, mask, only_logits=True)

    run()
    found = planned(model, Workload(batch=2, prompt=200, padded=padded), "plain")["forward"]
    assert found == pytest.approx(peak_bytes(run), rel=0.01)


@pytest.mark.parametrize("family", ["vit", "wav2vec2"])
def test_images_and_sound(family: str) -> None:
    """What is read counts, too: it is there as long as the model runs."""
    rows, model = 2, initialise(Transformer(FAMILIES[family]())).eval()
    given: dict[str, Any] = {
        "vit": lambda: {"pixel_values": torch.rand(rows, 3, 96, 96)},
        "wav2vec2": lambda: {"input_values": torch.rand(rows, 16000)},
    }[family]()

    @torch.no_grad()
    def run() -> None:
        model(**given, only_logits=True)

    run()
    workload = Workload(batch=rows, seconds=1, padded=False)
    found = planned(model, workload, "plain")["forward"]
    read = sum(one.nbytes for one in given.values())
    assert found - read == pytest.approx(peak_bytes(run), rel=0.02)


@pytest.mark.parametrize("chunk", [16, 64])
def test_chunks_of_the_network(chunk: int) -> None:
    model, (ids, _) = built(DECODERS["llama"], "plain"), prompts(1, 200, False)
    for module in model.modules():
        if hasattr(module, "chunk_size"):
            module.chunk_size = chunk

    def run() -> None:
        generate(model, ids, max_new_tokens=1, eos_ids=())

    run()
    found = planned(model, Workload(batch=1, prompt=200, new=1, ffn_chunk=chunk), "plain")
    assert found["prefill"] == pytest.approx(peak_bytes(run), rel=0.02)


@pytest.mark.parametrize(
    ("name", "copies", "cache"),
    [("gpt2", 1, "full"), ("llama", 3, "full"), ("llama", 1, "int8"), ("gemma2", 1, "full"), ("gemma2", 1, "int8")],
)
def test_tokens(name: str, copies: int, cache: str) -> None:
    """While tokens come, the cache is nearly all there is."""
    model, (ids, _) = built(DECODERS[name], "plain"), prompts(4, 12, False)
    options: dict[str, Any] = {"num_beams": copies} if copies > 1 else {}

    def run() -> None:
        generate(model, ids, max_new_tokens=60, eos_ids=(), cache_kind=cache, **options)

    run()
    found = planned(model, Workload(batch=4, prompt=12, new=60, copies=copies, cache=cache), "plain")
    assert max(found.values()) == pytest.approx(peak_bytes(run), rel=0.05)


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(pp=2), Layout(tp=2, pp=2)], ids=str)
def test_ranks_share_the_work(layout: Layout) -> None:
    config = config_from_dict(DECODERS["llama"])
    workload = Workload(batch=2, prompt=200, new=20)
    whole = {p.name: p.bytes for p in inference_phases(local(config, Layout(), 0), workload)}
    for rank in range(layout.world):
        here = {p.name: p.bytes for p in inference_phases(local(config, layout, rank), workload)}
        assert all(here[name] < whole[name] for name in whole)
