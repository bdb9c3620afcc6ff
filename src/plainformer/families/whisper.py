"""Whisper (Radford et al. 2022): a log-mel spectrogram's encoder and a decoder of words, both pre-norm."""

from __future__ import annotations

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear, linears, row, zeros
from plainformer.config import Frontend, MelFrontend, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.heads import AUDIO, BASE, words
from plainformer.families.hf_config import HfConfig

HEADS = {
    "none": BASE,
    "seq2seq_lm": words("seq2seq_lm", [row("proj_out.weight", "head.out.weight")], out_bias=False),
    "audio": AUDIO,
}
OUT_TIED = (("head.out.weight", "decoder.frontend.tokens.weight"),)
TOKENIZERS = {
    "whisper": TokenizerConvention(
        "byte-level BPE",
        single="<|startoftranscript|> <|notimestamps|> $A {eos}",
        pair="<|startoftranscript|> <|notimestamps|> $A $B:1 {eos}:1",
    )
}


def stack(source: HfConfig, side: str, frontend: Frontend) -> StackConfig:
    """One side, "encoder" or "decoder". The reference reads no epsilon: 1e-5 is fixed."""
    decodes = side == "decoder"
    return StackConfig(
        frontend=frontend,
        hidden_size=source.integer("d_model", default=384),
        num_layers=source.integer(f"{side}_layers", default=4),
        num_heads=source.integer(f"{side}_attention_heads", default=6),
        ffn_size=source.integer(f"{side}_ffn_dim", default=1536),
        activation=source.activation("activation_function", default="gelu"),
        norm=NormConfig(eps=1e-5),
        norm_place="pre",
        final_norm="norm",
        direction="causal" if decodes else "both",
        cross_attention=decodes,
    )


def config(source: HfConfig, head: str) -> ModelConfig:
    """config.json → ModelConfig. `scale_embedding` is not read: the reference (transformers 5.23) never applies it."""
    sound = MelFrontend(
        mels=source.integer("num_mel_bins", default=80),
        max_positions=source.integer("max_source_positions", default=1500),
    )
    text = TokenFrontend(
        vocab_size=source.integer("vocab_size", default=51865),
        embedding_size=source.integer("d_model", default=384),
        positions="learned",
        max_positions=source.integer("max_target_positions", default=448),
    )
    tied = OUT_TIED if head == "seq2seq_lm" and source.flag("tie_word_embeddings", default=True) else ()
    encoder = stack(source, "encoder", sound)
    decoder = stack(source, "decoder", text) if head != "audio" else None  # a classifier hears and does not speak
    return ModelConfig("whisper", encoder=encoder, decoder=decoder, tied=tied, decoder_start_id=50257)


def attention_rows(theirs: str, ours: str, q: str, kv: str) -> list[Row]:
    """Keys have no bias in the checkpoint (it would change no probability); ours is zero."""
    return [
        *linear(f"{theirs}.q_proj", f"{ours}.{q}"),
        row(f"{theirs}.k_proj.weight", f"{ours}.{kv}.k.weight"),
        *zeros(f"{ours}.{kv}.k.bias"),
        *linear(f"{theirs}.v_proj", f"{ours}.{kv}.v"),
        *linear(f"{theirs}.out_proj", f"{ours}.out"),
    ]


def side_rows(base: str, side: str) -> list[Row]:
    """The layers and final norm of one side; the encoder has no cross-attention, so those rows are passed over."""
    theirs, ours = f"{base}{side}.layers.{{}}", f"{side}.layers.{{}}"
    pairs = {
        ".self_attn_layer_norm": ".attention_norm",
        ".encoder_attn_layer_norm": ".cross_norm",
        ".fc1": ".ffn.up",
        ".fc2": ".ffn.down",
        ".final_layer_norm": ".ffn_norm",
    }
    return [
        *attention_rows(f"{theirs}.self_attn", f"{ours}.attention", "qkv.q", "qkv"),
        *linears(pairs, theirs, ours),
        *linear(f"{base}{side}.layer_norm", f"{side}.norm"),
    ]


def table(config: ModelConfig) -> WeightTable:
    """One row for each tensor. A classifier's checkpoint puts nothing before the encoder's names."""
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
        *attention_rows("model.decoder.layers.{}.encoder_attn", "decoder.layers.{}.cross", "q", "kv"),
        *ignore("proj_out.*", "projector.*", "classifier.*", "layer_weights"),
    ]
    return WeightTable(tuple(rows), prefix="model.")
