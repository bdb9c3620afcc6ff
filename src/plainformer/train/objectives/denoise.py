"""Denoising: spans of a text are hidden from the encoder, and the decoder writes them, or the whole text.

BART's text infilling (Lewis et al. 2020) and T5's span corruption (Raffel et al. 2020, section 3.1.4); the tokenizer says
which: T5's has sentinels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plainformer.errors import CheckpointError, UsageError, opt
from plainformer.train.draws import generator
from plainformer.train.objectives.base import Arrays, Batch, Dropped, Encoded
from plainformer.train.objectives.causal import end_of_text
from plainformer.train.objectives.collate import Ids, as_ids
from plainformer.train.objectives.pairs import PairObjective
from plainformer.train.objectives.words import TEXT, longest, spans, text_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.inputs.text.tokenizer import Tokenizer

INFILLING_SHARE, CORRUPTION_SHARE = 0.3, 0.15
Span = tuple[int, int]  # start, stop


class Denoising(PairObjective):
    """Hide spans of a text, in new places in every epoch, and learn to write them.

    - A tokenizer with sentinels (T5's `<extra_id_0>`): each span is replaced by the next sentinel; the target is each
      sentinel with its span, and a last sentinel.
    - A tokenizer with a mask token (BART's): each span is replaced by one mask token, whatever its length, which is drawn from
      a Poisson distribution; spans of length 0 put a mask token where nothing is missing. The target is the text.

    `loss.mask_share` of the tokens are hidden, spans have `loss.mean_span` tokens on average. A document is read in windows
    of as many tokens as give inputs of at most `data.max_length`; `data.too_long` may keep the first alone, or none.

    An example is `input_ids`, a window's tokens without special ones.
    """

    name = "denoising"
    head = "seq2seq_lm"
    columns = (TEXT,)

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        self.sentinels = sentinels_of(processor)
        self.mask_id: int = -1 if processor.mask_id is None else processor.mask_id
        if not self.sentinels and self.mask_id < 0:
            what = "this tokenizer has neither sentinels (<extra_id_0>) nor a mask token, so nothing can be hidden"
            raise CheckpointError(what, "add mask_token to tokenizer_config.json, or train causal-lm or seq2seq")
        self.share = config.loss.mask_share or (CORRUPTION_SHARE if self.sentinels else INFILLING_SHARE)
        self.mean = config.loss.mean_span
        self.before, self.after = around(processor, end_of_text(processor, model))
        self.known(as_ids([self.mask_id, *self.sentinels, *self.before, *self.after]))
        self.window = self._window(longest(None, model, processor, of_target=True))

    def _window(self, target_limit: int | None) -> int | None:
        """Return how many tokens of a text make an input that the model can read; None for any number.

        Raises:
            UsageError: there are not enough sentinels.
        """
        limits = [limit for limit in (self.limit, target_limit) if limit is not None]
        if not limits:
            return None
        fixed = len(self.before) + len(self.after)
        if not self.sentinels:
            return max(1, min(limits) - fixed)
        size = raw_length(limits[0] - fixed, self.share, self.mean)
        needed = corrupted(size, self.share, self.mean)[1] + 1
        if needed > len(self.sentinels):
            what = f"inputs of {limits[0]} tokens hide {needed - 1} spans; the tokenizer has {len(self.sentinels)} sentinels"
            raise UsageError(what, f"give a smaller {opt('data.max_length')}, or a larger {opt('loss.mean_span')}")
        return size

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a document's windows. One without at least two tokens is left out: nothing would be left to read."""
        ids = as_ids(self.processor.encode(text_of(row), add_special_tokens=False, max_length=None).input_ids)
        self.known(ids)
        if np.isin(ids, self.sentinels).any():
            raise Dropped("text with sentinel tokens")
        if len(ids) < 2:
            raise Dropped("text of fewer than two tokens")
        size = self.window
        if size is None or len(ids) <= size:
            return Encoded([{"input_ids": ids}])
        if self.too_long == "drop":
            raise Dropped("longer than max_length")
        if self.too_long == "cut":
            return Encoded([{"input_ids": ids[:size]}], len(ids) - size)
        found = [ids[start:stop] for start, stop in spans(len(ids), size, self.config.data.stride)]
        kept: list[Arrays] = [{"input_ids": one} for one in found if len(one) > 1]
        return Encoded(kept, len(found) - len(kept))

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return rows of one example each, its spans drawn from the row's own source of random numbers."""
        both = [self.hide(as_ids(one["input_ids"]), draw) for (one,), draw in zip(rows, draws, strict=True)]
        sources, targets = [source for source, _ in both], [target for _, target in both]
        return self.pair_batch(sources, targets, [len(target) for target in targets])

    def hide(self, ids: Ids, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """Return what the encoder reads and what the decoder writes, special tokens included."""
        if self.sentinels:
            hidden, count = corrupted(len(ids), self.share, self.mean)
            sizes = _parts(hidden - count, count, draw) + 1
            source, target = corruption(ids, random_spans(len(ids), sizes, draw), self.sentinels)
        else:
            source, target = infilling(ids, self.share, self.mean, self.mask_id, draw), ids
        return self._whole(source), self._whole(target)

    def _whole(self, ids: Ids) -> Ids:
        return np.concatenate((self.before, ids, self.after))

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return what the encoder reads, then the decoder with what it is to write, for one choice of many."""
        source, target = self.hide(as_ids(example["input_ids"]), generator(self.config.seed, 0, 0))
        return self.shown_pair(source, target, len(target))


# ---- arithmetic of lengths ----------------------------------------------------------------------------------------


def corrupted(length: int, share: float, mean: float) -> tuple[int, int]:
    """Return how many of a text's tokens span corruption hides, and in how many spans: at least one of each.

    There is a token between neighbouring spans, and one is left to read.
    """
    hidden = min(max(1, round(length * share)), length - 1)
    return hidden, max(1, min(round(hidden / mean), hidden, length - hidden + 1))


def raw_length(room: int, share: float, mean: float) -> int:
    """Return the length of the longest text whose corrupted form has at most `room` tokens, its sentinels included."""

    def read(length: int) -> int:
        hidden, count = corrupted(length, share, mean)
        return length - hidden + count

    size = 2
    while read(size + 1) <= room:
        size += 1
    return size


# ---- spans --------------------------------------------------------------------------------------------------------


def _parts(total: int, count: int, draw: np.random.Generator) -> Ids:
    """Return `count` whole numbers from 0 that add up to `total`, (count,), every such row as likely as any other."""
    bars = np.sort(draw.choice(total + count - 1, count - 1, replace=False))
    return np.diff(np.concatenate(([-1], bars, [total + count - 1]))) - 1


def random_spans(length: int, sizes: Ids, draw: np.random.Generator) -> list[Span]:
    """Return spans of these sizes at random places of a text, in order, with at least a token between neighbours.

    Where too few tokens are left for that, neighbours may touch.
    """
    left = length - int(sizes.sum())
    between = 1 if left >= len(sizes) - 1 else 0
    gaps = _parts(left - between * (len(sizes) - 1), len(sizes) + 1, draw)
    gaps[1:-1] += between
    starts = np.cumsum(gaps[:-1]) + np.concatenate(([0], np.cumsum(sizes)[:-1]))
    return [(int(start), int(start + size)) for start, size in zip(starts, sizes, strict=True)]


def corruption(ids: Ids, hidden: Sequence[Span], sentinels: Sequence[int]) -> tuple[Ids, Ids]:
    """Return a text with a sentinel in place of each span, and the sentinels, each with its span, and a last one."""
    source: list[Any] = []
    target: list[Any] = []
    reached = 0
    for (start, stop), sentinel in zip(hidden, sentinels, strict=False):
        source += [ids[reached:start], [sentinel]]
        target += [[sentinel], ids[start:stop]]
        reached = stop
    source.append(ids[reached:])
    target.append([sentinels[len(hidden)]])
    return as_ids(np.concatenate(source)), as_ids(np.concatenate(target))


def infilling(ids: Ids, share: float, mean: float, mask_id: int, draw: np.random.Generator) -> Ids:
    """Return a text with a share of its tokens hidden, each span by one mask token.

    Lengths of spans are drawn from Poisson(mean) until they are enough, and the last is shortened. Spans of length 0 are
    added mask tokens, as far as the text does not become longer.
    """
    total = min(len(ids), max(1, int(share * len(ids) + draw.random())))
    sizes: list[int] = []
    empty = 0
    while (missing := total - sum(sizes)) > 0:
        size = min(int(draw.poisson(mean)), missing)
        empty += size == 0
        sizes += [size] * (size > 0)
    lengths = draw.permutation(as_ids(sizes))  # the shortened one may be anywhere
    found: list[Any] = []
    reached = 0
    for start, stop in random_spans(len(ids), lengths, draw):
        found += [ids[reached:start], [mask_id]]
        reached = stop
    read = as_ids(np.concatenate([*found, ids[reached:]]))
    places = draw.integers(0, len(read) + 1, min(empty, len(ids) - len(read)))
    return np.insert(read, places, mask_id)


# ---- tokenizers ---------------------------------------------------------------------------------------------------


def sentinels_of(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of <extra_id_0>, <extra_id_1> and so on, as far as the tokenizer has them."""
    found: list[int] = []
    while (i := tokenizer.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(i)
    return found


def around(tokenizer: Tokenizer, end_id: int) -> tuple[Ids, Ids]:
    """Return the special tokens before and after a text; the end token is among the latter."""
    row = tokenizer.encode("a", max_length=None)
    text = [place for place, special in enumerate(row.special) if not special]
    before, after = row.input_ids[: text[0]], row.input_ids[text[-1] + 1 :]
    return as_ids(before), as_ids(after if end_id in after else [*after, end_id])
