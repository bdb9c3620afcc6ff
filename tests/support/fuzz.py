"""Counting what mutated inputs came to: a fuzz test that refuses all of them, or none, tests nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from plainformer.errors import PlainformerError


class Outcomes:
    """`with outcomes.one():` around each try; any error but ours is a failure of the test."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def one(self) -> Iterator[None]:
        try:
            yield
        except PlainformerError as error:
            assert 0 < len(str(error)) < 5000
            self.counts["refused"] += 1
        else:
            self.counts["accepted"] += 1

    def check(self, least: int = 3) -> None:
        """Some were accepted, and some refused."""
        assert min(self.counts["accepted"], self.counts["refused"]) >= least, dict(self.counts)
