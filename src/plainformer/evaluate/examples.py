"""A kept evaluation as one HTML page of its answers, wrong ones on top. The page needs nothing else, and loads nothing.

Shapes: N examples, M numbers of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config.values import check_whole
from plainformer.errors import plural
from plainformer.evaluate.base import Metric, Numbers, Scorer
from plainformer.evaluate.kept import Kept
from plainformer.evaluate.marked import Piece, legend, spans, tagged, word_diff
from plainformer.evaluate.squad import f1

TOP = 500  # examples of a page
_LONGEST = 4000  # characters of a text
# Metrics of which an example's own value says whether its answer is wrong, and how bad it is: the first that a scorer has.
_JUDGES = ("accuracy", "exact_match", "subset_accuracy", "sentence_error_rate")
_UNJUDGED = ("regression", "language", "masked")  # numbers and texts are near or far, likely or not, but not wrong


@dataclass(frozen=True)
class Ranked:
    """How bad each answer is.

    Attributes:
        wrong_N: whether it is wrong; None where answers are not right or wrong. bad_N: how bad, the higher the worse; NaN
            where that is undefined. values_N: the metric by which that is said, called `told`.
        confidence_N: None if not known.
    """

    wrong_N: npt.NDArray[np.bool_] | None
    bad_N: Numbers
    values_N: Numbers
    told: str
    confidence_N: Numbers | None = None

    def order(self) -> npt.NDArray[np.int64]:
        """Return the places of the examples: wrong ones first, the worst of them first; (N,)."""
        right_N = np.zeros(len(self.bad_N), bool) if self.wrong_N is None else ~self.wrong_N
        return np.lexsort((-np.nan_to_num(self.bad_N, nan=-np.inf), right_N))

    @property
    def wrong(self) -> int:
        """Return how many are wrong."""
        return 0 if self.wrong_N is None else int(self.wrong_N.sum())


def ranked(scorer: Scorer, rows_NM: Numbers) -> Ranked:
    """Return how bad answers are, of their rows alone: by the loss where there are probabilities, else by the main metric."""
    metrics = {metric.name: metric for metric in scorer.metrics}
    told = "nll" if "nll" in metrics else scorer.metrics[0].name
    values_N = scorer.outcomes(rows_NM, told)
    if values_N is None:  # of each example by itself
        ones = np.ones(1)
        values_N = np.array([scorer.measure(row[None])(ones)[told] for row in rows_NM])
    bad_N = values_N if metrics[told].better == "lower" else -values_N
    sure_N = rows_NM[:, scorer.columns.index("confidence")] if "confidence" in scorer.columns else None
    return Ranked(_wrong(scorer, rows_NM, metrics, values_N, told), bad_N, values_N, told, sure_N)


def _wrong(
    scorer: Scorer, rows_NM: Numbers, metrics: Mapping[str, Metric], values_N: Numbers, told: str
) -> npt.NDArray[np.bool_] | None:
    """Return which answers are wrong."""
    if scorer.name in _UNJUDGED:
        return None
    for name in _JUDGES:
        outcomes_N = scorer.outcomes(rows_NM, name) if name in metrics else None
        if outcomes_N is not None:
            return np.asarray((outcomes_N == 0) != (metrics[name].better == "lower"))
    best = 0.0 if metrics[told].better == "lower" else 1.0
    return np.asarray(~np.isnan(values_N) & (values_N != best))


@dataclass(frozen=True)
class Example:
    """An answer on the page. Attributes: lines: (name, pieces) below the input. label, given: of a classifier."""

    number: int
    wrong: bool
    confidence: float | None
    facts: Sequence[str]
    input: Sequence[Piece]
    lines: Sequence[tuple[str, Sequence[Piece]]]
    label: str = ""
    given: str = ""


def to_html(kept: Kept, *, top: int = TOP) -> str:
    """Return the page; everything that comes from the data or the model is escaped.

    Args:
        top: the most examples on it; it says what is left out.
    """
    from jinja2 import Environment

    check_whole("top", top)
    scorer, rows_NM = kept.scorer, np.asarray(kept.rows)
    found = ranked(scorer, rows_NM)
    order = found.order()[:top]
    places = {number: place for place, number in enumerate(order.tolist())}
    examples: list[Example | None] = [None] * len(order)
    for number, one in enumerate(kept.predictions()):
        if number in places:
            examples[places[number]] = _example(scorer, found, number, one)
    listed = [one for one in examples if one is not None]
    kinds = {piece.kind for one in listed for _, line in (("", one.input), *one.lines) for piece in line}
    source = files("plainformer.evaluate").joinpath("examples.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        title=_title(kept),
        facts=_facts(kept, found),
        left_out=_left_out(found, len(listed)),
        judged=found.wrong_N is not None,
        legend=legend(kinds),
        labels=sorted({label for one in listed for label in (one.label, one.given) if label}),
        sure=found.confidence_N is not None,
        examples=listed,
        pieces=_drawn,
    )


def _title(kept: Kept) -> str:
    data = kept.info.get("data")
    parts = [kept.info.get("task"), data.get("name") if isinstance(data, dict) else None]
    return ": ".join(str(part) for part in parts if part) or "evaluation"


def _drawn(pieces: Sequence[Piece]) -> Any:
    """Return pieces as HTML; the texts are escaped."""
    from markupsafe import Markup

    parts = []
    for piece in pieces:
        if not piece.kind:
            parts.append(Markup("{}").format(piece.text))
        else:
            note = Markup("<small>{}</small>").format(piece.note) if piece.note else ""
            parts.append(Markup('<mark class="{}">{}{}</mark>').format(piece.kind, piece.text, note))
    return Markup("").join(parts)


def _facts(kept: Kept, found: Ranked) -> list[str]:
    count = len(found.bad_N)
    main = kept.scorer.metrics[0].name
    value = kept.scorer.measure(np.asarray(kept.rows))(np.ones(count))[main] if count else float("nan")
    wrong = [] if found.wrong_N is None else [f"{found.wrong:,} wrong"]
    return [plural(count, "example"), *wrong, *([f"{main} {value:.4g}"] if value == value else [])]


def _left_out(found: Ranked, listed: int) -> str:
    count, wrong = len(found.bad_N), found.wrong
    if listed >= count:
        return ""
    shown = f"{listed:,} of {count:,} examples are shown"
    if found.wrong_N is None:
        return f"{shown}, the worst by {found.told}."
    if wrong > listed:
        return f"{shown}, the worst of {wrong:,} that are wrong."
    return f"{shown}: all that are wrong, and {listed - wrong:,} of those that are right."


def _example(scorer: Scorer, found: Ranked, number: int, one: Mapping[str, Any]) -> Example:
    made = _SHAPES.get(scorer.name, _plain)(one)
    confidence = None if found.confidence_N is None else float(found.confidence_N[number])
    wrong = found.wrong_N is not None and bool(found.wrong_N[number])
    facts = [str(one.get("place") or f"example {number + 1}"), f"{found.told} {found.values_N[number]:.3g}"]
    facts += [] if confidence is None else [f"confidence {confidence:.3f}"]
    return Example(number, wrong, confidence, facts, made.input, made.lines, made.label, made.given)


# ---- what an answer looks like, for each kind of task ---------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """An example's input, and lines below it."""

    input: Sequence[Piece]
    lines: Sequence[tuple[str, Sequence[Piece]]] = field(default=())
    label: str = ""
    given: str = ""


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _input(one: Mapping[str, Any]) -> list[Piece]:
    return [Piece(_text(one.get("input", "")))]


def _plain(one: Mapping[str, Any]) -> Shown:
    lines = [("right", [Piece(_text(one.get("reference")))]), ("answer", [Piece(_text(one.get("answer")))])]
    return Shown(_input(one), lines)


def _label(one: Mapping[str, Any]) -> Shown:
    right, given = str(one["reference"]), str(one["answer"]["label"])
    kind = "right" if right == given else "extra"
    return Shown(_input(one), [("right", [Piece(right)]), ("answer", [Piece(given, kind)])], right, given)


def _labels(one: Mapping[str, Any]) -> Shown:
    right, given = list(one["reference"]), list(one["answer"]["labels"])
    kinds = {name: "right" if name in right and name in given else "extra" for name in given}
    kinds |= {name: "missed" for name in right if name not in given}
    pieces = [part for name, kind in kinds.items() for part in (Piece(str(name), kind), Piece(" "))]
    return Shown(_input(one), [("right", [Piece(", ".join(map(str, right)) or "none")]), ("answer", pieces)])


def _tags(one: Mapping[str, Any]) -> Shown:
    words = one.get("words") or str(one.get("input", "")).split(" ")
    pieces = tagged(words, one["reference"], one["answer"])
    cut = len(words) < len(one["reference"]) or str(one.get("input", "")).endswith("…")
    return Shown([*pieces, Piece(" …")] if cut else pieces)


def _question(one: Mapping[str, Any]) -> Shown:
    right, given = [str(text) for text in one["reference"]], str(one["answer"]["text"])
    nearest = max(right, key=lambda text: f1(given, text), default="")
    lines = [("right", [Piece(" / ".join(right) or "no answer")])]
    lines.append(
        ("answer", word_diff(nearest, given) if given else [Piece("no answer", "extra" if right else "right")])
    )
    context = one.get("context")
    return Shown(_input(one), [*lines, ("context", spans(_text(context), right, given))] if context else lines)


def _written(one: Mapping[str, Any]) -> Shown:
    right = one["reference"] if isinstance(one["reference"], str) else _text(one["reference"])
    return Shown(
        _input(one), [("right", [Piece(_text(right))]), ("answer", word_diff(_text(right), _text(one["answer"])))]
    )


_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], Shown]] = {
    "single-label": _label,
    "multi-label": _labels,
    "entities": _tags,
    "squad": _question,
    "text": _written,
    "speech": _written,
}
