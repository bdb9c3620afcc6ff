"""Who comes next: order, rows, memory, clients."""

from __future__ import annotations

from typing import Any

from plainformer.serve.engine.jobs import Job
from plainformer.serve.engine.options import EngineOptions
from plainformer.serve.engine.queue import MOST_OVERTAKEN, Queue
from plainformer.serve.engine.request import Request


class Room:
    """As much memory as the test says."""

    def __init__(self, room: int) -> None:
        self.room = room


def job(number: int, rows: int = 1, blocks: int = 1, client: str = "") -> Job:
    made = Job(Request(str(number), "a", client, "generate", lambda: None), number, 0.0)
    made.rows, made.blocks = rows, blocks
    return made


def queue(room: int = 100, **options: Any) -> tuple[Queue, Room]:
    memory: Any = Room(room)
    return Queue(EngineOptions(**options), {"a": memory}), memory


def numbers(waiting: Queue, running: list[Job]) -> list[int]:
    """Take all that fits."""
    taken = []
    while (found := waiting.take(running)) is not None:
        running.append(found)
        taken.append(found.number)
    return taken


def test_requests_go_in_the_order_they_came() -> None:
    waiting, _ = queue(max_rows=3)
    for number in (4, 1, 3, 0, 2):
        waiting.add(job(number))
    assert numbers(waiting, []) == [0, 1, 2]
    assert [one.number for one in waiting.waiting] == [3, 4]


def test_small_ones_pass_a_large_one_a_few_times() -> None:
    waiting, _ = queue(max_rows=4)
    running = [job(0)]
    waiting.add(job(1, rows=4))
    for number in range(2, 40):
        waiting.add(job(number))
    passed = 0
    while True:
        found = numbers(waiting, running)
        if not found:
            break
        passed += len(found)
        del running[1:]  # they end
    assert passed == MOST_OVERTAKEN
    running.clear()
    assert numbers(waiting, running) == [1]


def test_memory_is_waited_for() -> None:
    waiting, memory = queue(room=5)
    waiting.add(job(0, blocks=6))
    waiting.add(job(1, blocks=5))
    assert numbers(waiting, [])[:1] == [1]
    memory.room = 6
    assert numbers(waiting, [])[:1] == [0]


def test_a_client_may_have_few_rows_while_others_wait() -> None:
    waiting, _ = queue(max_rows=10, max_per_client=2)
    for number in range(6):
        waiting.add(job(number, client="greedy"))
    waiting.add(job(6, client="other"))
    assert numbers(waiting, []) == [0, 1, 6, 2, 3, 4, 5], "the rest once nobody else waits"


def test_more_rows_than_there_are_is_refused() -> None:
    waiting, _ = queue(max_rows=2)
    assert "3 answers at once" in str(waiting.refused(job(0, rows=3))) and waiting.refused(job(1, rows=2)) is None
