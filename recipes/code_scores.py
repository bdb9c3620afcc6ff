"""Measure a model of code on the files that were held out: bits per byte beside an n-gram model and `xz`, and completed lines.

    python recipes/code_scores.py runs/code/best data/code [--lines 300] [--part test] [--json]

Bits per byte: each file alone; every token is scored once, with at least half a context before it; a file's first token,
which nothing predicts, is charged as one of the vocabulary. The n-gram model (modified Kneser-Ney, order 5) counts the same
tokens of the training files. `xz` with a dictionary as large as the data: the size of train + held-out less that of train,
in bits per held-out byte.

Lines: of randomly chosen lines of code (no comments, nothing inside a longer string) the beginning is kept up to a randomly
chosen word that is not the first; the model goes on greedily to the line's end. Exact match; edit similarity, 1 - distance /
longer length, of the part that was to be written; and the share of completions with which the whole file still parses.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import lzma
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kneser_ney import KneserNey

MAX_LINE = 48  # new tokens of a line
CONTEXT = 512  # tokens before it that the model reads
RESAMPLES = 2000

Files = dict[str, str]
Floats = npt.NDArray[np.float64]


def read_part(data: Path, part: str) -> Files:
    """Return the texts of a part by name."""
    with gzip.open(data / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
        return {row["file"]: row["text"] for row in map(json.loads, file)}


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Return a text's tokens, without special ones."""
    return list(tokenizer.encode(text, add_special_tokens=False, max_length=None).input_ids)


# ---- bits per byte --------------------------------------------------------------------------------------------------------


def bits_of_model(task: Any, files: Files) -> Floats:
    """Return the bits that the model needs for each file."""
    first = math.log2(task.tokenizer.vocab_size)
    length = task.model.config.main_stack.max_positions or 1024
    scored = (task.score(text, stride=length // 2, max_length=length) for text in files.values())
    return np.array([first - each.log_probability / math.log(2) for each in scored])


def bits_of_ngrams(tokenizer: Any, train: Files, files: Files, order: int = 5) -> Floats:
    """Return the bits that a modified Kneser-Ney model of the training files needs for each file."""
    end = tokenizer.eos_id
    stream = [end]
    for text in train.values():
        stream += [*ids_of(tokenizer, text), end]
    model = KneserNey(stream, tokenizer.vocab_size, order)
    return np.array(
        [-model.log_probabilities([end, *ids_of(tokenizer, text)])[1:].sum() / math.log(2) for text in files.values()]
    )


def bits_of_xz(train: Files, files: Files) -> float:
    """Return the bits by which the compressed training files grow with the held-out ones after them."""
    before = "\n".join(train.values()).encode()
    after = "\n".join(files.values()).encode()
    size = 1 << max(20, (len(before) + len(after)).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(size, 1 << 30)}]

    def packed(data: bytes) -> int:
        return len(lzma.compress(data, lzma.FORMAT_XZ, filters=filters))

    return 8.0 * (packed(before + after) - packed(before))


def interval(numerators: Floats, denominators: Floats) -> tuple[float, float, float]:
    """Return a ratio of sums over files, and its interval of 95 % (percentile bootstrap over files)."""
    rng = np.random.Generator(np.random.Philox(0))
    drawn = rng.integers(0, len(numerators), (RESAMPLES, len(numerators)))
    ratios = numerators[drawn].sum(1) / denominators[drawn].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(numerators.sum() / denominators.sum()), float(low), float(high)


# ---- lines ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A line to complete: the file up to it, the part that is kept, the part to be written, and the file after it."""

    file: str
    before: str
    kept: str
    wanted: str
    after: str


def places_in(name: str, text: str) -> list[tuple[int, str]]:
    """Return the lines of code of a file, with their numbers from 0: not blank, no comment, not in a string of several lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text, name)
    strings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr) and (node.end_lineno or 0) > node.lineno
        for line in range(node.lineno - 1, node.end_lineno or 0)
    }
    lines = enumerate(text.split("\n"))
    return [(i, line) for i, line in lines if i not in strings and line.strip() and not line.strip().startswith("#")]


def choose_lines(files: Files, count: int, seed: int = 0) -> list[Place]:
    """Return lines to complete: at most one of twenty of a file, from all files alike."""
    rng = np.random.Generator(np.random.Philox(seed))
    known = [(name, i, line) for name, text in files.items() for i, line in places_in(name, text)]
    places = []
    for at in rng.permutation(len(known)):
        name, i, line = known[at]
        starts = [match.start() for match in re.finditer(r"\w+", line)][1:]  # of words after the first
        if not starts or i == 0:
            continue
        cut = starts[int(rng.integers(len(starts)))]
        lines = files[name].split("\n")
        before, after = "\n".join(lines[:i]) + "\n", "\n" + "\n".join(lines[i + 1 :])
        places.append(Place(name, before, line[:cut], line[cut:], after))
        if len(places) == count:
            break
    return places


def complete(task: Any, place: Place) -> str:
    """Return what the model writes up to the line's end."""
    prompt = place.before + place.kept
    ids = task.tokenizer.encode(prompt, add_special_tokens=False, max_length=None)
    if len(ids) > CONTEXT:
        prompt = prompt[ids.offsets[-CONTEXT][0] :]
    answer = task(prompt, max_new_tokens=MAX_LINE, heal=True)
    return str(answer.text).split("\n")[0]


def similarity(one: str, other: str) -> float:
    """Return 1 less the Levenshtein distance as a share of the longer text."""
    if not one and not other:
        return 1.0
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        left, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (a != b))
    return 1 - row[-1] / max(len(one), len(other))


def parses(code: str) -> bool:
    """Whether code is Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True


def line_scores(task: Any, places: Sequence[Place]) -> Iterator[tuple[bool, float, bool]]:
    """Yield for each line: whether it is exactly what was wanted, how similar, and whether the file parses with it."""
    for number, place in enumerate(places, 1):
        written, wanted = complete(task, place).rstrip(), place.wanted.rstrip()
        whole = place.before + place.kept + written + place.after
        yield written == wanted, similarity(written, wanted), parses(whole)
        if sys.stderr.isatty():
            print(f"\r{number} of {len(places)} lines", end="", file=sys.stderr)


# ---- the report -----------------------------------------------------------------------------------------------------------


def measure(ref: str, data: Path, part: str, count: int) -> dict[str, Any]:
    """Return all measures, and lines of text that say them."""
    import plainformer as pf

    task = pf.load(ref, task="text-generation")
    train, files = read_part(data, "train"), read_part(data, part)
    sizes = np.array([float(len(text.encode())) for text in files.values()])
    bits = {
        "model": interval(bits_of_model(task, files), sizes),
        "n-grams": interval(bits_of_ngrams(task.tokenizer, train, files), sizes),
    }
    xz = bits_of_xz(train, files) / float(sizes.sum())
    rows = np.array(list(line_scores(task, choose_lines(files, count))), float)
    means = {
        name: interval(column, np.ones(len(column)))
        for name, column in zip(("exact", "similarity", "parses"), rows.T, strict=True)
    }
    return {
        "bits per byte": {**bits, "xz": xz},
        "completions": means,
        "counts": {"files": len(files), "lines": len(rows)},
        "lines": said(bits, xz, means, len(files), len(rows)),
    }


def said(bits: Any, xz: float, means: Any, files: int, lines: int) -> list[str]:
    """Return the measures as Markdown."""
    shown = {name: f"{value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in bits.items()}
    share = {
        name: f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})" for name, (value, low, high) in means.items()
    }
    return [
        f"On {files} files of folders that it never saw, in bits per byte (with the interval of 95 %, bootstrap over files):",
        "",
        "| this model | 5-grams, modified Kneser-Ney | xz that has seen the training files |",
        "| --- | --- | --- |",
        f"| {shown['model']} | {shown['n-grams']} | {xz:.3f} |",
        "",
        f"{lines} lines completed from a word within them: {share['exact']} exactly as they were;",
        f"edit similarity {share['similarity']}; the whole file parses with {share['parses']} of the completions.",
    ]


def main() -> None:
    """Measure, and print."""
    asked = argparse.ArgumentParser(description="Measure a model of code.")
    asked.add_argument("model")
    asked.add_argument("data", type=Path)
    asked.add_argument("--part", default="test")
    asked.add_argument("--lines", type=int, default=300)
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    found = measure(given.model, given.data, given.part, given.lines)
    print(json.dumps(found, indent=1) if given.json else "\n".join(found["lines"]))


if __name__ == "__main__":
    main()
