"""Which tokens of a too-long row to keep: truncation and overlapping windows, as index arithmetic.

A row is [special…] sequence 0 [special…] (sequence 1 [special…]). Special tokens come from the tokenizer's template,
have the sequence id None and are always kept. So a shorter row is a selection of positions from the full one, which
keeps ids, offsets and types exactly as they were, needs no state in the tokenizer, and is safe in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from plainformer.errors import InputError, UsageError, opt, plural

if TYPE_CHECKING:
    from plainformer.inputs.text.encoding import Encoding

Side = Literal["left", "right"]


def kept_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two sequences are kept so that `room` tokens hold both (longest first).

    The shorter one stays whole if it can; otherwise both keep half, and an odd token goes to the longer, or to the
    second of two equally long ones (as in Hugging Face tokenizers 0.23, `LongestFirst`).
    """
    if first + second <= room:
        return first, second
    if first <= second:
        keep_first = min(first, room // 2)
        return keep_first, min(second, room - keep_first)
    keep_second = min(second, room // 2)
    return min(first, room - keep_second), keep_second


def truncated(sequence_ids: Sequence[int | None], limit: int, cut: Side = "right") -> list[int]:
    """Return positions to keep so that the row has at most `limit` tokens: the sequences' beginnings, or ends if `cut` is left."""
    first, second = sequence_ids.count(0), sequence_ids.count(1)
    room = limit - (len(sequence_ids) - first - second)
    if room < 0:
        what = f"{opt('max_length', limit)} leaves no room: the special tokens alone are {limit - room}"
        raise UsageError(what, f"pass {opt('max_length', limit - room + 1)} or more")
    kept = zip((first, second), kept_lengths(first, second, room), strict=True)
    return _take(sequence_ids, [range(size - n, size) if cut == "left" else range(n) for size, n in kept])


def truncated_to_fit(sequence_ids: Sequence[int | None], limit: int, shortened: int, cut: Side = "right") -> list[int]:
    """Return positions to keep so that the row has at most `limit` tokens, where one sequence alone may lose its end.

    Args:
        shortened: 0 or 1, the sequence that is cut ("only_first" and "only_second" of Hugging Face tokenizers).
        cut: the side that it loses.
    Raises:
        InputError: the rest of the row leaves no room for a token of that sequence.
    """
    sizes = [sequence_ids.count(0), sequence_ids.count(1)]
    kept = sizes[shortened] - max(0, len(sequence_ids) - limit)
    if kept < min(1, sizes[shortened]):
        what = f"what may not be cut takes {len(sequence_ids) - sizes[shortened]} tokens; the limit is {limit}"
        raise InputError(what, "shorten it")
    keep = [range(size) for size in sizes]
    keep[shortened] = range(sizes[shortened] - kept, sizes[shortened]) if cut == "left" else range(kept)
    return _take(sequence_ids, keep)


def windows(sequence_ids: Sequence[int | None], window: int, stride: int) -> Iterator[list[int]]:
    """Yield positions of each of the windows of at most `window` tokens whose neighbours share `stride` tokens.

    With a pair, the first sequence (a question) is whole in every window and the second one slides.
    """
    first, second = sequence_ids.count(0), sequence_ids.count(1)
    fixed = len(sequence_ids) - second if second else len(sequence_ids) - first
    sliding = second or first
    room = window - fixed
    if room <= stride:
        what = "special tokens and the first sequence" if second else "special tokens"
        error = InputError if second else UsageError
        raise error(
            f"a window of {window} tokens with {opt('stride', stride)} makes no progress: {what} take {fixed} of them",
            f"use a window of more than {fixed + stride} tokens, or a smaller stride",
        )
    start = 0
    while True:
        piece = range(start, min(start + room, sliding))
        yield _take(sequence_ids, [range(first), piece] if second else [piece, range(0)])
        if piece.stop >= sliding:
            return
        start += room - stride


def _take(sequence_ids: Sequence[int | None], keep: Sequence[range]) -> list[int]:
    """Return positions of all special tokens, and of the tokens of sequence i whose rank within it is in keep[i]."""
    rank = [0, 0]
    chosen = []
    for position, sequence in enumerate(sequence_ids):
        if sequence is None:
            chosen.append(position)
            continue
        if rank[sequence] in keep[sequence]:
            chosen.append(position)
        rank[sequence] += 1
    return chosen


def window_size(window: int | None, limit: int | None, default: int | None = None) -> int | None:
    """Return how many tokens to read at once: `window`, else `default`, and never more than the model's limit (None: no limit)."""
    if window is not None and limit is not None and window > limit:
        raise UsageError(
            f"{opt('window', window)} is more than this model's limit of {plural(limit, 'token')}", "give less"
        )
    known = [size for size in (default, limit) if size is not None]
    return window if window is not None else min(known, default=None)


def counted(rows: Sequence[Encoding], overlap: int) -> list[list[int]]:
    """Return of each of the windows over a text the places of the tokens that count there: each once, farthest from an edge.

    Args:
        rows: all windows over one text, in order. overlap: how many tokens neighbours share.
    """
    found = []
    for number, row in enumerate(rows):
        own = [place for place, special in enumerate(row.special) if not special]
        first = overlap // 2 if number > 0 else 0
        last = len(own) - (overlap - overlap // 2 if number + 1 < len(rows) else 0)
        found.append(own[first:last])
    return found
