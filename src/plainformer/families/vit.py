"""ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021): an image as a sentence of patches; encoder, pre-norm.

A DeiT carries a second token beside the class token, which was trained to answer as a teacher does; the two answers are
averaged.
"""

from __future__ import annotations

from plainformer.checkpoint.rows import Reshape, Row, WeightTable, ignore, linear, linears, row
from plainformer.config import HeadConfig, ModelConfig, NormConfig, PatchFrontend, StackConfig
from plainformer.config.initial import FirstWeights, constant, truncated
from plainformer.config.parts import BICUBIC, ImageDefaults
from plainformer.families.encoder_line import dropout
from plainformer.families.first import deviation, usual
from plainformer.families.heads import Head, classifier
from plainformer.families.hf_config import HfConfig


def encoder(source: HfConfig) -> StackConfig:
    """Patches and layers. `encoder_stride` belongs to masked image modelling alone."""
    return StackConfig(
        frontend=PatchFrontend(
            image_size=source.pair("image_size", default=224),
            patch_size=source.pair("patch_size", default=16),
            channels=source.integer("num_channels", default=3),
            class_tokens=2 if source.text("model_type", default="vit") == "deit" else 1,
        ),
        **source.stack_sizes(),
        norm=NormConfig(eps=source.number("layer_norm_eps", default=1e-12)),
        norm_place="pre",
        final_norm="norm",
        qkv_bias=source.flag("qkv_bias", default=True),
        dropout=dropout(source, default=0.0),
    )


def _pooler(source: HfConfig, stack: StackConfig) -> HeadConfig:
    return HeadConfig(
        pick="first",
        transform_size=source.integer("pooler_output_size", default=stack.hidden_size),
        transform_activation=source.activation("pooler_act", default="tanh"),
    )


def _classes(source: HfConfig, stack: StackConfig) -> HeadConfig:
    """Two answers where the architecture is named `...WithTeacher`."""
    taught = any(name.endswith("WithTeacher") for name in source.texts("architectures"))
    return classifier(source, "image", "first_two" if taught else "first")


def _class_rows(config: ModelConfig) -> list[Row]:
    if config.head.pick == "first_two":
        return [*linear("cls_classifier", "head.out"), *linear("distillation_classifier", "head.distilled")]
    return linear("classifier", "head.out")


HEADS = {
    "none": Head(_pooler, lambda config: linear(f"{base_name(config)}.pooler.dense", "head.dense")),
    "image": Head(_classes, _class_rows),
}


# ViTImageProcessor and DeiTImageProcessor of transformers 5.23; a checkpoint of either family may name either.
IMAGES = (ImageDefaults("vit", size=224), ImageDefaults("deit", size=256, crop=224, resample=BICUBIC))


def config(source: HfConfig, head: str) -> ModelConfig:
    return ModelConfig("vit", encoder=encoder(source), image_defaults=IMAGES)


def base_name(config: ModelConfig) -> str:
    """Return what a checkpoint calls the base model."""
    frontend = config.main_stack.frontend
    assert isinstance(frontend, PatchFrontend)
    return "deit" if frontend.class_tokens == 2 else "vit"


LAYER = {
    ".layernorm_before": ".attention_norm",
    ".attention.attention.query": ".attention.qkv.q",
    ".attention.attention.key": ".attention.qkv.k",
    ".attention.attention.value": ".attention.qkv.v",
    ".attention.output.dense": ".attention.out",
    ".layernorm_after": ".ffn_norm",
    ".intermediate.dense": ".ffn.up",
    ".output.dense": ".ffn.down",
}
# transformers 5 renamed the modules and writes the published names; its plain state dict has the new ones.
NEW_NAMES = (
    (r"(^|\.)layers\.(\d+)\.attention\.q_proj\.", r"\1encoder.layer.\2.attention.attention.query."),
    (r"(^|\.)layers\.(\d+)\.attention\.k_proj\.", r"\1encoder.layer.\2.attention.attention.key."),
    (r"(^|\.)layers\.(\d+)\.attention\.v_proj\.", r"\1encoder.layer.\2.attention.attention.value."),
    (r"(^|\.)layers\.(\d+)\.attention\.o_proj\.", r"\1encoder.layer.\2.attention.output.dense."),
    (r"(^|\.)layers\.(\d+)\.mlp\.fc1\.", r"\1encoder.layer.\2.intermediate.dense."),
    (r"(^|\.)layers\.(\d+)\.mlp\.fc2\.", r"\1encoder.layer.\2.output.dense."),
    (r"(^|\.)layers\.(\d+)\.layernorm_", r"\1encoder.layer.\2.layernorm_"),
)


def embedding_rows(theirs: str, stack: StackConfig) -> list[Row]:
    """Patches, the tokens before them, and positions, which lead a batch axis of one in checkpoints."""
    frontend, size = stack.frontend, stack.hidden_size
    assert isinstance(frontend, PatchFrontend)
    tokens = ("cls_token", "distillation_token")[: frontend.class_tokens]
    positions = frontend.class_tokens + frontend.grid[0] * frontend.grid[1]
    return [
        *linear(f"{theirs}.patch_embeddings.projection", "encoder.frontend.patches"),
        *(
            row(f"{theirs}.{name}", f"encoder.frontend.class_tokens.{index}", op=Reshape((1, 1, size), (size,)))
            for index, name in enumerate(tokens)
        ),
        row(
            f"{theirs}.position_embeddings",
            "encoder.frontend.positions",
            op=Reshape((1, positions, size), (positions, size)),
        ),
    ]


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    """What is learned beside the patches is cut off at an absolute 2; with two tokens before them it starts as zeros."""
    std = deviation(source)
    beside = constant(0.0) if base_name(config) == "deit" else truncated(std, 2.0)
    names = ("encoder.frontend.positions", "encoder.frontend.class_tokens.*")
    return usual(source, config, dict.fromkeys(names, beside))


def table(config: ModelConfig) -> WeightTable:
    """Return one row for each tensor; the mask token and decoder of masked image modelling are known extras."""
    stack, base = config.main_stack, base_name(config)
    rows = [
        *embedding_rows(f"{base}.embeddings", stack),
        *linears(LAYER, f"{base}.encoder.layer.{{}}", "encoder.layers.{}"),
        *linear(f"{base}.layernorm", "encoder.norm"),
        *ignore("*embeddings.mask_token", f"{base}.pooler.*", "decoder.*"),
        *ignore("classifier.*", "cls_classifier.*", "distillation_classifier.*"),
    ]
    return WeightTable(tuple(rows), prefix=f"{base}.", aliases=NEW_NAMES)
