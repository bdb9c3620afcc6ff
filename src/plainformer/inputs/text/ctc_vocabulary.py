"""The output vocabulary of a speech model trained with CTC (Graves et al. 2006): frames' ids → text.

wav2vec 2.0 and HuBERT checkpoints keep it in vocab.json (a token is a character, "|" means a space) and say in
tokenizer_config.json how to write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from plainformer.errors import CheckpointError

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer

# What transformers calls cleaning up (5.23, `clean_up_tokenization`), in its order.
_CLEANUP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(frozen=True)
class CtcVocabulary:
    """Writes a clip's text from the best id of each frame.

    Attributes:
        tokens: text of each id. blank_id: the pad token, which separates repeated characters and is not written.
        delimiter: the token that ends a word, or None. space: what is written for it.
        lowercase: write lower case. cleanup: no space before punctuation.
    """

    tokens: tuple[str, ...]
    blank_id: int
    delimiter: str | None = "|"
    space: str = " "
    lowercase: bool = False
    cleanup: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> CtcVocabulary:
        """Return the vocabulary of a tokenizer, written as `settings`, for example its tokenizer_config.json.

        Raises:
            CheckpointError: there is no pad token, which is the blank.
        """
        if tokenizer.pad_id is None:
            raise CheckpointError(
                "the tokenizer has no pad token, the blank of CTC", "name it in tokenizer_config.json"
            )
        return cls(
            tokens=tuple(tokenizer.id_to_token(i) or "" for i in range(tokenizer.vocab_size)),
            blank_id=tokenizer.pad_id,
            delimiter=settings.get("word_delimiter_token", "|"),
            space=settings.get("replace_word_delimiter_char", " "),
            lowercase=bool(settings.get("do_lower_case", False)),
            cleanup=bool(settings.get("clean_up_tokenization_spaces", False)),
        )

    def text(self, frame_ids: Sequence[int]) -> str:
        """Repeats joined, blanks dropped: h h _ e l _ l o → hello. Ids beyond the vocabulary have no text."""
        return self.written([i for i, _ in groupby(frame_ids) if i != self.blank_id])

    def written(self, ids: Sequence[int]) -> str:
        """Return the text of ids among which no blanks and no repeats of one frame are left."""
        pieces = [self.tokens[i] if i < len(self.tokens) else "" for i in ids]
        text = "".join(self.space if piece == self.delimiter else piece for piece in pieces).strip()
        text = text.lower() if self.lowercase else text
        for before, after in _CLEANUP if self.cleanup else ():
            text = text.replace(before, after)
        return text
