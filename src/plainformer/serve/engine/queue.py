"""Who comes next: requests in the order they came, as far as rows and memory for all of their tokens allow."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping

from plainformer.errors import PlainformerError, UsageError, opt
from plainformer.serve.engine.errors import ContextTooLong
from plainformer.serve.engine.jobs import Job
from plainformer.serve.engine.memory import BLOCK, Memory, blocks_for
from plainformer.serve.engine.options import EngineOptions
from plainformer.serve.engine.writing import Writing

MOST_OVERTAKEN = 8  # later requests that may go before one that does not fit yet


class Queue:
    """Prepared requests that wait for rows or memory.

    A request reserves the memory of all the tokens that it may come to before it begins: nothing that runs is ever put back
    for want of it. One that does not fit yet is overtaken a few times at most; then all wait for it.
    """

    def __init__(self, options: EngineOptions, memories: Mapping[str, Memory]) -> None:
        self.options, self.memories = options, memories
        self.waiting: list[Job] = []

    def add(self, job: Job) -> None:
        """Let a request wait, after those that came before it."""
        insort(self.waiting, job, key=lambda other: other.number)

    def remove(self, job: Job) -> None:
        """Take a request out, if it is there."""
        if job in self.waiting:
            self.waiting.remove(job)

    def refused(self, job: Job) -> PlainformerError | None:
        """Find out how many blocks a request takes; return the error of one that never fits."""
        if job.rows > self.options.max_rows:
            what = f"the request writes {job.rows} answers at once, beams included, and this engine {self.options.max_rows}"
            return UsageError(what, f"ask for fewer, or raise {opt('max_rows')}")
        if isinstance(job, Writing):
            memory = self.memories[job.request.model]
            job.blocks = job.blocks or blocks_for(job.tokens)
            if job.blocks > memory.total:
                return ContextTooLong.of_memory(job.prompt_tokens, job.new_tokens, memory.total * BLOCK)
        return None

    def take(self, running: Iterable[Job]) -> Job | None:
        """Take out the request that goes next, beside those that run; None where none fits."""
        if not self.waiting:
            return None
        rows = Counter[str]()  # of each client
        for job in running:
            rows[job.request.client] += job.rows
        room = {name: memory.room for name, memory in self.memories.items()}
        before: list[Job] = []
        for job in self.waiting:
            if job.blocks <= room[job.request.model] and self._has_rows(job, rows):
                self.waiting.remove(job)
                for other in before:
                    other.overtaken += 1
                return job
            before.append(job)
            if job.overtaken >= MOST_OVERTAKEN:
                return None
        return None

    def _has_rows(self, job: Job, rows: Counter[str]) -> bool:
        """Whether a request's rows may run beside these of the clients."""
        if rows.total() + job.rows > self.options.max_rows:
            return False
        most, client = self.options.max_per_client, job.request.client
        if most is None or rows[client] == 0 or rows[client] + job.rows <= most:
            return True
        return all(other.request.client == client for other in self.waiting)
