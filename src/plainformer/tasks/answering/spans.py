"""Rank the spans of a context from start and end logits, in the two ways in use, each equal to its reference:

- `by_probability`: P(start) * P(end) within a window (the question-answering pipeline of transformers 4.57).
- `by_squad`: the n-best list over all windows by the sum of logits, with a softmax over that list (`run_squad.py` of BERT,
  Devlin et al. 2019, and `compute_predictions_logits` of transformers 4.57).

"No answer" is the span of the class token alone, as models for SQuAD 2.0 are trained (Rajpurkar et al. 2018).

Shapes: T tokens of a window, N those of them that are the context's, M lengths of a span, P spans, W the best tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from plainformer.inputs.text.words import trimmed
from plainformer.tasks.html import marked
from plainformer.tasks.results import Result

if TYPE_CHECKING:
    import numpy.typing as npt

    from plainformer.inputs.text.encoding import Encoding

    Bools = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float64]

N_BEST = 20  # `n_best_size` of run_squad.py
# Scripts without spaces: a tokenizer's "word" is a whole clause there.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


@dataclass(frozen=True)
class Span(Result):
    """`text` is `context[start:end]`, verbatim; "" at 0 to 0 is "no answer".

    score: a probability, 0 to 1. With scoring="probability" P(start) * P(end) in its window, added up over spans of the same
        text; with "squad" the share (softmax) among the spans of the n-best list.
    """

    text: str
    start: int
    end: int
    score: float

    def lines(self) -> list[str]:
        return [f"{self.text}  {self.score:.4f}  [{self.start}:{self.end}]"]


@dataclass(frozen=True)
class Answer(Span):
    """The best span, or "no answer", whose text is empty.

    Attributes:
        alternatives: the next ones, at most `top_k - 1`, best first.
        no_answer_score: by how much "no answer" outscores the best span: what `no_answer` compares with its threshold, and
            what a threshold is chosen by (`evaluate.squad`). Unit: logits with scoring="squad", else probability. None
            where `no_answer` is off.
        context: what the spans are of.
    """

    alternatives: tuple[Span, ...] = ()
    no_answer_score: float | None = None
    context: str = field(default="", repr=False, compare=False)

    def lines(self) -> list[str]:
        return [*super().lines(), *(line for one in self.alternatives for line in one.lines())]

    def _repr_html_(self) -> str:
        return marked(self.context, [(self.start, self.end, f"{self.score:.2f}")])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the context, and without `no_answer_score` where it is None."""
        left_out = {"context"} if self.no_answer_score is not None else {"context", "no_answer_score"}
        return {name: value for name, value in super().to_dict().items() if name not in left_out}


@dataclass(frozen=True)
class Window:
    """One window over a context, with what the model gave for it.

    Attributes:
        context: the whole text. row: the window's tokens. logits_T2: their start and end logits.
        sequence: which of the row's two texts the context is. class_id: the class token's, where the tokenizer has one.
        rank: how many of the context's tokens come before the window.
    """

    context: str
    row: Encoding
    logits_T2: Floats
    sequence: int
    class_id: int | None
    rank: int

    @cached_property
    def places_N(self) -> npt.NDArray[np.int64]:
        """Where in the row the context's tokens are: side by side."""
        return np.flatnonzero([sequence == self.sequence for sequence in self.row.sequence_ids])

    @cached_property
    def null_place(self) -> int | None:
        """Where in the row the class token is that the template added."""
        pairs = zip(self.row.input_ids, self.row.special, strict=True)
        return next((place for place, (i, special) in enumerate(pairs) if special and i == self.class_id), None)

    @cached_property
    def words(self) -> dict[int, tuple[int, int]]:
        """The characters of each word, from its first to its last token in this window."""
        found: dict[int, tuple[int, int]] = {}
        for place in self.places_N.tolist():
            word, (start, end) = self.row.word_ids[place], self.row.offsets[place]
            if word is not None:
                found[word] = found[word][0] if word in found else start, end
        return {word: span for word, span in found.items() if not _UNSPACED.search(self.context[slice(*span)])}

    def characters(self, first: int, last: int, align: str) -> tuple[int, int]:
        """Return the span from one of the context's tokens to another one, in characters; may have white space at its ends."""
        tokens = [int(self.places_N[rank]) for rank in (first, last)]
        spans = [self.row.offsets[token] for token in tokens]
        if align == "words":
            words = [self.row.word_ids[token] for token in tokens]
            spans = [self.words.get(-1 if w is None else w, span) for w, span in zip(words, spans, strict=True)]
        return spans[0][0], spans[1][1]

    def visible_NM(self, longest: int) -> Bools:
        """Return which spans, by first token and length less one, end in the window and hold more than white space."""
        size = len(self.places_N)
        offsets = [self.row.offsets[place] for place in self.places_N.tolist()]
        seen = np.cumsum([0, *(bool(self.context[start:end].strip()) for start, end in offsets)])
        first_N1, last_NM = _band(size, longest)
        return (last_NM < size) & (seen[np.minimum(last_NM, size - 1) + 1] > seen[first_N1])


def _band(size: int, longest: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return first tokens (N, 1), and last tokens (N, M) for each length; some of these lie beyond the end."""
    first_N1 = np.arange(size)[:, None]
    return first_N1, first_N1 + np.arange(min(longest, size))


def _ranked(values_NM: Floats, allowed_NM: Bools) -> Iterator[tuple[int, int, float]]:
    """Yield (first, last, value) of the allowed spans, best first; of equals, the one that comes first."""
    first_P, length_P = np.nonzero(allowed_NM)
    values_P = values_NM[first_P, length_P]
    for place in np.argsort(-values_P, kind="stable").tolist():
        first = int(first_P[place])
        yield first, first + int(length_P[place]), float(values_P[place])


@dataclass(frozen=True)
class Ranking:
    """Spans, best first, and their values; "no answer" and its value, where the row has a class token."""

    spans: list[Span]
    values: list[float]
    null: Span | None
    null_value: float

    def answer(self, top_k: int, threshold: float | None, context: str = "") -> Answer:
        """Return the best `top_k`; "no answer" is one of them, and comes first if it beats all by more than `threshold`."""
        found, margin = list(self.spans), None
        if threshold is not None and self.null is not None:
            margin = self.null_value - self.values[0]
            # Compared as the answer to the caller's question "by more than?", so that both always agree.
            place = next((i for i, value in enumerate(self.values) if self.null_value - value > threshold), len(found))
            found.insert(place, self.null)
        first, *others = found[:top_k]
        return Answer(first.text, first.start, first.end, first.score, tuple(others), margin, context)


def _span(context: str, start: int, end: int, score: float) -> Span:
    start, end = trimmed(context, start, end)
    return Span(context[start:end], start, end, score)


# ---- P(start) * P(end) ------------------------------------------------------------------------------------------------


def by_probability(windows: Sequence[Window], *, top_k: int, longest: int, align: str) -> Ranking:
    """Rank spans by P(start) * P(end); those with the same text, upper or lower case, count as one and add up.

    Probabilities are a window's own: a softmax over the context's tokens and the class token. Of each window the best
    spans count, as many as transformers looks at. "No answer" has the least of its probabilities in the windows.
    """
    context = windows[0].context
    candidates = 2 * top_k + 10 if align == "words" else top_k  # several may turn out to be the same words
    found: dict[str, Span] = {}
    null = math.inf
    for window in windows:
        start_T, end_T = _probabilities(window).T
        if window.null_place is not None:
            null = min(null, float(start_T[window.null_place] * end_T[window.null_place]))
        start_N, end_N = start_T[window.places_N], end_T[window.places_N]
        first_N1, last_NM = _band(len(start_N), longest)
        scores_NM = start_N[first_N1] * end_N[np.minimum(last_NM, len(end_N) - 1)]
        for number, (first, last, score) in enumerate(_ranked(scores_NM, last_NM < len(start_N))):
            if number >= candidates and found:
                break
            start, end = window.characters(first, last, align)
            key = context[start:end].lower()
            if not key.strip():
                continue  # transformers would answer with white space; it takes the place of a candidate here, too
            known = found.get(key)
            found[key] = replace(known, score=known.score + score) if known else _span(context, start, end, score)
    spans = sorted(found.values(), key=lambda span: -span.score)
    return Ranking(spans, [span.score for span in spans], None if null == math.inf else Span("", 0, 0, null), null)


def _probabilities(window: Window) -> Floats:
    """Return P(start) and P(end) of each token, (T, 2): 0 for those that do not count."""
    counted_T = np.array(window.row.input_ids) == window.class_id
    counted_T[window.places_N] = True
    logits_T2 = np.where(counted_T[:, None], window.logits_T2, -np.inf)
    exp_T2 = np.exp(logits_T2 - logits_T2.max(0))
    found: Floats = exp_T2 / exp_T2.sum(0)
    return found


# ---- the n-best list of SQuAD's scripts -------------------------------------------------------------------------------


def by_squad(windows: Sequence[Window], *, longest: int, align: str, with_null: bool) -> Ranking:
    """Return the n-best list: spans by the sum of their logits, and their probabilities within the list.

    A window's spans begin and end at its `N_BEST` best tokens each, and begin where no other window shows more context
    around the token. Of spans with the same text the best counts. `with_null`: the list, too, has "no answer", with the
    least sum of logits that a window gives it.
    """
    context = windows[0].context
    sums = [w.logits_T2[w.null_place].sum() for w in windows if w.null_place is not None] if with_null else []
    null_value = float(min(sums, default=-math.inf))
    owned = _owned(windows)
    pooled = list(_pooled(windows, owned, longest, N_BEST))
    if not pooled:  # the best tokens were the question's, in every window
        pooled = list(_pooled(windows, owned, longest, None))
    best: dict[str, tuple[Span, float]] = {}
    for window, first, last, value in pooled:
        # As in run_squad.py, "no answer" takes a place in the list of N_BEST only where its value earns one.
        if len(best) + (null_value > value) >= N_BEST:
            break
        span = _span(context, *window.characters(first, last, align), 0.0)
        best.setdefault(span.text, (span, value))
    values = [value for _, value in best.values()]
    every_value = np.array([*values, *([null_value] if sums else [])])
    scores = np.exp(every_value - every_value.max())
    shares = (scores / scores.sum()).tolist()
    spans = [replace(span, score=share) for (span, _), share in zip(best.values(), shares, strict=False)]
    return Ranking(spans, values, Span("", 0, 0, shares[-1]) if sums else None, null_value)


def _pooled(
    windows: Sequence[Window], owned: Sequence[Bools], longest: int, most: int | None
) -> Iterator[tuple[Window, int, int, float]]:
    """Yield (window, first, last, sum of logits) of the spans that begin at an owned token, best first.

    With `most`, a span begins and ends at one of this many best tokens of its row, the question's among them.
    """
    ranked = (_by_sum(*each, longest, most) for each in zip(windows, owned, strict=True))
    return heapq.merge(*ranked, key=lambda span: -span[3])


def _by_sum(window: Window, own_N: Bools, longest: int, most: int | None) -> Iterator[tuple[Window, int, int, float]]:
    start_N, end_N = window.logits_T2[window.places_N].T
    first_N1, last_NM = _band(len(start_N), longest)
    last_NM = np.minimum(last_NM, len(end_N) - 1)
    allowed_NM = window.visible_NM(longest) & own_N[:, None]
    if most is not None:
        good_T2 = np.zeros(window.logits_T2.shape, dtype=bool)
        best_W2 = np.argsort(-window.logits_T2, axis=0, kind="stable")[:most]
        np.put_along_axis(good_T2, best_W2, True, axis=0)
        good_start_N, good_end_N = good_T2[window.places_N].T
        allowed_NM &= good_start_N[first_N1] & good_end_N[last_NM]
    for first, last, value in _ranked(start_N[first_N1] + end_N[last_NM], allowed_NM):
        yield window, first, last, value


def _owned(windows: Sequence[Window]) -> list[Bools]:
    """For each window, (N,): the tokens that have more context around them in it than in any other; the first, of equals.

    The score is that of run_squad.py: the tokens on the side with fewer of them, plus 0.01 for each in the window.
    """
    total = max(window.rank + len(window.places_N) for window in windows)
    best, owner = np.full(total, -math.inf), np.zeros(total, dtype=np.int64)
    for number, window in enumerate(windows):
        left_N = np.arange(size := len(window.places_N))
        score_N = np.minimum(left_N, size - 1 - left_N) + 0.01 * size
        place = slice(window.rank, window.rank + size)
        owner[place] = np.where(score_N > best[place], number, owner[place])
        best[place] = np.maximum(score_N, best[place])
    return [owner[w.rank : w.rank + len(w.places_N)] == number for number, w in enumerate(windows)]
