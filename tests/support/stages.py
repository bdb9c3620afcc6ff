"""Models that are cut into stages, for tests: configurations, the part of one that a rank has, micro-batches, and losses.

Ranks import this and the library alone: what takes seconds to import would take them in every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plainformer.config import ModelConfig, PatchFrontend, TokenFrontend, WaveFrontend
from plainformer.config.layout import Layout
from plainformer.config.local import local
from plainformer.families import config_from_dict
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.parallel import mesh as meshes
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.pipeline import connect

IDS = dict(vocab_size=61, pad_token_id=0, bos_token_id=1, eos_token_id=2)
TINY = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
PAIR = dict(IDS, decoder_start_token_id=2, is_encoder_decoder=True)
SEQ2SEQ = dict(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": dict(TINY, **IDS, model_type="llama", num_key_value_heads=2, architectures=["LlamaForCausalLM"]),
    "gpt2": dict(
        IDS, model_type="gpt2", n_embd=32, n_layer=4, n_head=4, n_positions=64, architectures=["GPT2LMHeadModel"]
    ),
    "mistral": dict(
        TINY, **IDS, model_type="mistral", num_key_value_heads=2, sliding_window=6, architectures=["MistralForCausalLM"]
    ),
    "bert": dict(
        TINY, **IDS, model_type="bert", max_position_embeddings=40, type_vocab_size=2, architectures=["BertForMaskedLM"]
    ),
    "deberta": dict(
        TINY,
        **IDS,
        model_type="deberta-v2",
        max_position_embeddings=40,
        relative_attention=True,
        pos_att_type="p2c|c2p",
        conv_kernel_size=3,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_buckets=8,
        architectures=["DebertaV2ForSequenceClassification"],
        id2label={"0": "a", "1": "b", "2": "c"},
    ),
    "albert": dict(
        TINY, **IDS, model_type="albert", embedding_size=16, max_position_embeddings=40, architectures=["AlbertForMaskedLM"]
    ),
    "t5": dict(
        PAIR,
        model_type="t5",
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        architectures=["T5ForConditionalGeneration"],
    ),
    "bart": dict(
        SEQ2SEQ,
        **PAIR,
        model_type="bart",
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_position_embeddings=64,
        architectures=["BartForConditionalGeneration"],
    ),
    "whisper": dict(
        SEQ2SEQ,
        **PAIR,
        model_type="whisper",
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=40,
        architectures=["WhisperForConditionalGeneration"],
    ),
    "vit": dict(
        TINY,
        model_type="vit",
        image_size=32,
        patch_size=8,
        num_channels=3,
        architectures=["ViTForImageClassification"],
        id2label={"0": "a", "1": "b", "2": "c"},
    ),
    "wav2vec2": dict(
        TINY,
        model_type="wav2vec2",
        vocab_size=12,
        conv_dim=[16, 16],
        conv_kernel=[10, 4],
        conv_stride=[5, 4],
        feat_extract_norm="layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
        architectures=["Wav2Vec2ForCTC"],
    ),
}  # fmt: skip


def config_of(name: str, **changes: Any) -> ModelConfig:
    """Return a configuration, without dropout."""
    return config_from_dict({**CONFIGS[name], **changes})


def whole(config: ModelConfig, seed: int = 0) -> Transformer:
    """Return the model in one process; dropout is off, and weights are large enough that everything matters."""
    from plainformer.model.dropout import never_drop

    return never_drop(initialise(Transformer(config), seed=seed, std=0.3))


def part_of(model: Transformer, mesh: Mesh) -> Transformer:
    """Return what this rank has of a model, connected with the other stages."""
    own = local(model.config, mesh.layout, mesh.rank)
    part = Transformer(model.config, own).to_empty(device="cpu")
    part.tie()
    sources: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            source: Tensor = sources[own.parts[name].name]
            place = own.parts[name]
            if place.dim is not None:
                source = source.narrow(place.dim, place.start, place.stop - place.start)
            parameter.copy_(source)
            parameter.requires_grad_(sources[own.parts[name].name].requires_grad)
    from plainformer.model.dropout import never_drop

    return connect(never_drop(part), mesh).train(model.training)


def mesh_of(**axes: Any) -> Mesh:
    return meshes.start(Layout(**axes))


def inputs_of(config: ModelConfig, seed: int, rows: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Return a micro-batch: padded rows of ids, pictures, waves or spectrograms, and ids for a decoder."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    frontend = config.input_frontend
    if isinstance(frontend, TokenFrontend):
        made["input_ids"] = torch.randint(3, frontend.vocab_size, (rows, length), generator=generator)
        made["attention_mask"] = torch.ones(rows, length, dtype=torch.int64)
        made["attention_mask"][0, length - 2 :] = 0
    elif isinstance(frontend, PatchFrontend):
        made["pixel_values"] = torch.randn(rows, 3, 32, 24 + 8 * (length % 2), generator=generator)
    elif isinstance(frontend, WaveFrontend):
        made["input_values"] = torch.randn(rows, 60 + 20 * length, generator=generator)
        made["attention_mask"] = torch.ones(rows, 60 + 20 * length, dtype=torch.int64)
        made["attention_mask"][0, 80:] = 0
    else:
        made["input_features"] = torch.randn(rows, frontend.mels, 9 + length, generator=generator)
    if config.encoder is not None and config.decoder is not None:
        size = config.head.out_size
        made["decoder_input_ids"] = torch.randint(3, size, (rows, length + 1), generator=generator)
    return made


def loss_of(model: Transformer, inputs: dict[str, Tensor], seed: int) -> Tensor:
    """Return the sum over a head's log-probabilities, each times some weight, ()."""
    logits = model(**inputs).logits
    assert logits is not None
    weights = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed))
    return -(logits.float().log_softmax(-1) * weights).mean()
