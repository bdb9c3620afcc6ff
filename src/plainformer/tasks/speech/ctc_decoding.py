"""From the probabilities of frames to text by CTC: the best alignment, or the best text by prefix beam search.

A text is as probable as all its alignments together (Graves et al. 2006). The search keeps the best prefixes and, of each,
the probability of the alignments that end in the blank and of those that do not (Hannun et al. 2014). Nothing here knows of
a model: frames are rows of natural logarithms, (T, V).
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
    """A text as token ids, blanks and repeats gone, and its score: the logarithm of its probability, with what the
    language model adds."""

    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Language:
    """What is known of the words of a text.

    Attributes:
        delimiter_id: the token between words. tokens: the text of each id.
        lexicon: the words that there are, as a tree of ids; None for any. ngrams: the probability of words in a row.
        weight: what its logarithms are multiplied by. word_bonus: what each word adds to a score.
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
    """Return the likeliest alignment: of each frame the best token. Not always of the likeliest text."""
    best = frames_TV.argmax(-1)
    kept = [int(i) for place, i in enumerate(best) if i != blank_id and (place == 0 or i != best[place - 1])]
    return Hypothesis(tuple(kept), float(frames_TV.max(-1, initial=_NEVER).sum()) if len(frames_TV) else 0.0)


@dataclass(eq=False, slots=True)
class _Prefix:
    """A beginning of a text. Equal ones are the same object: each knows its continuations."""

    parent: _Prefix | None
    token: int
    node: object
    word: str
    history: tuple[str, ...]
    bonus: float
    children: dict[int, _Prefix | None] = field(default_factory=dict)

    def ids(self) -> tuple[int, ...]:
        found = []
        prefix: _Prefix | None = self
        while prefix is not None and prefix.parent is not None:
            found.append(prefix.token)
            prefix = prefix.parent
        return tuple(reversed(found))


class _Grower:
    """Makes prefixes, and scores the words that they complete."""

    def __init__(self, language: Language | None) -> None:
        self.language = language
        ngrams = language.ngrams if language is not None else None
        lexicon = language.lexicon if language is not None else None
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
            if ended is None:
                return None
            bonus, history = ended
            return _Prefix(prefix, token, language.lexicon, "", history, bonus)
        node = prefix.node
        if language.lexicon is not None:
            node = node.get(token) if isinstance(node, dict) else None
            if node is None:
                return None
        word = prefix.word + language.tokens[token]
        return _Prefix(prefix, token, node, word, prefix.history, prefix.bonus)

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
        max_beam_gap: prefixes that score so much less than the best are dropped; inf keeps them.
    """
    grower = _Grower(language)
    beams: dict[_Prefix, tuple[float, float]] = {grower.root: (0.0, _NEVER)}
    for frame_V in frames_TV:
        chosen = np.flatnonzero(frame_V >= min(min_token_logprob, float(frame_V.max())))
        tokens = [(int(i), float(frame_V[i])) for i in chosen if frame_V[i] > _NEVER]
        beams = _step(beams, tokens, blank_id, grower)
        beams = _pruned(beams, beam_width, max_beam_gap)
    found = []
    for prefix, (blank, other) in beams.items():
        bonus = grower.total(prefix)
        if bonus is not None:
            found.append(Hypothesis(prefix.ids(), _add(blank, other) + bonus))
    if not found:  # all end inside what is not a word
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
    state = len(states) - 1 if best[-1] >= best[-2] else len(states) - 2
    path = [state]
    for place in range(len(frames_TV) - 1, 0, -1):
        state -= int(back[place, state])
        path.append(state)
    path.reverse()
    spans = []
    for number in range(len(ids)):
        own = [place for place, at in enumerate(path) if at == 2 * number + 1]
        spans.append((own[0], own[-1] + 1) if own else (0, 0))
    return spans


__all__ = ["Hypothesis", "Language", "align", "best_alignment", "make_lexicon", "prefix_beam_search"]
