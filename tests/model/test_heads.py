"""Heads: which vectors they read, row by row, and what they make of them."""

from __future__ import annotations

import pytest
import torch

from plainformer.config import HeadConfig, NormConfig
from plainformer.errors import InputError
from plainformer.model.heads import FIRST, LAST, Head, pick

EOS = 9
X_BTD = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
REAL_BT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
IDS_BT = torch.tensor([[1, EOS, 2, EOS, 3], [0, 0, EOS, 4, 5], [6, EOS, 0, 0, 0]])
FIRSTS, LASTS, ENDS = (0, 2, 0), (4, 4, 1), (3, 2, 1)  # column of each row


@pytest.mark.parametrize(("how", "columns"), [("first", FIRSTS), ("last", LASTS), ("eos", ENDS)])
def test_one_vector_of_each_row(how: str, columns: tuple[int, ...]) -> None:
    found = pick(how, X_BTD, REAL_BT, IDS_BT, EOS)
    assert torch.equal(found, torch.stack([X_BTD[row, column] for row, column in enumerate(columns)]))
    if how != "eos":
        assert torch.equal(pick(how, X_BTD, None, None, None), X_BTD[:, 0 if how == "first" else -1])


def test_the_mean_of_real_vectors() -> None:
    expected = [X_BTD[row, REAL_BT[row]].mean(0) for row in range(3)]
    torch.testing.assert_close(pick("mean", X_BTD, REAL_BT, None, None), torch.stack(expected))
    torch.testing.assert_close(pick("mean", X_BTD, None, None, None), X_BTD.mean(1))
    assert pick("all", X_BTD, REAL_BT, None, None) is X_BTD


def test_rows_without_an_end_token() -> None:
    with pytest.raises(InputError, match="a row has no end-of-sequence token"):
        pick("eos", X_BTD, REAL_BT, IDS_BT.masked_fill(IDS_BT == EOS, 1), EOS)
    for ids, eos_id in ((None, EOS), (IDS_BT, None)):
        with pytest.raises(InputError, match="no input_ids to find it in"):
            pick("eos", X_BTD, REAL_BT, ids, eos_id)


def filled(head: Head) -> Head:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


@torch.no_grad()
def test_transform_scale_and_cap() -> None:
    config = HeadConfig(
        "causal_lm", out_size=7, transform_size=6, transform_activation="tanh", transform_norm=NormConfig(), scale=0.5, softcap=2.0
    )  # fmt: skip
    head = filled(Head(config, 4))
    inner = torch.tanh(X_BTD * 0.5 @ head.dense.weight.T + head.dense.bias)
    mean, variance = inner.mean(-1, keepdim=True), inner.var(-1, unbiased=False, keepdim=True)
    normed = (inner - mean) / (variance + config.transform_norm.eps).sqrt() * head.norm.weight + head.norm.bias  # type: ignore[union-attr]
    logits = normed @ head.out.weight.T + head.out.bias
    torch.testing.assert_close(head(X_BTD, None, None, None), 2 * torch.tanh(logits / 2))


@torch.no_grad()
def test_two_class_tokens_are_averaged() -> None:
    head = filled(Head(HeadConfig("sequence", out_size=3, pick="first_two"), 4))
    one = X_BTD[:, 0] @ head.out.weight.T + head.out.bias
    two = X_BTD[:, 1] @ head.distilled.weight.T + head.distilled.bias
    torch.testing.assert_close(head(X_BTD, None, None, None), (one + two) / 2)


@torch.no_grad()
def test_mixed_states() -> None:
    head = filled(Head(HeadConfig("sequence", out_size=3, pick="mean", mixed_states=2), 4))
    a, b = head.layer_weights.exp().tolist()  # type: ignore[union-attr]
    other = X_BTD.flip(1)
    torch.testing.assert_close(head.mix((X_BTD, other)), (a * X_BTD + b * other) / (a + b))


def test_what_a_head_reads() -> None:
    def reads(keep: int, **values: object) -> slice | None:
        return Head(HeadConfig("sequence", **{"out_size": 3, **values}), 4).reads(keep)  # type: ignore[arg-type]

    assert reads(0, pick="first") == FIRST and reads(0, pick="last") == LAST and reads(1, pick="all") == LAST
    assert reads(0, pick="all") is None and reads(2, pick="all") is None and reads(0, pick="mean") is None
    assert reads(0, pick="first", out_size=0) is None and reads(0, pick="first", mixed_states=3) is None
