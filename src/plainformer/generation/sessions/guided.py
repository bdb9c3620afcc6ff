"""Logits that are a contrast of two: DoLa and classifier-free guidance, as sessions, so that every search can use them.

DoLa (Chuang et al. 2023, arXiv 2309.03883): what the last layer says, less what an earlier layer would have said.
Guidance (Sanchez et al. 2023, arXiv 2306.17806): what the model says after the prompt, away from what it says without it.

Shapes: B prompts, R = B * copies rows, T positions, L layers, N candidate layers, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plainformer.config import TokenFrontend
from plainformer.config.values import is_whole
from plainformer.errors import InputError, UsageError, opt
from plainformer.generation.options import GenerationOptions
from plainformer.generation.prompt import Prompt, check_tensor
from plainformer.generation.sessions.session import Session
from plainformer.model.transformer import Transformer

# Tokens below this share of the likeliest one's probability are never picked (the paper's alpha).
RELATIVE_TOP = 0.1
# The value put in for an earlier layer's log-probability of those tokens: any finite number does.
FILTERED = -1e-3
MANY_LAYERS, OUTER_LAYERS = 40, 20  # of deeper models only this many layers at either end are candidates


def make_contrasting_session(
    model: Transformer, prompt: Prompt, options: GenerationOptions, shared: dict[str, Any]
) -> Session:
    """Return the session that `dola_layers` or `guidance_scale` ask for; `shared` is what every session takes.

    Raises:
        UsageError: what they name does not fit the model.
    """
    if options.dola_layers is not None:
        layers = candidate_layers(model, options.dola_layers)
        return DolaSession(model, prompt, layers, cache=options.cache, **shared)
    scale = options.guidance_scale
    assert scale is not None
    if scale == 1:
        return Session(model, prompt, cache=options.cache, **shared)
    without = Session(model, _unconditional(model, prompt, options.negative_ids, shared["budget"]), **shared)
    return GuidedSession(model, prompt, float(scale), without, cache=options.cache, **shared)


class DolaSession(Session):
    """Each row's logits less those of the candidate layer that differs most from the last one, in Jensen-Shannon terms.

    As in transformers 4.49, but row by row: there one layer is taken for the whole batch. The tokens that
    the last layer finds unlikely are banned, and an earlier layer's state goes to the output matrix without the final norm.

    Args:
        layers: candidates, C of 0 (the embeddings) to L - 1.
    """

    def __init__(self, model: Transformer, prompt: Prompt, layers: Sequence[int], **shared: Any) -> None:
        super().__init__(model, prompt, **shared)
        self.layers = tuple(layers)

    def run(self, tokens_RT: Tensor, real_RS: Tensor | None) -> Tensor:
        output = self.forward(tokens_RT, real_RS, states=True)
        assert output.logits is not None and output.hidden_states is not None
        early_NRD = torch.stack([output.hidden_states[layer][:, -1] for layer in self.layers])
        if self.model.encoder is not None:  # T5 scales states before its tied matrix; transformers had decoders only
            early_NRD = early_NRD * self.model.config.head.scale
        return contrast_layers(output.logits[:, -1].float(), self.model.early_logits(early_NRD).float())


def contrast_layers(final_RV: Tensor, early_NRV: Tensor) -> Tensor:
    """Return log p of the last layer less log q of the candidate that differs most from it, (R, V); -inf where p is small."""
    log_p_RV, log_q_NRV = final_RV.log_softmax(-1), early_NRV.log_softmax(-1)
    chosen_1R = _difference(log_p_RV, log_q_NRV).argmax(0, keepdim=True)
    log_q_RV = log_q_NRV.gather(0, chosen_1R[..., None].expand(-1, -1, log_q_NRV.size(-1)))[0]
    small_RV = log_p_RV < log_p_RV.amax(-1, keepdim=True) + math.log(RELATIVE_TOP)
    return (log_p_RV - log_q_RV.masked_fill(small_RV, FILTERED)).masked_fill(small_RV, float("-inf"))


def _difference(log_p_RV: Tensor, log_q_NRV: Tensor) -> Tensor:
    """Return the sum of both Kullback-Leibler divergences from the mean of p and q.

    transformers measures from the mean to p and q, where Jensen and Shannon measure from p and q to it.
    """
    mean_NRV = (log_p_RV.exp() + log_q_NRV.exp()) / 2
    both_NRV = 2 * mean_NRV.clamp_min(torch.finfo(mean_NRV.dtype).tiny).log() - log_p_RV - log_q_NRV
    return torch.where(mean_NRV > 0, mean_NRV * both_NRV, 0.0).sum(-1)


def candidate_layers(model: Transformer, wanted: str | Sequence[int]) -> list[int]:
    """Return layer numbers for "low", "high", or a list of them; 0 is the embeddings, L the last layer and no candidate.

    As in transformers: every second layer of the lower or the upper half, of deeper models than 40 layers every second of
    the outer 20. Where the output matrix is the embedding's, the lowest are left out: their state gives the token back.
    """
    stack = model.config.decoder
    assert stack is not None
    count = stack.num_layers
    if isinstance(wanted, str):
        if wanted not in ("low", "high"):
            raise UsageError(
                f"{opt('dola_layers', wanted)} is unknown", "give 'low', 'high', or a list of layer numbers"
            )
        if wanted == "high":
            return list(range(max(count // 2, count - OUTER_LAYERS if count > MANY_LAYERS else 0), count, 2))
        tied = any("head.out.weight" in pair for pair in model.config.tied)
        first = 0 if not tied else 2 if count > 2 else count - 1
        return list(range(first, OUTER_LAYERS if count > MANY_LAYERS else count // 2, 2)) or [first]
    layers: list[Any] = list(wanted) if isinstance(wanted, Sequence) else []
    if not layers or not all(is_whole(n, 0) and n < count for n in layers):
        raise UsageError(
            f"{opt('dola_layers', wanted)} is not a list of layers before the last of {count}",
            f"give 'low', 'high', or numbers from 0 (the embeddings) to {count - 1}",
        )
    return layers


class GuidedSession(Session):
    """scale * (log p - log q) + log q, with q from a second session without the prompt.

    As UnbatchedClassifierFreeGuidanceLogitsProcessor of transformers 5.23 on decoders; unlike there, a reordering of
    beams reorders the second session too.

    Args:
        without: gets the same new tokens after another prompt.
    """

    def __init__(self, model: Transformer, prompt: Prompt, scale: float, without: Session, **shared: Any) -> None:
        super().__init__(model, prompt, **shared)
        self.scale, self.without = scale, without

    def prefill(self) -> Tensor:
        return self._guided(super().prefill(), self.without.prefill())

    def decode_step(self, tokens_R: Tensor) -> Tensor:
        return self._guided(super().decode_step(tokens_R), self.without.decode_step(tokens_R))

    def reorder(self, index_R: Tensor) -> None:
        super().reorder(index_R)
        self.without.reorder(index_R)

    def _guided(self, with_RV: Tensor, without_RV: Tensor) -> Tensor:
        log_p_RV, log_q_RV = with_RV.float().log_softmax(-1), without_RV.float().log_softmax(-1)
        return self.scale * (log_p_RV - log_q_RV) + log_q_RV


def _unconditional(model: Transformer, prompt: Prompt, negative_ids: Tensor | None, budget: int) -> Prompt:
    """Return what the second session begins with: `negative_ids` in the prompt's place, or the prompt's last token alone.

    An encoder-decoder's prompt is what its encoder reads; its output begins alike on both sides. transformers gives the
    decoder's ids to the encoder instead, which means nothing.
    """
    read = prompt.ids if model.encoder is None else prompt.encoder_ids
    ids = _checked(model, negative_ids, len(prompt))
    if ids is None:
        if read is None:
            raise UsageError("there are no input_ids to take the last token of", f"pass {opt('negative_ids')}")
        ids = read[:, -1:]
        if model.encoder is not None and prompt.encoder_real is not None:
            places = torch.arange(1, read.size(1) + 1, device=read.device)
            ids = read.gather(1, (prompt.encoder_real * places).argmax(-1, keepdim=True))
    if model.encoder is not None:
        return replace(prompt, encoder_output=model.encode(ids))
    stack = model.config.decoder
    assert stack is not None
    if stack.max_positions is not None and ids.size(1) + budget - 1 > stack.max_positions:
        raise InputError(
            f"{opt('negative_ids')} of {ids.size(1)} tokens and {budget} new ones are more than the "
            f"{stack.max_positions} positions this model has learned",
            f"shorten them, or give a lower {opt('max_new_tokens')}",
        )
    return Prompt(ids)


def _checked(model: Transformer, negative_ids: Tensor | None, prompts: int) -> Tensor | None:
    check_tensor("negative_ids", negative_ids)
    if negative_ids is None:
        return None
    if negative_ids.dim() != 2 or len(negative_ids) != prompts or not negative_ids.numel():
        raise UsageError(
            f"{opt('negative_ids')} of shape {tuple(negative_ids.shape)} for {prompts} prompts",
            "give (B, T), one unpadded row for each prompt",
        )
    frontend = model.config.encoder.frontend if model.config.encoder is not None else None
    if frontend is not None and not isinstance(frontend, TokenFrontend):
        raise UsageError(
            f"{opt('negative_ids')}: this model's encoder does not read tokens", f"leave {opt('guidance_scale')} out"
        )
    return negative_ids
