"""Pairs of texts as rows of tokens: one of them may be cut, or read in overlapping windows. The other one stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from plainformer.errors import InputError, nth, opt
from plainformer.inputs.text.windows import truncated_to_fit, windows

if TYPE_CHECKING:
    from plainformer.inputs.text.encoding import Encoding
    from plainformer.inputs.text.lengths import Limit
    from plainformer.inputs.text.tokenizer import Tokenizer

STRIDE = 128  # tokens: the default of transformers


def encode_pairs(
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    limit: Limit,
    truncate: bool = False,
    shortened: int = 0,
) -> list[Encoding]:
    """Return pairs as rows of at most `limit` tokens, in order.

    Args:
        truncate: cut one text of a pair that is too long, its end or what the checkpoint says; otherwise that is an error.
        shortened: which one, 0 or 1.
    Raises:
        InputError: a pair is too long, or has no tokens.
    """
    rows = tokenizer.encode_batch(list(pairs), max_length=None if truncate else limit)
    for place, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
        if not row.input_ids:
            raise InputError(f"{nth(place)}, {pair!r}, has no tokens: there is nothing to read", "leave it out")
    if not isinstance(limit, int) or not truncate:
        return rows
    cut = tokenizer.truncation_side
    return [
        row if len(row) <= limit else row.select(truncated_to_fit(row.sequence_ids, limit, shortened, cut))
        for row in rows
    ]


def encode_questions(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, window: int, stride: int | None = None
) -> tuple[list[Encoding], list[int]]:
    """Return (question, context) pairs as rows whose `overflow` are further windows over the context, each with the question.

    The question comes first; where the tokenizer pads on the left, the context does, as such models are trained
    (`run_qa.py` of transformers).

    Args:
        window: tokens of a row, special ones included.
        stride: tokens of the context that neighbouring windows share; None: 128, at most half a window, and half the room
            that a long question leaves.
    Returns:
        the rows, and of each window of all rows in turn how many tokens of the context come before it.
    Raises:
        InputError: a context without tokens, or a question that leaves no room for the context.
    """
    own = int(tokenizer.padding_side != "left")  # which of the two texts the context is
    texts = [(question, context) if own else (context, question) for question, context in pairs]
    rows, ranks = [], []
    for place, row in enumerate(tokenizer.encode_batch(texts, max_length=None)):
        context = pairs[place][1]
        spans = zip(row.offsets, row.sequence_ids, strict=True)
        if not any(sequence == own and context[slice(*span)].strip() for span, sequence in spans):
            raise InputError(f"{nth(place)}: the context {context[:60]!r} has no tokens", "give a context with words")
        pieces, starts = _cut(row, own, window, stride, nth(place))
        rows.append(replace(pieces[0], overflow=tuple(pieces[1:])))
        ranks += starts
    return rows, ranks


def _cut(row: Encoding, own: int, window: int, stride: int | None, name: str) -> tuple[list[Encoding], list[int]]:
    """Return the windows over a row of which text `own` (0 or 1) slides, each with the rank of its first token there."""
    if len(row) <= window:
        return [row], [0]
    asked, special = row.sequence_ids.count(1 - own), row.sequence_ids.count(None)
    room = window - asked - special
    taken = f"the question's {asked} tokens and {special} special ones"
    if room < 1:
        what = f"{name}: a window of {window} tokens has no room for the context: {taken}"
        raise InputError(what, "ask in fewer words")
    if stride is None:
        stride = min(STRIDE, window // 2)
        stride = stride if stride < room else room // 2
    if stride >= room:
        what = f"{name}: {opt('stride', stride)} leaves windows nothing new to read: beside {taken} there is room for {room}"
        raise InputError(what, f"give a stride of less than {room}, a longer window, or ask in fewer words")
    # The second text is the one that slides in `windows`: where ours is the first, they change their names.
    names = [i if i is None or own == 1 else 1 - i for i in row.sequence_ids]
    pieces = [row.select(places) for places in windows(names, window, stride)]
    return pieces, [number * (room - stride) for number in range(len(pieces))]
