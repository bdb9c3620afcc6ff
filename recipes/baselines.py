"""What a recipe must beat: answers that need no model.

    python recipes/baselines.py lead-1 data/debian/validation.jsonl.gz
    python recipes/baselines.py copy data/debian/fr-validation.jsonl.gz
    python recipes/baselines.py majority data/sst2/train.tsv data/sst2/dev.tsv --column 1

lead-1: the first sentence of a description as its synopsis; ROUGE. copy: the source as its own translation; chrF. majority: the
most frequent label; accuracy and macro F1.

With `--keep FOLDER` the answers are kept as an evaluation, so that `compare` sets them beside a model's, row by row:

    plainformer compare lead-1=FOLDER runs/synopses --metric rougeL

A model's ROUGE is then to be without stems, which is its default; the figures that are printed here are with them, or without
by `--no-stems`. Intervals of 95 %: percentile bootstrap over rows. Needs the extra `evaluate`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plainformer.config.training import SourceConfig
from plainformer.data.counts import Counts
from plainformer.data.read import read
from plainformer.data.survey import hash_of, plain
from plainformer.evaluate.base import Scorer, plain_values
from plainformer.evaluate.intervals import LEVEL, bootstrap
from plainformer.evaluate.kept import Keeper
from plainformer.evaluate.scorers import make_scorer

ROUGE = ("rouge1", "rouge2", "rougeL")
RESAMPLES = 2000
_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)


def first_sentence(text: str) -> str:
    """Return a text up to the first sign that ends a sentence, on one line; all of the first paragraph where there is none."""
    paragraph = text.strip().split("\n\n")[0]
    match = _SENTENCE.match(paragraph)
    return " ".join((match[1] if match else paragraph).split())


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its interval."""
    array = np.asarray(values, float)
    rng = np.random.Generator(np.random.Philox(0))
    drawn = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(array.mean()), float(low), float(high)


def rouge_of(answers: Sequence[str], references: Sequence[str], stems: bool = True) -> dict[str, list[float]]:
    """Return ROUGE-1, -2 and -L of each answer (F)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, use_stemmer=stems)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: [score[name].fmeasure for score in scores] for name in ROUGE}


def chrf_of(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return chrF of all answers."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(answers), [list(references)]).score)


def majority_of(train: Iterable[str], labels: Sequence[str]) -> tuple[str, float, float]:
    """Return the most frequent label of train, its accuracy and its macro F1."""
    best = min(Counter(train).items(), key=lambda pair: (-pair[1], pair[0]))[0]
    right = sum(label == best for label in labels)
    return best, right / len(labels), 2 * right / (right + len(labels)) / len(set(labels))


def column_of(path: Path, column: str) -> list[str]:
    """Return one column of a file of rows; a number means that it has no header."""
    number = column.isdecimal()
    source = SourceConfig(path=str(path), header=False if number else None)
    return [str(list(row.values())[int(column)] if number else row[column]) for row in read(source)]


def said(name: str, values: Sequence[float]) -> str:
    """Return a measure as a line."""
    mean, low, high = mean_and_interval(values)
    return f"{name:<12}{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def keep(folder: Path, scorer: Scorer, task: str, rows: Iterable[tuple[str, str, Any]]) -> None:
    """Keep answers as `plainformer evaluate` does.

    Args:
        rows: the input, what is right, the answer.
    """
    with Keeper(folder, len(scorer.columns)) as keeper:
        for number, (source, reference, answer) in enumerate(rows, start=1):
            line = {"place": f"row {number}", "input": source[:200], "reference": reference, "answer": answer}
            keeper.add(line, scorer.row(reference, answer), hash_of(plain(source)))
        units = keeper.units(own=True)
        info = {
            "key": "",
            "checkpoint": {"ref": "no model", "digest": "", "which": None},
            "data": {"name": "a baseline's rows", "side": "", "identity": "", "columns": {}, "test": False},
            "task": task,
            "scorer": {"name": scorer.name, "settings": dict(scorer.settings())},
            "options": {},
            "temperature": 1.0,
            "stated": "",
            "counts": Counts(rows=keeper.count).to_dict(),
            "unit": {"name": "row", "count": keeper.count},
        }
        found = bootstrap(keeper.numbers(), scorer.measure, units)
        values = {name: one.to_dict() for name, one in found.items()}
        keeper.finish(plain_values({**info, "level": LEVEL, "metrics": values}), units)


def majority(given: argparse.Namespace) -> None:
    """Answer each row with the most frequent label of train."""
    train, labels = (column_of(path, given.column) for path in (given.files[0], given.files[-1]))
    best, accuracy, f1 = majority_of(train, labels)
    if given.keep:
        known = sorted({*train, *labels})
        named = dict(zip(known, given.labels or known, strict=True))
        # How sure it is of each label: the label's share of train.
        answer = {"label": named[best], "probabilities": [train.count(label) / len(train) for label in known]}
        scorer = make_scorer("single-label", labels=list(named.values()))
        texts = column_of(given.files[-1], given.text)
        rows = ((text, named[label], answer) for text, label in zip(texts, labels, strict=True))
        keep(given.keep, scorer, "text-classification", rows)
    print(f"{best}: accuracy {100 * accuracy:.1f}, macro F1 {100 * f1:.1f}, of {len(labels):,} rows")


def main() -> None:
    """Answer and measure."""
    asked = argparse.ArgumentParser(description="Answers that need no model.")
    asked.add_argument("kind", choices=("lead-1", "copy", "majority"))
    asked.add_argument("files", type=Path, nargs="+")
    asked.add_argument("--column", default="label")
    asked.add_argument("--text", default="text", help="majority: the column of the input, for --keep")
    asked.add_argument(
        "--labels", nargs="*", help="majority: names of the labels in their order, as the model has them"
    )
    asked.add_argument("--no-stems", action="store_true", help="ROUGE of the words as they are")
    asked.add_argument("--keep", type=Path, metavar="FOLDER")
    given = asked.parse_args()
    if given.kind == "majority":
        majority(given)
        return
    source, target = ("description", "synopsis") if given.kind == "lead-1" else ("source", "target")
    sources, references = (column_of(given.files[0], name) for name in (source, target))
    answers = [first_sentence(text) for text in sources] if given.kind == "lead-1" else sources
    if given.keep:
        keep(given.keep, make_scorer("text"), "text2text-generation", zip(sources, references, answers, strict=True))
    if given.kind == "copy":
        print(f"chrF {chrf_of(answers, references):.1f} of {len(answers):,} rows")
        return
    for name, values in rouge_of(answers, references, not given.no_stems).items():
        print(said(name, values))


if __name__ == "__main__":
    main()
