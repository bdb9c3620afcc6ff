"""Calls in turns: only one side runs at a time, errors arrive, abandoned calls unwind, threads are used again."""

from __future__ import annotations

import threading

import pytest

from plainformer.model.pausing import pause
from plainformer.serve.engine import turns
from plainformer.serve.engine.turns import Turn, TurnThreads


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pause is taken."""
    monkeypatch.setattr(turns, "UNIT_SECONDS", 0.0)


def test_a_call_goes_on_where_it_paused() -> None:
    threads, seen = TurnThreads(), list[str]()

    def call() -> int:
        for step in range(3):
            seen.append(f"call {step}")
            pause()
        return 7

    turn = Turn(call, threads)
    while not turn.go():
        seen.append("between")
    assert seen == ["call 0", "between", "call 1", "between", "call 2", "between"]
    assert turn.result == 7 and turn.error is None and not threads.running
    pause()  # outside of a turn it does nothing
    threads.close()


def test_an_error_is_kept_for_who_asked() -> None:
    threads = TurnThreads()
    turn = Turn(lambda: 1 // 0, threads)
    assert turn.go() and isinstance(turn.error, ZeroDivisionError)
    threads.close()


def test_an_abandoned_call_unwinds() -> None:
    threads, unwound = TurnThreads(), list[bool]()

    def call() -> None:
        try:
            while True:
                pause()
        finally:
            unwound.append(True)

    turn = Turn(call, threads)
    turn.go()
    turn.close()
    assert unwound == [True] and turn.ended
    Turn(call, threads).close()  # one that has not begun
    threads.close()


def test_what_is_within_a_run_comes_out_of_it() -> None:
    threads, at = TurnThreads(), list[str]()

    def call() -> None:
        for layer in range(3):
            at.append(f"layer {layer}")
            pause(within=True)
        at.append("after")
        pause()
        at.append("later")

    turn = Turn(call, threads)
    turn.go()
    assert turn.within and at == ["layer 0"]
    threads.settle()
    assert not turn.within and at[-1] == "after" and not turn.ended
    turn.close()
    threads.close()


def test_threads_are_used_again() -> None:
    threads, names = TurnThreads(), set[str]()
    before = threading.active_count()
    for _ in range(20):
        turn = Turn(lambda: names.add(threading.current_thread().name), threads)
        assert turn.go()
    assert len(names) == 1 and threads.count == 1
    threads.close()
    assert threading.active_count() == before
