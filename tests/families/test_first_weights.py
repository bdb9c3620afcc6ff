"""First weights: for every kind of tensor the mean and the deviation of the reference's own, in models 256 wide.

A kind is all tensors whose names differ in numbers alone. Both models are random, so two means may differ by what chance
allows; a constant must be the same, and so must sinusoids and the padding's row of zeros.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import plainformer as pf
from plainformer.families import config_from_dict
from plainformer.families.naming import HEADS_BY_SUFFIX
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.close import close

TEXT: dict[str, Any] = dict(
    vocab_size=997,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    max_position_embeddings=128,
    pad_token_id=1,
)
DECODER: dict[str, Any] = dict(TEXT, num_key_value_heads=2, bos_token_id=0, eos_token_id=2)
BOTH: dict[str, Any] = dict(
    vocab_size=997,
    d_model=256,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=512,
    decoder_ffn_dim=512,
    max_position_embeddings=128,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=2,
)
T5: dict[str, Any] = dict(
    vocab_size=997, d_model=256, d_kv=32, d_ff=512, num_layers=2, num_heads=4, decoder_start_token_id=0
)
LAYERS: dict[str, Any] = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
IMAGE: dict[str, Any] = dict(LAYERS, image_size=64, patch_size=16)
WAVE: dict[str, Any] = dict(
    LAYERS,
    vocab_size=32,
    conv_dim=[64] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    classifier_proj_size=64,
)
MEL: dict[str, Any] = {
    **{name: value for name, value in BOTH.items() if name != "max_position_embeddings"},
    **dict(num_mel_bins=16, max_source_positions=100, max_target_positions=64, classifier_proj_size=64),
}
STABLE: dict[str, Any] = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
V3: dict[str, Any] = dict(
    relative_attention=True,
    position_buckets=64,
    pos_att_type="p2c|c2p",
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
)
BIASES: dict[str, Any] = dict(norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True)
OWN: dict[str, Any] = dict(V3, share_att_key=False, conv_kernel_size=3, position_biased_input=True, embedding_size=64)

# What it shows → prefix of the reference's classes, configuration.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", TEXT),
    "bert, wider": ("Bert", dict(TEXT, initializer_range=0.05)),
    "roberta": ("Roberta", TEXT),
    "xlm-roberta": ("XLMRoberta", TEXT),
    "camembert": ("Camembert", TEXT),
    "mpnet": ("MPNet", TEXT),
    "distilbert": ("DistilBert", dict(TEXT, hidden_dim=512)),
    "distilbert, sinusoids": ("DistilBert", dict(TEXT, hidden_dim=512, sinusoidal_pos_embds=True)),
    "albert": ("Albert", dict(TEXT, embedding_size=64)),
    "electra": ("Electra", dict(TEXT, embedding_size=64)),
    "modernbert": ("ModernBert", dict(TEXT, eos_token_id=2, cls_token_id=0, sep_token_id=2, bos_token_id=0)),
    "modernbert, cut": (
        "ModernBert",
        dict(TEXT, eos_token_id=2, bos_token_id=0, initializer_cutoff_factor=1.0, **BIASES),
    ),
    "deberta": ("DebertaV2", dict(TEXT, **V3)),
    "deberta, own": ("DebertaV2", dict(TEXT, **OWN)),
    "deberta, newer": ("DebertaV2", dict(TEXT, legacy=False, **V3)),
    "gpt2": ("GPT2", dict(TEXT, n_inner=512)),
    "gpt_neox": ("GPTNeoX", DECODER),
    "llama": ("Llama", DECODER),
    "llama, tied": ("Llama", dict(DECODER, pad_token_id=None, tie_word_embeddings=True)),
    "mistral": ("Mistral", DECODER),
    "qwen2": ("Qwen2", DECODER),
    "qwen3": ("Qwen3", dict(DECODER, head_dim=64)),
    "gemma": ("Gemma", dict(DECODER, head_dim=64)),
    "gemma2": ("Gemma2", dict(DECODER, head_dim=64)),
    "gemma3": ("Gemma3Text", dict(DECODER, head_dim=64)),
    "phi3": ("Phi3", DECODER),
    "smollm3": ("SmolLM3", DECODER),
    "olmo2": ("Olmo2", DECODER),
    "bart": ("Bart", BOTH),
    "bart, untied": ("Bart", dict(BOTH, tie_word_embeddings=False, init_std=0.01)),
    "mbart": ("MBart", BOTH),
    "pegasus": ("Pegasus", BOTH),
    "marian": ("Marian", BOTH),
    "marian, two": ("Marian", dict(BOTH, share_encoder_decoder_embeddings=False, decoder_vocab_size=900)),
    "m2m_100": ("M2M100", BOTH),
    "t5": ("T5", T5),
    "t5, gated": ("T5", dict(T5, feed_forward_proj="gated-gelu", initializer_factor=0.5)),
    "mt5": ("MT5", T5),
    "vit": ("ViT", IMAGE),
    "deit": ("DeiT", IMAGE),
    "wav2vec2": ("Wav2Vec2", WAVE),
    "wav2vec2, stable": ("Wav2Vec2", dict(WAVE, use_weighted_layer_sum=True, **STABLE)),
    "hubert": ("Hubert", WAVE),
    "hubert, stable": ("Hubert", dict(WAVE, use_weighted_layer_sum=True, **STABLE)),
    "whisper": ("Whisper", dict(MEL, use_weighted_layer_sum=True)),
}
NOT_OURS = {  # a causal class of an encoder, a decoder without its encoder
    f"{prefix}{ending}"
    for ending in ("ForCausalLM", "LMHeadModel")
    for prefix in (
        "Bert",
        "Roberta",
        "XLMRoberta",
        "Camembert",
        "Electra",
        "Bart",
        "MBart",
        "Pegasus",
        "Marian",
        "Whisper",
    )
}


def architectures(prefix: str) -> Iterator[str]:
    """Every class of the reference's that is one of a family's models."""
    for ending in HEADS_BY_SUFFIX:
        name = prefix + ending
        if hasattr(transformers, name) and name not in NOT_OURS and ending != "ForPreTraining":
            yield name
    if prefix == "Gemma3Text":
        yield "Gemma3ForCausalLM"


CASES = [(what, name) for what, (prefix, _) in FAMILIES.items() for name in architectures(prefix)]


def kinds(model: Transformer) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(re.sub(r"\d+", "N", name), []).append(parameter.detach().flatten())
    return {kind: torch.cat(tensors) for kind, tensors in found.items()}


def spread(x: Tensor) -> tuple[float, float]:
    return x.double().mean().item(), x.double().std(unbiased=False).item()


def check(kind: str, ours: Tensor, theirs: Tensor) -> None:
    """Within 10 % of the deviation, and what four standard errors of both samples add."""
    (mean, std), (their_mean, their_std) = spread(ours), spread(theirs)
    error = 4 * max(std, their_std) * (2 / len(ours)) ** 0.5
    assert std == pytest.approx(their_std, rel=0.1, abs=error), f"{kind}: deviation"
    assert mean == pytest.approx(their_mean, rel=1e-6, abs=0.1 * their_std + error + 1e-7), f"{kind}: mean"
    assert ours.abs().max() <= theirs.abs().max() * 1.6 + 1e-7, f"{kind}: outliers"


@pytest.mark.parametrize(("what", "name"), CASES, ids=str)
def test_every_kind_of_tensor(what: str, name: str, tmp_path: Path) -> None:
    prefix, values = FAMILIES[what]
    labels = {} if "Question" in name else {"num_labels": 7}
    torch.manual_seed(0)
    reference = getattr(transformers, name)(getattr(transformers, f"{prefix}Config")(**values, **labels))
    reference.save_pretrained(tmp_path)
    theirs = pf.load_model(tmp_path, purpose="train")
    raw = json.loads((tmp_path / "config.json").read_text())
    ours = initialise(Transformer(config_from_dict(raw)), seed=1)
    found, expected = kinds(ours), kinds(theirs)
    assert found.keys() == expected.keys()
    for kind, tensor in found.items():
        check(kind, tensor, expected[kind])
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.requires_grad == other.requires_grad, key
        if key.endswith("frontend.tokens.weight"):
            assert torch.equal(mine.abs().sum(1) == 0, other.abs().sum(1) == 0), key
        if (key == "encoder.frontend.positions" and prefix == "Whisper") or (
            "sinusoids" in what and "positions" in key
        ):
            close(mine, other, rel=1e-6)


def test_a_hundred_million_take_seconds() -> None:
    """One set of BERT-base's size; the numbers do not depend on the order of modules, or on what else is filled."""
    import time

    raw = {"model_type": "bert", "vocab_size": 30522, "architectures": ["BertForMaskedLM"]}
    model = Transformer(config_from_dict(raw))
    started = time.process_time()
    initialise(model)
    assert model.num_parameters > 100e6
    assert time.process_time() - started < 10  # under 3 s; of the processor's time, since others may be using it too


def test_a_parameter_depends_on_its_name_alone() -> None:
    base = {"model_type": "bert", **TEXT}
    one = initialise(Transformer(config_from_dict({**base, "architectures": ["BertForTokenClassification"]})), seed=3)
    two = initialise(Transformer(config_from_dict({**base, "architectures": ["BertForMaskedLM"]})), seed=3)
    shared = [name for name, _ in one.named_parameters() if not name.startswith("head.")]
    for name in shared:
        assert torch.equal(one.get_parameter(name), two.get_parameter(name)), name
    again = Transformer(config_from_dict({**base, "architectures": ["BertForMaskedLM"]}))
    again.head.dense.weight = torch.nn.Parameter(torch.ones(256, 256))
    initialise(again, seed=3, empty_only=True)
    assert again.head.dense.weight.min() == 1
    assert torch.equal(again.head.out.bias, two.head.out.bias)
    assert torch.equal(again.main.frontend.tokens.weight, two.main.frontend.tokens.weight)
