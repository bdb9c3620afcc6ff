"""Losses of labels: torch's own, one number for each label, and without the scores of all words at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from plainformer.config import NormConfig
from plainformer.errors import UsageError
from plainformer.model.transformer import Transformer
from plainformer.train import losses
from plainformer.train.losses import word_losses
from tests.support.close import close
from tests.support.training import word_model

SIZE, WORDS, LABELS = 12, 40, 17
HEADS: dict[str, dict[str, Any]] = {
    "plain": {"out_bias": False},
    "bias": {},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.5, "out_bias": False},
    "transform": {"transform_size": 16, "transform_activation": "gelu", "transform_norm": NormConfig()},
}


def make(kind: str = "bias", dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    """A model whose head is what matters; its token embeddings are tied to the head where the sizes allow it."""
    return word_model(WORDS, SIZE, dtype, **{**HEADS[kind], **changes})


def labelled(dtype: torch.dtype = torch.float32, count: int = LABELS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(count, SIZE, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return states, torch.randint(WORDS, (count,), generator=generator)


def gradients(model: Transformer, states: Tensor, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [states, *model.head.parameters()]))


def plain_losses(model: Transformer, states: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(model.score(states), labels, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("weighted", [False, True], ids=["sum", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [None, 0, 1, 5])
@pytest.mark.parametrize("kind", HEADS)
def test_words_have_torchs_losses_and_gradients(kind: str, chunk: int | None, smoothing: float, weighted: bool) -> None:
    model, (states, labels) = make(kind), labelled()
    weights = torch.linspace(0.1, 2, LABELS) if weighted else torch.ones(LABELS)
    plain = plain_losses(model, states, labels, smoothing)
    ours = word_losses(model, states, labels, smoothing, chunk)
    assert ours.shape == (LABELS,) and ours.dtype == torch.float32
    close(ours, plain, rel=1e-6)
    expected = gradients(model, states, (plain * weights).sum())
    found = gradients(model, states, (ours * weights).sum() if weighted else ours.sum())
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs, rel=1e-6)
    with torch.no_grad():
        close(word_losses(model, states, labels, smoothing, chunk), plain, rel=1e-6)


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    model, (states, labels) = make(kind, torch.float64), labelled(torch.float64, 5)
    out = model.head.out

    def of(states: Tensor, weight: Tensor) -> Tensor:
        out.weight = weight
        return word_losses(model, states, labels, 0.1, chunk=2)

    weight = out.weight.detach().clone().requires_grad_()
    del out._parameters["weight"]
    assert torch.autograd.gradcheck(lambda *x: of(*x).sum(), (states, weight))
    assert torch.autograd.gradcheck(of, (states, weight))  # a weight for each label


def test_a_second_backward_gives_the_same() -> None:
    model, (states, labels) = make(), labelled()
    total = word_losses(model, states, labels, chunk=4).sum()
    first, second = (torch.autograd.grad(total, states, retain_graph=True)[0] for _ in range(2))
    close(second, first, rel=1e-6)


@pytest.mark.parametrize("frozen", ["states", "weight", "bias", "all"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    model, (states, labels) = make(), labelled()
    parts = {"states": states, "weight": model.head.out.weight, "bias": model.head.out.bias}
    for name, part in parts.items():
        part.requires_grad_(frozen not in (name, "all"))
    ours, plain = word_losses(model, states, labels, chunk=4), plain_losses(model, states, labels)
    close(ours, plain)
    learnt = [part for part in parts.values() if part.requires_grad]
    assert ours.requires_grad == bool(learnt)
    if learnt:
        for mine, theirs in zip(
            torch.autograd.grad(ours.sum(), learnt), torch.autograd.grad(plain.sum(), learnt), strict=True
        ):
            close(mine, theirs, rel=1e-6)


class Adapted(nn.Module):
    """A linear with something added, as an adapter does it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.more = inner, nn.Parameter(torch.full((WORDS, SIZE), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + F.linear(x, self.more)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("how", ["adapter", "hook"])
def test_an_output_layer_with_something_added_is_run_as_it_is(how: str, chunk: int | None) -> None:
    model, (states, labels) = make("softcap"), labelled()
    if how == "adapter":
        model.head.out = Adapted(model.head.out)
    else:
        model.head.out.register_forward_hook(lambda module, args, out: out * 2)
    ours, plain = (f(model, states, labels, 0.1) for f in (lambda *x: word_losses(*x, chunk), plain_losses))
    close(ours, plain, rel=1e-6)
    for mine, theirs in zip(gradients(model, states, ours.sum()), gradients(model, states, plain.sum()), strict=True):
        close(mine, theirs, rel=1e-6)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            self.size = max(self.size, each.numel()) if isinstance(each, Tensor) else self.size
        return result


def kept_bytes(function: Any) -> int:
    """What autograd keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        function()
    return sum(sizes.values())


def test_the_scores_of_all_labels_never_exist() -> None:
    model, (states, labels) = make(), labelled(count=400)
    for adapted in (False, True):
        if adapted:
            model.head.out = Adapted(model.head.out)
        with Largest() as seen:
            word_losses(model, states, labels, chunk=20).sum().backward()
        assert seen.size == max(400 * SIZE, 20 * WORDS)
    ours, plain = (
        kept_bytes(lambda: word_losses(make(), states, labels, chunk=20)),
        kept_bytes(lambda: plain_losses(make(), states, labels)),
    )
    assert ours < 0.5 * plain, (ours, plain)


def test_chunks_are_chosen_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (states, labels) = make(), labelled()
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", 3 * WORDS)
    with Largest() as seen:
        word_losses(model, states, labels)
    assert seen.size == max(LABELS * SIZE, 3 * WORDS, WORDS * SIZE)
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", 1)
    close(word_losses(model, states, labels), plain_losses(model, states, labels))


def test_no_labels_are_no_losses() -> None:
    model, (states, labels) = make(), labelled(count=0)
    total = word_losses(model, states, labels).sum()
    total.backward()
    assert total == 0 and states.grad.shape == (0, SIZE) and not model.head.out.weight.grad.any()


def test_autocast_keeps_losses_and_the_weights_gradient_in_fp32() -> None:
    model, (states, labels) = make(), labelled()
    exact = gradients(model, states, plain_losses(model, states, labels).sum())
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = word_losses(model, states, labels, chunk=4), plain_losses(model, states, labels)
    assert ours.dtype == torch.float32
    close(ours, plain, rel=1e-2)
    for mine, theirs, right in zip(
        gradients(model, states, ours.sum()), gradients(model, states, plain.sum()), exact, strict=True
    ):
        assert mine.dtype == torch.float32
        assert (mine - right).abs().max() <= 2 * (theirs - right).abs().max() + 1e-3


def test_a_head_that_reads_rows_cannot_score_words() -> None:
    states, labels = labelled()
    with pytest.raises(UsageError, match="reads each row as a whole"):
        word_losses(make(pick="first"), states, labels)


def test_labels_outside_the_vocabulary_are_not_learnt() -> None:
    states, labels = labelled()
    for wrong in (-100, WORDS):
        labels[3] = wrong
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            word_losses(make(), states, labels)


def test_other_losses_are_torchs_of_each_label() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(6, 4, generator=generator) for _ in range(2))
    labels, targets = torch.randint(4, (6,), generator=generator), torch.rand(6, 4, generator=generator)
    close(losses.label_losses(logits, labels, 0.2).mean(), F.cross_entropy(logits, labels, label_smoothing=0.2))
    close(losses.binary_losses(logits, targets).mean(), F.binary_cross_entropy_with_logits(logits, targets))
    close(losses.squared_losses(logits, targets).mean(), F.mse_loss(logits, targets))
    close(losses.squared_losses(logits[:, :1], targets[:, 0]).mean(), F.mse_loss(logits[:, 0], targets[:, 0]))
    p, q = (other / 3).softmax(-1), (logits / 3).softmax(-1)
    close(losses.distillation_losses(logits, other, 3.0), 9 * (p * (p / q).log()).sum(-1))
    for each in (losses.label_losses(logits.bfloat16(), labels), losses.binary_losses(logits.bfloat16(), targets)):
        assert each.shape == (6,) and each.dtype == torch.float32
