"""Token healing against brute force."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import UsageError
from plainformer.generation.constraints.healing import Heal, TokenIndex, heal
from plainformer.generation.options import GenerationOptions, stages
from plainformer.generation.order import sort_processors
from plainformer.generation.processors.context import Context
from plainformer.inputs.text.token_bytes import token_bytes
from plainformer.inputs.text.tokenizer import Tokenizer
from tests.support.tokenizers import byte_level, sentencepiece, smollm2

EOS = 0
TOKENS = [
    b"</s>",
    b"h",
    b"t",
    b"http",
    b":",
    b"://",
    b"/",
    b"p:",
    b"\xc3",
    b"\xa9",
    b"\xa9x",
    b"",
    b"\xff",
    b"\xff\xffa",
]
INDEX = TokenIndex(TOKENS, [EOS])
ORDINARY = [i for i, text in enumerate(TOKENS) if text and i != EOS]
BYTES = st.lists(st.sampled_from([b"h", b"t", b"p", b":", b"/", b"\xc3", b"\xa9", b"\xff", b"x"]), max_size=6).map(
    b"".join
)


@settings(max_examples=300, deadline=None)
@given(BYTES)
def test_the_index_finds_what_a_search_finds(start: bytes) -> None:
    assert sorted(INDEX.beginning_with(start)) == [i for i in ORDINARY if TOKENS[i].startswith(start)]
    assert INDEX.extends(start) == any(TOKENS[i].startswith(start) and TOKENS[i] != start for i in ORDINARY)
    begin = [i for i in ORDINARY if start.startswith(TOKENS[i]) and TOKENS[i] != start]
    assert sorted(INDEX.that_begin(start)) == begin


def is_text(data: bytes) -> bool:
    return data.decode(errors="replace").encode() == data


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, len(TOKENS) - 1), min_size=1, max_size=7), st.integers(1, 5))
def test_as_many_tokens_as_a_longer_one_could_stand_for(ids: list[int], most: int) -> None:
    ends = [ids[-count:] for count in range(1, min(most, len(ids) - 1) + 1)]
    ends = [end for end in ends if all(i in ORDINARY for i in end)]
    texts = {len(end): b"".join(TOKENS[i] for i in end) for end in ends}
    possible = [n for n, text in texts.items() if is_text(text) and INDEX.extends(text)]
    count = max(possible, default=0)
    assert heal(ids, INDEX, most=most) == (ids[: len(ids) - count], texts.get(count, b""))


def test_examples() -> None:
    assert heal([3, 4], INDEX) == ([3], b":")  # http: → ://
    assert heal([1, 2, 2, 7], INDEX) == ([1, 2, 2, 7], b"")  # nothing is longer
    assert heal([5, 1], INDEX) == ([5], b"h") and heal([1], INDEX) == ([1], b"")  # the first stays
    assert heal([1, EOS], INDEX) == ([1, EOS], b"")  # special tokens stay
    assert heal([4, 1, 2, 2], TokenIndex([*TOKENS, b"htt!"], [EOS])) == ([4], b"htt")
    assert heal([4, 1, 2, 2], TokenIndex([*TOKENS, b"htt!"], [EOS]), most=1) == ([4, 1, 2, 2], b"")
    assert heal([3, 8, 9], INDEX) == ([3, 8, 9], b"")  # half a character is not taken back
    for most in (0, True, 1.5):
        with pytest.raises(UsageError, match="most="):
            heal([1, 2], INDEX, most=most)  # type: ignore[arg-type]


def run(healing: Heal, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], size: int) -> list[set[int]]:
    """The ids that are allowed for each row, of prompts of any length."""
    longest, new = max(map(len, prompts)), len(rows[0])
    ids = torch.full((len(rows), longest + new), 1)
    real = torch.zeros(ids.shape, dtype=torch.bool)
    for place, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[place, longest - len(prompt) :] = torch.tensor([*prompt, *row])
        real[place, longest - len(prompt) :] = True
    logits_RV = torch.randn(len(rows), size)
    changed_RV = healing(logits_RV, Context(ids, longest, real))
    allowed_RV = changed_RV > float("-inf")
    assert torch.equal(changed_RV[allowed_RV], logits_RV[allowed_RV])
    return [set(row.nonzero().flatten().tolist()) for row in allowed_RV]


def brute(taken: bytes, row: Sequence[int], size: int) -> set[int]:
    text = b"".join(TOKENS[i] for i in row if i != EOS)
    if not taken.startswith(text) or text == taken:
        return set(range(size))
    rest = taken[len(text) :]
    return {i for i in ORDINARY if TOKENS[i].startswith(rest) or rest.startswith(TOKENS[i])}


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_batch_of_prompts_healed_by_different_amounts(chance: random.Random) -> None:
    size = len(TOKENS) + 3
    index = TokenIndex([*TOKENS[:-1], b"http://x"], [EOS])
    originals = [[1, 3, 4], [2, 3, 4, 6], [4, 2, 2, 1], [5, 7], [6, 6]]
    healed = [heal(ids, index) for ids in originals]
    assert {len(taken) for _, taken in healed} == {0, 1, 5, 6}
    healing = Heal(index, healed)
    owners = chance.choices(range(len(healed)), k=6)
    rows: list[list[int]] = [[] for _ in owners]
    for _ in range(6):
        allowed = run(healing, [healed[owner][0] for owner in owners], rows, size)
        for owner, row, ids in zip(owners, rows, allowed, strict=True):
            text, taken = index.text(row), healed[owner][1]
            if text.startswith(taken) or not taken.startswith(text):
                assert ids == set(range(size))
            else:
                rest, tokens = taken[len(text) :], index.tokens
                fitting = [i for i in ORDINARY if tokens[i].startswith(rest) or rest.startswith(tokens[i])]
                assert ids == set(fitting)
        grown = [[*row, chance.choice(sorted(ids & set(ORDINARY)))] for row, ids in zip(rows, allowed, strict=True)]
        order = [chance.randrange(len(grown)) for _ in grown]  # rows change places, some are dropped
        owners, rows = [owners[place] for place in order], [grown[place] for place in order]


def test_every_step_of_one_prompt() -> None:
    index, size = TokenIndex(TOKENS, [EOS]), len(TOKENS)
    healing = Heal(index, [([1], b"http:"), ([2], b"")])
    for row in ([], [1], [1, 2], [1, 2, 2], [3], [3, 4], [3, 5], [4], [EOS, 1], [1, EOS]):
        assert run(healing, [[1]], [row], size) == [brute(b"http:", row, size)]
        assert run(healing, [[2]], [row], size) == [set(range(size))]
        assert run(healing, [[9, 9]], [row], size) == [set(range(size))]  # not a prompt of ours
    assert run(healing, [[1]], [[]], 4) == [{1, 3}]  # a head smaller than the vocabulary


@pytest.mark.parametrize("make", [byte_level, sentencepiece, smollm2])
def test_the_prompt_is_written_again(make: Callable[[], Tokenizer]) -> None:
    tokenizer, chance = make(), random.Random(0)
    table = token_bytes(tokenizer)
    index = TokenIndex(table.tokens, table.special_ids)
    changed = 0
    for text in ("the wor", "hello ", "a language mo", "large caf", "small 日", "token token t", "quoted 😀"):
        prompt = tokenizer.encode(text).input_ids
        shorter, taken = heal(prompt, index)
        changed += shorter != prompt
        assert [*shorter, *prompt[len(shorter) :]] == prompt and index.text(prompt[len(shorter) :]) == taken
        healing, row = Heal(index, [(shorter, taken)]), list[int]()
        for _ in range(8):
            (allowed,) = run(healing, [shorter], [row], len(table.tokens))
            row.append(chance.choice(sorted(allowed - table.special_ids)))
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        assert tokenizer.decode([*shorter, *row], skip_special_tokens=True).startswith(before)
    assert changed >= 4


def test_prompts_that_cannot_be_told_apart() -> None:
    assert Heal(INDEX, [([1], b"h"), ([1], b"h")]).name == "token_healing"
    with pytest.raises(UsageError, match="one by one"):
        Heal(INDEX, [([1], b"h"), ([1], b"t")])


def test_it_runs_before_the_samplers_and_leaves_other_logits_alone() -> None:
    healing = Heal(INDEX, [([1], b"")])
    assert sort_processors([healing], None, stages(GenerationOptions)) == [healing]
    logits_RV = torch.zeros(1, 5)
    assert healing(logits_RV, Context(torch.tensor([[1]]), 1)) is logits_RV
