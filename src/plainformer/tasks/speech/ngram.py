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
_UNSEEN = -10.0  # log10 of a word that a model without <unk> never saw


class NgramModel:
    """P(word | the words before it).

    Attributes:
        order: the longest n-gram. probabilities, back_offs: words → natural logarithms.
    """

    def __init__(
        self, order: int, probabilities: dict[tuple[str, ...], float], back_offs: dict[tuple[str, ...], float]
    ) -> None:
        self.order, self.probabilities, self.back_offs = order, probabilities, back_offs
        self._unknown = (UNKNOWN,) if (UNKNOWN,) in probabilities else None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> NgramModel:
        """From an .arpa file, or an .arpa.gz.

        Raises:
            InputError: the file is not there, is not ARPA, or holds other numbers of n-grams than it says.
        """
        file = Path(path)
        opened = gzip.open if file.suffix == ".gz" else open
        try:
            with opened(file, "rt", encoding="utf-8") as lines:
                return cls(*_Reader(str(file), lines).read())
        except (OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise InputError(f"the n-gram model {str(file)!r} cannot be read: {error}", "check the file") from error

    def known(self, word: str) -> str:
        """Return a word as the model spells it: as it is, or in lower or upper case; `<unk>` where it has none of them."""
        for spelling in (word, word.lower(), word.upper()):
            if (spelling,) in self.probabilities:
                return spelling
        return UNKNOWN

    def score(self, history: tuple[str, ...], word: str) -> float:
        """Return ln P(word | history); both as `known` spells them, of the history at most the last `order` - 1 words."""
        total = 0.0
        history = history[max(0, len(history) - self.order + 1) :] if self.order > 1 else ()
        while True:
            found = self.probabilities.get((*history, word))
            if found is not None:
                return total + found
            if not history:
                return total + _UNSEEN * _LN_10
            total += self.back_offs.get(history, 0.0)
            history = history[1:]

    def extended(self, history: tuple[str, ...], word: str) -> tuple[str, ...]:
        """Return the history after a word, as long as it matters."""
        return (*history, word)[-(self.order - 1) :] if self.order > 1 else ()


class _Reader:
    """Reads the sections of an ARPA file, and says where it is wrong."""

    def __init__(self, name: str, lines: TextIO) -> None:
        self.name, self.number = name, 0
        self.lines = self._numbered(lines)

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
        for line in self.lines:
            if line == "\\data\\":
                break
        else:
            raise self._wrong(r"there is no \data\ section")
        counts = {}
        while match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line := self._next()):
            counts[int(match[1])] = int(match[2])
        if not counts or sorted(counts) != list(range(1, len(counts) + 1)):
            raise self._wrong("the orders are not counted from 1 up")
        probabilities: dict[tuple[str, ...], float] = {}
        back_offs: dict[tuple[str, ...], float] = {}
        for order, count in counts.items():
            if line != f"\\{order}-grams:":
                raise self._wrong(f"{line[:60]!r} is where \\{order}-grams: should be")
            read = 0
            while not (line := self._next()).startswith("\\"):
                self._entry(line, order, probabilities, back_offs)
                read += 1
            if read != count:
                raise self._wrong(f"{read} {order}-grams, but {count} were promised")
        if line != "\\end\\":
            raise self._wrong(f"{line[:60]!r} is where \\end\\ should be")
        return len(counts), probabilities, back_offs

    def _entry(
        self,
        line: str,
        order: int,
        probabilities: dict[tuple[str, ...], float],
        back_offs: dict[tuple[str, ...], float],
    ) -> None:
        parts = line.split()
        if len(parts) not in (order + 1, order + 2):
            raise self._wrong(f"{line[:60]!r} is not a {order}-gram with its probability")
        words = tuple(parts[1 : order + 1])
        try:
            probabilities[words] = self._log(parts[0])
            if len(parts) == order + 2:
                back_offs[words] = self._log(parts[-1])
        except ValueError:
            raise self._wrong(f"{line[:60]!r} has no number where one should be") from None

    def _log(self, text: str) -> float:
        value = float(text)
        if math.isnan(value) or value == math.inf:
            raise ValueError(text)
        return max(value, -1e4) * _LN_10  # some write -inf, or -99, for what cannot be
