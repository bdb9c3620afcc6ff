"""Samplers: processors that shape the distribution a token is drawn from, by its probabilities alone.

Each keeps at least its likeliest token (`Typical`: its most typical one), so none can ban a whole row. Probabilities
are those of the logits given: what an earlier processor banned has none. Logits are best fp32; nothing is cast.
Where only some of equally likely tokens stay, those of lower ids do, as in a greedy pick; in the
`top_p`, `typical` and watermark of transformers it depends on how the machine sorts.

Shapes: R rows, V vocabulary, N the likeliest tokens.
"""

from __future__ import annotations

import math
import random
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from plainformer.config.options import one_of, whole
from plainformer.generation.processors.base import Configured, Ids, as_option, parameter
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.id_tensors import ban

TOP_P_FIRST = 1024  # likeliest tokens of which the nucleus is usually a part: a tenth of the time of sorting all
TOP_H_CANDIDATES = 100  # as in the authors' code and transformers: the entropy is that of the 100 likeliest tokens


class Temperature(Configured, name="temperature"):
    """Divide logits by `temperature`: below 1 sharpens the distribution, above 1 flattens it (Ackley et al. 1985)."""

    temperature: float = as_option("temperature")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return logits_RV / self.temperature


class TopK(Configured, name="top_k"):
    """Keep the `top_k` likeliest tokens, and those as likely as the last of them (Fan et al. 2018, arXiv 1805.04833).

    `min_tokens_to_keep` (1) raises a smaller `top_k`.
    """

    top_k: int = as_option("top_k")
    min_tokens_to_keep: int = parameter(whole(1), default=1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return ban(logits_RV, _below_the_top(logits_RV, max(self.top_k, self.min_tokens_to_keep)))


class TopP(Configured, name="top_p"):
    """Nucleus sampling: keep the fewest likeliest tokens whose probabilities reach `top_p` (Holtzman et al. 2020).

    A token goes where it and all less likely ones have at most 1 - `top_p` together. `min_tokens_to_keep` (1) stay anyway.
    arXiv 1904.09751.
    """

    top_p: float = as_option("top_p")
    min_tokens_to_keep: int = parameter(whole(1), default=1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        if logits_RV.device.type != "cpu" or logits_RV.dtype != torch.float32 or logits_RV.size(-1) < 4 * TOP_P_FIRST:
            return self._of_all(logits_RV)
        banned_RV, sure_R = self._of_the_top(logits_RV, max(TOP_P_FIRST, 2 * self.min_tokens_to_keep))
        kept_RV = ban(logits_RV, banned_RV)
        if not bool(sure_R.all()):
            kept_RV[~sure_R] = self._of_all(logits_RV[~sure_R])
        return kept_RV

    def _of_all(self, logits_RV: Tensor) -> Tensor:
        falling_RV, order_RV = logits_RV.sort(dim=-1, descending=True, stable=True)
        tail_RV = falling_RV.flip(-1).softmax(-1).cumsum(-1).flip(-1) <= 1 - self.top_p
        tail_RV[:, : self.min_tokens_to_keep] = False
        return ban(logits_RV, torch.zeros_like(tail_RV).scatter_(1, order_RV, tail_RV))

    def _of_the_top(self, logits_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return what to ban, (R, V), found without a sort of all tokens, and for which rows that is sure to be the same, (R,).

        It is where the last token that stays is among the likeliest, no other is as likely as it, and no sum is so near
        1 - `top_p` that rounding would decide. In a softmax of sorted logits, each of eight lanes or more adds up its numbers from
        the least likely on: one that the k-th likeliest has gone into is rounded another k / 8 times.
        """
        likely_RN, ids_RN = logits_RV.topk(min(count, logits_RV.size(-1) - 1), dim=-1)
        ids_RN = ids_RN.sort(dim=-1).values  # of equally likely ones, lower ids come first
        falling_RN, order_RN = logits_RV.gather(1, ids_RN).sort(dim=-1, descending=True, stable=True)
        highest_R1 = likely_RN[:, :1]
        all_R1 = (logits_RV - highest_R1).exp().sum(-1, keepdim=True, dtype=torch.float64)
        p_RN = (falling_RN - highest_R1).exp().double() / all_R1
        tail_RN = 1 - p_RN.cumsum(-1)  # after each
        places_N = torch.arange(p_RN.size(-1), dtype=torch.float64)
        roundings_R1 = ((p_RN * places_N).sum(-1, keepdim=True) + tail_RN[:, -1:] * logits_RV.size(-1)) / 8
        far_RN = (tail_RN - (1 - self.top_p)).abs() > (2 * roundings_R1 + 16) * 2**-24 * tail_RN + 1e-6
        stays_RN = F.pad(tail_RN > 1 - self.top_p, (1, 0), value=True)[:, :-1]
        stays_RN[:, : self.min_tokens_to_keep] = True
        last_R1 = stays_RN.sum(-1, keepdim=True) - 1
        sure_R = (
            far_RN[:, self.min_tokens_to_keep - 1 :].all(-1) & (falling_RN.gather(1, last_R1) > likely_RN[:, -1:])[:, 0]
        )
        banned_RV = torch.ones_like(logits_RV, dtype=torch.bool).scatter_(1, ids_RN.gather(1, order_RN), ~stays_RN)
        return banned_RV, sure_R


class MinP(Configured, name="min_p"):
    """Keep tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082).

    `min_tokens_to_keep` (1) of the likeliest stay anyway. Usual values: 0.01 to 0.2.
    """

    min_p: float = as_option("min_p")
    min_tokens_to_keep: int = parameter(whole(1), default=1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        p_RV = logits_RV.softmax(-1)
        unlikely_RV = p_RV < self.min_p * p_RV.amax(-1, keepdim=True)
        safe_RN = p_RV.topk(min(self.min_tokens_to_keep, p_RV.size(-1)), dim=-1).indices
        return ban(logits_RV, unlikely_RV.scatter_(1, safe_RN, False))


class Typical(Configured, name="typical_p"):
    """Locally typical sampling: keep tokens whose surprise is nearest to the expected one, up to a probability of `mass`.

    The likeliest token may go. `mass` is 0.9 if not given; `min_tokens_to_keep` (1) of the most typical stay anyway.
    Meister et al. 2022, arXiv 2202.00666.
    """

    mass: float = as_option("typical_p", default=0.9)
    min_tokens_to_keep: int = parameter(whole(1), default=1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        log_p_RV = logits_RV.log_softmax(-1)
        entropy_R1 = -(log_p_RV * log_p_RV.exp()).nansum(-1, keepdim=True)
        distance_RV, order_RV = (-log_p_RV - entropy_R1).abs().sort(dim=-1, stable=True)
        mass_RV = logits_RV.gather(1, order_RV).softmax(-1).cumsum(-1)
        last_R1 = (mass_RV < self.mass).sum(-1, keepdim=True).clamp(max=logits_RV.size(-1) - 1)
        far_RV = distance_RV > distance_RV.gather(1, last_R1)
        far_RV[:, : self.min_tokens_to_keep] = False
        return ban(logits_RV, torch.zeros_like(far_RV).scatter_(1, order_RV, far_RV))


class Epsilon(Configured, name="epsilon_cutoff"):
    """Keep tokens of probability `epsilon` or more (Hewitt et al. 2022, arXiv 2210.15191; 3e-4 to 9e-4 there).

    `min_tokens_to_keep` (1) of the likeliest, and those as likely as the last of them, stay anyway.
    """

    epsilon: float = as_option("epsilon_cutoff")
    min_tokens_to_keep: int = parameter(whole(1), default=1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        unlikely_RV = logits_RV.softmax(-1) < self.epsilon
        return ban(logits_RV, unlikely_RV & _below_the_top(logits_RV, self.min_tokens_to_keep))


class Eta(Configured, name="eta_cutoff"):
    """As `Epsilon`, with a bound that falls with entropy H: min(epsilon, sqrt(epsilon) * exp(-H)) (Hewitt et al. 2022)."""

    epsilon: float = as_option("eta_cutoff")
    min_tokens_to_keep: int = parameter(whole(1), default=1)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        bound_R1 = (math.sqrt(self.epsilon) * torch.exp(-_entropy(logits_RV))).clamp(max=self.epsilon)
        unlikely_RV = logits_RV.softmax(-1) < bound_R1
        return ban(logits_RV, unlikely_RV & _below_the_top(logits_RV, self.min_tokens_to_keep))


class TopH(Configured, name="top_h"):
    """Keep the likeliest tokens while their shares of the entropy add up to at most `top_h` of it; the first always stays.

    Of the 100 likeliest tokens, whose distribution counts. Potraghloo et al. 2025, arXiv 2509.02510.
    """

    top_h: float = as_option("top_h")

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        top_RN, index_RN = logits_RV.topk(min(TOP_H_CANDIDATES, logits_RV.size(-1)), dim=-1)
        p_RN = (top_RN - top_RN.logsumexp(-1, keepdim=True)).softmax(-1)
        kept_RN = (-p_RN * p_RN.log()).cumsum(-1) <= self.top_h * _entropy(top_RN)
        kept_RN[:, 0] = True
        return ban(logits_RV, torch.ones_like(logits_RV, dtype=torch.bool).scatter_(1, index_RN, ~kept_RN))


class TopNSigma(Configured, name="top_n_sigma"):
    """Keep logits within `n` standard deviations of the highest (Tang et al. 2024, arXiv 2411.07641; n about 1 there).

    The deviation is the unbiased one, as in the authors' code, over the tokens that are not banned. A temperature changes
    the logits and their deviation alike, so it does not change what is kept.
    """

    n: float = as_option("top_n_sigma", default=1.0)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        allowed_RV = logits_RV > -math.inf
        count_R1 = allowed_RV.sum(-1, keepdim=True)
        mean_R1 = logits_RV.where(allowed_RV, 0.0).sum(-1, keepdim=True) / count_R1.clamp(min=1)
        square_RV = (logits_RV - mean_R1).square().where(allowed_RV, 0.0)
        sigma_R1 = (square_RV.sum(-1, keepdim=True) / (count_R1 - 1).clamp(min=1)).sqrt()
        return ban(logits_RV, logits_RV < logits_RV.amax(-1, keepdim=True) - self.n * sigma_R1)


class Xtc(Configured, name="xtc"):
    """Exclude top choices: now and then, of all tokens of probability `threshold` or more, keep the least likely one.

    P. E. Weidmann 2024 (text-generation-webui, pull request 6335). Less likely tokens stay, and nothing changes where
    fewer than two reach the threshold. Of equally likely last ones, that of the highest id stays.

    A step's draw is a function of (`seed`, step) alone, so a row meets the same draws alone and anywhere in any batch.
    All rows of a step share it, as they would if each were run alone with this seed.

    Args:
        threshold: 0.1 if not given; above 0.5 nothing is ever excluded.
        probability: with which a step excludes; 0.5 if not given, 1 is always.
        protected_ids: where one of these would go, the row is left as it is (its author: newline and end of sequence).
        seed: of the draws.
    """

    threshold: float = as_option("xtc_threshold", default=0.1)
    probability: float = as_option("xtc_probability", default=0.5)
    protected_ids: Ids = Ids(least=0)
    seed: int = parameter(whole(0), default=0)

    def draw(self, step: int) -> float:
        """Return the step's number in [0, 1): below `probability`, the step excludes."""
        return random.Random(f"xtc {self.seed} {step}").random()

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        if self.draw(context.step) >= self.probability:
            return logits_RV.clone()
        p_RV = logits_RV.softmax(-1)
        top_RV = p_RV >= self.threshold
        least_R1 = p_RV.where(top_RV, 2.0).amin(-1, keepdim=True)
        places_V = torch.arange(p_RV.size(-1), device=p_RV.device)
        kept_R1 = (places_V * (top_RV & (p_RV == least_R1))).amax(-1, keepdim=True)
        excluded_RV = top_RV & (places_V != kept_R1)
        protected_R1 = excluded_RV[:, self.protected_ids.checked(logits_RV)].any(-1, keepdim=True)
        return ban(logits_RV, excluded_RV & ~protected_R1)


class Mirostat(Configured, name="mirostat"):
    """Mirostat 2.0: bans tokens of more surprise than mu, which is steered until the picked ones have `tau` on average.

    Surprise is -log2 of a probability. A row starts with mu = 2 tau; after each picked token x, mu -= eta * (S(x) - tau).
    Basu et al. 2021, arXiv 2007.14966, algorithm 2.

    What a row has had so far cannot be told from its tokens, so the step before is remembered under each row's real
    tokens: rows may be reordered, repeated or dropped in between. One object serves one generation at a time; a first
    step (nothing generated) starts it anew, and so does a row whose step before is not known.

    Args:
        tau: the aim, in bits; 5.0 if not given.
        eta: how fast mu follows; 0.1 if not given.
        surprise_of: S under "model" (the logits given here; the paper, whose aim is the model's perplexity) or "kept"
            (what is left, renormalised: llama.cpp).
    """

    tau: float = as_option("mirostat_tau", default=5.0)
    eta: float = as_option("mirostat_eta", default=0.1)
    surprise_of: Literal["model", "kept"] = parameter(one_of("model", "kept"), default="model")

    @cached_property
    def _before(self) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
        """Map each row of the step before to its mu, and the surprise of each token."""
        return {}

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        rows = [tuple(row) for row in context.rows]
        surprise_RV = _surprise(logits_RV)
        start = surprise_RV.new_full((), 2.0 * self.tau)
        mu_R = torch.stack([self._mu(row, start) if context.step else start for row in rows])
        likeliest_R1 = surprise_RV.amin(-1, keepdim=True)
        kept_RV = ban(logits_RV, (surprise_RV > mu_R[:, None]) & (surprise_RV > likeliest_R1))
        measured_RV = surprise_RV if self.surprise_of == "model" else _surprise(kept_RV)
        self._before.clear()
        self._before.update(zip(rows, zip(mu_R, measured_RV, strict=True), strict=True))
        return kept_RV

    def _mu(self, row: tuple[int, ...], start: Tensor) -> Tensor:
        if row in self._before:  # asked again about the same step, or the row has ended
            return self._before[row][0]
        if row[:-1] not in self._before:
            return start
        mu, surprise_V = self._before[row[:-1]]
        surprise = surprise_V[row[-1]]
        # A token that was banned here, and picked all the same, says nothing of the aim.
        return torch.where(surprise.isfinite(), mu - self.eta * (surprise - self.tau), mu)


def _surprise(logits_RV: Tensor) -> Tensor:
    """Return -log2 of the probabilities, (R, V), fp32 or better."""
    return -logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)).log_softmax(-1) / math.log(2)


def _below_the_top(logits_RV: Tensor, count: int) -> Tensor:
    """Return which logits are below the `count` highest, (R, V) bool; those equal to the last of them are not."""
    return logits_RV < logits_RV.topk(min(count, logits_RV.size(-1)), dim=-1).values[:, -1:]


def _entropy(logits_RV: Tensor) -> Tensor:
    """Return the entropy in nats, (R, 1). A banned token adds nothing."""
    log_p_RV = logits_RV - logits_RV.logsumexp(-1, keepdim=True)
    finite_RV = log_p_RV.clamp(min=torch.finfo(logits_RV.dtype).min)
    return -(finite_RV * log_p_RV.softmax(-1)).sum(-1, keepdim=True)
