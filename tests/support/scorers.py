"""Random references and answers for each scorer, small enough that labels are missing and scores are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plainformer.evaluate import SCORERS

LABELS = ("a", "b", "c", "é 😀")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-x y", "I-x y")
WORDS = ("the", "cat", "sat", "naïve", "日本語", "12", "a,b", "don't", "…", "CAT")
Pair = tuple[Any, Any]


def chances(random: np.random.Generator, count: int) -> np.ndarray:
    """Probabilities of few values, so that many are equal, and some 0 or 1."""
    found = random.integers(0, 4, count).astype(np.float64)
    found[random.integers(count)] += 1
    return found / found.sum()


def single_label(random: np.random.Generator, labels: tuple[str, ...] = LABELS) -> Pair:
    found = chances(random, len(labels))
    given = labels[int(found.argmax())] if random.random() < 0.9 else labels[0]
    return labels[min(int(random.integers(len(labels))), len(labels) - 1)], {
        "label": given,
        "probabilities": found.tolist(),
    }


def multi_label(random: np.random.Generator) -> Pair:
    found = random.integers(0, 5, len(LABELS)) / 4
    given = [label for label, chance in zip(LABELS, found, strict=True) if chance >= 0.5]
    return [label for label in LABELS[:3] if random.random() < 0.4], {"labels": given, "probabilities": found.tolist()}


def many_labels(random: np.random.Generator) -> Pair:
    reference, answer = multi_label(random)
    return reference, {**answer, "probabilities": [*answer["probabilities"], *[0.25] * 60]}


def regression(random: np.random.Generator) -> Pair:
    return [float(random.integers(4)), float(random.normal())], [float(random.integers(4)), 1.5]


def entities(random: np.random.Generator) -> Pair:
    size = int(random.integers(0, 7))
    return tuple([TAGS[place] for place in random.integers(0, len(TAGS), size)] for _ in range(2))  # type: ignore[return-value]


def text(random: np.random.Generator, most: int = 7) -> str:
    return " ".join(WORDS[place] for place in random.integers(0, len(WORDS), int(random.integers(0, most))))


def squad(random: np.random.Generator) -> Pair:
    golds = [text(random, 4) or "cat" for _ in range(int(random.integers(0, 3)))]
    given = golds[0] if golds and random.random() < 0.4 else text(random, 3)
    return golds, {"text": given, "no_answer_score": float(random.integers(0, 9)) / 4}


def choice(random: np.random.Generator) -> Pair:
    found = chances(random, int(random.integers(2, 5)))
    return int(random.integers(len(found))), {"label": int(found.argmax()), "probabilities": found.tolist()}


def texts(random: np.random.Generator) -> Pair:
    return [text(random) for _ in range(int(random.integers(1, 3)))], text(random)


def speech(random: np.random.Generator) -> Pair:
    return text(random), text(random)


def language(random: np.random.Generator) -> Pair:
    return text(random), {"nats": float(random.gamma(2.0)), "tokens": int(random.integers(0, 6))}


def masked(random: np.random.Generator) -> Pair:
    tokens = int(random.integers(0, 6))
    return None, {
        "nats": float(random.gamma(2.0)) * tokens,
        "tokens": tokens,
        "right": int(random.integers(0, tokens + 1)),
    }


# Settings and a maker of pairs for each scorer, by the names of SCORERS and what is special.
CASES: dict[str, tuple[str, dict[str, Any], Callable[[np.random.Generator], Pair]]] = {
    "single-label": ("single-label", {"labels": LABELS}, single_label),
    "two labels": ("single-label", {"labels": LABELS[:2]}, lambda random: single_label(random, LABELS[:2])),
    "no probabilities": ("single-label", {"labels": LABELS, "probabilities": False}, single_label),
    "many labels": (
        "single-label",
        {"labels": tuple(map(str, range(60)))},
        lambda r: single_label(r, tuple(map(str, range(60)))),
    ),
    "multi-label": ("multi-label", {"labels": LABELS}, multi_label),
    "many of several": ("multi-label", {"labels": (*LABELS, *map(str, range(60)))}, many_labels),
    "regression": ("regression", {"labels": ("x", "y")}, regression),
    "entities": ("entities", {"labels": TAGS}, entities),
    "squad": ("squad", {"no_answer_scores": True}, squad),
    "choice": ("choice", {}, choice),
    "text": ("text", {"word_order": 2}, texts),
    "speech": ("speech", {"normalize": "words"}, speech),
    "language": ("language", {}, language),
    "masked": ("masked", {}, masked),
    "tags": ("tags", {"labels": TAGS}, entities),
}
CASES = {name: case for name, case in CASES.items() if case[0] in SCORERS}


def pairs(name: str, count: int, seed: int = 0) -> list[Pair]:
    """Pairs of a case."""
    random = np.random.default_rng(seed)
    return [CASES[name][2](random) for _ in range(count)]
