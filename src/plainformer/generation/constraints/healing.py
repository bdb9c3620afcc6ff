"""Token healing: a prompt's last tokens are taken back, and the model writes their text again, on its own terms.

A prompt that ends in "http:" ends in the token ":", and a model has hardly ever seen "//" follow that: in its training
text "://" was one token. So the ":" is taken back, and the first new token must begin with it (or be its beginning).

Source: guidance (Lundberg 2023, "The Art of Prompt Design: Prompt Boundaries and Token Healing"); how far to go back is
decided as by `chop_tokens` in its toktrie (llguidance 0.7), in whole tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from plainformer.config.values import check_whole
from plainformer.errors import UsageError
from plainformer.generation.processors.context import Context


class TokenIndex:
    """Finds tokens by the beginning of their bytes. Sorts the vocabulary once: keep it.

    Args:
        tokens: the bytes of each id; b"" where an id has none.
        special_ids: ids that are not text: never found.
    """

    def __init__(self, tokens: Sequence[bytes], special_ids: Iterable[int] = ()) -> None:
        self.tokens = tuple(tokens)
        self.special_ids = frozenset(special_ids)
        texts = [(text, i) for i, text in enumerate(self.tokens) if text and i not in self.special_ids]
        texts.sort()
        self._texts = [text for text, _ in texts]
        self._ids = [i for _, i in texts]

    def beginning_with(self, start: bytes) -> list[int]:
        """Return ids of the tokens that begin with `start`, itself included."""
        return self._ids[self._place(start) : self._place(_successor(start))]

    def extends(self, start: bytes) -> bool:
        """Whether a token begins with `start` and is longer."""
        return self._place(start + b"\0") < self._place(_successor(start))

    def that_begin(self, text: bytes) -> list[int]:
        """Return ids of the tokens that are shorter than a text and begin it: those that write it in pieces."""
        parts = (text[:length] for length in range(1, len(text)))
        return [i for part in parts for i in self._ids[self._place(part) : self._place(part + b"\0")]]

    def text(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that ids write; special tokens write none."""
        known = range(len(self.tokens))
        return b"".join(self.tokens[i] for i in ids if i in known and i not in self.special_ids)

    def _place(self, text: bytes) -> int:
        return bisect_left(self._texts, text)


def _successor(start: bytes) -> bytes:
    """Return the first byte string that sorts after everything that begins with `start`."""
    kept = start.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\xff" * (1 << 10)


def heal(prompt_ids: Sequence[int], index: TokenIndex, *, most: int = 4) -> tuple[list[int], bytes]:
    """Take back the prompt's last tokens, as many as a longer token could replace.

    Args:
        prompt_ids: one prompt, special tokens included.
        index: the vocabulary.
        most: at most this many tokens. The first token and special tokens always stay.

    Returns:
        The shorter prompt, and the bytes that were taken back: whole characters. The prompt itself and b"" where no
        token begins with the text of the last tokens and is longer.
    """
    check_whole("most", most)
    ids = list(prompt_ids)
    best, text = 0, b""
    for count in range(1, min(most, len(ids) - 1) + 1):
        own = index.text([ids[-count]])
        if not own:
            break
        text = own + text
        is_whole_text = text.decode(errors="ignore").encode() == text
        if is_whole_text and index.extends(text):
            best = count
    kept = len(ids) - best
    return ids[:kept], index.text(ids[kept:])


class Heal:
    """A processor: new tokens write what `heal` took back, before anything else.

    It bans what contradicts that, the end of the text included, until it is written; then it changes nothing. A token
    may go beyond it, and that is the point. Rows are told apart by their prompts.

    Args:
        index: the vocabulary.
        prompts: (ids, bytes) as `heal` returns them, of all prompts that are generated for; one that is missing here is
            left alone.

    Raises:
        UsageError: two prompts are the same without what was taken back from them, and that differs.
    """

    name = "token_healing"

    def __init__(self, index: TokenIndex, prompts: Iterable[tuple[Sequence[int], bytes]]) -> None:
        self.index = index
        self._taken: dict[tuple[int, ...], bytes] = {}
        for ids, taken in prompts:
            if self._taken.setdefault(tuple(ids), taken) != taken:
                raise UsageError(
                    f"two prompts differ in their healed ends alone: {taken!r} and {self._taken[tuple(ids)]!r}",
                    "generate for them one by one, or without healing",
                )
        self._longest = max((len(taken) for taken in self._taken.values()), default=0)

    def taken(self, context: Context) -> list[bytes]:
        """Return what was taken back from the prompt of each row."""
        values = set(self._taken.values())
        if len(values) == 1 and not any(values):
            return [b""] * len(context.ids)
        ends = (len(row) - context.step for row in context.rows)
        return [self._taken.get(tuple(row[:end]), b"") for row, end in zip(context.rows, ends, strict=True)]

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        if context.step >= self._longest:  # each token writes a byte at least
            return logits_RV
        rests = [self._rest(taken, row) for taken, row in zip(self.taken(context), context.new_rows, strict=True)]
        if not any(rests):
            return logits_RV
        banned_RV = torch.zeros(logits_RV.shape, dtype=torch.bool)
        for row, rest in enumerate(rests):
            if rest:
                ids = [*self.index.that_begin(rest), *self.index.beginning_with(rest)]
                banned_RV[row] = True
                banned_RV[row, [i for i in ids if i < logits_RV.size(-1)]] = False
        return logits_RV.masked_fill(banned_RV.to(logits_RV.device), float("-inf"))

    def _rest(self, taken: bytes, new: Sequence[int]) -> bytes:
        """Return what is still to be written; b"" for a row that deviated from it: its score is -inf already."""
        text = self.index.text(new) if taken else b""
        return taken[len(text) :] if taken.startswith(text) else b""
