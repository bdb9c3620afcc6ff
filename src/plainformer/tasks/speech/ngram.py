"""Word n-gram models with back-off (Katz 1987), read from ARPA files as SRILM and KenLM write them."""

from __future__ import annotations

import gzip
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from plainformer.errors import InputError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
_LN_10 = math.log(10)
_UNSEEN = -10.0  # log10 of an unseen word in a model without <unk>


class NgramModel:
    """P(word | the words before it).

    Attributes:
        order: the longest n-gram. probabilities, back_offs: words → natural logarithms.
    """

    def __init__(
        self, order: int, probabilities: dict[tuple[str, ...], float], back_offs: dict[tuple[str, ...], float]
    ) -> None:
        self.order, self.probabilities, self.back_offs = order, probabilities, back_offs

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> NgramModel:
        """Read an .arpa or .arpa.gz file; an InputError where that fails, or its counts are wrong."""
        file = Path(path)
        opened = gzip.open if file.suffix == ".gz" else open
        try:
            with opened(file, "rt", encoding="utf-8") as lines:
                return cls(*_Reader(str(file), lines).read())
        except (OSError, EOFError, UnicodeError, gzip.BadGzipFile) as error:
            raise InputError(f"the n-gram model {str(file)!r} cannot be read: {error}", "check the file") from error

    def known(self, word: str) -> str:
        """Return a word as the model spells it: as it is, or in lower or upper case; `<unk>` where it has none of them."""
        spellings = (word, word.lower(), word.upper())
        return next((spelling for spelling in spellings if (spelling,) in self.probabilities), UNKNOWN)

    def score(self, history: tuple[str, ...], word: str) -> float:
        """Return ln P(word | history); both as `known` spells them, of the history at most the last `order` - 1 words."""
        total = 0.0
        history = history[max(0, len(history) - self.order + 1) :] if self.order > 1 else ()
        while (found := self.probabilities.get((*history, word))) is None:
            if not history:
                return total + _UNSEEN * _LN_10
            total += self.back_offs.get(history, 0.0)
            history = history[1:]
        return total + found

    def extended(self, history: tuple[str, ...], word: str) -> tuple[str, ...]:
        """Return the history after a word, as long as it matters."""
        return (*history, word)[-(self.order - 1) :] if self.order > 1 else ()


class _Reader:
    """Read the sections of an ARPA file; errors name the line."""

    def __init__(self, name: str, lines: TextIO) -> None:
        self.name, self.number = name, 0
        self.lines = self._numbered(lines)
        self.probabilities: dict[tuple[str, ...], float] = {}
        self.back_offs: dict[tuple[str, ...], float] = {}

    def _numbered(self, lines: TextIO) -> Iterator[str]:
        for self.number, line in enumerate(lines, 1):
            if line.strip():
                yield line.strip()

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.name}, line {self.number}: {what}", "give an n-gram model in the ARPA format")

    def _next(self) -> str:
        line = next(self.lines, None)
        if line is None:
            raise self._wrong(r"the file ends before \end\ ")
        return line

    def read(self) -> tuple[int, dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
        if "\\data\\" not in self.lines:  # reads up to it
            raise self._wrong(r"there is no \data\ section")
        counts = {}
        while match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line := self._next()):
            counts[int(match[1])] = int(match[2])
        if not counts or sorted(counts) != list(range(1, len(counts) + 1)):
            raise self._wrong("the orders are not counted from 1 up")
        for order, count in counts.items():
            if line != f"\\{order}-grams:":
                raise self._wrong(f"{line[:60]!r} is where \\{order}-grams: should be")
            read = 0
            while not (line := self._next()).startswith("\\"):
                self._entry(line, order)
                read += 1
            if read != count:
                raise self._wrong(f"{read} {order}-grams, but {count} were promised")
        if line != "\\end\\":
            raise self._wrong(f"{line[:60]!r} is where \\end\\ should be")
        return len(counts), self.probabilities, self.back_offs

    def _entry(self, line: str, order: int) -> None:
        parts = line.split()
        if len(parts) not in (order + 1, order + 2):
            raise self._wrong(f"{line[:60]!r} is not a {order}-gram with its probability")
        words = tuple(parts[1 : order + 1])
        try:
            self.probabilities[words] = self._log(parts[0])
            if len(parts) == order + 2:
                self.back_offs[words] = self._log(parts[-1])
        except ValueError:
            raise self._wrong(f"{line[:60]!r} has no number where one should be") from None

    def _log(self, text: str) -> float:
        value = float(text)
        if math.isnan(value) or value == math.inf:
            raise ValueError(text)
        return max(value, -1e4) * _LN_10  # some write -inf, or -99, for what cannot be
