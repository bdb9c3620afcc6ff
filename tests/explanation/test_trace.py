"""Traces: their numbers are what the model and the processors give; replaying them gives the same tokens and draws."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.errors import InputError, UsageError
from plainformer.explanation import Recorder, ReplayError, Trace, record, replay
from plainformer.generation.draw import draw_tokens
from plainformer.generation.search import generate
from plainformer.generation.stopping import TextStop
from plainformer.loading import load_model
from plainformer.model.transformer import Transformer
from tests.support.close import close

IDS = torch.tensor([[40, 77, 90, 41, 77]])
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "sample": {"do_sample": True, "seed": 7, "temperature": 2.0, "top_k": 20, "top_p": 0.9},
    "samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 3.0, "eos_ids": [2, 100, 120]},
    "beam": {"num_beams": 4, "length_penalty": 0.7, "eos_ids": [2, 80, 81, 82]},
    "beam-sample": {"num_beams": 3, "do_sample": True, "temperature": 2.0, "num_return_sequences": 2},
    "diverse beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5},
    "alternatives": {"num_alternatives": 3},
    "speculative": {"prompt_lookup": 2, "do_sample": True, "num_return_sequences": 3, "temperature": 0.7},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": [1]},
    "uncached": {"cache_kind": "none", "num_beams": 2},
    "biased": {"sequence_bias": {(50,): -2.0, (51, 52): 4.5}, "forced": {0: 60, 1: None}},
}


@pytest.fixture(scope="module")
def models(tiny: Callable[[str], Path]) -> dict[str, Transformer]:
    return {name: load_model(tiny(name), backend="plain") for name in ("text-generation", "chat", "text2text")}


def again(trace: Trace) -> Trace:
    """A trace through its file."""
    return Trace.from_dict(json.loads(json.dumps(trace.to_dict(), allow_nan=False)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["text-generation", "chat", "text2text"])
def test_recording_changes_nothing_and_replays(models: dict[str, Transformer], name: str, mode: str) -> None:
    model, options = models[name], {"max_new_tokens": 8, **MODES[mode]}
    found = record(model, IDS, **options)
    trace = found.trace
    assert again(trace) == trace
    seed = trace.options.get("seed")
    alone = generate(model, IDS, **{**options, **({} if seed is None else {"seed": seed})})
    assert found.generation.token_ids == alone.token_ids == tuple(answer.token_ids for answer in trace.answers)
    assert found.generation.stop_reasons == tuple(answer.stop_reason for answer in trace.answers)
    repeated = replay(model, again(trace))
    assert repeated.generation.token_ids == alone.token_ids and repeated.logit_difference == 0
    assert repeated.generation.scores == alone.scores


@pytest.mark.parametrize("name", ["text-generation", "text2text"])
def test_the_numbers_of_a_sample(models: dict[str, Transformer], name: str) -> None:
    """Logits from the model without a cache, processors by hand, draws from the seed."""
    model = models[name]
    options = {"do_sample": True, "seed": 3, "temperature": 0.5, "top_k": 9, "repetition_penalty": 1.5}
    trace = record(model, IDS, max_new_tokens=6, width=12, **options).trace
    stream = random.Random("3/0")
    ids = list(trace.prompt_ids)
    assert trace.mode == "sample" and len(trace.steps) == 6
    for step in trace.steps:
        (ladder,), (pick,) = step.ladders, step.picks
        before = torch.tensor([ids])
        inputs = {"input_ids": before} if name == "text-generation" else {"input_ids": IDS, "decoder_input_ids": before}
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1]
        best = logits.topk(12)
        assert list(ladder.top_ids) == best.indices.tolist()
        close(ladder.logits, best.values)
        penalty, temperature, top_k = ladder.effects
        seen = sorted(set(ids))
        penalised = logits.clone()
        penalised[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.5, logits[seen] / 1.5)
        assert penalty.processor == "repetition_penalty" and penalty.changed == len(seen) and penalty.banned == 0
        top = list(ladder.top_ids)
        close(penalty.after, penalised[top])
        assert penalty.after == temperature.before and temperature.after == top_k.before
        close(temperature.after, penalised[top] / 0.5)
        kept = penalised.topk(9).indices.tolist()
        assert (top_k.left, top_k.banned, top_k.changed) == (9, len(logits) - 9, 0)
        assert set(top_k.banned_top) == set(top) - set(kept)
        assert [value is None for value in top_k.after] == [token not in kept for token in top]
        final = torch.full_like(logits, float("-inf"))
        final[kept] = penalised[kept] / 0.5
        p = final.softmax(-1)
        close(ladder.probabilities, p[top])
        assert [c.token_id for c in ladder.final] == final.topk(9).indices.tolist()
        close(sum(c.probability for c in ladder.final), 1)
        assert pick.draw == stream.random()
        assert pick.token_id == int(draw_tokens(final[None], torch.tensor([pick.draw], dtype=torch.float64)))
        close(pick.probability, p[pick.token_id])
        assert pick.rank == 1 + int((final > final[pick.token_id]).sum())
        ids.append(pick.token_id)
        assert step.cache_positions == len(ids) - 1  # what was picked is not in it yet
        assert 0 <= step.cache_used_bytes <= step.cache_reserved_bytes and step.cache_reserved_bytes > 0
    assert tuple(ids[len(trace.prompt_ids) :]) == trace.answers[0].token_ids


def test_ended_rows_are_left_out(models: dict[str, Transformer]) -> None:
    options = {"do_sample": True, "seed": 1, "num_return_sequences": 4, "temperature": 5.0, "eos_ids": range(60, 100)}
    found = record(models["chat"], IDS, max_new_tokens=9, **options)
    lengths = [len(ids) for ids in found.generation.token_ids]
    assert len(set(lengths)) > 1
    for row, ids in enumerate(found.generation.token_ids):
        picks = [pick.token_id for step in found.trace.steps for pick in step.picks if pick.row == row]
        assert tuple(picks) == ids
    assert all(len(step.ladders) == len(step.picks) for step in found.trace.steps)


@pytest.mark.parametrize("options", [MODES["beam"], MODES["diverse beam"]], ids=["beam", "diverse"])
def test_the_tree_of_a_beam_search(models: dict[str, Transformer], options: dict[str, Any]) -> None:
    """Every branch's log-probability, from the model alone; and the answers are the tree's finished branches."""
    model = models["chat"]
    trace = record(model, IDS, max_new_tokens=5, num_return_sequences=3, **options).trace
    diverse = "num_beam_groups" in options
    rows: dict[int, tuple[list[int], float]] = {}
    finished: dict[tuple[int, ...], float] = {}
    for step in trace.steps:
        following: dict[int, tuple[list[int], float]] = {}
        for group in step.groups:
            assert [b.log_probability for b in group.branches] == sorted(
                (b.log_probability for b in group.branches), reverse=True
            )
            for branch in group.branches:
                tokens, before = rows.get(branch.parent, ([], 0.0))
                with torch.inference_mode():
                    logits = model(torch.tensor([[*IDS[0].tolist(), *tokens]])).logits[0, -1]
                expected = before + float(logits.log_softmax(-1)[branch.token_id])
                if not diverse:
                    close(branch.log_probability, expected, rel=1e-4)
                held = [*tokens, branch.token_id]
                if branch.fate == "runs":
                    assert branch.row is not None and branch.row not in following
                    following[branch.row] = (held, branch.log_probability)
                elif branch.fate == "finished":
                    length_penalty = options.get("length_penalty", 1.0)
                    assert branch.score == pytest.approx(branch.log_probability / len(held) ** length_penalty)
                    finished[tuple(held)] = branch.score
        rows = following
        assert {ladder.row for ladder in step.ladders} == {b.parent for g in step.groups for b in g.branches}
    assert all(finished[answer.token_ids] == answer.score for answer in trace.answers)
    assert {branch.fate for step in trace.steps for g in step.groups for branch in g.branches} == {
        "runs",
        "finished",
        "pruned",
    }


def tampered(trace: Trace, change: Callable[[dict[str, Any]], None]) -> Trace:
    data = trace.to_dict()
    change(data)
    return Trace.from_dict(data)


def test_a_replay_that_diverges(models: dict[str, Transformer]) -> None:
    model = models["chat"]
    trace = record(model, IDS, max_new_tokens=6, **MODES["sample"]).trace

    def other_token(data: dict[str, Any]) -> None:
        data["steps"][2]["picks"][0]["token_id"] = 0

    with pytest.raises(ReplayError, match="diverges at step 3: the token of row 0 is 0 in the trace, and") as caught:
        replay(model, tampered(trace, other_token))
    assert (caught.value.step, caught.value.expected, caught.value.got) == (3, 0, trace.steps[2].picks[0].token_id)

    def other_draw(data: dict[str, Any]) -> None:
        data["steps"][1]["picks"][0]["draw"] = 0.5

    with pytest.raises(ReplayError, match=r"at step 2: the draw of row 0 is 0\.5"):
        replay(model, tampered(trace, other_draw))

    def other_seed(data: dict[str, Any]) -> None:
        data["options"]["seed"] = 8

    with pytest.raises(ReplayError, match="at step 1: the draw"):
        replay(model, tampered(trace, other_seed))

    def other_prompt(data: dict[str, Any]) -> None:
        data["prompt_ids"] = [90, 40]

    with pytest.raises(ReplayError, match="at step 1: the token"):
        replay(model, tampered(trace, other_prompt))

    def shorter(data: dict[str, Any]) -> None:
        del data["steps"][4:]

    with pytest.raises(ReplayError, match="at step 5: the number of steps is 4 in the trace"):
        replay(model, tampered(trace, shorter))

    def other_end(data: dict[str, Any]) -> None:
        data["answers"][0]["stop_reason"] = "eos"

    with pytest.raises(ReplayError, match="why answer 0 stopped is 'eos' in the trace, and 'length' now"):
        replay(model, tampered(trace, other_end))
    with pytest.raises(ReplayError, match=r"the model is 'llama, 2 layers .* in the trace, and 'gpt2, "):
        replay(models["text-generation"], trace)


def test_a_tampered_beam_search(models: dict[str, Transformer]) -> None:
    model = models["chat"]
    trace = record(model, IDS, max_new_tokens=4, num_beams=3).trace

    def other_fate(data: dict[str, Any]) -> None:
        data["steps"][1]["groups"][0]["branches"][0]["fate"] = "pruned"

    with pytest.raises(ReplayError, match="at step 2: candidate 1 of the beams"):
        replay(model, tampered(trace, other_fate))

    def other_answer(data: dict[str, Any]) -> None:
        data["answers"][0]["token_ids"][3] = 0

    with pytest.raises(ReplayError, match="at step 4: the token of answer 0"):
        replay(model, tampered(trace, other_answer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="x"), "not a trace of a generation"),
        (lambda d: d.update(version=1), "of version 1"),
        (lambda d: d.pop("mode"), "trace lacks 'mode'"),
        (lambda d: d.update(more=1), "trace has an unknown part 'more'"),
        (lambda d: d["steps"][0]["picks"][0].update(token_id="a"), r"trace.steps\[0\].picks\[0\].token_id is 'a'"),
        (lambda d: d["steps"][0]["picks"][0].update(rank=True), "not a whole number"),
        (lambda d: d.update(steps=3), "trace.steps is '3', not a list"),
        (lambda d: d["steps"].append(5), r"trace.steps\[2\] is '5', not an object"),
    ],
)
def test_a_damaged_trace(
    models: dict[str, Transformer], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    trace = record(models["chat"], IDS, max_new_tokens=2).trace
    with pytest.raises(InputError, match=message):
        tampered(trace, change)
    with pytest.raises(InputError, match="not a trace"):
        Trace.from_dict([1])


class Never(TextStop):
    def find(self, ids: Any) -> None:
        return None


def test_what_json_cannot_hold_is_given_again(models: dict[str, Transformer]) -> None:
    model, stop = models["chat"], Never()
    trace = record(model, IDS, max_new_tokens=3, stop=stop, stop_when=lambda ids: len(ids) == 2).trace
    assert trace.needs == {"stop": "Never", "stop_when": "function"} and "stop" not in trace.options
    with pytest.raises(UsageError, match="made with stop=Never"):
        replay(model, again(trace))
    with pytest.raises(ReplayError, match="at step 3"):
        replay(model, again(trace), stop=stop, stop_when=lambda ids: False)
    done = replay(model, again(trace), stop=stop, stop_when=lambda ids: len(ids) == 2).generation
    assert done.stop_reasons == ("callback",)
    with pytest.raises(UsageError, match="grammar has no effect on this replay"):
        replay(model, trace, stop=stop, stop_when=len, grammar=None)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_the_clock_ended(models: dict[str, Transformer], beams: int) -> None:
    model = models["chat"]
    trace = record(model, IDS, max_new_tokens=40, max_time=1e-9, num_beams=beams).trace
    assert {answer.stop_reason for answer in trace.answers} == {"time"} and len(trace.steps) < 40
    assert replay(model, again(trace)).generation.token_ids == tuple(a.token_ids for a in trace.answers)


def test_batches_are_refused(models: dict[str, Transformer]) -> None:
    two = IDS.expand(2, -1)
    with pytest.raises(UsageError, match="records one prompt; got 2"):
        record(models["chat"], two)
    for beams in (1, 2):
        with pytest.raises(UsageError, match="a recorder sees one prompt"):
            generate(models["chat"], two, watcher=Recorder(), num_beams=beams)
    with pytest.raises(UsageError, match="width=0"):
        Recorder(0)


def test_a_wide_trace_stays_small(models: dict[str, Transformer]) -> None:
    """The size does not depend on the vocabulary, and grows with the steps alone."""
    sizes = [
        len(json.dumps(record(models["chat"], IDS, max_new_tokens=n, eos_ids=()).trace.to_dict())) for n in (5, 10)
    ]
    assert sizes[1] < 2.2 * sizes[0]


@pytest.mark.parametrize("mode", ["greedy", "samples", "beam", "beam-sample", "diverse beam"])
@pytest.mark.parametrize("name", ["text-generation", "chat", "text2text"])
def test_generation_without_a_cache(models: dict[str, Transformer], name: str, mode: str) -> None:
    options = {"max_new_tokens": 8, "seed": 5, **MODES[mode]}
    if "do_sample" not in options:
        del options["seed"]
    two, mask = torch.cat((IDS, IDS.flip(1))), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with_cache = generate(models[name], two, mask, **options)
    without = generate(models[name], two, mask, **options, cache_kind="none")
    assert without.token_ids == with_cache.token_ids and without.stop_reasons == with_cache.stop_reasons
    steps = record(models[name], IDS, **options, cache_kind="none").trace.steps
    assert {(step.cache_positions, step.cache_used_bytes, step.cache_reserved_bytes) for step in steps} == {(0, 0, 0)}
