"""Makers of tiny models with random weights: the reference's, ours, and checkpoints of both on disk.

- `reference(name, config)` and `save_model(folder, name, config)`: any model of the reference library. `bert`, `gpt2`,
  `bart`, `t5`, `marian`, `wav2vec2`, `whisper` and `long_whisper` save one with its tokenizer or preprocessor.
- `save(name, folder)`: a checkpoint of ours for a task (see CHECKPOINTS), made in milliseconds and without the
  reference library: for tests of what is above the model.
- `make(name)`: a generating model of ours, in memory; `like(model, noise)`: one that nearly agrees with it.

Weights are random but the same every time. (The recorders of older releases' answers, `record_old_*`, run without this
library and fill their models themselves.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import plainformer
from plainformer.families import config_from_dict
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.saving import save_model as save_ours
from tests.support.vocabularies import (
    BYTE_VOCABULARY,
    CTC_TOKENS,
    WORDPIECE,
    save_audio,
    save_bytes,
    save_chat,
    save_ctc,
    save_image,
    save_speech,
    save_wordpiece,
)

VOCABULARY = 61  # of models that read ids, not text
TINY: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37)
SEQ2SEQ: dict[str, Any] = dict(
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=37,
    decoder_ffn_dim=37,
)

# ---- the reference's ----------------------------------------------------------------------------------------------


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that attention is not uniform and norms and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                fan_in = parameter[0].numel()
                big = any(word in name for word in ("embed", "shared", "wte", "wpe", "relative", "cls_token"))
                parameter.copy_(noise * (0.5 if big else 1.2 * fan_in**-0.5))
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.2 * noise)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
        for module in model.modules():
            if hasattr(module, "create_weight"):
                # A table of sinusoids: a parameter there, but not one that is learned.
                module.weight.copy_(module.create_weight())  # type: ignore[operator]


def reference(name: str, config: Any, seed: int = 0) -> Any:
    """A randomised reference model of that class, in evaluation mode."""
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    randomise(model, seed)
    model.tie_weights()
    return model.eval()


def save_model(folder: Path, name: str, config: Any, seed: int = 0, **generation: Any) -> Any:
    """`reference`, saved into the folder; `generation` goes into its generation_config.json."""
    model = reference(name, config, seed)
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    return model


def bert(folder: Path, name: str, **changes: Any) -> Any:
    """A BERT with its tokenizer; returns the reference model."""
    config = transformers.BertConfig(**{**TINY, "vocab_size": len(WORDPIECE), "max_position_embeddings": 40, **changes})
    model = save_model(folder, name, config)
    save_wordpiece(folder)
    return model


def gpt2(folder: Path, **changes: Any) -> Any:
    sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=BYTE_VOCABULARY)
    ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = save_model(folder, "GPT2LMHeadModel", transformers.GPT2Config(**{**sizes, **ids, **changes}))
    save_bytes(folder)
    return model


def bart(folder: Path, generation: Any = (), **changes: Any) -> Any:
    ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None)
    sizes = dict(**SEQ2SEQ, vocab_size=BYTE_VOCABULARY, max_position_embeddings=64)
    config = transformers.BartConfig(**{**sizes, **ids, **changes})
    model = save_model(folder, "BartForConditionalGeneration", config, **dict(generation))
    save_bytes(folder, end=True)
    return model


def t5(folder: Path, **changes: Any) -> Any:
    ids = dict(pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    sizes = dict(d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=BYTE_VOCABULARY)
    model = save_model(folder, "T5ForConditionalGeneration", transformers.T5Config(**{**sizes, **ids, **changes}))
    save_bytes(folder, end=True)
    return model


def marian(folder: Path, generation: Any = (), **changes: Any) -> Any:
    ids = dict(pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, forced_eos_token_id=None)
    sizes = dict(**SEQ2SEQ, vocab_size=BYTE_VOCABULARY, max_position_embeddings=64)
    config = transformers.MarianConfig(**{**sizes, **ids, **changes})
    model = save_model(folder, "MarianMTModel", config, **dict(generation))
    save_bytes(folder, end=True)
    return model


CONVOLUTIONS: dict[str, Any] = dict(
    conv_dim=[16, 12, 20],
    conv_kernel=[10, 8, 4],
    conv_stride=[5, 4, 4],
    num_feat_extract_layers=3,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    classifier_proj_size=24,
    mask_time_prob=0.0,
    mask_feature_prob=0.0,
)
STABLE: dict[str, Any] = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)


def wav2vec2(folder: Path, model: str, *, masked: bool = False, **changes: Any) -> Any:
    """A wav2vec2 or HuBERT with preprocessor and, for CTC, its tokenizer."""
    family = "Hubert" if model.startswith("Hubert") else "Wav2Vec2"
    sizes = {**TINY, **CONVOLUTIONS, "num_labels": 3, "vocab_size": len(CTC_TOKENS)}
    made = save_model(folder, model, getattr(transformers, f"{family}Config")(**{**sizes, **changes}))
    save_audio(folder, masked=masked)
    if model.endswith("CTC"):
        save_ctc(folder)
    return made


LANGUAGES = ("en", "de", "fr")
MARKS = ("<|startoftranscript|>", *(f"<|{name}|>" for name in LANGUAGES), "<|translate|>", "<|transcribe|>")


def _whisper_config(ids: dict[str, int], **changes: Any) -> Any:
    return transformers.WhisperConfig(
        **SEQ2SEQ,
        vocab_size=BYTE_VOCABULARY + len(ids),
        num_mel_bins=16,
        pad_token_id=2,
        bos_token_id=2,
        eos_token_id=2,
        decoder_start_token_id=ids[MARKS[0]],
        begin_suppress_tokens=None,
        suppress_tokens=None,
        **changes,
    )


def _multilingual(ids: dict[str, int]) -> dict[str, Any]:
    """The part of generation_config.json that only Whispers of several languages have."""
    languages = {f"<|{name}|>": ids[f"<|{name}|>"] for name in LANGUAGES}
    return {"lang_to_id": languages, "task_to_id": {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}}


def whisper(
    folder: Path, *, multilingual: bool = True, model: str = "WhisperForConditionalGeneration", **changes: Any
) -> Any:
    """A Whisper whose window is one second; special tokens follow the vocabulary, as in the published ones."""
    marks = (*MARKS, "<|notimestamps|>", "<|0.00|>", "<|0.02|>")
    ids = {mark: BYTE_VOCABULARY + place for place, mark in enumerate(marks)}
    sizes = dict(max_source_positions=50, max_target_positions=40, num_labels=3, classifier_proj_size=24)
    generation: dict[str, Any] = dict(
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=[5, 9, 31],
        begin_suppress_tokens=[2, 36],
        max_length=40,
        **(_multilingual(ids) if multilingual else {}),
    )
    writes = model.endswith("Generation")
    made = save_model(folder, model, _whisper_config(ids, **sizes, **changes), **(generation if writes else {}))
    save_bytes(folder, extra=marks)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    return made


LONG_MARKS = (*MARKS, "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
TIMES = tuple(f"<|{place * 0.02:.2f}|>" for place in range(1501))
LONG_IDS = {mark: BYTE_VOCABULARY + place for place, mark in enumerate((*LONG_MARKS, *TIMES))}
FIRST_TIME = LONG_IDS["<|0.00|>"]


def long_whisper(
    folder: Path, *, seed: int = 3, multilingual: bool = True, text: float = 1.5, times: float = 1.0, **generation: Any
) -> Any:
    """A Whisper of real proportions: windows of 30 s and all 1501 timestamps; it finds segments in `media.noise`."""
    settings: dict[str, Any] = dict(
        is_multilingual=multilingual,
        no_timestamps_token_id=LONG_IDS["<|notimestamps|>"],
        prev_sot_token_id=LONG_IDS["<|startofprev|>"],
        suppress_tokens=[5, 9, *(LONG_IDS[name] for name in LONG_MARKS)],
        begin_suppress_tokens=[2, 36],
        max_initial_timestamp_index=50,
        max_length=48,
        **(_multilingual(LONG_IDS) if multilingual else {}),
    )
    config = _whisper_config(LONG_IDS, max_source_positions=1500, max_target_positions=48)
    model = reference("WhisperForConditionalGeneration", config, seed)
    # Texts of some tokens: among 1501 timestamps one would nearly always be likelier than any text.
    embeddings = model.model.decoder.embed_tokens.weight.data
    embeddings[:FIRST_TIME] *= text
    embeddings[FIRST_TIME:] *= times
    for key, value in {**settings, **generation}.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    save_bytes(folder, extra=(*LONG_MARKS, *TIMES))
    transformers.WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    return model


def load(folder: Path, **options: Any) -> Any:
    return plainformer.load(str(folder), **{"backend": "plain", **options})


def reference_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


# ---- ours ---------------------------------------------------------------------------------------------------------

BERT = dict(
    TINY, model_type="bert", vocab_size=len(WORDPIECE), max_position_embeddings=40, type_vocab_size=2, pad_token_id=0
)
LABELS = {"id2label": {"0": "negative", "1": "neutral", "2": "positive"}}
TAGS = {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}}
BYTE_IDS = dict(vocab_size=BYTE_VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA = dict(TINY, **BYTE_IDS, model_type="llama", num_key_value_heads=2, tie_word_embeddings=True)
GPT2 = dict(BYTE_IDS, model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=48)
BART = dict(
    SEQ2SEQ,
    **BYTE_IDS,
    model_type="bart",
    max_position_embeddings=64,
    decoder_start_token_id=2,
    is_encoder_decoder=True,
)
VIT = dict(TINY, model_type="vit", image_size=32, patch_size=8, num_channels=3)
WAVE = dict(
    TINY,
    model_type="wav2vec2",
    vocab_size=len(CTC_TOKENS),
    conv_dim=[16, 16, 16],
    conv_kernel=[10, 8, 4],
    conv_stride=[5, 4, 4],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    classifier_proj_size=16,
    pad_token_id=0,
)

# name → (config.json, what reads or writes text)
CHECKPOINTS: dict[str, tuple[dict[str, Any], Callable[[Path], None]]] = {
    "embedding": ({**BERT, "architectures": ["BertModel"]}, save_wordpiece),
    "fill-mask": ({**BERT, "architectures": ["BertForMaskedLM"]}, save_wordpiece),
    "text-classification": ({**BERT, **LABELS, "architectures": ["BertForSequenceClassification"]}, save_wordpiece),
    "token-classification": ({**BERT, **TAGS, "architectures": ["BertForTokenClassification"]}, save_wordpiece),
    "question-answering": ({**BERT, "architectures": ["BertForQuestionAnswering"]}, save_wordpiece),
    "multiple-choice": ({**BERT, "architectures": ["BertForMultipleChoice"]}, save_wordpiece),
    "text-generation": ({**GPT2, "architectures": ["GPT2LMHeadModel"]}, save_bytes),
    "chat": ({**LLAMA, "architectures": ["LlamaForCausalLM"]}, save_chat),
    "text2text": ({**BART, "architectures": ["BartForConditionalGeneration"]}, save_bytes),
    "image-classification": ({**VIT, **LABELS, "architectures": ["ViTForImageClassification"]}, save_image),
    "image-embedding": ({**VIT, "architectures": ["ViTModel"]}, save_image),
    "speech": ({**WAVE, "architectures": ["Wav2Vec2ForCTC"]}, save_speech),
    "audio-embedding": ({**WAVE, "architectures": ["Wav2Vec2Model"]}, save_audio),
    "audio-classification": ({**WAVE, **LABELS, "architectures": ["Wav2Vec2ForSequenceClassification"]}, save_audio),
}


def save(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write the checkpoint of that name, its config.json changed by `changes`; returns the folder."""
    raw, write = CHECKPOINTS[name]
    model = initialise(Transformer(config_from_dict({**raw, **changes})), seed=seed, std=0.4).eval()
    save_ours(model, folder)
    write(folder)
    return folder


IDS = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ENCODER_DECODER = dict(
    SEQ2SEQ,
    max_position_embeddings=128,
    decoder_start_token_id=2,
    is_encoder_decoder=True,
)
ROPE = dict(TINY, **IDS, num_key_value_heads=2, max_position_embeddings=256)
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": dict(IDS, model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "llama": dict(ROPE, model_type="llama"),
    "qwen2": dict(ROPE, model_type="qwen2"),
    "mistral": dict(ROPE, model_type="mistral", sliding_window=8),
    "gemma2": dict(ROPE, model_type="gemma2", sliding_window=8, head_dim=8, query_pre_attn_scalar=8),
    "bart": dict(ENCODER_DECODER, **IDS, model_type="bart"),
    "t5": dict(
        IDS,
        model_type="t5",
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        is_encoder_decoder=True,
    ),
}


def make(name: str, seed: int = 0, std: float = 0.3, **changes: Any) -> Transformer:
    """The generating model of that name in CONFIGS; `changes` go into its config.json."""
    head = "ForConditionalGeneration" if CONFIGS[name].get("is_encoder_decoder") else "ForCausalLM"
    special = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}
    raw = {**CONFIGS[name], "architectures": [special.get(name, name.capitalize() + head)], **changes}
    return initialise(Transformer(config_from_dict(raw)), seed=seed, std=std).eval()


def like(model: Transformer, noise: float) -> Transformer:
    """A model that agrees with another one now and then."""
    other = Transformer(model.config).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for (_, mine), (_, theirs) in zip(other.named_parameters(), model.named_parameters(), strict=True):
            mine.copy_(theirs + noise * theirs.std() * torch.randn(theirs.shape, generator=generator))
    return other


def encoded(task: Any, inputs: Any, /, **options: Any) -> Any:
    """What a task's first step makes of a batch."""
    return task.encode(inputs, task.Options(**options))


def predicted(task: Any, inputs: Any, /, **options: Any) -> Any:
    """What a task's model gives for a batch."""
    chosen = task.Options(**options)
    return task.predict(task.encode(inputs, chosen), chosen)
