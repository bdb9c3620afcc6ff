"""A watermark of text: at each step some tokens, "green" by a keyed hash of those before, are made likelier.

Who knows the key counts green tokens, and finds more of them than chance has (Kirchenbauer et al. 2023, arXiv 2301.10226;
its schemes in 2306.04634). Text watermarked by transformers on a CPU is detected here, and the reverse.

Shapes: R rows, T tokens, G green tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from plainformer.config.options import number, one_of, whole
from plainformer.config.values import check_number
from plainformer.errors import InputError, UsageError, opt, plural
from plainformer.generation.processors.base import Configured, as_sequence, parameter
from plainformer.generation.processors.context import Context

TABLE_SIZE = 1_000_003  # of the authors' code: a prime
CANDIDATES = 40  # this many of the likeliest tokens are tried with "selfhash", as in the authors' code


class Watermark(Configured, name="watermark"):
    """Add `bias` to the logits of green tokens.

    Greens are drawn on the CPU, whatever device the logits are on: the same text everywhere, and each step waits for a GPU.
    A row with fewer than `context_width` tokens is left as it is.

    Args:
        vocabulary: how many tokens the model's config counts; greens are drawn from all of them.
        greenlist_ratio: the share of green tokens, gamma in the paper; 0.25 if not given.
        bias: delta in the paper; 2.0 if not given.
        hashing_key: keep your own secret; 15485863 if not given, the millionth prime.
        seeding_scheme: "lefthash" (if not given) hashes the last token, "selfhash" the last `context_width` with the next
            one among them: harder to learn from outside, and slower.
        context_width: 1 if not given.
    """

    vocabulary: int = parameter(whole(2))
    greenlist_ratio: float = parameter(number("(0, 1)"), default=0.25)
    bias: float = parameter(number(), default=2.0)
    hashing_key: int = parameter(whole(0), default=15485863)
    seeding_scheme: Literal["lefthash", "selfhash"] = parameter(one_of("lefthash", "selfhash"), default="lefthash")
    context_width: int = parameter(whole(1), default=1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        if logits_RV.size(-1) < self.vocabulary:
            raise UsageError(
                f"{opt('vocabulary', self.vocabulary)} is more than the {logits_RV.size(-1)} logits of the model",
                "give the model's own number of tokens",
            )
        result_RV = logits_RV.clone()
        for logits_V, row in zip(result_RV, context.rows, strict=True):
            if len(row) >= self.context_width:
                index = self._greens_after(row, logits_V).to(logits_V.device)
                logits_V[index] += self.bias
        return result_RV

    def greens(self, tokens: Sequence[int]) -> Tensor:
        """Return the green tokens after `tokens`, (G,); with "selfhash", `tokens` ends with the candidate itself."""
        generator = torch.Generator().manual_seed(self._seed(tokens))
        return torch.randperm(self.vocabulary, generator=generator)[: int(self.vocabulary * self.greenlist_ratio)]

    def is_green(self, tokens: Sequence[int], token: int) -> bool:
        """Whether `token` is green after `tokens`."""
        return bool((self.greens([*tokens, token] if self._self_hashed else tokens) == token).any())

    @property
    def _self_hashed(self) -> bool:
        return self.seeding_scheme == "selfhash"

    def _greens_after(self, row: list[int], logits_V: Tensor) -> Tensor:
        if not self._self_hashed:
            return self.greens(row)
        recent = row[-self.context_width :]
        likeliest = logits_V.sort(dim=-1, descending=True, stable=True).indices[:CANDIDATES].tolist()
        return torch.tensor([token for token in likeliest if self.is_green(recent, token)], dtype=torch.long)

    def _seed(self, tokens: Sequence[int]) -> int:
        if not self._self_hashed:
            return (self.hashing_key * tokens[-1]) % (2**64 - 1)
        hashes = self._table[torch.tensor(tokens[-self.context_width :]) % TABLE_SIZE] + 1
        # In int64, which overflows; the authors' code and transformers do the same.
        return int((self.hashing_key * hashes * hashes[-1]).min()) % (2**64 - 1)

    @cached_property
    def _table(self) -> Tensor:
        return torch.randperm(TABLE_SIZE, generator=torch.Generator().manual_seed(self.hashing_key))


@dataclass(frozen=True)
class WatermarkResult:
    """What a text's green tokens say.

    Attributes:
        tokens_scored: those that have enough tokens before them. green_tokens: of these.
        green_fraction: green_tokens / tokens_scored.
        z_score: how many standard deviations that is above chance.
        p_value: how likely chance alone reaches this z-score.
        watermarked: whether the z-score is above the threshold.
    """

    tokens_scored: int
    green_tokens: int
    green_fraction: float
    z_score: float
    p_value: float
    watermarked: bool

    @property
    def confidence(self) -> float:
        """1 - p_value."""
        return 1 - self.p_value

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {**dataclasses.asdict(self), "confidence": self.confidence}


@dataclass(frozen=True)
class WatermarkDetector:
    """Tells whether a text carries a watermark; made with the options that the text was generated with.

    Args:
        watermark: those options.
        ignore_repeated_ngrams: count a token after the same context once, however often it comes; False if not given.
        bos_id: left out where a text begins with it; None if not given.
    """

    watermark: Watermark
    ignore_repeated_ngrams: bool = False
    bos_id: int | None = None

    def detect(self, ids: Sequence[int] | Tensor, z_threshold: float = 3.0) -> WatermarkResult:
        """Score one text; without its prompt and without padding, which are nobody's watermark.

        Raises:
            InputError: it has no token with enough others before it.
        """
        check_number("z_threshold", z_threshold, "(-inf, inf)")
        tokens = as_sequence("ids", ids.tolist() if isinstance(ids, Tensor) else ids)
        if tokens[0] == self.bos_id:
            tokens = tokens[1:]
        width = self.watermark.context_width
        if len(tokens) <= width:
            raise InputError(f"a text of {plural(len(tokens), 'token')} has none to score", f"give {width + 1} or more")
        size = width + (self.watermark.seeding_scheme == "lefthash")
        found = Counter(tokens[start : start + size] for start in range(len(tokens) - size + 1))
        if self.ignore_repeated_ngrams:
            found = Counter(found.keys())
        green = sum(count for ngram, count in found.items() if self.watermark.is_green(ngram[:-1], ngram[-1]))
        return self._result(green, found.total(), z_threshold)

    def _result(self, green: int, scored: int, z_threshold: float) -> WatermarkResult:
        ratio = self.watermark.greenlist_ratio
        z_score = (green - ratio * scored) / math.sqrt(scored * ratio * (1 - ratio))
        p_value = 0.5 * math.erfc(z_score / math.sqrt(2))
        return WatermarkResult(scored, green, green / scored, z_score, p_value, z_score > z_threshold)
