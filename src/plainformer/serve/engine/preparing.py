"""Threads that prepare requests: tokens, templates, grammars. None of it needs the model, and a grammar may take seconds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from plainformer.serve.engine.errors import RequestCancelled
from plainformer.serve.engine.jobs import Job
from plainformer.serve.engine.writing import Writing
from plainformer.tasks.writing.options import CONSTRAINTS

Done = Callable[[Job, BaseException | None], None]


class Preparing:
    """Two threads, so that a grammar that takes long to compile holds up only others with one. Requests stay in their order
    within each.

    Args:
        done: is told of each job that it is ready, or what is wrong with it, in the thread that prepared it.
    """

    def __init__(self, done: Done) -> None:
        self._done = done
        self._plain = ThreadPoolExecutor(1, "plainformer-prepare")
        self._grammars = ThreadPoolExecutor(1, "plainformer-grammar")

    def add(self, job: Job) -> None:
        """Prepare a job soon."""
        slow = isinstance(job, Writing) and any(getattr(job.options, name, None) is not None for name in CONSTRAINTS)
        (self._grammars if slow else self._plain).submit(self._prepare, job)

    def close(self) -> None:
        """End the threads; what they have not begun is left."""
        for threads in (self._plain, self._grammars):
            threads.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, job: Job) -> None:
        error: BaseException | None = None
        if job.request.why_cancelled is not None:
            error = RequestCancelled.of(job.request.why_cancelled)
        else:
            try:
                job.prepare()
            except Exception as raised:  # whatever it is: the request gets it
                error = raised
        self._done(job, error)
