"""Messages of configurations built by hand: a size or a choice that cannot be names the field, its value and the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plainformer.config import HeadConfig, ModelConfig, NormConfig, RopeConfig, StackConfig, TokenFrontend
from plainformer.config.checks import reading, require_size, shown
from plainformer.errors import CheckpointError


def stack(**changes: Any) -> StackConfig:
    tokens = TokenFrontend(vocab_size=60, embedding_size=32)
    given = {"frontend": tokens, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "ffn_size": 40, **changes}
    return StackConfig(**given)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: stack(hidden_size=0), "hidden size=0 is not a whole number from 1 to"),
        (lambda: stack(num_layers=2.0), "number of layers=2.0 is not a whole number"),
        (lambda: stack(num_layers=True), "number of layers=True is not a whole number"),
        (lambda: stack(num_heads=5), "hidden size 32 is not a multiple of 5 attention heads"),
        (lambda: stack(num_kv_heads=3), "4 heads cannot share 3 key-value heads evenly"),
        (lambda: stack(ffn_size=-1), "feed-forward size=-1 is not a whole number"),
        (lambda: stack(activation="gelo"), "activation='gelo' is not supported"),
        (lambda: stack(norm_place="before"), "norm_place='before' is not supported"),
        (lambda: stack(hidden_size=64), "embedding size 32 is not the hidden size 64"),
        (lambda: stack(attention_scale=-1.0), "scale of attention scores=-1.0 is not a positive number"),
        (lambda: stack(score_softcap=float("nan")), "soft cap of attention scores=nan is not a positive number"),
        (lambda: stack(windows=(None,)), "windows has 1 entries for 2 layers"),
        (lambda: stack(windows=(None, 0)), "sliding window=0 is not a whole number"),
        (lambda: stack(rope=(RopeConfig(theta=1e4, dim=8),)), "rope has 1 entries for 2 layers"),
        (lambda: HeadConfig(kind="hat"), "head='hat' is not supported"),
        (lambda: HeadConfig(out_size=-1), "number of labels or words=-1 is not a whole number from 0"),
        (lambda: HeadConfig(softcap=-1.0), "soft cap of logits=-1.0 is not a positive number"),
        (lambda: ModelConfig("x"), "no encoder and no decoder"),
    ],
)
def test_what_is_refused(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        build()
    assert says in str(caught.value) and caught.value.fix


def test_stacks_of_two_widths() -> None:
    wide = stack(hidden_size=64, frontend=TokenFrontend(vocab_size=60, embedding_size=64))
    with pytest.raises(CheckpointError, match=r"encoder \(32\) and decoder \(64\) differ in width"):
        ModelConfig("x", encoder=stack(), decoder=wide)


def test_what_is_left_out_follows_from_the_rest() -> None:
    made = stack()
    assert (made.head_dim, made.num_kv_heads, made.windows, made.norm) == (8, 4, (None, None), NormConfig())
    assert stack(head_dim=3, num_heads=5).head_dim == 3  # then the width need not divide
    assert ModelConfig("x", encoder=made).kind == "encoder" and ModelConfig("x", decoder=made).kind == "decoder"


def test_a_message_names_the_file_and_stays_short() -> None:
    rule = r"^config\.json: size='x+\.\.\.x+' is not a whole number from 1 to 9"
    with pytest.raises(CheckpointError, match=rule), reading("config.json"):
        require_size("size", "x" * 10_000, 9)
    assert len(shown(["x" * 1000] * 1000)) < 1000
