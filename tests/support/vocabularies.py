"""Vocabularies of tiny checkpoints, and the files that published checkpoints keep them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
WORDS = ["the", "cat", "sat", "on", "mat", "dog", "paris", "is", "in", "france", "good", "bad", "who", "where", "a"]
WORDS += ["ran", "and", "what", "of", "##s"]
WORDPIECE = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS]
BYTE_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
BYTE_VOCABULARY = 256 + len(BYTE_SPECIAL)
CTC_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINHSRDLU'"]
ROLES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def save_json(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def save_wordpiece(folder: Path, **settings: Any) -> None:
    """BERT's files: vocab.txt and tokenizer_config.json."""
    save_json(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **settings})
    (folder / "vocab.txt").write_text("\n".join(WORDPIECE) + "\n", encoding="utf-8")


def save_bytes(folder: Path, *, end: bool = False, extra: tuple[str, ...] = (), **settings: Any) -> None:
    """A tokenizer.json whose tokens are single bytes; `end` appends </s> to every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate([*BYTE_SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*BYTE_SPECIAL, *extra])
    if end:
        backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    save_json(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **ROLES, **settings})
    backend.save(str(folder / "tokenizer.json"))


def save_chat(folder: Path) -> None:
    """Single bytes, and a chat template."""
    save_bytes(folder, chat_template=CHAT_TEMPLATE)


def save_ctc(folder: Path) -> None:
    """The letters of a CTC model: wav2vec 2.0's vocab.json."""
    save_json(folder, "vocab.json", {token: index for index, token in enumerate(CTC_TOKENS)})
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", **ROLES}
    save_json(folder, "tokenizer_config.json", settings)


def save_audio(folder: Path, *, masked: bool = False) -> None:
    """The preprocessor of a model that reads waves."""
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    save_json(folder, "preprocessor_config.json", {**settings, "return_attention_mask": masked})


def save_image(folder: Path) -> None:
    """The preprocessor of a model that reads pictures of 32 × 32."""
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    save_json(folder, "preprocessor_config.json", settings)


def save_speech(folder: Path) -> None:
    """Letters, and the preprocessor of waves."""
    save_ctc(folder)
    save_audio(folder)
