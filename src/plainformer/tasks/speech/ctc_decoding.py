"""CTC decoding: the best alignment, or the best text by prefix beam search.

The probability of a text is the sum over its alignments (Graves et al. 2006). The search keeps the best prefixes and, for
each, the probability of alignments that end in the blank and of those that do not (Hannun et al. 2014). Frames are rows of
log-probabilities, (T, V).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from plainformer.tasks.speech.ngram import END, START, NgramModel

Frames = npt.NDArray[np.float64]
_NEVER = -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """A text as token ids, blanks and repeats removed, and its score.

    score: the log-probability of the text, or of its best alignment (`best_alignment`), plus the language's bonus.
    """

    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Language:
    """Constraints and scores of words.

    Attributes:
        delimiter_id: the token between words. tokens: the text of each id.
        lexicon: the allowed words, as a tree of ids; None allows all. ngrams: the language model.
        weight: factor of its log-probabilities. word_bonus: added to the score for each word.
    """

    delimiter_id: int
    tokens: Sequence[str]
    lexicon: Mapping[int, object] | None = None
    ngrams: NgramModel | None = None
    weight: float = 0.5
    word_bonus: float = 0.0


WORD_ENDS = -1  # in a lexicon's node: a word may end here


def make_lexicon(words: Iterable[Sequence[int]]) -> dict[int, object]:
    """Return words, each as ids, as a tree: id → the ids that may follow; `WORD_ENDS` where one may end."""
    root: dict[int, object] = {}
    for word in words:
        node = root
        for i in word:
            node = node.setdefault(i, {})  # type: ignore[assignment]
        node[WORD_ENDS] = True
    return root


def best_alignment(frames_TV: Frames, blank_id: int) -> Hypothesis:
    """Return the likeliest alignment: the best token of each frame. Its text need not be the likeliest."""
    best = frames_TV.argmax(-1)
    kept = [int(i) for place, i in enumerate(best) if i != blank_id and (place == 0 or i != best[place - 1])]
    return Hypothesis(tuple(kept), float(frames_TV.max(-1, initial=_NEVER).sum()) if len(frames_TV) else 0.0)


@dataclass(eq=False, slots=True)
class _Prefix:
    """The beginning of a text. Equal prefixes are one object: each holds its continuations."""

    parent: _Prefix | None
    token: int
    node: object
    word: str
    history: tuple[str, ...]
    bonus: float
    children: dict[int, _Prefix | None] = field(default_factory=dict)

    def ids(self) -> tuple[int, ...]:
        found, prefix = [], self
        while prefix.parent is not None:
            found.append(prefix.token)
            prefix = prefix.parent
        return tuple(reversed(found))


class _Grower:
    """Extend prefixes, and score the words that they complete."""

    def __init__(self, language: Language | None) -> None:
        self.language = language
        lexicon, ngrams = (language.lexicon, language.ngrams) if language is not None else (None, None)
        history = (START,) if ngrams is not None and ngrams.order > 1 else ()
        self.root = _Prefix(None, -1, lexicon, "", history, 0.0)

    def child(self, prefix: _Prefix, token: int) -> _Prefix | None:
        """Return the prefix with one token more; None where the lexicon has no such word."""
        if token not in prefix.children:
            prefix.children[token] = self._made(prefix, token)
        return prefix.children[token]

    def _made(self, prefix: _Prefix, token: int) -> _Prefix | None:
        language = self.language
        if language is None:
            return _Prefix(prefix, token, None, "", (), 0.0)
        if token == language.delimiter_id:
            ended = self.ended(prefix)
            return _Prefix(prefix, token, language.lexicon, "", ended[1], ended[0]) if ended is not None else None
        node = prefix.node
        if language.lexicon is not None:
            node = node.get(token) if isinstance(node, dict) else None
            if node is None:
                return None
        return _Prefix(prefix, token, node, prefix.word + language.tokens[token], prefix.history, prefix.bonus)

    def ended(self, prefix: _Prefix) -> tuple[float, tuple[str, ...]] | None:
        """Return bonus and history where the prefix's last word ends here; None where it cannot."""
        language = self.language
        if language is None or not prefix.word:
            return prefix.bonus, prefix.history
        if language.lexicon is not None and not (isinstance(prefix.node, dict) and WORD_ENDS in prefix.node):
            return None
        bonus = prefix.bonus + language.word_bonus
        if language.ngrams is None:
            return bonus, prefix.history
        word = language.ngrams.known(prefix.word)
        bonus += language.weight * language.ngrams.score(prefix.history, word)
        return bonus, language.ngrams.extended(prefix.history, word)

    def total(self, prefix: _Prefix) -> float | None:
        """Return the bonus of a whole text; None where its last word is not one."""
        ended = self.ended(prefix)
        if ended is None:
            return None
        bonus, history = ended
        if self.language is not None and self.language.ngrams is not None:
            bonus += self.language.weight * self.language.ngrams.score(history, END)
        return bonus


def prefix_beam_search(
    frames_TV: Frames,
    blank_id: int,
    *,
    beam_width: int = 100,
    language: Language | None = None,
    min_token_logprob: float = -5.0,
    max_beam_gap: float = 10.0,
) -> list[Hypothesis]:
    """Return the likeliest texts, best first, at most `beam_width`.

    Args:
        frames_TV: log-probabilities; each row sums to 1 as probabilities.
        min_token_logprob: tokens of a frame below it are not tried (its best one always is); -inf tries all.
        max_beam_gap: prefixes that score less than the best by more than this are dropped; inf keeps all.
    """
    grower = _Grower(language)
    beams: dict[_Prefix, tuple[float, float]] = {grower.root: (0.0, _NEVER)}
    for frame_V in frames_TV:
        chosen = np.flatnonzero(frame_V >= min(min_token_logprob, float(frame_V.max())))
        tokens = [(int(i), float(frame_V[i])) for i in chosen if frame_V[i] > _NEVER]
        beams = _pruned(_step(beams, tokens, blank_id, grower), beam_width, max_beam_gap)
    totals = ((prefix, _add(*pair), grower.total(prefix)) for prefix, pair in beams.items())
    found = [Hypothesis(prefix.ids(), score + bonus) for prefix, score, bonus in totals if bonus is not None]
    if not found:  # all end in an unfinished word
        found = [_without_last_word(max(beams, key=lambda p: _add(*beams[p]) + p.bonus), beams, language)]
    return sorted(found, key=lambda one: (-one.score, one.ids))


def _step(
    beams: dict[_Prefix, tuple[float, float]], tokens: Sequence[tuple[int, float]], blank_id: int, grower: _Grower
) -> dict[_Prefix, tuple[float, float]]:
    """Return the prefixes after one frame more."""
    after: defaultdict[_Prefix, tuple[float, float]] = defaultdict(lambda: (_NEVER, _NEVER))
    for prefix, (blank, other) in beams.items():
        total = _add(blank, other)
        for token, logprob in tokens:
            if token == blank_id:
                after[prefix] = (_add(after[prefix][0], total + logprob), after[prefix][1])
                continue
            from_before = total
            if token == prefix.token:  # the same token again: part of the last one, unless a blank was between
                after[prefix] = (after[prefix][0], _add(after[prefix][1], other + logprob))
                from_before = blank
            if from_before > _NEVER and (longer := grower.child(prefix, token)) is not None:
                after[longer] = (after[longer][0], _add(after[longer][1], from_before + logprob))
    return after or beams


def _pruned(beams: dict[_Prefix, tuple[float, float]], width: int, gap: float) -> dict[_Prefix, tuple[float, float]]:
    scored = sorted(((_add(*pair) + prefix.bonus, prefix) for prefix, pair in beams.items()), key=lambda one: -one[0])
    least = scored[0][0] - gap
    return {prefix: beams[prefix] for score, prefix in scored[:width] if score >= least}


def _without_last_word(
    prefix: _Prefix, beams: dict[_Prefix, tuple[float, float]], language: Language | None
) -> Hypothesis:
    assert language is not None
    ids = prefix.ids()
    whole = len(ids) - next((n for n, i in enumerate(reversed(ids)) if i == language.delimiter_id), len(ids))
    return Hypothesis(ids[:whole], _add(*beams[prefix]) + prefix.bonus)


def _add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == _NEVER else a + math.log1p(math.exp(b - a))


def align(frames_TV: Frames, ids: Sequence[int], blank_id: int) -> list[tuple[int, int]]:
    """Return the frames of each token of a text in its likeliest alignment: (start, end), end exclusive."""
    if not ids:
        return []
    states = [blank_id]
    for i in ids:
        states += [i, blank_id]
    skips = np.array([s > 1 and states[s] != blank_id and states[s] != states[s - 2] for s in range(len(states))])
    best = np.full(len(states), _NEVER)
    best[:2] = frames_TV[0, states[:2]]
    back = np.zeros((len(frames_TV), len(states)), dtype=np.int8)
    for place, frame_V in enumerate(frames_TV[1:], 1):
        one = np.concatenate([[_NEVER], best[:-1]])
        two = np.where(skips, np.concatenate([[_NEVER, _NEVER], best[:-2]]), _NEVER)
        options = np.stack([best, one, two])
        back[place] = options.argmax(0)
        best = options.max(0) + frame_V[states]
    path = [len(states) - 1 if best[-1] >= best[-2] else len(states) - 2]
    for back_S in back[:0:-1]:
        path.append(path[-1] - int(back_S[path[-1]]))
    path.reverse()
    spans = []
    for number in range(len(ids)):
        own = [place for place, at in enumerate(path) if at == 2 * number + 1]
        spans.append((own[0], own[-1] + 1) if own else (0, 0))
    return spans


__all__ = ["Hypothesis", "Language", "align", "best_alignment", "make_lexicon", "prefix_beam_search"]
