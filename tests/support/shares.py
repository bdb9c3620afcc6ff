"""Tiny models that can be shared among ranks, whole and in parts: 4 heads, 2 key-value heads, a vocabulary of 103 words.

103 words are divided unevenly by 2 and by 4. Weights, biases and norms all have noise, so that a bias added twice, or a norm's
gradient forgotten, shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plainformer.config import ModelConfig
from plainformer.config.local import local
from plainformer.families import config_from_dict
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh

WORDS = 103
_IDS = dict(vocab_size=WORDS, pad_token_id=0, bos_token_id=1, eos_token_id=2)
_SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
_ROPE = dict(_SIZE, **_IDS, num_key_value_heads=2, max_position_embeddings=64, head_dim=8)
_BERT = dict(_SIZE, vocab_size=WORDS, max_position_embeddings=40, type_vocab_size=2, pad_token_id=0)
_BOTH = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
_FFN = dict(encoder_ffn_dim=48, decoder_ffn_dim=48)
SHARED: dict[str, dict[str, Any]] = {
    "llama": dict(_ROPE, model_type="llama", tie_word_embeddings=True, architectures=["LlamaForCausalLM"]),
    "qwen3": dict(_ROPE, model_type="qwen3", architectures=["Qwen3ForCausalLM"]),
    "olmo2": dict(_ROPE, model_type="olmo2", architectures=["Olmo2ForCausalLM"]),
    "gpt2": dict(
        _IDS, model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, architectures=["GPT2LMHeadModel"]
    ),
    "gemma2": dict(
        _ROPE, model_type="gemma2", sliding_window=8, query_pre_attn_scalar=8, architectures=["Gemma2ForCausalLM"]
    ),
    "gpt_neox": dict(_SIZE, **_IDS, model_type="gpt_neox", rotary_pct=0.5, architectures=["GPTNeoXForCausalLM"]),
    "bart": dict(
        _BOTH,
        **_FFN,
        **_IDS,
        model_type="bart",
        max_position_embeddings=40,
        decoder_start_token_id=2,
        is_encoder_decoder=True,
        architectures=["BartForConditionalGeneration"],
    ),
    "wav2vec2": dict(
        _SIZE,
        model_type="wav2vec2",
        vocab_size=17,
        conv_dim=[8, 8],
        conv_kernel=[10, 4],
        conv_stride=[5, 4],
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
        architectures=["Wav2Vec2ForCTC"],
    ),
    "bert": dict(_BERT, model_type="bert", architectures=["BertForMaskedLM"]),
    "albert": dict(_BERT, model_type="albert", embedding_size=16, architectures=["AlbertForMaskedLM"]),
    "deberta": dict(
        _BERT,
        model_type="deberta-v2",
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        share_att_key=False,
        conv_kernel_size=3,
        norm_rel_ebd="layer_norm",
        legacy=False,
        architectures=["DebertaV2ForMaskedLM"],
    ),
    "t5": dict(
        _IDS,
        model_type="t5",
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        is_encoder_decoder=True,
        architectures=["T5ForConditionalGeneration"],
    ),
    "whisper": dict(
        _BOTH,
        **_FFN,
        **_IDS,
        model_type="whisper",
        num_mel_bins=8,
        max_source_positions=12,
        max_target_positions=40,
        decoder_start_token_id=1,
        is_encoder_decoder=True,
        architectures=["WhisperForConditionalGeneration"],
    ),
    "vit": dict(
        _SIZE,
        model_type="vit",
        image_size=16,
        patch_size=8,
        num_channels=3,
        id2label={"0": "a", "1": "b", "2": "c"},
        architectures=["ViTForImageClassification"],
    ),
}


def config_of(name: str, **changes: Any) -> ModelConfig:
    """Return the configuration of that name, some of its fields changed."""
    return config_from_dict({**SHARED[name], **changes})


def whole(config: ModelConfig, seed: int = 0, scale: float = 0.2) -> Transformer:
    """Return a model of one process, in training mode, with noise in every parameter."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator) * scale
        noise = noise + 1 if name.endswith("norm.weight") or ("_norm" in name and name.endswith("weight")) else noise
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(noise, requires_grad=parameter.requires_grad))
    model.tie()
    return model.train()


def share_of(model: Transformer, mesh: Mesh, make: Callable[[ModelConfig], Transformer]) -> Transformer:
    """Return the part of a whole model that a rank has, filled with its rows."""
    found = make(model.config)
    values = dict(model.named_parameters(remove_duplicate=False))
    for name, part in local(model.config, mesh.layout, mesh.rank).parts.items():
        module, _, leaf = name.rpartition(".")
        grown = values[part.name].requires_grad
        rows = torch.nn.Parameter(rows_of(values[part.name].detach(), part).clone(), requires_grad=grown)
        setattr(found.get_submodule(module), leaf, rows)
    found.tie()
    return found.train(model.training)


def rows_of(tensor: Tensor, part: Any) -> Tensor:
    """Return a part of a tensor."""
    return tensor if part.dim is None else tensor.narrow(part.dim, part.start, part.stop - part.start)


def inputs_of(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return a padded batch of three rows: on the left for a decoder, on the right for an encoder."""
    generator = torch.Generator().manual_seed(seed)
    kind = config.input_frontend.kind
    if kind == "patches":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    if kind == "wave":
        return {"input_values": torch.randn(3, 200, generator=generator)}
    ids = torch.randint(3, WORDS, (3, 9), generator=generator)
    if kind == "mel":
        return {"input_features": torch.randn(3, 8, 24, generator=generator), "decoder_input_ids": ids}
    mask = torch.ones_like(ids)
    left = config.main_stack.direction == "causal" and config.encoder is None
    mask[1, (slice(0, 3) if left else slice(6, 9))] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    if config.encoder is not None and config.decoder is not None:
        found["decoder_input_ids"] = torch.randint(3, WORDS, (3, 5), generator=generator)
    return found


def loss_of(model: Transformer, inputs: dict[str, Tensor], seed: int = 0) -> Tensor:
    """Return the mean cross entropy of random labels."""
    logits = model(**inputs).logits
    assert logits is not None
    logits = logits.flatten(0, -2)
    labels = torch.randint(0, logits.size(-1), (len(logits),), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.cross_entropy(logits, labels)
