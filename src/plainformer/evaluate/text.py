"""Metrics of written texts: BLEU, chrF, ROUGE and exact match, of sacrebleu's and rouge-score's own counts.

BLEU and chrF are of a whole corpus: counts of n-grams are summed over texts first (Papineni et al. 2002; Popović 2015). ROUGE
is the mean of the texts' own F1 (Lin 2004). Shapes: N texts, M numbers of a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from plainformer.config.values import check_choice, check_whole
from plainformer.errors import InputError, MissingDependencyError, to_install
from plainformer.evaluate.base import Measure, Metric, Numbers, OfSums, Scorer, ratio

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_ORDER = 4
_CHARACTERS = 6
_NAMES = ("chrf", "bleu", *ROUGE, "exact_match")


class Text(Scorer):
    """Texts, such as translations and summaries.

    A reference is a text, or a list of texts that are all right; an answer is a text. BLEU and chrF are in percent, the others
    from 0 to 1. rouge-score reads words of the letters a to z and digits alone: of other scripts ROUGE is 0.

    Args:
        main: the metric by which models are chosen: "chrf" by default. tokenize: sacrebleu's tokenizer for BLEU.
        word_order: of chrF: 0, or 2 for chrF++. stem: whether ROUGE takes words of one stem for the same (Porter).
    """

    name = "text"

    def __init__(self, main: str = "chrf", tokenize: str = "13a", word_order: int = 0, stem: bool = False) -> None:
        check_choice("main", main, _NAMES)
        check_whole("word_order", word_order, 0)
        self.main, self.tokenize, self.word_order, self.stem = main, tokenize, word_order, stem
        self.read = self.unread = 0  # references, and those of them of which ROUGE reads less than half of the letters
        orders = range(1, _ORDER + 1)
        self.columns = ("examples", *ROUGE, "exact_match", "words", "reference_words")
        self.columns += tuple(f"{kind}_{n}" for kind in ("right", "given") for n in orders)
        self.columns += tuple(
            f"{kind}_{n}"
            for n in range(1, _CHARACTERS + word_order + 1)
            for kind in ("chrf_given", "chrf_true", "chrf_right")
        )
        why = "the references are empty"
        metrics = [Metric(name, undefined=why if name in ("chrf", "bleu") else Metric.undefined) for name in _NAMES]
        self.metrics = tuple(sorted(metrics, key=lambda metric: metric.name != main))

    def settings(self) -> Mapping[str, Any]:
        return {"main": self.main, "tokenize": self.tokenize, "word_order": self.word_order, "stem": self.stem}

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return the text's ROUGE and exact match, and what BLEU and chrF sum. Raises InputError: there is no reference."""
        references = [reference] if isinstance(reference, str) else list(reference)
        if not references:
            raise InputError("a text has no reference", "give at least one right text")
        bleu, chrf, rouge = self._packages
        self.read += 1
        self.unread += _unread(references[0])
        scores = rouge.score_multi(references, answer)
        right = any(answer.strip() == text.strip() for text in references)
        # What sacrebleu's own significance tests are made of; its public scores do not give chrF's counts.
        lists = [[text] for text in references]
        counts = (each._extract_corpus_statistics([answer], lists)[0] for each in (bleu, chrf))
        return [1.0, *(scores[name].fmeasure for name in ROUGE), right, *(count for each in counts for count in each)]

    def notes(self) -> Sequence[str]:
        if not self.unread:
            return ()
        count = f"{self.unread:,} of {self.read:,} references have"
        return (
            f"ROUGE reads the letters a to z and digits alone: {count} mostly others, of which it sees nothing; see chrF",
        )

    @cached_property
    def _packages(self) -> tuple[Any, Any, Any]:
        try:
            from rouge_score.rouge_scorer import RougeScorer
            from sacrebleu.metrics import BLEU, CHRF
        except ImportError as error:
            raise MissingDependencyError(
                "BLEU and ROUGE need sacrebleu and rouge-score", to_install("evaluate")
            ) from error
        check_choice("tokenize", self.tokenize, BLEU.TOKENIZERS)
        # One sentence has no n-grams of some lengths, which is not worth a warning: `tokenize` and `force` are as given.
        bleu = BLEU(tokenize=self.tokenize, force=True)
        return bleu, CHRF(word_order=self.word_order), RougeScorer(list(ROUGE), use_stemmer=self.stem)

    def measure(self, rows_NM: Numbers) -> Measure:
        return OfSums(rows_NM, self._measured)

    def _measured(self, sums_M: Numbers) -> dict[str, float]:
        total, *means = sums_M[: 2 + len(ROUGE)].tolist()
        values = {name: ratio(mean, total) for name, mean in zip((*ROUGE, "exact_match"), means, strict=True)}
        start = 2 + len(ROUGE)
        words, reference_words, *counts = sums_M[start : start + 2 + 2 * _ORDER].tolist()
        values["bleu"] = bleu(words, reference_words, counts[:_ORDER], counts[_ORDER:])
        values["chrf"] = chrf(sums_M[start + 2 + 2 * _ORDER :].reshape(-1, 3))
        return values

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        if metric not in (*ROUGE, "exact_match"):
            return None
        return np.array(rows_NM[:, self.columns.index(metric)])


def _unread(text: str) -> bool:
    letters = [letter for letter in text.lower() if letter.isalnum()]
    return 2 * sum(letter.isascii() for letter in letters) < len(letters)


def bleu(words: float, reference_words: float, right: Sequence[float], given: Sequence[float]) -> float:
    """Return BLEU in percent, as sacrebleu: lengths without matches are smoothed by halving ("exp").

    Args:
        words, reference_words: lengths of all answers and of the references closest in length. right, given: n-grams of each
            length that are right, and that there are.
    """
    if not reference_words and not any(right):
        return float("nan")
    if not words or not any(right):
        return 0.0
    precisions, halves = [], 1.0
    for matches, total in zip(right, given, strict=True):
        if not total:
            return 0.0
        if not matches:
            halves *= 2
        precisions.append((matches or 1 / halves) / total)
    short = min(0.0, 1 - reference_words / words)
    return 100 * math.exp(short + sum(map(math.log, precisions)) / len(precisions))


def chrf(counts_N3: Numbers) -> float:
    """Return chrF2 in percent, as sacrebleu: recall weighs four times; lengths that a side lacks are left out.

    Args:
        counts_N3: for each length, n-grams of the answers, of the references, and of both.
    """
    given_N, true_N, right_N = counts_N3.T
    if not true_N.any():
        return float("nan")
    known_N = (given_N > 0) & (true_N > 0)
    if not right_N.any():
        return 0.0
    precision = float((right_N[known_N] / given_N[known_N]).mean())
    recall = float((right_N[known_N] / true_N[known_N]).mean())
    return 100 * 5 * precision * recall / (4 * precision + recall)
