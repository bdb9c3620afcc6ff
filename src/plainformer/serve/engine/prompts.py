"""Prompts are read a few layers at a time: a long one by itself, short ones several at once.

What is read together is computed without padding, each prompt by itself in attention, row by row in products whose bits do not
depend on how many rows there are: it is what each gives alone, to the last bit (`tests/serve/engine/test_invariance.py`).

Shapes: R rows, T positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.ragged import RaggedRow
from plainformer.model.fast.compiled import FEW_ROWS, paths
from plainformer.serve.engine.memory import BLOCK
from plainformer.serve.engine.rows import Batched
from plainformer.serve.engine.turns import UNIT_SECONDS

TOGETHER = 512  # tokens of short prompts that are read at once
MOST_READ = 4  # calls that read at once, each with a cache of its own


class PromptCall:
    """Prompts that are read by one run of the model, layer by layer.

    Attributes:
        jobs: whose prompts they are. error: what went wrong with the reading.
    """

    def __init__(self, jobs: Sequence[Batched]) -> None:
        self.jobs = list(jobs)
        self.error: BaseException | None = None
        self._cache = _cache_of(self.jobs)
        self._steps = self.jobs[0].task.model.by_layers(*_inputs_of(self.jobs, self._cache.length), self._cache)

    def go(self, seconds: float) -> bool:
        """Run layers for some time, at least one; return whether that was the last."""
        until = time.monotonic() + seconds
        try:
            while True:
                if self._cache in paths.of:  # whatever was computed meanwhile went its own way
                    paths.take(self._cache, paths.of[self._cache])
                next(self._steps)
                if time.monotonic() >= until:
                    return False
        except StopIteration as end:
            self._end(end.value)
        except Exception as error:  # whatever it is: it is these requests'
            self.error = error
        return True

    def close(self) -> None:
        """End the run where it is."""
        self._steps.close()

    def _end(self, logits_RV: Tensor) -> None:
        if len(self.jobs) == 1:
            _join(self.jobs[0], logits_RV, self._cache)
            return
        for row, job in enumerate(self.jobs):
            if not job.request.done:  # else its blocks are others' by now
                first = self._cache.length - len(job.prompt_ids)
                _join(job, logits_RV[row : row + 1], _row_of(self._cache, row, first, job))


class Readings:
    """The calls that are reading prompts."""

    def __init__(self) -> None:
        self.of: dict[int, PromptCall] = {}  # job by its identity → the call that reads its prompt

    def may_begin(self) -> bool:
        """Whether another call may begin to read beside those that do."""
        return len(set(map(id, self.of.values()))) < MOST_READ

    def unit(self, lead: Batched, others: Sequence[Batched]) -> list[Batched]:
        """Go on with the reading of a prompt, or begin it with others; return the jobs whose prompts have been read."""
        reading = self.of.get(id(lead))
        if reading is None:
            reading = PromptCall([lead, *self._with(lead, others)])
            self.of.update({id(job): reading for job in reading.jobs})
        return self._ended(reading) if reading.go(UNIT_SECONDS) else []

    def settle(self) -> list[Batched]:
        """Read to the end what is being read; return the jobs whose prompts those are."""
        readings = {id(reading): reading for reading in self.of.values()}.values()
        return [job for reading in readings if reading.go(float("inf")) for job in self._ended(reading)]

    def _ended(self, reading: PromptCall) -> list[Batched]:
        for job in reading.jobs:
            self.of.pop(id(job), None)
            job.error = reading.error
        return reading.jobs

    def _with(self, lead: Batched, others: Sequence[Batched]) -> list[Batched]:
        """Return further jobs whose prompts may be read with one's."""
        found: list[Batched] = []
        if not can_join(lead):
            return found
        left = TOGETHER - len(lead.prompt_ids)
        for job in others:
            fits = len(job.prompt_ids) <= left and len(found) < FEW_ROWS - 1
            if fits and job.memory is lead.memory and id(job) not in self.of and can_join(job):
                found.append(job)
                left -= len(job.prompt_ids)
        return found

    def close(self, job: Batched) -> None:
        """Forget a job that has ended; a call that nobody waits for any more is ended, too."""
        reading = self.of.pop(id(job), None)
        if reading is not None and not any(id(other) in self.of for other in reading.jobs):
            reading.close()


def can_join(job: Batched) -> bool:
    """Whether a prompt gives the same bits beside others: what it is made of must be read as products of many rows are."""
    memory = job.memory
    stack, steps = job.task.config.decoder, None if memory.ragged is None else memory.ragged.steps
    usual = steps is not None and steps.is_usual() and stack is not None and not any(stack.windows)
    return (
        usual
        and memory.has_kernels
        and memory.least_run == 2
        and not job.shared
        and 1 < len(job.prompt_ids) <= TOGETHER
    )


def _cache_of(jobs: Sequence[Batched]) -> KeyValueCache:
    """Return a cache for the prompts, which holds what of a single one was read before."""
    ragged, model, width = jobs[0].memory.ragged, jobs[0].task.model, _width(jobs)
    assert ragged is not None
    if jobs[0].shared:
        return ragged.load(jobs[0].shared, len(jobs[0].shared) * BLOCK, width)
    return KeyValueCache(model.config, len(jobs), width, dtype=model.dtype, device=model.device)


def _width(jobs: Sequence[Batched]) -> int:
    """Return how many columns the prompts take: of several, one at least has padding, so that they are packed."""
    lengths = [len(job.prompt_ids) for job in jobs]
    return max(lengths) + (len(jobs) > 1 and min(lengths) == max(lengths))


def _inputs_of(jobs: Sequence[Batched], before: int) -> tuple[Tensor, Tensor | None]:
    """Return the tokens to run, (R, T), without the first `before`, and which are real; None where all are."""
    device, lengths, width = jobs[0].task.model.device, [len(job.prompt_ids) for job in jobs], _width(jobs)
    ids_RT = torch.tensor([[0] * (width - len(job.prompt_ids)) + job.prompt_ids for job in jobs], device=device)
    if min(lengths) == width:
        return ids_RT[:, before:], None
    return ids_RT, torch.tensor([[0] * (width - length) + [1] * length for length in lengths], device=device)


def _row_of(whole: KeyValueCache, row: int, first: int, job: Batched) -> KeyValueCache:
    """Return one row of a cache, from column `first` on, as a cache of its own."""
    model, length = job.task.model, whole.length - first
    alone = KeyValueCache(model.config, 1, length, dtype=model.dtype, device=model.device)

    def kept(layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        keys, values = whole.read(layer)
        part = slice(first + start, first + end)
        return keys[row : row + 1, :, part], values[row : row + 1, :, part]

    alone.restore(length, BLOCK, kept)
    paths.take(alone, paths.of.get(whole))
    return alone


def _join(job: Batched, logits_1V: Tensor, cache: KeyValueCache) -> None:
    """Put what was read into the blocks of the job's rows."""
    ragged, length = job.memory.ragged, len(job.prompt_ids)
    assert ragged is not None
    # Of a layer with a window, what it has let go of by now is in no block.
    whole = all(layer.held == length for layer in cache.layers)
    held: list[RaggedRow] = [ragged.join(cache, job.blocks_taken[0], filled=len(job.shared))]
    job.memory.has_kernels = held[0].kernels is not None
    for blocks in job.blocks_taken[1:]:
        again = ragged.load(job.blocks_taken[0], length)
        paths.take(again, held[0].kernels)
        held.append(ragged.join(again, blocks, filled=length // BLOCK))
    job.read = logits_1V, held, whole
