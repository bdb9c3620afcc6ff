"""Rows of tokens, and batches of them as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from plainformer.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Encoding:
    """One row of tokens; all lists have the same length.

    Attributes:
        input_ids: token ids, special tokens included.
        token_type_ids: 0 or 1, as the tokenizer's template assigns them to a pair's sequences.
        offsets: `text[start:end]` in the sequence (see sequence_ids) that the token comes from; (0, 0) for special
            tokens.
        tokens: each token as its algorithm writes it ("##ing", "▁the"); `id_to_token` gives the vocabulary's name.
        special: True for tokens that the template added.
        sequence_ids: 0 for the text, 1 for its pair, None for added special tokens.
        word_ids: which pre-token ("word") of its sequence a token belongs to; None for added special tokens.
        overflow: the further windows over the same text, only when `stride` was given.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int]]
    tokens: list[str]
    special: list[bool]
    sequence_ids: list[int | None]
    word_ids: list[int | None]
    overflow: tuple[Encoding, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    def __repr__(self) -> str:
        more = f", ... {len(self) - 12} more" if len(self) > 12 else ""
        windows = f"; {len(self.overflow)} more windows" if self.overflow else ""
        return f"Encoding({len(self)} tokens: {', '.join(self.tokens[:12])}{more}{windows})"

    def windows(self) -> tuple[Encoding, ...]:
        """Return this row and its overflow, as rows of their own, in text order."""
        return (replace(self, overflow=()), *self.overflow) if self.overflow else (self,)

    def once(self, bos_id: int | None, eos_id: int | None) -> Encoding:
        """Return the row without an added beginning or end token next to one that its text has already."""

        def twice(added: int, own: int, token_id: int | None) -> bool:
            ids, special = self.input_ids, self.special
            return special[added] and not special[own] and ids[added] == ids[own] == token_id

        size = len(self)
        first, last = (twice(0, 1, bos_id), twice(-1, -2, eos_id)) if size > 1 else (False, False)
        return self.select(range(first, size - last)) if first or last else self

    def select(self, positions: Sequence[int]) -> Encoding:
        """Return the row made of the tokens at `positions`."""
        names = (f.name for f in fields(self) if f.name != "overflow")
        columns: dict[str, Any] = {name: [getattr(self, name)[i] for i in positions] for name in names}
        return Encoding(**columns)


@dataclass(frozen=True)
class TextBatch:
    """Padded rows as int64 tensors of shape (B, T); attention_mask is 1 on tokens and 0 on padding.

    `encodings` are the rows, `counts` how many of them, in turn, are windows over one text.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor
    encodings: tuple[Encoding, ...]
    counts: tuple[int, ...]

    def __repr__(self) -> str:
        rows, width = self.input_ids.shape
        return f"TextBatch({rows} rows of {width} tokens, {int(self.attention_mask.sum())} of them not padding)"


def check_encodable(text: str, name: str) -> None:
    """Refuse a text that UTF-8 cannot encode; `name` says which one, for the message. Raises InputError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"{name} holds half a surrogate pair, {text[error.start]!r}, at position {error.start}"
        raise InputError(what, "decode the text with the right encoding, or with errors='replace'") from None
