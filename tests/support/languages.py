"""Tiny multilingual models, each with its tokenizer in the files that it is published with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from tests.support import models as make
from tests.support.sentencepiece import train

# The tokenizer's class, the model's, and three languages.
KINDS = {
    "nllb": ("NllbTokenizer", "M2M100", ("eng_Latn", "deu_Latn", "fra_Latn")),
    "m2m": ("M2M100Tokenizer", "M2M100", ("en", "de", "fr")),
    "mbart": ("MBartTokenizer", "MBart", ("en_XX", "de_DE", "fr_XX")),
    "mbart50": ("MBart50Tokenizer", "MBart", ("en_XX", "de_DE", "fr_XX")),
}
FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}


def language_folders(root: Path) -> dict[str, Path]:
    """A folder for each kind."""
    spm = {kind: train(root / f"{kind}.model", model_type=kind, **FAIRSEQ) for kind in ("bpe", "unigram")}
    return {kind: _folder(root / kind, kind, spm["bpe" if kind == "nllb" else "unigram"]) for kind in KINDS}


def _folder(folder: Path, kind: str, spm: Path) -> Path:
    import sentencepiece

    tokenizer_class, model_class, languages = KINDS[kind]
    folder.mkdir()
    (folder / "sentencepiece.bpe.model").write_bytes(spm.read_bytes())
    stated: dict[str, Any] = {"tokenizer_class": tokenizer_class}
    if kind == "nllb":
        stated["additional_special_tokens"] = list(languages)
    if kind == "m2m":
        processor = sentencepiece.SentencePieceProcessor(str(spm))
        words = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
        vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = getattr(transformers, tokenizer_class).from_pretrained(folder)
    if kind != "m2m":
        (folder / "sentencepiece.bpe.model").unlink()
        tokenizer.save_pretrained(folder)
    size = len(tokenizer) + (100 if kind == "m2m" else 0)  # its length there leaves out the languages
    config = getattr(transformers, f"{model_class}Config")(
        **make.SEQ2SEQ, vocab_size=size, decoder_start_token_id=2, forced_eos_token_id=None
    )
    make.save_model(folder, f"{model_class}ForConditionalGeneration", config)
    return folder
