"""Tiny models that can be divided among ranks, whole and in parts, and what they learn from.

4 heads, 2 key-value heads, and 103 words, which no number of ranks divides. Weights, biases and norms all have noise, so that
a bias added twice, or a norm's gradient forgotten, shows. Ranks import this and the library alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from plainformer.config import Dropout, MelFrontend, ModelConfig, PatchFrontend, WaveFrontend
from plainformer.config.layout import Layout
from plainformer.families import config_from_dict
from plainformer.model.transformer import Transformer
from plainformer.parallel.apply import cut
from plainformer.parallel.mesh import Mesh, start

WORDS = 103
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_IDS = dict(vocab_size=WORDS, pad_token_id=0, bos_token_id=1, eos_token_id=2)
_SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
_ROPE = dict(_SIZE, **_IDS, num_key_value_heads=2, max_position_embeddings=64, head_dim=8)
_BERT = dict(_SIZE, vocab_size=WORDS, max_position_embeddings=40, type_vocab_size=2, pad_token_id=0)
_BOTH = dict(
    _IDS,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    is_encoder_decoder=True,
)
_DEBERTA = dict(
    _BERT,
    model_type="deberta-v2",
    relative_attention=True,
    position_buckets=8,
    pos_att_type=["p2c", "c2p"],
    conv_kernel_size=3,
    norm_rel_ebd="layer_norm",
    legacy=False,
)
_LABELS = {"0": "a", "1": "b", "2": "c"}
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
    "mistral": dict(_ROPE, model_type="mistral", sliding_window=6, architectures=["MistralForCausalLM"]),
    "gpt_neox": dict(_SIZE, **_IDS, model_type="gpt_neox", rotary_pct=0.5, architectures=["GPTNeoXForCausalLM"]),
    "bart": dict(
        _BOTH,
        model_type="bart",
        max_position_embeddings=40,
        decoder_start_token_id=2,
        architectures=["BartForConditionalGeneration"],
    ),
    "wav2vec2": dict(
        _SIZE,
        model_type="wav2vec2",
        vocab_size=17,
        conv_dim=[8, 8],
        conv_kernel=[10, 4],
        conv_stride=[5, 4],
        feat_extract_norm="layer",
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
        architectures=["Wav2Vec2ForCTC"],
    ),
    "bert": dict(_BERT, model_type="bert", architectures=["BertForMaskedLM"]),
    "albert": dict(_BERT, model_type="albert", embedding_size=16, architectures=["AlbertForMaskedLM"]),
    "deberta": dict(_DEBERTA, share_att_key=False, architectures=["DebertaV2ForMaskedLM"]),
    "deberta-shared": dict(
        _DEBERTA, share_att_key=True, id2label=_LABELS, architectures=["DebertaV2ForSequenceClassification"]
    ),
    "t5": dict(
        _IDS,
        model_type="t5",
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        is_encoder_decoder=True,
        architectures=["T5ForConditionalGeneration"],
    ),
    "whisper": dict(
        _BOTH,
        model_type="whisper",
        num_mel_bins=8,
        max_source_positions=12,
        max_target_positions=40,
        decoder_start_token_id=1,
        architectures=["WhisperForConditionalGeneration"],
    ),
    "vit": dict(
        _SIZE,
        model_type="vit",
        image_size=32,
        patch_size=8,
        num_channels=3,
        id2label=_LABELS,
        architectures=["ViTForImageClassification"],
    ),
}


def config_of(name: str, *, layers: int | None = None, drops: bool = False, **changes: Any) -> ModelConfig:
    """Return the configuration of that name, some of its fields changed.

    Args:
        layers: how many, of each stack. drops: with the family's usual dropout, which is off otherwise.
    """
    fields = {**SHARED[name], **changes}
    if layers is not None:
        fields |= {field: layers for field in LAYERS if field in fields}
    config = config_from_dict(fields)
    if drops:
        return config
    return replace(with_dropout(config, Dropout()), head=replace(config.head, dropout=0.0, dense_dropout=0.0))


def with_dropout(config: ModelConfig, rates: Dropout) -> ModelConfig:
    """Return the same configuration with these rates in each stack."""
    both = {"encoder": config.encoder, "decoder": config.decoder}
    stacks: dict[str, Any] = {name: replace(s, dropout=rates) for name, s in both.items() if s is not None}
    return replace(config, **stacks)


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


@cache
def joined(layout: Layout) -> Mesh:
    """Return this rank's mesh of a layout, the same each time: what talks in its groups talks in order."""
    return start(layout)


def mesh_of(**axes: Any) -> Mesh:
    """Return this rank's mesh of a layout, the same each time."""
    return joined(Layout(**axes))


def own_part(model: Transformer, mesh: Mesh) -> Transformer:
    """Return what a rank has of a whole model, connected with the others, in the same mode."""
    return cut(model, mesh).train(model.training)


def rows_of(tensor: Tensor, part: Any) -> Tensor:
    """Return a part of a tensor."""
    return tensor if part.dim is None else tensor.narrow(part.dim, part.start, part.stop - part.start)


def inputs_of(config: ModelConfig, seed: int = 0, rows: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Return a micro-batch: pictures, waves, spectrograms, or padded rows of ids, and ids for a decoder.

    Ids are padded on the left for a decoder, on the right for an encoder; the first row is whole. `length` is that of ids,
    and others grow with it.
    """
    generator, frontend = torch.Generator().manual_seed(seed), config.input_frontend
    found: dict[str, Tensor] = {}
    if isinstance(frontend, PatchFrontend):
        return {"pixel_values": torch.randn(rows, 3, 32, 24 + 8 * (length % 2), generator=generator)}
    if isinstance(frontend, WaveFrontend):
        samples = 60 + 20 * length
        found["input_values"] = torch.randn(rows, samples, generator=generator)
        found["attention_mask"] = (torch.arange(samples) < torch.tensor([[samples], *[[80]] * (rows - 1)])).long()
        return found
    if isinstance(frontend, MelFrontend):
        found["input_features"] = torch.randn(rows, frontend.mels, min(24, 9 + length), generator=generator)
    else:
        found["input_ids"] = torch.randint(3, frontend.vocab_size, (rows, length), generator=generator)
        real_B = torch.randint(min(3, length), length + 1, (rows, 1), generator=generator)
        real_B[0] = length
        mask_BT = torch.arange(length) < real_B
        left = config.encoder is None
        found["attention_mask"] = (mask_BT.flip(1) if left else mask_BT).long()
    if config.kind == "encoder-decoder":
        found["decoder_input_ids"] = torch.randint(3, WORDS, (rows, max(3, length - 4)), generator=generator)
    return found


def loss_of(model: Transformer, inputs: dict[str, Tensor], seed: int = 0) -> Tensor:
    """Return the mean cross entropy of random labels, ()."""
    logits = model(**inputs).logits
    assert logits is not None
    logits = logits.flatten(0, -2)
    labels = torch.randint(0, logits.size(-1), (len(logits),), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.cross_entropy(logits, labels)
