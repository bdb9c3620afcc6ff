"""Detokenize new tokens in the context of the previous ones: at once, or piece by piece while they are generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plainformer.generation.constraints.stop_strings import HALF_A_CHARACTER, Shown, StopMatch

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer
    from plainformer.tasks.writing.prepared import Beginning


def continuation(tokenizer: Tokenizer, before: Sequence[int], new: Sequence[int]) -> str:
    """Return the text that `new` adds to `before`, without special tokens.

    Decoded together: alone, the first word of a SentencePiece vocabulary would lose the space before it.
    """
    before, new = tokenizer.known(before), tokenizer.known(new)
    context = tokenizer.decode(before, skip_special_tokens=True)
    return tokenizer.decode([*before, *new], skip_special_tokens=True)[len(context) :]


class Detokenizer:
    """The text of tokens that come one by one: `continuation`, in pieces that are never taken back.

    A piece is held back until its characters are whole. Only what follows the last piece but one is decoded again,
    so a token's cost does not grow with the text.

    Args:
        before: ids that come before and are not shown.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = tokenizer.known(before)
        self._context, self._shown = 0, len(self._ids)  # ids[context:shown] are decoded again with what follows them

    def push(self, *tokens: int) -> str:
        """Return the text that became whole with these tokens; "" where none did."""
        self._ids.extend(self._tokenizer.known(tokens))
        new = self._new()
        if not new or new.endswith(HALF_A_CHARACTER):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return new

    def end(self) -> str:
        """Return what is left: half a character is one that cannot be shown."""
        return self._new()

    def _new(self) -> str:
        known = self._tokenizer.decode(self._ids[self._context : self._shown], skip_special_tokens=True)
        return self._tokenizer.decode(self._ids[self._context :], skip_special_tokens=True)[len(known) :]


class AnswerText:
    """The text of an answer while its tokens come: whole characters, up to a stop string; joined, the answer's `text`.

    Args:
        beginning: what the answer continues, and begins with. strings: its stop strings.
    """

    def __init__(self, tokenizer: Tokenizer, beginning: Beginning, strings: Sequence[str]) -> None:
        self._beginning = beginning
        self._written = Detokenizer(tokenizer, beginning.before)
        self._shown = Shown(strings, skip=beginning.repeated)

    def begin(self) -> str:
        """Return what the answer begins with before any token."""
        begun = self._beginning.begun
        return self._beginning.lead + (self._shown.push(self._written.push(*begun)) if begun else "")

    def push(self, token: int) -> str:
        """Return the text that can be shown now that a token has come."""
        return self._shown.push(self._written.push(token))

    def end(self) -> str:
        """Return the rest, now that no token will come."""
        return self._shown.push(self._written.end()) + self._shown.end()

    @property
    def match(self) -> StopMatch | None:
        """The stop string that has ended the text, or None."""
        return self._shown.match
