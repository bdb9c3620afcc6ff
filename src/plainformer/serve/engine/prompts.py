"""Prompts are read in turns, a few layers at a time: a long one by itself, short ones several at once.

What is read together is computed without padding, each prompt by itself in attention, row by row in products whose bits do not
depend on how many rows there are: it is what each gives alone, to the last bit (`tests/serve/engine/test_invariance.py`).

Shapes: R prompts, T columns of the longest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.prompt import Prompt
from plainformer.generation.ragged import RaggedRow
from plainformer.generation.sessions.session import Session
from plainformer.model.fast.compiled import FEW_ROWS, paths
from plainformer.serve.engine.memory import BLOCK
from plainformer.serve.engine.rows import Batched
from plainformer.serve.engine.turns import Turn, TurnThreads

TOGETHER = 512  # tokens of short prompts that are read at once
MOST_READ = 4  # calls that read at once, each in a thread with memory of its own


class PromptCall:
    """Prompts that are read by one call, in turns.

    Attributes:
        jobs: whose prompts they are.
    """

    def __init__(self, jobs: Sequence[Batched], threads: TurnThreads) -> None:
        self.jobs = list(jobs)
        self.turn = Turn(self._read, threads)

    def _read(self) -> None:
        with torch.inference_mode():
            if len(self.jobs) == 1:
                _read_alone(self.jobs[0])
            else:
                _read_together(self.jobs)


class Readings:
    """The calls that are reading prompts."""

    def __init__(self, threads: TurnThreads) -> None:
        self.threads = threads
        self.of: dict[int, PromptCall] = {}  # job by its identity → the call that reads its prompt

    def may_begin(self) -> bool:
        """Whether another call may begin to read beside those that do."""
        return len(set(map(id, self.of.values()))) < MOST_READ

    def unit(self, lead: Batched, others: Sequence[Batched]) -> list[Batched]:
        """Go on with the reading of a prompt, or begin it with others; return the jobs whose prompts have been read.

        Raises: what went wrong with the reading, of all prompts that were read together.
        """
        reading = self.of.get(id(lead))
        if reading is None:
            reading = PromptCall([lead, *self._with(lead, others)], self.threads)
            self.of.update({id(job): reading for job in reading.jobs})
        if not reading.turn.go():
            return []
        for job in reading.jobs:
            self.of.pop(id(job), None)
            job.error = reading.turn.error
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
            reading.turn.close()


def can_join(job: Batched) -> bool:
    """Whether a prompt gives the same bits beside others: what it is made of must be read as products of many rows are."""
    memory = job.memory
    stack, steps = job.task.config.decoder, None if memory.ragged is None else memory.ragged.steps
    usual = steps is not None and steps.is_usual() and stack is not None and not any(stack.windows)
    return usual and memory.least_run == 2 and not job.shared and 1 < len(job.prompt_ids) <= TOGETHER


def _read_alone(job: Batched) -> None:
    """Read a prompt, or what follows the beginning of it that was read before."""
    ragged, cache, length = job.memory.ragged, None, len(job.prompt_ids)
    assert ragged is not None
    if job.shared:
        cache = ragged.load(job.shared, len(job.shared) * BLOCK, length)
        cache.tokens = job.prompt_ids[: cache.length]
    prompt = Prompt(torch.tensor([job.prompt_ids], device=job.task.model.device))
    session = Session(job.task.model, prompt, budget=1, cache=cache)
    _join(job, session.prefill(), session.cache)


def _read_together(jobs: Sequence[Batched]) -> None:
    """Read prompts of any lengths; each then has a cache of its own."""
    model, lengths = jobs[0].task.model, [len(job.prompt_ids) for job in jobs]
    width = max(lengths)
    ids_RT = torch.zeros((len(jobs), width), dtype=torch.long)
    real_RT = torch.zeros_like(ids_RT)
    for row, job in enumerate(jobs):
        ids_RT[row, width - lengths[row] :] = torch.tensor(job.prompt_ids)
        real_RT[row, width - lengths[row] :] = 1
    session = Session(model, Prompt(ids_RT, None if len(set(lengths)) == 1 else real_RT), budget=1)
    logits_RV = session.prefill()
    for row, job in enumerate(jobs):
        if not job.request.done:  # else its blocks are others' by now
            cache = _row_of(session.cache, row, width - lengths[row], job)
            _join(job, logits_RV[row : row + 1], cache)


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
    for blocks in job.blocks_taken[1:]:
        again = ragged.load(job.blocks_taken[0], length)
        paths.take(again, held[0].kernels)
        held.append(ragged.join(again, blocks, filled=length // BLOCK))
    job.read = logits_1V, held, whole
