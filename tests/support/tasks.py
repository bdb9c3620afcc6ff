"""Tiny random reference models with tiny tokenizers, saved as published checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import plainformer
from tests.support.parity import randomise

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
WORDS = ["the", "cat", "sat", "on", "mat", "dog", "paris", "is", "in", "france", "good", "bad", "who", "where", "##s"]
WORDPIECE = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS]
BYTE_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
BYTE_VOCABULARY = 256 + len(BYTE_SPECIAL)

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


def save_wordpiece(folder: Path, **settings: Any) -> None:
    """BERT's files: vocab.txt and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDPIECE) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def save_bytes(folder: Path, *, end: bool = False, extra: tuple[str, ...] = (), **settings: Any) -> None:
    """A tokenizer.json whose tokens are single bytes; `end` puts </s> behind every text."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*BYTE_SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*BYTE_SPECIAL, *extra])
    if end:
        backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    backend.save(str(folder / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def save_model(folder: Path, name: str, config: Any, seed: int = 0, **generation: Any) -> Any:
    """A randomised reference model, saved into the folder; `generation` goes into its generation_config.json."""
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    randomise(model, seed)
    model.tie_weights()
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    model.eval().save_pretrained(folder)
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


def load(folder: Path, **options: Any) -> Any:
    return plainformer.load(str(folder), **{"backend": "plain", **options})


def reference_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def near(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal within the tolerance."""
    found, expected = torch.as_tensor(found).float(), torch.as_tensor(expected).float()
    assert found.shape == expected.shape
    worst = (found - expected).abs().max().item() if found.numel() else 0.0
    assert worst <= tolerance * max(1.0, expected.abs().max().item()), worst


def encoded(task: Any, inputs: Any, /, **options: Any) -> Any:
    """What a task's first step makes of a batch."""
    return task.encode(inputs, task.Options(**options))


def predicted(task: Any, inputs: Any, /, **options: Any) -> Any:
    """What a task's model gives for a batch."""
    chosen = task.Options(**options)
    return task.predict(task.encode(inputs, chosen), chosen)
