"""Options: each one without effect is an error that says where it has one; wrong values; why rows end, in every mode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.generation.modes import token_loop as tokens_module
from plainformer.generation.modes.token_loop import Watcher
from plainformer.generation.options import TAKEN_BY, GenerationOptions
from plainformer.generation.result import Generation
from plainformer.generation.search import generate, stream
from plainformer.generation.sessions.session import Session
from tests.support.generation import ENDS, Pair, batch, pair, prompts, value_of

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 3},
    "beam": {"num_beams": 3},
    "beam-sample": {"num_beams": 3, "do_sample": True, "seed": 3},
    "diverse beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
}
OTHERS: dict[str, dict[str, Any]] = {
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "speculative": {"prompt_lookup": 3},
}
make_options = partial(GenerationOptions.of, owner="generation")
EVERY_MODE = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize("mode", [*MODES, *OTHERS])
def test_an_option_without_effect_is_an_error(mode: str) -> None:
    """For each option that some modes take: the others refuse it, by its name, and say who takes it."""
    chosen = {**MODES, **OTHERS}[mode]
    assert GenerationOptions(**chosen).mode == mode
    for name, takers in TAKEN_BY.items():
        if mode in takers or name in chosen:
            continue
        value = value_of(name)
        with pytest.raises(UsageError) as caught:
            make_options({**chosen, name: value})
        message = str(caught.value)
        assert name in message, message
        assert "takes it" in message or "exclude each other" in message or "does not divide" in message, message


def test_the_fix_can_be_followed() -> None:
    """The mode that an error names does take the option."""
    for name, option in (
        ("temperature", {"do_sample": True}),
        ("length_penalty", {"num_beams": 2}),
        ("seed", {"do_sample": True}),
        ("early_stopping", {"num_beams": 2}),
        ("num_return_sequences", {"do_sample": True}),
    ):
        with pytest.raises(UsageError, match=f"{name}=.* has no effect in greedy mode\n.*{next(iter(option))}="):
            make_options({name: value_of(name)})
        make_options({name: value_of(name), **option})
    with pytest.raises(UsageError, match="num_beam_groups=2 or more"):
        make_options({"num_beams": 4, "diversity_penalty": 0.5})
    make_options({"num_beams": 4, "diversity_penalty": 0.5, "num_beam_groups": 2})
    with pytest.raises(UsageError, match=r"greedy or sampling mode takes it|do_sample=True takes it"):
        make_options({"num_beams": 4, "num_alternatives": 2})


def test_modes_that_exclude_each_other() -> None:
    for first, second in (
        ({"penalty_alpha": 0.6}, {"num_beams": 2}),
        ({"penalty_alpha": 0.6}, {"do_sample": True}),
        ({"penalty_alpha": 0.6}, {"prompt_lookup": 2}),
        ({"prompt_lookup": 2}, {"num_beams": 2}),
        ({"prompt_lookup": 2}, {"draft_model": pair("gpt2").ours}),
    ):
        with pytest.raises(UsageError, match="choose different modes"):
            make_options({**first, **second})
    with pytest.raises(UsageError, match="num_beam_groups and do_sample exclude"):
        make_options({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True})
    with pytest.raises(UsageError, match="num_alternatives and num_return_sequences exclude"):
        make_options({"num_alternatives": 2, "num_return_sequences": 2, "do_sample": True})
    with pytest.raises(UsageError, match="cache and cache_kind exclude"):
        make_options({"cache": value_of("cache"), "cache_kind": "int8"})


@pytest.mark.parametrize(
    "name, needed",
    [
        ("xtc_threshold", "xtc_probability"),
        ("mirostat_eta", "mirostat_tau"),
        ("dry_base", "dry_multiplier"),
        ("dry_breakers", "dry_multiplier"),
        ("num_beam_groups", "diversity_penalty"),
    ],
)
def test_options_of_options(name: str, needed: str) -> None:
    mode = {"num_beams": 4} if "beam" in name else {"do_sample": True}
    with pytest.raises(UsageError, match=f"{name}=.* has no effect without {needed}\n.*give {needed} too"):
        make_options({**mode, name: value_of(name)})


def test_unknown_names() -> None:
    for wrong, right in (("tempreture", "temperature"), ("num_beam", "num_beams"), ("maxnewtokens", "max_new_tokens")):
        with pytest.raises(UsageError, match=f"no option '{wrong}'\n.*did you mean .*'{right}'"):
            generate(pair("gpt2").ours, torch.tensor([[5]]), **{wrong: 1})
    with pytest.raises(UsageError, match="no option 'given'"):
        make_options({"given": frozenset()})


WRONG: list[tuple[dict[str, Any], str]] = [
    *[({name: bad}, name) for name in ("max_new_tokens", "max_length", "num_beams") for bad in (0, -1, True, 1.5, "2")],
    *[({"num_beams": 2, name: bad}, name) for name in ("length_penalty",) for bad in ("1", True, float("nan"))],
    *[({"num_beams": 2, "patience": bad}, "patience") for bad in (0, -1.0, "x", float("inf"))],
    *[({"num_beams": 2, "early_stopping": bad}, "early_stopping") for bad in (1, 0, "always", 0.5)],
    *[({"max_time": bad}, "max_time") for bad in (0, -1, "1", True)],
    *[({"do_sample": bad}, "do_sample") for bad in (1, "yes", None)],
    *[({name: 1}, name) for name in ("renormalize", "remove_invalid", "output_scores", "stop_when")],
    ({"stop": ["end"]}, "stop="),
    ({"cache": {}}, "cache is a dict"),
    ({"num_beams": 2, "num_return_sequences": 3}, "no more answers"),
    ({"num_beams": 4, "num_return_sequences": 4, "patience": 0.5}, "patience=0.5"),
    ({"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, "does not divide"),
    ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups=2 does not divide num_beams=1"),
]


@pytest.mark.parametrize("options, message", WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_wrong_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_options(options)


def test_wrong_values_that_the_model_shows() -> None:
    ours, row = pair("gpt2").ours, torch.tensor([[5, 6]])
    for seed in (1.5, "abc", [1, 2], [1.5], True):
        with pytest.raises(UsageError, match="seed="):
            generate(ours, row, do_sample=True, seed=seed)
    with pytest.raises(UsageError, match=r"cache_kind='int4' is unknown\n.*'int8'"):
        generate(ours, row, cache_kind="int4")
    for options in ({}, {"num_beams": 2}):
        with pytest.raises(UsageError, match="every token"):
            generate(ours, row, suppress=range(99), **options)
    with pytest.raises(UsageError, match="every token"):
        generate(ours, row, suppress_first=range(99))
    with pytest.raises(InputError, match="leaves nothing of max_length=2"):
        generate(ours, row, max_length=2)
    with pytest.raises(UsageError, match=r"every token is banned after 7 new ones of input 0\n.*loosen"):
        generate(ours, row, no_repeat_ngram_size=1, suppress=range(9, 99), eos_ids=())


class Sum:
    """A fake of `StopStrings`: finds an end where the ids' sum divides by nine."""

    def find(self, ids: Sequence[int]) -> int | None:
        return 0 if sum(ids) % 9 == 0 else None


def both_ways(ours: Any, inputs: dict[str, Tensor], **options: Any) -> Generation:
    """Generated and streamed, which are the same."""
    whole = generate(ours, **inputs, **options)
    steps = stream(ours, **inputs, **options)
    last: list[Any] = []
    while True:
        try:
            last = next(steps)[1]
        except StopIteration as end:
            assert (end.value.token_ids, end.value.stop_reasons) == (whole.token_ids, whole.stop_reasons)
            assert tuple(last) == whole.stop_reasons
            return whole


def three(name: str = "gpt2", lengths: tuple[int, ...] = (6, 3, 9)) -> tuple[Pair, dict[str, Tensor]]:
    both = pair(name)
    return both, batch(both, prompts(both, lengths))


@EVERY_MODE
@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_stop_reasons(mode: str, name: str) -> None:
    """Each reason occurs, and a row ends where the first of them holds: nowhere before, and not behind it."""
    both, inputs = three(name)
    chosen = MODES[mode]
    varied: dict[str, Any] = {"max_new_tokens": 25, "eos_ids": (), "no_repeat_ngram_size": 1}

    def check(reason: str, holds: Any, **options: Any) -> None:
        found = both_ways(both.ours, inputs, **chosen, **{**varied, **options})
        for ids, why in zip(found.token_ids, found.stop_reasons, strict=True):
            assert why == (reason if holds(ids) else "length")
            assert not any(holds(ids[:end]) for end in range(1, len(ids))), "it went on behind its end"
            assert why != "length" or len(ids) == 25
        assert reason in found.stop_reasons

    check("length", lambda ids: len(ids) == 25)
    common = range(0, 99, 4)
    check("eos", lambda ids: ids[-1] % 4 == 0, eos_ids=common)
    check("stop_string", lambda ids: sum(ids) % 9 == 0, stop=Sum())
    check("callback", lambda ids: sum(ids) % 7 == 0, stop_when=lambda ids: sum(ids) % 7 == 0)
    late = both_ways(both.ours, inputs, **chosen, max_new_tokens=25, eos_ids=(), max_time=1e-9)
    assert late.stop_reasons == ("time",) * 3 and all(len(ids) == 1 for ids in late.token_ids)
    both_reasons = generate(
        both.ours, **inputs, **chosen, eos_ids=range(99), stop_when=lambda _: True, max_new_tokens=1
    )
    assert both_reasons.stop_reasons == ("eos",) * 3  # the first that is asked


@EVERY_MODE
def test_limits(mode: str) -> None:
    """max_length counts a prompt's own tokens; learned positions end a row; max_new_tokens goes first."""
    both, inputs = three()
    chosen = {**MODES[mode], "eos_ids": ()}
    by_length = both_ways(both.ours, inputs, **chosen, max_length=12)
    assert [len(ids) for ids in by_length.token_ids] == [6, 9, 3]
    first = both_ways(both.ours, inputs, **chosen, max_length=10, max_new_tokens=2)
    assert [len(ids) for ids in first.token_ids] == [2, 2, 2]
    default = generate(both.ours, prompts(both, (4,))[0], **chosen)
    assert len(default.token_ids[0]) == 61  # of 64, 4 positions are taken, and the last token needs none
    _, crowded = three(lengths=(60, 3, 63))
    full = both_ways(both.ours, crowded, **chosen, max_new_tokens=10)
    assert [len(ids) for ids in full.token_ids] == [5, 10, 2] and set(full.stop_reasons) == {"length"}


@EVERY_MODE
def test_time_in_the_middle(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When time is up, each row has what it had by then; asked-for numbers of answers are kept."""
    both, inputs = three()
    count = 2 if mode != "greedy" else 1
    more = {"num_return_sequences": 2} if count == 2 else {}
    begin, clock = time.monotonic(), iter(range(10_000))
    monkeypatch.setattr("plainformer.generation.stopping.time.monotonic", lambda: begin + next(clock))
    found = generate(both.ours, **inputs, **MODES[mode], **more, eos_ids=ENDS, max_new_tokens=40, max_time=60)
    assert len(found.token_ids) == 3 * count
    assert "time" in found.stop_reasons
    assert all(0 < len(ids) < 40 for ids in found.token_ids)


@pytest.mark.parametrize("mode", ["greedy", "sample"])
@pytest.mark.parametrize("name", ["gpt2", "mistral", "bart"])
def test_fetching_late_changes_nothing(mode: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the host sees the tokens only now and then; what rows made behind their ends is dropped."""
    both, inputs = three(name)
    options: dict[str, Any] = {**MODES[mode], "eos_ids": ENDS, "max_new_tokens": 21, "output_scores": True}
    options |= {"no_repeat_ngram_size": 1} | ({"num_return_sequences": 2} if mode == "sample" else {})
    expected = generate(both.ours, **inputs, **options)
    assert "eos" in expected.stop_reasons
    looks: list[int] = []
    look = tokens_module._fetch
    monkeypatch.setattr(
        tokens_module, "_fetch", lambda waiting, rows: looks.append(len(waiting)) or look(waiting, rows)
    )
    monkeypatch.setattr(tokens_module, "syncs_every_step", lambda *_: False)
    for every in (1, 4, 16, 50):
        monkeypatch.setattr(tokens_module, "SYNC_EVERY", every)
        looks.clear()
        found = generate(both.ours, **inputs, **options)
        assert found.token_ids == expected.token_ids and found.stop_reasons == expected.stop_reasons
        assert found.log_probabilities == expected.log_probabilities
        assert looks[0] == min(every, 21)


def test_one_row_that_is_fetched_late_leaves_a_usable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache holds tokens behind the end, and says so: the next turn goes on from what is the same."""
    both = pair("gpt2")
    row = prompts(both, (6,))[0]
    free = generate(both.ours, row, eos_ids=(), max_new_tokens=12)
    end = next(token for token in free.token_ids[0] if token not in free.token_ids[0][:2])
    monkeypatch.setattr(tokens_module, "syncs_every_step", lambda *_: False)
    first = generate(both.ours, row, eos_ids=[end], max_new_tokens=20)
    assert (
        first.stop_reasons == ("eos",) and first.cache is not None and first.cache.length > 6 + len(first.token_ids[0])
    )
    longer = torch.cat((row, torch.tensor([[*first.token_ids[0], 40, 41]])), dim=1)
    found = generate(both.ours, longer, cache=first.cache, eos_ids=(), max_new_tokens=6)
    assert found.token_ids == generate(both.ours, longer, eos_ids=(), max_new_tokens=6).token_ids


def test_watchers_fit_their_protocol() -> None:
    class Counts:
        steps = 0

        def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
            pass

        def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: Session) -> None:
            self.steps += 1

    counts = Counts()
    watcher: Watcher = counts
    both, inputs = three()
    generate(both.ours, **inputs, max_new_tokens=5, eos_ids=(), watcher=watcher)
    assert counts.steps == 5
