"""Small SentencePiece models, trained offline, in the layouts that the families use."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

STEMS = """
    the a of and to in is was for with model token word sentence language text learn train small large café
    Straße naïve über über-alles hello world Hello World tokenization wordings quoted lower caps three spaces
    日本語 テキスト привет мир 1,000 42 2024 x1 (aside) end. yes, no! really? it's don't
"""

TEXTS = [
    "",
    " ",
    "Hello world",
    " leading space",
    "trailing space ",
    "two  spaces   three",
    "a\tb\nc\r\nd",
    "naïve café, coöperate! ﬁne ½ Å",
    "Straße – Ünïcödé",
    "日本語のテキスト and English",
    "😀 emoji 👩‍👩‍👧 family",
    "unseen: ☃ ж щ 漢",
    "``quoted'' text's 1,000,000 9,",
    "<s> is not special </s>",
    "ALL CAPS lower MiXeD",
    "e\u0301 combining",
    "hello.world(x)",
    "tokenization of words and wordings",
]


def corpus() -> list[str]:
    """A few thousand sentences over a small vocabulary with several scripts."""
    rng = random.Random(0)
    stems = STEMS.split()
    return [" ".join(rng.choice(stems) for _ in range(rng.randint(3, 12))) for _ in range(3000)]


def train(path: Path, **options: Any) -> Path:
    """Train a model at `path` (".model" is its ending) and return the path."""
    import sentencepiece

    settings: dict[str, Any] = {
        "vocab_size": 400,
        "character_coverage": 0.9995,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 1,
        **options,
    }
    with path.open("wb") as target:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=target, **settings)
    return path


def write_two_sides(folder: Path, **config: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Write Marian's files with a vocabulary for each side; return both. As in published ones they share </s> and <unk>."""
    import sentencepiece

    vocabularies = []
    for side, ids, size in (("source", "vocab.json", 95), ("target", "target_vocab.json", 340)):
        path = train(folder / f"{side}.spm", vocab_size=size, unk_id=0, bos_id=-1, eos_id=1)
        processor = sentencepiece.SentencePieceProcessor(str(path))
        words = [processor.id_to_piece(i) for i in range(2, processor.get_piece_size())]
        listed = ["</s>", "<unk>", *(words if side == "source" else reversed(words)), "<pad>"]
        vocabularies.append({piece: i for i, piece in enumerate(listed)})
        (folder / ids).write_text(json.dumps(vocabularies[-1]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer", **config}))
    return vocabularies[0], vocabularies[1]
