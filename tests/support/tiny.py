"""Tiny checkpoints with random weights, made in milliseconds and without the reference library, for tests of what
stands above the model: tasks, the command line, explain, info.

`save(name, folder)` writes the checkpoint of that name (see CHECKPOINTS): config.json, model.safetensors, tokenizer or
preprocessor. Answers are random but the same every time.
"""

from __future__ import annotations

import json
import string
import struct
import wave
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from plainformer.families import config_from_dict
from plainformer.loading import save_model
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "ran", "and", "is", "good", "bad", "what", "who", "paris", "of"]
WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *string.ascii_lowercase, *string.digits, *".,!?'-"]
WORDPIECES += [f"##{letter}" for letter in string.ascii_lowercase]
BYTES = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase]
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
BERT = dict(
    SIZES, model_type="bert", vocab_size=len(WORDPIECES), max_position_embeddings=40, type_vocab_size=2, pad_token_id=0
)
LABELS = {"id2label": {"0": "negative", "1": "neutral", "2": "positive"}}
TAGS = {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}}
BYTE_IDS = dict(vocab_size=len(BYTES), pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA = dict(SIZES, **BYTE_IDS, model_type="llama", num_key_value_heads=2, tie_word_embeddings=True)
GPT2 = dict(BYTE_IDS, model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=48)
BART = dict(
    BYTE_IDS,
    model_type="bart",
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=64,
    decoder_start_token_id=2,
    is_encoder_decoder=True,
)
VIT = dict(SIZES, model_type="vit", image_size=32, patch_size=8, num_channels=3)
WAVE = dict(
    SIZES,
    model_type="wav2vec2",
    vocab_size=len(LETTERS),
    conv_dim=[16, 16, 16],
    conv_kernel=[10, 8, 4],
    conv_stride=[5, 4, 4],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    classifier_proj_size=16,
    pad_token_id=0,
)

# name → (config.json, what reads or writes text)
CHECKPOINTS: dict[str, tuple[dict[str, Any], str]] = {
    "embedding": ({**BERT, "architectures": ["BertModel"]}, "wordpiece"),
    "fill-mask": ({**BERT, "architectures": ["BertForMaskedLM"]}, "wordpiece"),
    "text-classification": ({**BERT, **LABELS, "architectures": ["BertForSequenceClassification"]}, "wordpiece"),
    "token-classification": ({**BERT, **TAGS, "architectures": ["BertForTokenClassification"]}, "wordpiece"),
    "question-answering": ({**BERT, "architectures": ["BertForQuestionAnswering"]}, "wordpiece"),
    "multiple-choice": ({**BERT, "architectures": ["BertForMultipleChoice"]}, "wordpiece"),
    "text-generation": ({**GPT2, "architectures": ["GPT2LMHeadModel"]}, "bytes"),
    "chat": ({**LLAMA, "architectures": ["LlamaForCausalLM"]}, "chat"),
    "text2text": ({**BART, "architectures": ["BartForConditionalGeneration"]}, "bytes"),
    "image-classification": ({**VIT, **LABELS, "architectures": ["ViTForImageClassification"]}, "image"),
    "image-embedding": ({**VIT, "architectures": ["ViTModel"]}, "image"),
    "speech": ({**WAVE, "architectures": ["Wav2Vec2ForCTC"]}, "letters"),
    "audio-embedding": ({**WAVE, "architectures": ["Wav2Vec2Model"]}, "audio"),
    "audio-classification": ({**WAVE, **LABELS, "architectures": ["Wav2Vec2ForSequenceClassification"]}, "audio"),
}


def save(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write the checkpoint of that name, its config.json changed by `changes`; returns the folder."""
    raw, kind = CHECKPOINTS[name]
    model = initialise(Transformer(config_from_dict({**raw, **changes})), seed=seed, std=0.4).eval()
    save_model(model, folder)
    _WRITERS[kind](folder)
    return folder


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _wordpiece(folder: Path) -> None:
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDPIECES)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    ends = [(token, WORDPIECES.index(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    made.add_special_tokens([AddedToken(token, special=True) for token in roles.values()])
    made.save(str(folder / "tokenizer.json"))
    _write(folder, "tokenizer_config.json", {f"{role}_token": token for role, token in roles.items()})


def _bytes(folder: Path, **more: Any) -> None:
    """Every text is tokens, one for each byte."""
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(BYTES)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in BYTES[:3]])
    made.save(str(folder / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    _write(folder, "tokenizer_config.json", {**roles, **more})


def _chat(folder: Path) -> None:
    _bytes(folder, chat_template=CHAT_TEMPLATE)


def _letters(folder: Path) -> None:
    _write(folder, "vocab.json", {letter: i for i, letter in enumerate(LETTERS)})
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(folder, "tokenizer_config.json", {**roles, "tokenizer_class": "Wav2Vec2CTCTokenizer"})
    _audio(folder)


def _audio(folder: Path) -> None:
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    _write(folder, "preprocessor_config.json", settings)


def _image(folder: Path) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    _write(folder, "preprocessor_config.json", settings)


_WRITERS = {
    "wordpiece": _wordpiece,
    "bytes": _bytes,
    "chat": _chat,
    "letters": _letters,
    "image": _image,
    "audio": _audio,
}


def write_png(path: Path, width: int = 40, height: int = 30) -> Path:
    """A picture with a gradient."""
    from PIL import Image

    picture = Image.new("RGB", (width, height))
    picture.putdata([(x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256) for y in range(height) for x in range(width)])
    picture.save(path)
    return path


def write_wav(path: Path, samples: int = 4000, rate: int = 16000) -> Path:
    """A tone that rises."""
    time = torch.arange(samples) / rate
    values = (torch.sin(2 * torch.pi * (200 + 2000 * time) * time) * 20000).to(torch.int16).tolist()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{samples}h", *values))
    return path
