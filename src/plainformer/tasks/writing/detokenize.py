"""Detokenize new tokens in the context of the previous ones: at once, or piece by piece while they are generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from plainformer.generation.constraints.stop_strings import HALF_A_CHARACTER

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer


def continuation(tokenizer: Tokenizer, before: Sequence[int], new: Sequence[int]) -> str:
    """Return the text that `new` adds to `before`, without special tokens.

    Decoded together: alone, the first word of a SentencePiece vocabulary would lose the space before it.
    """
    before, new = tokenizer.known(before), tokenizer.known(new)
    context = tokenizer.decode(before, skip_special_tokens=True)
    return tokenizer.decode([*before, *new], skip_special_tokens=True)[len(context) :]


def pieces(
    tokenizer: Tokenizer, before: Sequence[int], steps: Iterable[int | None], *, begun: Sequence[int] = ()
) -> Iterator[str]:
    """Yield `continuation` while the tokens arrive; joined, the pieces are the same text.

    A piece is held back until its characters are whole. Only what follows the last piece but one is decoded again,
    so a token's cost does not grow with the text.

    Args:
        before: ids that come before and are not shown. begun: ids that are shown first, before any step.
        steps: the new ids; None is skipped.
    """
    ids = tokenizer.known([*before, *begun])
    context, shown = 0, len(tokenizer.known(before))  # ids[context:shown] are decoded again with what follows them
    for token in (None, *steps) if begun else steps:
        if token is not None:
            ids.extend(tokenizer.known([token]))
        known = tokenizer.decode(ids[context:shown], skip_special_tokens=True)
        text = tokenizer.decode(ids[context:], skip_special_tokens=True)
        if len(text) > len(known) and not text.endswith(HALF_A_CHARACTER):
            yield text[len(known) :]
            context, shown = shown, len(ids)
    known = tokenizer.decode(ids[context:shown], skip_special_tokens=True)
    if rest := tokenizer.decode(ids[context:], skip_special_tokens=True)[len(known) :]:
        yield rest
