"""wav2vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021): a waveform through convolutions, then an encoder.

Two layouts: base models normalise after each sub-layer and once before the first; large ones ("stable layer norm")
normalise before each sub-layer and once after the last.
"""

from __future__ import annotations

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear, linears, row, zeros
from plainformer.config import Dropout, HeadConfig, ModelConfig, NormConfig, StackConfig, WaveFrontend
from plainformer.config.checks import require
from plainformer.config.initial import Distribution, FirstWeights, normal, share, uniform
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.first import usual
from plainformer.families.heads import AUDIO, BASE, FRAME, Head
from plainformer.families.hf_config import HfConfig

HIDDEN = "encoder.frontend.hidden"
CHANNELS, KERNELS, STRIDES = (512,) * 7, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def frontend(source: HfConfig, size: int, norm: NormConfig, stable: bool) -> WaveFrontend:
    """Convolutions, projection and convolutional positions; the norm after these is the base layout's."""
    with_norm = source.flag("feat_proj_layer_norm", default=True)
    groups = source.integer("num_conv_pos_embedding_groups", default=16)
    require(groups > 0 and size % groups == 0, f"{groups} groups of position channels do not divide {size}")
    return WaveFrontend(
        channels=source.sizes("conv_dim", CHANNELS),
        kernels=source.sizes("conv_kernel", KERNELS),
        strides=source.sizes("conv_stride", STRIDES),
        conv_bias=source.flag("conv_bias", default=False),
        conv_norm=source.text("feat_extract_norm", default="group"),  # type: ignore[arg-type]
        conv_activation=source.activation("feat_extract_activation", default="gelu"),
        projection_norm=norm if with_norm else None,
        position_kernel=source.integer("num_conv_pos_embeddings", default=128),
        position_groups=groups,
        norm=None if stable else norm,
        hidden_vector=any(
            source.probability(f"mask_{axis}_prob", default=usual) > 0
            for axis, usual in (("time", 0.05), ("feature", 0.0))
        ),
    )


def encoder(source: HfConfig) -> StackConfig:
    """Return the stack in either layout."""
    source.refuse("add_adapter", False, why="convolutions after the encoder are not known here")
    source.refuse("adapter_attn_dim", why="language adapters (MMS) are not known here")
    source.refuse("conv_pos_batch_norm", False, why="its positions are normalised over a batch, not over weights")
    stable = source.flag("do_stable_layer_norm", default=False)
    size = source.integer("hidden_size", default=768)
    norm = NormConfig(eps=source.number("layer_norm_eps", default=1e-5))
    return StackConfig(
        frontend=frontend(source, size, norm, stable),
        **source.stack_sizes(),
        norm=norm,
        norm_place="pre" if stable else "post",
        final_norm="norm" if stable else "none",
        dropout=dropout(source),
    )


def dropout(source: HfConfig) -> Dropout:
    """Return the stack's; what hides spans of its input is data augmentation (`train/specaugment.py`)."""
    hidden = source.probability("hidden_dropout", default=0.1)
    return Dropout(
        embedding=hidden,
        projection=source.probability("feat_proj_dropout"),
        attention=source.probability("attention_dropout", default=0.1),
        attention_output=hidden,
        ffn_output=hidden,
        activation=source.probability("activation_dropout", default=0.1),
        layer=source.probability("layerdrop", default=0.1),
    )


def _letters(source: HfConfig, stack: StackConfig) -> HeadConfig:
    dropout = source.probability("final_dropout", default=0.1)
    return HeadConfig("ctc", out_size=source.integer("vocab_size", default=32), dropout=dropout)


HEADS = {"none": BASE, "ctc": Head(_letters, linear("lm_head", "head.out")), "audio": AUDIO, "token": FRAME}
# Speech models classify whole recordings, and what they are pre-trained with (a quantizer of sounds) predicts no words.
ARCHITECTURES = {"ForSequenceClassification": "audio", "ForPreTraining": "none", "ForMaskedLM": "none"}
TOKENIZERS = dict.fromkeys(("wav2vec2", "wav2vec2ctc", "hubert"), TokenizerConvention("characters"))


def config(source: HfConfig, head: str) -> ModelConfig:
    """`token` scores every frame."""
    stack = encoder(source)
    return ModelConfig("wav2vec2", encoder=stack)


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    """Convolutions as He et al. 2015 have them, by their number of inputs; positions and wav2vec2's biases uniform."""
    stack, ours = config.main_stack, "encoder.frontend"
    wave = stack.frontend
    assert isinstance(wave, WaveFrontend)
    inputs = [before * kernel for before, kernel in zip((1, *wave.channels), wave.kernels, strict=False)]
    rules: dict[str, Distribution] = {
        f"{ours}.steps.{index}.conv.weight": normal((2 / count) ** 0.5) for index, count in enumerate(inputs)
    }
    # What the published code draws for them does not reach the weights, which keep PyTorch's own.
    position_inputs = stack.hidden_size // wave.position_groups * wave.position_kernel
    rules[HIDDEN] = share(1.0)
    rules[f"{ours}.positions.direction"] = uniform(position_inputs**-0.5)
    if base_name(config) == "wav2vec2":
        rules |= {f"{ours}.steps.{index}.conv.bias": uniform(count**-0.5) for index, count in enumerate(inputs)}
        rules[f"{ours}.project.*"] = uniform(wave.channels[-1] ** -0.5)
    return usual(source, config, rules)


def base_name(config: ModelConfig) -> str:
    """Return what a checkpoint calls the base model."""
    return str(config.source.get("model_type", "wav2vec2"))


LAYER = {
    ".attention.q_proj": ".attention.qkv.q",
    ".attention.k_proj": ".attention.qkv.k",
    ".attention.v_proj": ".attention.qkv.v",
    ".attention.out_proj": ".attention.out",
    ".layer_norm": ".attention_norm",
    ".feed_forward.intermediate_dense": ".ffn.up",
    ".feed_forward.output_dense": ".ffn.down",
    ".final_layer_norm": ".ffn_norm",
}
# How torch's parametrization spells what published checkpoints call weight_g and weight_v; transformers reads both.
NEW_NAMES = (
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)


def frontend_rows(base: str, frontend: WaveFrontend) -> list[Row]:
    """Convolutions with their norms, the projection, and the positions' weight as magnitude and direction."""
    convolutions, ours = f"{base}.feature_extractor.conv_layers", "encoder.frontend"
    if frontend.conv_norm == "group":
        norms = linear(f"{convolutions}.0.layer_norm", f"{ours}.steps.0.time_norm")
    else:
        norms = linear(f"{convolutions}.{{}}.layer_norm", f"{ours}.steps.{{}}.norm")
    return [
        *linear(f"{convolutions}.{{}}.conv", f"{ours}.steps.{{}}.conv"),
        *norms,
        *linear(f"{base}.feature_projection.layer_norm", f"{ours}.projection_norm"),
        *linear(f"{base}.feature_projection.projection", f"{ours}.project"),
        row(f"{base}.encoder.pos_conv_embed.conv.weight_g", f"{ours}.positions.magnitude"),
        row(f"{base}.encoder.pos_conv_embed.conv.weight_v", f"{ours}.positions.direction"),
        row(f"{base}.encoder.pos_conv_embed.conv.bias", f"{ours}.positions.bias"),
    ]


def table(config: ModelConfig) -> WeightTable:
    """Return one row for each tensor; what only pre-training reads (the quantizer) is a known extra.

    The vector of hidden frames is in no checkpoint that was exported without it, and then begins as zeros.
    """
    stack = config.main_stack
    assert isinstance(stack.frontend, WaveFrontend)
    base = base_name(config)
    norm = "encoder.frontend.norm" if stack.norm_place == "post" else "encoder.norm"
    rows = [
        *frontend_rows(base, stack.frontend),
        *linear(f"{base}.encoder.layer_norm", norm),
        *linears(LAYER, f"{base}.encoder.layers.{{}}", "encoder.layers.{}"),
        row(f"{base}.masked_spec_embed", HIDDEN),
        *zeros(HIDDEN),
        *ignore("*masked_spec_embed", "quantizer.*", "project_q.*", "project_hid.*"),
        *ignore("lm_head.*", "projector.*", "classifier.*", "layer_weights"),
    ]
    return WeightTable(tuple(rows), prefix=f"{base}.", aliases=NEW_NAMES)
