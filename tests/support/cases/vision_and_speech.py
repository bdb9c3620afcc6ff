"""Image and speech families: each head, and each value that changes the computation."""

from __future__ import annotations

from typing import Any

import transformers

from tests.support.parity import PAD, VOCABULARY, Case

LAYERS: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, num_labels=3
)
IMAGE: dict[str, Any] = dict(**LAYERS, image_size=32, patch_size=8)
# The published kernels and strides, fewer channels. The mask vector, for training alone, is left out of the comparison.
WAVE: dict[str, Any] = dict(
    **LAYERS,
    vocab_size=23,
    conv_dim=[16, 12, 16, 12, 16, 12, 20],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    classifier_proj_size=24,
    mask_time_prob=0.0,
    mask_feature_prob=0.0,
)
STABLE: dict[str, Any] = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
MEL: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=32,
    num_mel_bins=8,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=37,
    decoder_ffn_dim=37,
    max_source_positions=20,
    max_target_positions=24,
    classifier_proj_size=24,
    num_labels=3,
    pad_token_id=PAD,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=3,
)


def case(name: str, model: str, kind: str, values: dict[str, Any], *, shape: Any = None, **changes: Any) -> Case:
    """A case whose configuration class is named like the model's."""
    prefix = next(p for p in ("DeiT", "ViT", "Wav2Vec2", "Hubert", "Whisper") if model.startswith(p))
    made = getattr(transformers, f"{prefix}Config")
    extra = {"encoder_only": model == "WhisperForAudioClassification"}
    if shape is not None:
        extra["shape"] = shape
    return Case(name, model, lambda: made(**{**values, **changes}), kind=kind, extra=extra)


def image(name: str, model: str, **changes: Any) -> Case:
    return case(name, model, "image", IMAGE, **changes)


def wave(name: str, model: str, **changes: Any) -> Case:
    return case(name, model, "wave", WAVE, **changes)


def mel(name: str, model: str, **changes: Any) -> Case:
    return case(name, model, "mel", MEL, **changes)


IMAGES = [
    image("vit", "ViTModel"),
    image("vit", "ViTForImageClassification"),
    image("vit-wide", "ViTForImageClassification", image_size=[32, 48], patch_size=[8, 16], shape=(3, 32, 48)),
    image("vit-uneven", "ViTModel", image_size=[37, 50], patch_size=[9, 12], shape=(3, 37, 50)),
    image("vit-grey", "ViTModel", num_channels=1, shape=(1, 32, 32)),
    image("vit-no-bias", "ViTForImageClassification", qkv_bias=False, hidden_act="gelu_new", layer_norm_eps=1e-6),
    image("vit-pooler", "ViTModel", pooler_output_size=20, pooler_act="relu", hidden_act="relu"),
    image("deit", "DeiTModel"),
    image("deit", "DeiTForImageClassification"),
    image("deit", "DeiTForImageClassificationWithTeacher"),
    image("deit-wide", "DeiTForImageClassificationWithTeacher", image_size=[16, 48], shape=(3, 16, 48), qkv_bias=False),
]
WAVES = [
    wave("wav2vec2", "Wav2Vec2Model"),
    wave("wav2vec2", "Wav2Vec2ForCTC"),
    wave("wav2vec2", "Wav2Vec2ForSequenceClassification"),
    wave("wav2vec2", "Wav2Vec2ForAudioFrameClassification"),
    wave("wav2vec2-mixed", "Wav2Vec2ForSequenceClassification", use_weighted_layer_sum=True),
    wave("wav2vec2-mixed", "Wav2Vec2ForAudioFrameClassification", use_weighted_layer_sum=True),
    wave("wav2vec2-stable", "Wav2Vec2Model", **STABLE),
    wave("wav2vec2-stable", "Wav2Vec2ForCTC", **STABLE),
    wave("wav2vec2-stable", "Wav2Vec2ForSequenceClassification", **STABLE),
    wave("wav2vec2-stable", "Wav2Vec2ForAudioFrameClassification", **STABLE),
    wave("wav2vec2-stable-group", "Wav2Vec2ForCTC", do_stable_layer_norm=True, conv_bias=True),
    wave("wav2vec2-post-layer", "Wav2Vec2ForCTC", feat_extract_norm="layer", layer_norm_eps=1e-3),
    wave("wav2vec2-odd", "Wav2Vec2ForCTC", num_conv_pos_embeddings=15, num_conv_pos_embedding_groups=2),
    wave("wav2vec2-activations", "Wav2Vec2ForCTC", hidden_act="relu", feat_extract_activation="silu", **STABLE),
    wave("wav2vec2-short", "Wav2Vec2ForCTC", conv_dim=[16, 12], conv_kernel=[7, 4], conv_stride=[3, 2], shape=(300,)),
    wave("hubert", "HubertModel"),
    wave("hubert", "HubertForCTC"),
    wave("hubert", "HubertForSequenceClassification"),
    wave("hubert-mixed", "HubertForSequenceClassification", use_weighted_layer_sum=True),
    wave("hubert-stable", "HubertModel", **STABLE),
    wave("hubert-stable", "HubertForCTC", **STABLE),
    wave("hubert-no-norm", "HubertForCTC", feat_proj_layer_norm=False),
    wave("hubert-no-norm-stable", "HubertModel", feat_proj_layer_norm=False, **STABLE),
]
MELS = [
    mel("whisper", "WhisperModel"),
    mel("whisper", "WhisperForConditionalGeneration"),
    mel("whisper", "WhisperForAudioClassification"),
    mel("whisper-mixed", "WhisperForAudioClassification", use_weighted_layer_sum=True),
    mel("whisper-untied", "WhisperForConditionalGeneration", tie_word_embeddings=False),
    mel(
        "whisper-unequal",
        "WhisperForConditionalGeneration",
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=8,
        decoder_attention_heads=2,
        encoder_ffn_dim=40,
        decoder_ffn_dim=24,
        num_mel_bins=16,
        max_source_positions=13,
        shape=(16, 26),
    ),
    mel("whisper-relu", "WhisperForConditionalGeneration", activation_function="relu", scale_embedding=True),
]
