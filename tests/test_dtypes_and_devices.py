"""Half precision on a CPU, and the same parity on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer as pf
from tests.support.parity import VOCABULARY, Case, build, load_ours, make_inputs, reference_logits

TINY: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=64, pad_token_id=1,
)  # fmt: skip
GATED = {**TINY, "num_key_value_heads": 2, "head_dim": 16}
CASES = [
    Case("bert", "BertForMaskedLM", lambda: transformers.BertConfig(**TINY)),
    Case("llama", "LlamaForCausalLM", lambda: transformers.LlamaConfig(**GATED)),
    Case("gemma3", "Gemma3ForCausalLM", lambda: transformers.Gemma3TextConfig(**GATED, sliding_window=3)),
    Case("olmo2", "Olmo2ForCausalLM", lambda: transformers.Olmo2Config(**{**TINY, "num_key_value_heads": 2})),
    Case(
        "t5",
        "T5ForConditionalGeneration",
        lambda: transformers.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=1
        ),
        kind="seq2seq",
    ),
]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_on_a_cpu(case: Case, dtype: str, tmp_path: Path) -> None:
    """Parameters and logits have the dtype; the logits stay as near to fp32 as the reference's in that dtype do."""
    reference = build(case)
    ours = load_ours(reference, tmp_path, dtype=dtype)
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {p.dtype for p in ours.parameters()} == {wanted}
    inputs = make_inputs(case)
    with torch.no_grad():
        exact = reference_logits(reference(**inputs))
        rounded = reference_logits(reference.to(wanted)(**inputs))
        mine = ours(**inputs).logits
    assert exact is not None and rounded is not None and mine is not None and mine.dtype == wanted
    scale = exact.abs().max()
    their_error = ((rounded.float() - exact).abs().max() / scale).item()
    my_error = ((mine.float() - exact).abs().max() / scale).item()
    assert my_error <= 2 * their_error + 1e-3


def test_default_dtype_on_a_cpu_is_fp32(tmp_path: Path) -> None:
    """Whatever the checkpoint stores: half precision is slower on most CPUs, and the answer should be exact."""
    reference = build(CASES[1]).to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    assert {p.dtype for p in pf.load_model(tmp_path).parameters() if p is not None} == {torch.float32}


def test_unknown_devices_and_dtypes_are_usage_errors(tmp_path: Path) -> None:
    build(CASES[0]).save_pretrained(tmp_path)
    for wrong in ({"device": "gpu"}, {"device": "cuda:99"}, {"device": "meta"}, {"dtype": "fp8"}, {"backend": "mkl"}):
        with pytest.raises(pf.UsageError, match=next(iter(wrong))):
            pf.load_model(tmp_path, **wrong)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_answer_on_a_gpu(case: Case, tmp_path: Path) -> None:
    """fp32 without TF32: within 1e-4 of the CPU's answer, through the cache too where there is one."""
    reference = build(case)
    cpu = load_ours(reference, tmp_path)
    cuda = pf.load_model(tmp_path, device="cuda", dtype="fp32")
    inputs = make_inputs(case)
    with torch.no_grad():
        expected = cpu(**inputs).logits
        found = cuda(**{name: value.cuda() for name, value in inputs.items()}).logits
    assert found.is_cuda
    assert ((found.cpu() - expected).abs().max() / expected.abs().max()).item() < 1e-4
    if cpu.config.head.kind == "causal_lm":
        ids = inputs["input_ids"]
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        one = pf.generate(cpu, ids, mask, max_new_tokens=5, eos_ids=())
        two = pf.generate(cuda, ids.cuda(), mask.cuda(), max_new_tokens=5, eos_ids=())
        assert one.token_ids == two.token_ids


@gpu
@pytest.mark.gpu
def test_checkpoint_dtype_is_kept_on_a_gpu(tmp_path: Path) -> None:
    build(CASES[1]).to(torch.bfloat16).save_pretrained(tmp_path)
    assert pf.load_model(tmp_path, device="cuda").dtype == torch.bfloat16
