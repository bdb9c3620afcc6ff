"""Metrics of transcripts: the rates of word and character errors, of jiwer's counts of edits (Levenshtein 1966).

Shapes: N recordings, M numbers of a recording.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.config.values import check_choice
from plainformer.errors import MissingDependencyError, to_install
from plainformer.evaluate.base import Measure, Metric, Numbers, OfSums, Scorer, Table, ratio

_EDITS = ("substitutions", "deletions", "insertions")
_NORMAL = ("none", "words")


class Speech(Scorer):
    """Transcripts of recordings. A reference and an answer are texts.

    Rates are over the whole corpus: all edits by all words of the references, so that they can exceed 1. Words said where the
    reference has none are insertions.

    Args:
        normalize: what is compared: "none", the texts as they are, as jiwer does (default), or "words", in lower case and
            without punctuation, of NFKC (Unicode's annex 15).
    """

    name = "speech"

    def __init__(self, normalize: str = "none") -> None:
        check_choice("normalize", normalize, _NORMAL)
        self.normalize = normalize
        self.columns = ("examples", "wrong")
        self.columns += tuple(f"{kind}_{name}" for kind in ("word", "character") for name in (*_EDITS, "all"))
        why = "the references have no words"
        self.metrics = (
            Metric("wer", "lower", why),
            Metric("cer", "lower", why),
            Metric("sentence_error_rate", "lower"),
        )

    def settings(self) -> Mapping[str, Any]:
        return {"normalize": self.normalize}

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return 1, whether any word differs, and the edits of words and of characters by kind, with how many there are."""
        try:
            import jiwer
        except ImportError as error:
            raise MissingDependencyError("rates of word errors need jiwer", to_install("evaluate")) from error
        texts = [_words(text) if self.normalize == "words" else text for text in (reference, answer)]
        counts: list[int] = []
        for aligned in (jiwer.process_words, jiwer.process_characters):
            counts += _edits(aligned, *texts)
        return [1.0, any(counts[:3]), *counts]

    def measure(self, rows_NM: Numbers) -> Measure:
        return OfSums(rows_NM, _measured)

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        return np.array(rows_NM[:, 1]) if metric == "sentence_error_rate" else None

    def tables(self, rows_NM: Numbers) -> list[Table]:
        sums_M = np.asarray(rows_NM[:, 2:]).sum(0).astype(int).tolist()
        rows = (("words", *sums_M[:4]), ("characters", *sums_M[4:]))
        return [Table("edits", ("of", *_EDITS, "all"), rows)]


def _measured(sums_M: Numbers) -> dict[str, float]:
    total, wrong, *counts = sums_M.tolist()
    rates = [ratio(sum(counts[start : start + 3]), counts[start + 3]) for start in (0, 4)]
    return {"wer": rates[0], "cer": rates[1], "sentence_error_rate": ratio(wrong, total)}


def _edits(aligned: Any, reference: str, answer: str) -> tuple[int, int, int, int]:
    """Return substitutions, deletions and insertions, and the size of the reference."""
    if not reference.strip():  # which not every version of jiwer takes
        return 0, 0, aligned(answer, "").deletions if answer.strip() else 0, 0
    found = aligned(reference, answer)
    size = found.hits + found.substitutions + found.deletions
    return found.substitutions, found.deletions, found.insertions, size


def _words(text: str) -> str:
    """Return a text's words in lower case; an apostrophe or hyphen inside a word stays.

    Invisible characters that join or direct letters (category Cf) go without parting the word.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(char for char in plain if unicodedata.category(char) != "Cf")
    inner = re.sub(r"(?<!\w)['’-]|['’-](?!\w)", " ", plain)
    kept = (char if char in "'’-" or unicodedata.category(char)[0] not in "PSZC" else " " for char in inner)
    return " ".join("".join(kept).split())
