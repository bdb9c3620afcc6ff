"""Losses, one number for each label: of words, in chunks where the vocabulary is large; of classes; binary; of numbers; distilled.

They are computed in fp32, or in fp64 for a model that is. Their mean over labels is what the usual losses return.

Shapes: N labels, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plainformer.model.linear import Linear
from plainformer.train.robust import Robust

if TYPE_CHECKING:
    from plainformer.model.heads import Head
    from plainformer.model.transformer import Transformer

SCORES_AT_ONCE = 1 << 24  # numbers that a chunk's scores may have: 64 MB in fp32


def word_losses(
    model: Transformer,
    states_ND: Tensor,
    labels_N: Tensor,
    smoothing: float = 0.0,
    chunk: int | None = None,
    robust: Robust | None = None,
) -> Tensor:
    """Return the cross entropy of each label, (N,), without all scores, (N, V), ever existing at once.

    Args:
        model: its head scores each position by itself.
        states_ND: what `model.states` gave at the labelled positions.
        smoothing: share of the probability that is spread over all words (Szegedy et al. 2016).
        chunk: how many labels are scored at a time; None for as many as fit into 64 MB, 0 for all.
        robust: what is made of a cross entropy; None for itself.
    """
    head = model.scoring_head
    size = labels_at_a_time(chunk, head.config.out_size, len(labels_N))
    if torch.is_grad_enabled() and isinstance(head.out, Linear) and _is_plain(head.out):
        x_ND, weight_VD, bias_V = read = head.transform(states_ND), head.out.weight, head.out.bias
        wanted = tuple(each is not None and bool(each.requires_grad) for each in read)
        how = _How(smoothing, robust, head.config.softcap, size, _product_type(x_ND), wanted)
        losses_N: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, bias_V, labels_N, how)
        return losses_N
    parts = zip(states_ND.split(size), labels_N.split(size), strict=True)
    if not torch.is_grad_enabled() or len(labels_N) <= size:
        return torch.cat([_scored(head, *part, smoothing, robust) for part in parts])
    return torch.cat([checkpoint(_scored, head, *part, smoothing, robust, use_reentrant=False) for part in parts])


def labels_at_a_time(asked: int | None, classes: int, count: int) -> int:
    """Return how many of `count` labels are scored at once: as `loss.chunk` asks (0: all), or as many as fit into 64 MB."""
    return max(1, SCORES_AT_ONCE // classes) if asked is None else asked or max(1, count)


def label_losses(logits_NC: Tensor, labels_N: Tensor, smoothing: float = 0.0, robust: Robust | None = None) -> Tensor:
    """Return the cross entropy of each label, or what `robust` makes of it, (N,)."""
    losses_N = F.cross_entropy(wide(logits_NC), labels_N, reduction="none", label_smoothing=smoothing)
    return losses_N if robust is None else robust(losses_N)


def binary_losses(logits_NC: Tensor, targets_NC: Tensor, robust: Robust | None = None) -> Tensor:
    """Return the mean over C independent yes-or-no labels of their cross entropies, (N,).

    `robust` makes something else of each of them; targets are then 0 or 1, otherwise from 0 to 1.
    """
    wide_NC = wide(logits_NC)
    losses_NC = F.binary_cross_entropy_with_logits(wide_NC, targets_NC.to(wide_NC.dtype), reduction="none")
    return (losses_NC if robust is None else robust(losses_NC)).mean(-1)


def squared_losses(predicted_NC: Tensor, targets_NC: Tensor) -> Tensor:
    """Return the mean over C numbers of the squared differences, (N,)."""
    wide_NC = wide(predicted_NC)
    return (wide_NC - targets_NC.to(wide_NC.dtype).view_as(wide_NC)).square().mean(-1)


def huber_losses(predicted_NC: Tensor, targets_NC: Tensor, delta: float) -> Tensor:
    """Return the mean over C numbers of Huber's loss (1964), (N,): e² / 2 of a difference e up to δ, δ (|e| - δ / 2) beyond.

    Of small differences it is half of `squared_losses`, as it is for all where δ is large.
    """
    wide_NC = wide(predicted_NC)
    targets_NC = targets_NC.to(wide_NC.dtype).view_as(wide_NC)
    return F.huber_loss(wide_NC, targets_NC, reduction="none", delta=delta).mean(-1)


def distillation_losses(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """Return T² KL(teacher || student) of both models' scores divided by the temperature T, (N,) (Hinton et al. 2015).

    T² keeps the size of the gradient, which falls with 1 / T², so that T does not change what the share of the teacher in
    the loss means.
    """
    student_log, teacher_log = ((wide(x_NC) / temperature).log_softmax(-1) for x_NC in (student_NC, teacher_NC))
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1) * temperature**2


def wide(x: Tensor) -> Tensor:
    """Return scores in fp32, or in fp64 where they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scored(head: Head, x_ND: Tensor, labels_N: Tensor, smoothing: float, robust: Robust | None) -> Tensor:
    return label_losses(head.score(x_ND), labels_N, smoothing, robust)


def _is_plain(out: Linear) -> bool:
    """Return whether a layer is W x + b and no more: all of it, without an adapter, a packed weight or someone's hook."""
    if type(out) is not Linear or out.product is not None or out.cut is not None or "forward" in vars(out):
        return False
    return not (out._forward_hooks or out._forward_pre_hooks or out._backward_hooks or out._backward_pre_hooks)


@dataclass(frozen=True)
class _How:
    """`dtype`: what products are computed in. `wanted`: whether gradients in x, W and b are."""

    smoothing: float
    robust: Robust | None
    softcap: float | None
    chunk: int
    dtype: torch.dtype
    wanted: tuple[bool, ...]


def _product_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else x.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross entropy of x Wᵀ + b, whose gradient is made with it, while a chunk's scores are there.

    That is the gradient of the sum of the losses. Where `backward` is to weigh labels differently, it goes over the chunks
    once more, which costs another product with W.
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, how: _How
    ) -> Tensor:
        ctx.save_for_backward(x_ND, weight_VD, bias_V, labels_N)
        ctx.how = how
        losses_N, ctx.gradients = _sweep(x_ND, weight_VD, bias_V, labels_N, how)
        return losses_N

    @staticmethod
    def backward(ctx: Any, weights_N: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is not None and _are_equal(weights_N):
            factor = weights_N[:1].sum()
            gradients = [None if gradient is None else gradient.mul_(factor) for gradient in gradients]
        else:
            x_ND, weight_VD, bias_V, labels_N = ctx.saved_tensors
            _, gradients = _sweep(x_ND, weight_VD, bias_V, labels_N, ctx.how, weights_N)
        return *gradients, None, None


def _are_equal(weights_N: Tensor) -> bool:
    """Whether all labels weigh the same: those of a sum are one number, repeated. A GPU is not asked for its values."""
    if weights_N.stride(0) == 0 or len(weights_N) < 2:
        return True
    return weights_N.device.type == "cpu" and bool((weights_N == weights_N[0]).all())


def _sweep(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    how: _How,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Return each label's loss, (N,), and the gradients of their sum, each times its weight, in x, W and b."""
    parts = zip((x_ND, weight_VD, bias_V), how.wanted, strict=True)
    gradients = [torch.zeros_like(part) if part is not None and wanted else None for part, wanted in parts]
    of_x_ND, of_weight_VD, of_bias_V = gradients
    matrix_VD, offset_V = weight_VD.to(how.dtype), None if bias_V is None else bias_V.to(how.dtype)
    losses: list[Tensor] = []
    for start in range(0, max(1, len(x_ND)), how.chunk):
        chunk = slice(start, start + how.chunk)
        some_ND = x_ND[chunk].to(how.dtype)
        some_losses, slopes_NV = _slopes(some_ND, matrix_VD, offset_V, labels_N[chunk], how)
        losses.append(some_losses)
        if weights_N is not None:
            slopes_NV *= weights_N[chunk, None]
        if of_bias_V is not None:
            of_bias_V += slopes_NV.sum(0)
        slopes_NV = slopes_NV.to(how.dtype)
        if of_x_ND is not None:
            of_x_ND[chunk] = slopes_NV @ matrix_VD
        if of_weight_VD is not None and of_weight_VD.dtype == how.dtype:
            of_weight_VD.addmm_(slopes_NV.T, some_ND)
        elif of_weight_VD is not None:
            of_weight_VD += slopes_NV.T @ some_ND
        del slopes_NV  # before the next chunk's scores
    return torch.cat(losses), gradients


def _slopes(
    x_ND: Tensor, matrix_VD: Tensor, offset_V: Tensor | None, labels_N: Tensor, how: _How
) -> tuple[Tensor, Tensor]:
    """Return each label's loss, (N,), and its gradient in the scores, (N, V), as they are before the soft cap.

    The scores are made here, so that nobody else keeps them: at most two tensors of their size exist.
    """
    slope = None
    scores_NV = wide(F.linear(x_ND, matrix_VD, offset_V))
    if how.softcap is not None:
        capped_NV = torch.tanh(scores_NV / how.softcap)
        scores_NV, slope = capped_NV * how.softcap, 1 - capped_NV.square()
        del capped_NV
    log_NV = scores_NV.log_softmax(-1)
    del scores_NV
    losses_N = -log_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    if how.smoothing:
        losses_N = (1 - how.smoothing) * losses_N - how.smoothing * log_NV.mean(-1)
    gradient_NV = log_NV.exp_()  # what the model expects minus what it should: softmax - target
    if how.smoothing:
        gradient_NV -= how.smoothing / gradient_NV.size(-1)
    gradient_NV.scatter_add_(-1, labels_N[:, None], gradient_NV.new_full((len(labels_N), 1), how.smoothing - 1))
    if how.robust is not None:
        gradient_NV *= how.robust.slopes(losses_N)[:, None]
        losses_N = how.robust.values(losses_N)
    return losses_N, gradient_NV if slope is None else gradient_NV.mul_(slope)
