"""Which spans of a context answer a question: the arithmetic of question answering, from start and end logits.

Two ways are in use, and both are here, each equal to its reference:

- `by_probability`: P(start) * P(end) within a window (the question-answering pipeline of transformers 4.57).
- `by_squad`: the n-best list over all windows by the sum of logits, with a softmax over that list (`run_squad.py` of BERT,
  Devlin et al. 2019, and `compute_predictions_logits` of transformers 4.57).

"No answer" is the span of the class token alone, as models for SQuAD 2.0 are trained (Rajpurkar et al. 2018).

Shapes: T tokens of a window, C those of them that are the context's, L lengths of a span.
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
from plainformer.tasks.base import Result
from plainformer.tasks.html import marked

if TYPE_CHECKING:
    import numpy.typing as npt

    from plainformer.inputs.text.encoding import Encoding

    Bools = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float64]

N_BEST = 20  # `n_best_size` of run_squad.py
# Scripts that are written without spaces: what a tokenizer takes for a word there is a whole clause.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


@dataclass(frozen=True)
class Span(Result):
    """`text` is `context[start:end]`, verbatim; "" at 0 to 0 is "no answer". `score`: see `QuestionAnsweringOptions`."""

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
        """Plain values, without the context, and without `no_answer_score` where there is none."""
        values = super().to_dict()
        del values["context"]
        return {name: value for name, value in values.items() if name != "no_answer_score" or value is not None}


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
    def places_C(self) -> npt.NDArray[np.int64]:
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
        for place in self.places_C.tolist():
            word, (start, end) = self.row.word_ids[place], self.row.offsets[place]
            if word is not None:
                found[word] = found[word][0] if word in found else start, end
        return {word: span for word, span in found.items() if not _UNSPACED.search(self.context[slice(*span)])}

    def characters(self, first: int, last: int, align: str) -> tuple[int, int]:
        """Return the span from one of the context's tokens to another one, in characters; may have white space at its ends."""
        tokens = [int(self.places_C[rank]) for rank in (first, last)]
        spans = [self.row.offsets[token] for token in tokens]
        if align == "words":
            words = [self.row.word_ids[token] for token in tokens]
            spans = [self.words.get(-1 if w is None else w, span) for w, span in zip(words, spans, strict=True)]
        return spans[0][0], spans[1][1]

    def visible_CL(self, longest: int) -> Bools:
        """Return which spans, by first token and length less one, end in the window and hold more than white space."""
        size = len(self.places_C)
        offsets = [self.row.offsets[place] for place in self.places_C.tolist()]
        seen = np.cumsum([0, *(bool(self.context[start:end].strip()) for start, end in offsets)])
        first_C1, last_CL = _band(size, longest)
        return (last_CL < size) & (seen[np.minimum(last_CL, size - 1) + 1] > seen[first_C1])


def _band(size: int, longest: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return first tokens (C, 1), and last tokens (C, L) for each length; some of these lie beyond the end."""
    first_C1 = np.arange(size)[:, None]
    return first_C1, first_C1 + np.arange(min(longest, size))


def _ranked(values_CL: Floats, allowed_CL: Bools) -> Iterator[tuple[int, int, float]]:
    """Yield (first, last, value) of the allowed spans, best first; of equals, the one that comes first."""
    first_N, length_N = np.nonzero(allowed_CL)
    values_N = values_CL[first_N, length_N]
    for place in np.argsort(-values_N, kind="stable").tolist():
        first = int(first_N[place])
        yield first, first + int(length_N[place]), float(values_N[place])


@dataclass(frozen=True)
class Ranking:
    """Spans, best first, with the values they are ranked by; and "no answer" with its own, where the row has a place
    for it."""

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
        start_C, end_C = start_T[window.places_C], end_T[window.places_C]
        first_C1, last_CL = _band(len(start_C), longest)
        scores_CL = start_C[first_C1] * end_C[np.minimum(last_CL, len(end_C) - 1)]
        for number, (first, last, score) in enumerate(_ranked(scores_CL, last_CL < len(start_C))):
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
    counted_T[window.places_C] = True
    logits_T2 = np.where(counted_T[:, None], window.logits_T2, -np.inf)
    exp_T2 = np.exp(logits_T2 - logits_T2.max(0))
    found: Floats = exp_T2 / exp_T2.sum(0)
    return found


# ---- the n-best list of SQuAD's scripts -------------------------------------------------------------------------------


def by_squad(windows: Sequence[Window], *, longest: int, align: str, with_null: bool) -> Ranking:
    """The n-best list: spans by the sum of their logits, and their probabilities within the list.

    A window's spans begin and end at its `N_BEST` best tokens each, and begin where no other window shows more context
    around the token. Of spans with the same text the best counts. `with_null`: the list, too, has "no answer", with the
    least sum of logits that a window gives it.
    """
    context = windows[0].context
    sums = [w.logits_T2[w.null_place].sum() for w in windows if w.null_place is not None] if with_null else []
    null_value = float(min(sums, default=-math.inf))
    owned = _owned(windows)
    every = [list_of(w, own_C, longest, N_BEST) for w, own_C in zip(windows, owned, strict=True)]
    if not any(spans.allowed_CL.any() for spans in every):  # the best tokens were the question's, in every window
        every = [list_of(w, own_C, longest, None) for w, own_C in zip(windows, owned, strict=True)]
    best: dict[str, tuple[Span, float]] = {}
    pooled = heapq.merge(*(spans.ranked() for spans in every), key=lambda item: -item[1])
    for (window, first, last), value in pooled:
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


@dataclass(frozen=True)
class Candidates:
    """A window's spans with the sums of their logits."""

    window: Window
    values_CL: Floats
    allowed_CL: Bools

    def ranked(self) -> Iterator[tuple[tuple[Window, int, int], float]]:
        """((window, first, last), value), best first."""
        for first, last, value in _ranked(self.values_CL, self.allowed_CL):
            yield (self.window, first, last), value


def list_of(window: Window, own_C: Bools, longest: int, most: int | None) -> Candidates:
    """Return the spans that begin at one of `own_C`; with `most`, only those between this many best starts and ends."""
    start_C, end_C = window.logits_T2[window.places_C].T
    size = len(start_C)
    first_C1, last_CL = _band(size, longest)
    last_CL = np.minimum(last_CL, size - 1)
    allowed_CL = window.visible_CL(longest) & own_C[:, None]
    if most is not None:
        # Among all tokens of the row, the question's too, as in run_squad.py.
        good_T2 = np.zeros(window.logits_T2.shape, dtype=bool)
        best_N2 = np.argsort(-window.logits_T2, axis=0, kind="stable")[:most]
        np.put_along_axis(good_T2, best_N2, True, axis=0)
        good_start_C, good_end_C = good_T2[window.places_C].T
        allowed_CL &= good_start_C[first_C1] & good_end_C[last_CL]
    return Candidates(window, start_C[first_C1] + end_C[last_CL], allowed_CL)


def _owned(windows: Sequence[Window]) -> list[Bools]:
    """For each window, (C,): the tokens that have more context around them in it than in any other; the first, of equals.

    The score is that of run_squad.py: the tokens on the side with fewer of them, plus 0.01 for each in the window.
    """
    total = max(window.rank + len(window.places_C) for window in windows)
    best, owner = np.full(total, -math.inf), np.zeros(total, dtype=np.int64)
    for number, window in enumerate(windows):
        size = len(window.places_C)
        left_C = np.arange(size)
        score_C = np.minimum(left_C, size - 1 - left_C) + 0.01 * size
        place = slice(window.rank, window.rank + size)
        owner[place] = np.where(score_C > best[place], number, owner[place])
        best[place] = np.maximum(score_C, best[place])
    return [owner[w.rank : w.rank + len(w.places_C)] == number for number, w in enumerate(windows)]
