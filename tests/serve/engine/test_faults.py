"""What goes wrong: callers who leave or do not read, requests that break, full queues, an engine that ends or dies."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
import torch

from plainformer.errors import InputError, UsageError
from plainformer.explanation import Request as Asked
from plainformer.explanation import what_if
from plainformer.serve.engine import (
    ContextTooLong,
    Draining,
    EngineDied,
    QueueFull,
    QueueTimeout,
    RequestCancelled,
    RowFailed,
    prompts,
)
from plainformer.serve.engine.rows import Batch
from tests.support.engine import LONG, Models, engine_of, held_up, is_free, mixed, read, until


def test_callers_who_leave_take_everything_with_them(models: Models) -> None:
    task, chance = models["chat"], random.Random(5)
    more: list[dict[str, Any]] = [{"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 4}, {"json_schema": "{}"}, {}]
    with engine_of(task) as engine:
        requests = []
        for place, asked in enumerate(mixed(200, seed=6, most=200)):
            if place % 5:
                requests.append(asked.of(engine))
            else:
                requests.append(engine.generate("a", LONG * 8, {"max_new_tokens": 100, **more[place // 5 % 4]}))
            if chance.random() < 0.7:
                time.sleep(chance.random() * 0.01)
                chance.choice(requests).cancel("disconnect")
        for request in requests:
            request.cancel("disconnect")
        until(lambda: is_free(engine), 2.0)
        ended = sum(total for (name, _, _), total in engine.counters().items() if name in ("cancelled", "finished"))
        assert ended >= 200
        assert engine.gauges()["prefix_blocks"] == sum(
            memory.pool.total - memory.pool.free for memory in engine._scheduler.memories.values()
        )
        with pytest.raises(RequestCancelled) as error:
            _ = [request.result(1) for request in requests if request.why_cancelled and request._error]
        assert error.value.why == "disconnect"
        assert engine.generate("a", "the cat ", {"max_new_tokens": 5}).result(20).result == task(
            "the cat ", max_new_tokens=5
        )


def test_a_long_prompt_delays_others_by_one_unit(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit ends at the next layer after its time, here at every layer: between two of them, all streams get a token."""
    monkeypatch.setattr(prompts, "UNIT_SECONDS", 0.0)
    task, units = models["chat"], []
    with engine_of(task) as engine:
        streams = [engine.generate("a", f"{place} ", {"max_new_tokens": 80, "eos_ids": []}) for place in range(8)]
        until(lambda: engine.gauges()["rows_running"] == 8)
        engine.observers.append(lambda seen: units.append(seen.label) if seen.name == "unit_seconds" else None)
        long = engine.generate("a", (LONG * 40)[:2000], {"max_new_tokens": 2})
        outcome = long.result(30)
        expected = [task(f"{place} ", max_new_tokens=80, eos_ids=[]) for place in range(8)]
        assert [stream.result(30).result for stream in streams] == expected
    assert outcome.result == task((LONG * 40)[:2000], max_new_tokens=2)
    assert units.count("prefill") >= task.config.main_stack.num_layers
    assert ("prefill", "prefill") not in pairwise(units), "two units without a step between them"


def test_a_reader_who_does_not_read_is_waited_for(models: Models) -> None:
    task, options = models["chat"], {"max_new_tokens": 60, "eos_ids": []}
    with engine_of(task, outbox=8) as engine:
        slow = [engine.generate("a", f"slow {place} ", options) for place in range(3)]
        until(lambda: engine.gauges()["requests_paused"] == 3)
        fast = [engine.generate("a", f"fast {place} ", options) for place in range(3)]
        for place, request in enumerate(fast):
            assert request.result(20).result == task(f"fast {place} ", **options)
        assert all(request.unread <= 16 for request in slow), "what waits for a reader has a bound"
        for place, request in enumerate(slow):
            events, outcome = read(request)
            assert outcome.result == task(f"slow {place} ", **options)
            assert "".join(event.text for event in events) == outcome.result.text
        until(lambda: is_free(engine))


def test_a_reader_who_never_reads_is_given_up(models: Models) -> None:
    with engine_of(models["chat"], outbox=8, stall_timeout=0.2) as engine:
        request = engine.generate("a", "slow ", {"max_new_tokens": 60, "eos_ids": []})
        until(lambda: request.done)
        with pytest.raises(RequestCancelled) as error:
            read(request)
        assert error.value.why == "stalled"
        assert is_free(engine)


class Poison:
    """A processor that goes wrong after some tokens."""

    name = "poison"

    def __init__(self, after: int, how: str) -> None:
        self.after, self.how = after, how

    def __call__(self, logits_RV: torch.Tensor, context: Any) -> torch.Tensor:
        if context.step < self.after:
            return logits_RV
        if self.how == "raises":
            raise ZeroDivisionError("poisoned")
        return torch.full_like(logits_RV, float("-inf"))


@pytest.mark.parametrize("how", ["raises", "bans"])
@pytest.mark.parametrize("after", [0, 4])
def test_a_row_that_breaks_ends_alone(models: Models, how: str, after: int) -> None:
    task = models["chat"]
    with engine_of(task) as engine:
        others = [engine.generate("a", f"{place} ", {"max_new_tokens": 20, "eos_ids": []}) for place in range(4)]
        broken = engine.generate(
            "a", "the cat ", {"max_new_tokens": 20, "eos_ids": [], "processors": [Poison(after, how)]}
        )
        with pytest.raises(UsageError if how == "bans" else RowFailed):
            read(broken)
        for place, request in enumerate(others):
            assert request.result(20).result == task(f"{place} ", max_new_tokens=20, eos_ids=[])
        until(lambda: is_free(engine))


def test_scores_that_are_not_numbers(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    task = models["chat"]
    with engine_of(task) as engine:
        ragged = engine._scheduler.memories["a"].ragged
        assert ragged is not None
        step = ragged.step

        def broken(rows: Any, tokens: Any) -> torch.Tensor:
            logits_RV = step(rows, tokens)
            logits_RV[0] = torch.nan
            return logits_RV

        with held_up(engine):
            requests = [engine.generate("a", f"{place} ", {"max_new_tokens": 5, "eos_ids": []}) for place in range(2)]
            monkeypatch.setattr(ragged, "step", broken)
        with pytest.raises(RowFailed, match="not numbers"):
            requests[0].result(10)
        until(lambda: is_free(engine))


def test_a_full_queue(models: Models) -> None:
    task = models["chat"]
    with engine_of(task, max_queue=3) as engine:
        with held_up(engine):
            waiting = [engine.generate("a", f"{place} ", {"max_new_tokens": 3}) for place in range(3)]
            until(lambda: engine.gauges()["requests_waiting"] == 3)
            with pytest.raises(QueueFull) as error:
                engine.generate("a", "one too many", {})
            assert error.value.retry_after and engine.counters()["rejected", "a", "queue_full"] == 1
        for place, request in enumerate(waiting):
            assert request.result(10).result == task(f"{place} ", max_new_tokens=3)


def test_a_wait_that_is_too_long(models: Models) -> None:
    with engine_of(models["chat"], queue_timeout=0.1, max_rows=1) as engine:
        first = engine.generate("a", "the cat ", {"max_new_tokens": 4000, "eos_ids": []})
        late = engine.generate("a", "a dog ", {"max_new_tokens": 4})
        with pytest.raises(QueueTimeout):
            late.result(10)
        first.cancel()


def test_a_request_out_of_time(models: Models) -> None:
    task = models["chat"]
    with engine_of(task, timeout=0.3) as engine:
        batched = engine.generate("a", "the cat ", {"max_new_tokens": 3000, "eos_ids": []})
        stepped = engine.generate("a", "the cat ", {"max_new_tokens": 3000, "eos_ids": [], "guidance_scale": 1.5})
        for request in (batched, stepped):
            found = request.result(20)
            assert found.result.stop_reason == "time" and 0 < found.result.new_tokens < 3000


def test_what_does_not_fit_is_refused_at_once(models: Models) -> None:
    small = models["text-generation"]  # 48 positions
    with engine_of(models["chat"], small, kv_memory_bytes=400_000) as engine:
        blocks = engine._scheduler.memories["a"].total
        with pytest.raises(ContextTooLong) as error:
            engine.generate("a", "the cat ", {"max_new_tokens": 64 * blocks}).result(10)
        assert error.value.limit == 64 * blocks
        with pytest.raises(ContextTooLong) as error:
            engine.generate("b", "x" * 60, {}).result(10)
        assert (error.value.prompt_tokens, error.value.limit) == (60, 48)
        with pytest.raises(InputError, match="empty prompt"):
            engine.generate("b", "", {}).result(10)
        assert engine.generate("b", "x" * 40, {"eos_ids": []}).result(10).result.new_tokens == 9
        for bad in ({"top_k": 5}, {"max_tokens": 4}, {"temperature": 0}):
            with pytest.raises(UsageError):
                engine.generate("a", "the cat ", bad)
        with pytest.raises(UsageError, match="no model 'c'"):
            engine.generate("c", "the cat ", {})


def test_memory_is_waited_for(models: Models) -> None:
    """More requests than the memory holds at once: they come one after the other, and none is lost."""
    task = models["chat"]
    with engine_of(task, kv_memory_bytes=60_000) as engine:
        total = engine.gauges()["kv_blocks_total"]
        assert total < 10
        options = {"max_new_tokens": 100, "eos_ids": []}
        requests = [engine.generate("a", f"{place} cats ", options) for place in range(12)]
        most = 0
        while not all(request.done for request in requests):
            most = max(most, engine.gauges()["kv_blocks_used"])
            time.sleep(0.001)
        assert 0 < most <= total
        for place, request in enumerate(requests):
            assert request.result(1).result == task(f"{place} cats ", **options)


def test_who_waits_is_not_overtaken_for_ever(models: Models) -> None:
    with engine_of(models["chat"], max_rows=4) as engine:
        options = {"max_new_tokens": 8, "eos_ids": [], "do_sample": True}
        with held_up(engine):
            first = [engine.generate("a", f"{place} ", {**options, "max_new_tokens": 40 + place}) for place in range(3)]
            big = engine.generate("a", "big ", options, n=4)
            small = [engine.generate("a", f"{place} ", options) for place in range(30)]
        begun = {request: request.created + request.result(30).seconds.queue for request in (*first, big, *small)}
    overtook = sum(begun[request] < begun[big] for request in small)
    assert 0 < overtook <= 8


def test_draining(models: Models) -> None:
    task = models["chat"]
    engine = engine_of(task, max_rows=2).start()
    running = [engine.generate("a", f"{place} ", {"max_new_tokens": 200, "eos_ids": []}) for place in range(2)]
    until(lambda: engine.gauges()["rows_running"] == 2)
    waiting = engine.generate("a", "later ", {"max_new_tokens": 5})
    engine.drain()
    with pytest.raises(Draining):
        waiting.result(10)
    with pytest.raises(Draining):
        engine.generate("a", "too late ", {})
    threads = threading.active_count()
    engine.close(20)
    for place, request in enumerate(running):
        assert request.result(1).result == task(f"{place} ", max_new_tokens=200, eos_ids=[])
    assert not engine.alive and threading.active_count() < threads


def test_closing_ends_what_runs(models: Models) -> None:
    engine = engine_of(models["chat"]).start()
    request = engine.generate("a", "the cat ", {"max_new_tokens": 4000, "eos_ids": []})
    next(iter(request))
    engine.close(0.05)
    with pytest.raises(RequestCancelled) as error:
        list(request)
    assert error.value.why == "drain"


def test_a_dead_thread_is_told_of(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = engine_of(models["chat"]).start(), list[EngineDied]()
    engine.on_death.append(told.append)

    def die(batch: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Batch, "step", die)
    requests = [engine.generate("a", f"{place} ", {"max_new_tokens": 9, "eos_ids": []}) for place in range(3)]
    for request in requests:
        with pytest.raises(EngineDied, match="MemoryError: no more"):
            request.result(10)
    until(lambda: len(told) == 1)
    assert not engine.alive
    with pytest.raises(EngineDied):
        engine.generate("a", "the cat ", {})
    engine.close()


def test_another_process_is_told_that_it_has_no_engine(models: Models) -> None:
    with engine_of(models["chat"]) as engine:
        child = os.fork()
        if child == 0:
            try:
                engine.generate("a", "the cat ", {})
            except UsageError as error:
                os._exit(0 if "another process" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


def test_a_model_may_be_changed_while_others_wait(models: Models) -> None:
    """`what_if` masks a head on the model that streams use: it must not be seen there."""
    task, options = models["chat"], {"max_new_tokens": 40, "eos_ids": []}
    expected, asked = [task(f"{place} ", **options) for place in range(4)], Asked("the cat sat ")
    with engine_of(task) as engine:
        streams = [engine.generate("a", f"{place} ", options) for place in range(4)]
        until(lambda: engine.gauges()["rows_running"] == 4)
        found = [engine.exclusive(lambda: what_if(task, asked, "mask-head=0.1")).result(30) for _ in range(2)]
        assert [stream.result(30).result for stream in streams] == expected
    assert found[0].result.to_dict() == what_if(task, asked, "mask-head=0.1").to_dict()


def test_nothing_is_left_over(models: Models) -> None:
    """After many requests of all kinds there are no more objects than after some."""
    task = models["chat"]
    with engine_of(task) as engine:

        def burst(seed: int) -> int:
            requests = [asked.of(engine) for asked in mixed(60, seed=seed, most=4)]
            for request in requests[::3]:
                request.cancel()
            for request in requests:
                if not request.why_cancelled:
                    request.result(30)
            until(lambda: is_free(engine))
            del requests, request
            gc.collect()
            return len(gc.get_objects())

        burst(0)
        burst(0)
        before = burst(0)
        after = [burst(0) for _ in range(4)][-1]
        assert after < before + 500, "objects are left over"
