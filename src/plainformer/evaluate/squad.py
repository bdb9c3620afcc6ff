"""SQuAD's scores: exact match and F1 of answers' words, with the best "no answer" threshold.

The arithmetic of the official scripts, evaluate-v1.1.py (Rajpurkar et al. 2016) and evaluate-v2.0.py (2018).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plainformer.config.values import check_choice, no_effect
from plainformer.errors import InputError, opt, plural

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
VERSIONS = ("1.1", "2.0")


@dataclass(frozen=True)
class Scores:
    """Means over `total` questions, in percent."""

    exact: float
    f1: float
    total: int


@dataclass(frozen=True)
class SquadScores(Scores):
    """What the official script prints.

    Attributes:
        has_answer, no_answer: of the questions that have one and of the others (2.0); None where there are none.
        best_exact, best_f1: with the thresholds that are best for each. A question counts as answered where its "no
            answer" score is not above the threshold. None without such scores.
    """

    has_answer: Scores | None = None
    no_answer: Scores | None = None
    best_exact: float | None = None
    best_exact_threshold: float | None = None
    best_f1: float | None = None
    best_f1_threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1 where the normalised answers are equal, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def f1(prediction: str, gold: str, *, version: str = "2.0") -> float:
    """Return the harmonic mean of precision and recall over the words of the normalised answers.

    Where one of them has no words: 1 if both have none, else 0; in version "1.1" always 0.
    """
    check_choice("version", version, VERSIONS)
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not ours or not theirs:
        return float(version == "2.0" and ours == theirs)
    same = (Counter(ours) & Counter(theirs)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def question_scores(prediction: str, gold: Sequence[str], *, version: str = "2.0") -> tuple[float, float]:
    """Return exact match and F1 of an answer to one question: of its right answers, the best match counts; none is ""."""
    # An answer of articles and punctuation alone would match every other one, and "": version 2.0 leaves it out.
    golds = [text for text in gold if version == "1.1" or normalize_answer(text)] or [""]
    return max(exact_match(prediction, text) for text in golds), max(
        f1(prediction, text, version=version) for text in golds
    )


def read_references(data: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the right answers of each question's id, from the JSON of a SQuAD file (either version)."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        for article in data["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    found[question["id"]] = tuple(answer["text"] for answer in question["answers"])
    except (KeyError, TypeError) as error:
        fix = 'it is {"data": [{"paragraphs": [{"context", "qas": [...]}]}]}'
        raise InputError(f"this is not a SQuAD data set: {error}", fix) from None
    return found


def evaluate_squad(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    version: str = "2.0",
    no_answer_scores: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> SquadScores:
    """Return the scores of answers.

    Args:
        predictions: of each question's id, the answer; "" for none.
        references: of each question's id, the right answers, of which the best match counts; none where the question has
            no answer ("2.0" alone).
        version: "1.1" or "2.0", of the official script.
        no_answer_scores: how strongly each question was held to have no answer (for example `Answer.no_answer_score`): adds the
            best thresholds ("2.0" alone).
        threshold: questions with a higher such score count as predicted to have no answer. Default: the script's, which
            suits probabilities.
    Raises:
        UsageError: an unknown version, or an option that has no effect.
        InputError: ids that do not agree. (The script for 1.1 gives 0 for a missing answer: so does ""; others fail.)
    """
    check_choice("version", version, VERSIONS)
    _check_ids("predictions", predictions, references)
    if version == "1.1":
        _check_v1(references, no_answer_scores)
    elif no_answer_scores is not None:
        _check_ids("no_answer_scores", no_answer_scores, references)
    else:
        no_effect(threshold != 1.0, "threshold", f"without {opt('no_answer_scores')}", "give both, or neither")
    exact, shared = {}, {}
    for name, gold in references.items():
        exact[name], shared[name] = question_scores(predictions[name], gold, version=version)
    scores = no_answer_scores or {}
    exact_cut, shared_cut = (
        {
            name: float(not references[name]) if name in scores and scores[name] > threshold else value
            for name, value in each.items()
        }
        for each in (exact, shared)
    )
    whole = _means(exact_cut, shared_cut, references)
    if version == "1.1":
        return SquadScores(whole.exact, whole.f1, whole.total)
    answered = _means(exact_cut, shared_cut, [name for name, gold in references.items() if gold])
    others = _means(exact_cut, shared_cut, [name for name, gold in references.items() if not gold])
    found = (whole.exact, whole.f1, whole.total, answered if answered.total else None, others if others.total else None)
    if no_answer_scores is None:
        return SquadScores(*found)
    best = (_best_threshold(predictions, each, scores, references) for each in (exact, shared))
    return SquadScores(*found, *(value for pair in best for value in pair))


def _check_v1(references: Mapping[str, Sequence[str]], no_answer_scores: object) -> None:
    no_effect(no_answer_scores is not None, "no_answer_scores", f"in {opt('version', '1.1')}")
    empty = [name for name, gold in references.items() if not gold]
    if empty:
        what = f"question {empty[0]!r} has no right answer, and in SQuAD 1.1 each has one"
        raise InputError(what, f"pass {opt('version', '2.0')}")


def _means(exact: Mapping[str, float], shared: Mapping[str, float], names: Iterable[str]) -> Scores:
    own = list(names)
    percent = 100.0 / max(len(own), 1)
    return Scores(percent * sum(exact[i] for i in own), percent * sum(shared[i] for i in own), len(own))


def _best_threshold(
    predictions: Mapping[str, str],
    values: Mapping[str, float],
    scores: Mapping[str, float],
    references: Mapping[str, Sequence[str]],
) -> tuple[float, float]:
    """Return the best score that a threshold gives, in percent, and the threshold; as the script, of ties the first.

    From a threshold below all scores, where every question counts as having no answer, questions are answered one by one.
    """
    current = best = float(sum(not gold for gold in references.values()))
    threshold = 0.0
    for name in sorted(scores, key=lambda name: scores[name]):
        current += values[name] if references[name] else -float(bool(predictions[name]))
        if current > best:
            best, threshold = current, scores[name]
    return 100.0 * best / len(values), threshold


def _check_ids(what: str, given: Mapping[str, Any], references: Mapping[str, Any]) -> None:
    if not references:
        raise InputError("there are no questions to score", "give references")
    missing = [name for name in references if name not in given]
    if missing:
        raise InputError(
            f"{what} lack {len(missing)} of {plural(len(references), 'question')}, for example {missing[0]!r}",
            'give "" for a question without an answer' if what == "predictions" else "give one for each question",
        )
    unknown = [name for name in given if name not in references]
    if unknown:
        raise InputError(
            f"{what} have {unknown[0]!r}, which is not one of the questions", "are they another data set's?"
        )
