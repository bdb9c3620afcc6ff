"""Whisper (Radford et al. 2022): a log-mel spectrogram's encoder and a decoder of words, both pre-norm."""

from __future__ import annotations

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear, linears, row, zeros
from plainformer.config import MelFrontend, ModelConfig, TokenFrontend
from plainformer.config.initial import SINUSOIDS, FirstWeights
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.first import usual
from plainformer.families.heads import AUDIO, BASE, words
from plainformer.families.hf_config import HfConfig
from plainformer.families.seq2seq_line import ALIASES as LINE_ALIASES
from plainformer.families.seq2seq_line import CROSS, LAYER, stack

SIZES = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}
DEFAULTS = {
    "d_model": 384,
    "decoder_start_token_id": 50257,
    "dropout": 0.0,
    **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIZES.items()},
}
ALIASES = {**LINE_ALIASES, "num_key_value_heads": "encoder_attention_heads"}
HEADS = {
    "none": BASE,
    "seq2seq_lm": words("seq2seq_lm", [row("proj_out.weight", "head.out.weight")], out_bias=False),
    "audio": AUDIO,
}
# The encoder's sinusoids, and the biases of keys, which change no probability and are in no checkpoint.
FIXED = ("encoder.frontend.positions", "*.qkv.k.bias", "*.kv.k.bias")
OUT_TIED = (("head.out.weight", "decoder.frontend.tokens.weight"),)
TOKENIZERS = {
    "whisper": TokenizerConvention(
        "byte-level BPE",
        single="<|startoftranscript|> <|notimestamps|> $A {eos}",
        pair="<|startoftranscript|> <|notimestamps|> $A $B:1 {eos}:1",
    )
}


def config(source: HfConfig, head: str) -> ModelConfig:
    """`scale_embedding` is not read: transformers 5.23 never applies it."""
    sound = MelFrontend(
        mels=source.integer("num_mel_bins", default=80),
        max_positions=source.integer("max_source_positions", default=1500),
    )
    text = TokenFrontend(
        vocab_size=source.integer("vocab_size", default=51865),
        embedding_size=source.integer("d_model"),
        positions="learned",
        max_positions=source.integer("max_target_positions", default=448),
    )
    tied = OUT_TIED if head == "seq2seq_lm" and source.flag("tie_word_embeddings", default=True) else ()
    layers = {"norm_place": "pre", "final_norm": "norm"}
    encoder = stack(source, "encoder", sound, **layers)
    decoder = stack(source, "decoder", text, **layers) if head != "audio" else None  # a classifier has no decoder
    return ModelConfig("whisper", encoder=encoder, decoder=decoder, tied=tied, fixed=FIXED)


def side_rows(base: str, side: str) -> list[Row]:
    """Return the rows of one side. Keys have no bias in checkpoints (it would change no probability); ours is zero."""
    ours, decodes = f"{side}.layers.{{}}", side == "decoder"
    layer = linears({**LAYER, **CROSS} if decodes else LAYER, f"{base}{side}.layers.{{}}", ours)
    return [
        *(r for r in layer if not r.theirs.endswith("k_proj.bias")),
        *zeros(f"{ours}.attention.qkv.k.bias", *([f"{ours}.cross.kv.k.bias"] if decodes else ())),
        *linear(f"{base}{side}.layer_norm", f"{side}.norm"),
    ]


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    return usual(source, config, {"encoder.frontend.positions": SINUSOIDS})


def table(config: ModelConfig) -> WeightTable:
    """A classifier's checkpoint puts nothing before the encoder's names."""
    base = "" if config.head.kind == "audio" else "model."
    rows = [
        *linear(f"{base}encoder.conv1", "encoder.frontend.conv1"),
        *linear(f"{base}encoder.conv2", "encoder.frontend.conv2"),
        row(f"{base}encoder.embed_positions.weight", "encoder.frontend.positions"),
        *side_rows(base, "encoder"),
    ]
    if config.head.kind == "audio":
        rows += ignore("decoder.*", "proj_out.*")
        return WeightTable(tuple(rows), aliases=((r"^model\.", ""),))
    rows += [
        row("model.decoder.embed_tokens.weight", "decoder.frontend.tokens.weight"),
        row("model.decoder.embed_positions.weight", "decoder.frontend.positions.weight"),
        *side_rows(base, "decoder"),
        *ignore("proj_out.*", "projector.*", "classifier.*", "layer_weights"),
    ]
    return WeightTable(tuple(rows), prefix="model.")
