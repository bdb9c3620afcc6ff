"""Answers that are written together: rows of different lengths, which join a running batch and leave it.

A prompt is read alone, a few layers at a time between other units; its keys and values then go to blocks, and its rows are in
every following step. A row's logits depend on its own tokens only (`generation.ragged`), and the token that comes of them on
its own processors, draws and stops: it is what the library's own call gives, bit for bit.

Shapes: R rows, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from plainformer.generation.draw import Draws
from plainformer.generation.modes.token_loop import Picker, Rows, likeliest, pick
from plainformer.generation.order import check_ids, end_ids, make_processors
from plainformer.generation.processors.context import Context, Processor
from plainformer.generation.prompt import left_align
from plainformer.generation.ragged import RaggedRow
from plainformer.generation.result import Generation
from plainformer.generation.stopping import Stops, TextStop
from plainformer.serve.engine.errors import RowFailed
from plainformer.serve.engine.memory import BLOCK, Memory, blocks_for
from plainformer.serve.engine.writing import Copy, Writing, score_of


class Row:
    """One answer in the batch: what `Growing` says, with its own processors, draws and stops.

    Attributes:
        job: the request. copy: where its tokens go. held: its keys and values. blocks: its own and those it shares.
        token: the last one, which the next step runs. error: what ended it, where that was an error.
    """

    copies = 1

    def __init__(
        self, job: Batched, copy: Copy, ids: Sequence[int], processors: list[Processor], picker: Picker
    ) -> None:
        self.job, self.copy, self.processors, self.picker = job, copy, processors, picker
        self.prompt_columns = self.length = len(ids)
        self.ids = torch.zeros((1, len(ids) + job.new_tokens), dtype=torch.long)
        self.ids[0, : len(ids)] = torch.tensor(ids)
        self.rows = Rows(job.stops, 1)
        self.held: RaggedRow | None = None
        self.blocks: list[int] = []
        self.token = 0
        self.error: BaseException | None = None
        self.last: float | None = None  # when its last token came

    @property
    def plain(self) -> bool:
        """Whether the next token is the likeliest."""
        return not self.processors and self.picker.draws is None

    @property
    def ended(self) -> bool:
        return self.error is not None or self.rows.reasons[0] is not None

    def context(self) -> Context:
        return Context(self.ids[:, : self.length], self.prompt_columns)

    def take(self, logits_1V: Tensor, token: int | None = None) -> None:
        """Take the next token of its logits; `token` is it where that is known already."""
        try:
            self._take(logits_1V, token)
        except Exception as error:  # whatever it is: a processor's, a grammar's, a callback's; it ends this row alone
            self.error = error

    def _take(self, logits_1V: Tensor, token: int | None) -> None:
        scored, banned, scores = self.job.prepared.options.output_scores, None, None
        if token is None or scored:
            found = pick(logits_1V, self, self.processors, self.picker, output_scores=scored)
            token = int(found.tokens[0])
            banned = None if found.banned is None else found.banned.tolist()
            scores = None if found.scores is None else found.scores.tolist()
        self.rows.record([token], banned, scores)
        self.token = token
        top = self.job.logprobs
        self.copy.add(token, None if top is None else score_of(logits_1V[0], token, top))
        if self.rows.reasons[0] is not None:
            self.copy.end(self.rows.reasons[0])
        elif self.length < self.ids.size(1):
            self.ids[0, self.length] = token
            self.length += 1


class Batched(Writing):
    """A request whose answers are rows of the batch.

    Attributes:
        shared: blocks of the prompt that were read before. blocks_taken: of each row, those among them.
        read: once the prompt has been read (`prompts`), the logits after it, what each row holds, and whether nothing of it was
            let go of; or `error`.
        written: the rows, once they have their first tokens.
    """

    kind = "prefill"
    stops: Stops
    read: tuple[Tensor, list[RaggedRow], bool] | None = None
    error: BaseException | None = None

    def __init__(self, *given: Any, memory: Memory, reuse: str) -> None:
        super().__init__(*given)
        self.memory, self.reuse = memory, reuse
        self.prompt_ids: list[int] = []
        self.written: list[Row] = []
        self.shared: list[int] = []
        self.blocks_taken: list[list[int]] = []

    def reserve(self) -> None:
        super().reserve()
        check_ids(self.prepared.options, self.task.config)
        # The prompt's full blocks are the copies' together.
        full = self._decoded // BLOCK
        each = blocks_for(self._decoded + self.new_tokens) - full
        self.blocks = full + self.rows * each

    # ---- the prompt -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        made = self.prepared.options
        self.prompt_ids = left_align(**self.prepared.inputs)[0][0].tolist()
        self.stops = Stops(
            frozenset(end_ids(made, self.task.config)),
            (self.new_tokens,),
            cast("TextStop | None", made.stop),
            made.stop_when,
            self.time_left(),
        )
        self._take_blocks()
        self.cached_tokens = len(self.shared) * BLOCK

    def _take_blocks(self) -> None:
        """Take the blocks of all rows: those of the prompt that are full are shared, also with other requests."""
        prefixes = self.memory.prefixes
        self.shared = prefixes.find(self.prompt_ids) if prefixes is not None else []
        full = len(self.prompt_ids) // BLOCK
        first = [*self.shared, *self.memory.take(full - len(self.shared))]
        self.blocks_taken = [first]
        own = blocks_for(len(self.prompt_ids) + self.new_tokens) - full
        for index in range(self.rows):
            mine = self.memory.take(own)
            if index:
                self.memory.pool.keep(first)
                self.blocks_taken.append([*first, *mine])
            else:
                self.blocks_taken[0] = [*first, *mine]

    def begin_rows(self) -> None:
        """Give each row its first token, now that the prompt has been read. Raises: what went wrong with that."""
        if self.error is not None:
            raise self.error
        assert self.read is not None
        (logits_1V, held, whole), self.read = self.read, None
        made = self.prepared.options
        draws = Draws(made.seed, 1, self.rows) if made.do_sample else None
        groups = [[index] for index in range(self.rows)] if self.rows > 1 else [list(range(self.answers))]
        self.begin_copies(groups)
        for place, copy in enumerate(self.copies):
            picker = Picker(draws.of_row(place) if draws is not None else None)
            row = Row(self, copy, self.prompt_ids, make_processors(made, self.task.config), picker)
            row.blocks, row.held = self.blocks_taken[place], held[place]
            self.written.append(row)
        if self.memory.prefixes is not None and whole:
            self.memory.prefixes.add(self.prompt_ids, self.blocks_taken[0])
        broken = _not_numbers(logits_1V)[0]
        for row in self.written:
            if broken:
                row.error = RowFailed.not_a_number(0)
            else:
                row.take(logits_1V)
        self.first = time.monotonic()

    # ---- the end --------------------------------------------------------------------------------------------------

    def end_if_done(self) -> bool:
        """Give the result where all rows have ended, or the error of the first that has one; return whether it is so."""
        failed = next((row for row in self.written if row.error is not None), None)
        if failed is not None:
            assert failed.error is not None
            raise failed.error
        if not all(row.ended for row in self.written):
            return False
        scored = self.prepared.options.output_scores
        parts = [row.rows.generation(output_scores=scored) for row in self.written]
        self.finish(
            Generation(
                tuple(part.token_ids[0] for part in parts),
                tuple(part.stop_reasons[0] for part in parts),
                tuple(part.log_probabilities[0] for part in parts if part.log_probabilities) if scored else None,
            )
        )
        return True

    def leave(self, row: Row) -> None:
        """Give back the blocks of a row that has ended."""
        if row.blocks:
            if self.reuse == "fast" and self.memory.prefixes is not None and row.error is None and row.held is not None:
                self.memory.prefixes.add(row.ids[0, : row.held.length].tolist(), row.blocks)
            self.memory.pool.give(row.blocks)
            row.blocks = []
            self.blocks_taken[self.written.index(row)] = []
        row.held = None

    def close(self) -> None:
        for blocks in self.blocks_taken:
            self.memory.pool.give(blocks)
        self.blocks_taken = []
        for row in self.written:
            row.blocks, row.held = [], None


class Batch:
    """The rows of one model that are being written.

    Attributes:
        rows: in the order they joined.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.rows: list[Row] = []

    @property
    def ready(self) -> list[Row]:
        """The rows whose readers keep up."""
        return [row for row in self.rows if not row.job.waits_for_reader]

    def step(self) -> list[Row]:
        """Give each row its next token; return the rows."""
        rows, ragged = self.ready, self.memory.ragged
        assert ragged is not None
        logits_RV = ragged.step([cast(RaggedRow, row.held) for row in rows], [row.token for row in rows])
        broken = _not_numbers(logits_RV)
        plain = likeliest(logits_RV).tolist() if any(row.plain for row in rows) else []
        for place, row in enumerate(rows):
            if broken[place]:
                row.error = RowFailed.not_a_number(len(row.rows.tokens[0]))
            else:
                row.take(logits_RV[place : place + 1], plain[place] if row.plain else None)
        return rows

    def remove(self, job: Batched) -> None:
        """Take a request's rows out."""
        self.rows = [row for row in self.rows if row.job is not job]


def _not_numbers(logits_RV: Tensor) -> list[bool]:
    """Return which rows have a score that is not a number."""
    found: list[bool] = np.isnan(logits_RV.detach().float().cpu().numpy().max(-1)).tolist()
    return found
