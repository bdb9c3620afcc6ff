"""A request whose answer is written: how it is prepared, how its tokens become events, and what it gives at its end.

`Stepped` runs it by the library's own search, a step at a time, in every mode; `rows.Batched` together with others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError, nth, opt, placed
from plainformer.generation.draw import new_seeds
from plainformer.generation.options import TOKENS
from plainformer.generation.result import Generation, Search
from plainformer.generation.search import stream
from plainformer.inputs.text.encoding import Encoding
from plainformer.serve.engine.answers import Event, Outcome, TokenScore, Usage
from plainformer.serve.engine.errors import ContextTooLong
from plainformer.serve.engine.jobs import Job
from plainformer.serve.engine.request import Request
from plainformer.tasks.lengths import least
from plainformer.tasks.writing.detokenize import AnswerText
from plainformer.tasks.writing.writer import WritingTask, without_first

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer
    from plainformer.tasks.writing.prepared import Prepared


class Copy:
    """One answer while it is written: its tokens become events, which go out once their characters are whole.

    Attributes:
        indices: which of the request's answers it is; several where all are alike.
        scores: of all of its tokens so far, where they were asked for.
    """

    def __init__(self, request: Request, indices: Sequence[int], text: AnswerText, *, scored: bool) -> None:
        self.request, self.indices, self.text = request, indices, text
        self.scores: list[TokenScore] | None = [] if scored else None
        self.ended = False
        self._tokens: list[int] = []
        self._sent = 0
        if first := text.begin():
            self._send(first)

    def add(self, token: int, score: TokenScore | None = None) -> None:
        """Take the next token."""
        self._tokens.append(token)
        if self.scores is not None and score is not None:
            self.scores.append(score)
        if piece := self.text.push(token):
            self._send(piece)

    def end(self, reason: str) -> None:
        """Send what is left, and why the answer ends."""
        self.ended = True
        rest, match = self.text.end(), self.text.match
        self._send(rest, reason if match is None else "stop_string", None if match is None else match.string)

    def _send(self, piece: str, reason: str | None = None, stop_string: str | None = None) -> None:
        tokens = tuple(self._tokens)
        scores = None if self.scores is None else tuple(self.scores[self._sent : self._sent + len(tokens)])
        self._sent += len(tokens)
        self._tokens.clear()
        for index in self.indices:
            self.request.put(Event(index, piece, tokens, scores, reason, stop_string))


class Writing(Job):
    """A request for written answers.

    Args:
        item: the input. options: the task's, made. answers: how many answers are wanted.
        logprobs: how many of the likeliest tokens are told beside each token's log-probability; None: none of it.
        default_max: new tokens at most where the options do not say.
    Attributes:
        options, encoded, prepared: what the task makes of the request; known once it has been prepared.
        prompt_tokens: of what the decoder reads; of an encoder-decoder what its encoder does.
    """

    prepared: Prepared
    encoded: Any
    prompt_tokens = 0
    cached_tokens = 0

    def __init__(
        self,
        request: Request,
        number: int,
        deadline: float,
        task: WritingTask[Any],
        item: Any,
        options: Any,
        answers: int,
        logprobs: int | None,
        default_max: int,
    ) -> None:
        super().__init__(request, number, deadline)
        self.task, self.item, self.options, self.answers = task, item, options, answers
        self.logprobs, self.default_max = logprobs, default_max
        self.copies: list[Copy] = []
        if options.do_sample and options.seed is None:
            self.options = options.changed(seed=new_seeds(1)[0])
        if logprobs is not None and options.mode not in TOKENS:
            what = f"{opt('logprobs', logprobs)} has no effect in {options.mode} mode"
            raise UsageError(what, f"{opt('output_scores', True)} gives what the search saw")

    @property
    def context(self) -> int | None:
        """How many tokens the model reads; None where nothing limits them."""
        return context_of(self.task)

    # ---- before it runs -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        with placed(None), torch.inference_mode():
            self.encoded = self._encoded()
            self.prompt_tokens = len(self.encoded.encodings[0])
            if not {"max_new_tokens", "max_length"} & self.options.given:
                self.options = self.options.changed(max_new_tokens=self._room())
            self.prepared = self.task.prepared(self.encoded, self.options)
        self.reserve()

    def _encoded(self) -> Any:
        if is_ids(self.item):
            return self._of_ids()
        try:
            return self.task.encode([self.item], self.options)
        except InputError:
            if self.context is not None and hasattr(self.task, "row_of") and not self.options.truncate:
                count = len(self.task.row_of(self.item, self.options, any_length=True))
                if count > self.context:
                    raise ContextTooLong.of(count, self.context) from None
            raise

    def _of_ids(self) -> Any:
        """Return a prompt that was given as ids."""
        tokenizer = self.task.tokenizer
        for place, token in enumerate(self.item):
            if tokenizer.id_to_token(token) is None:
                what = f"{nth(0)} has the id {token} at position {place}, which no token of this model has"
                raise InputError(what, "give ids of its own tokenizer")
        if self.context is not None and len(self.item) > self.context:
            raise ContextTooLong.of(len(self.item), self.context)
        return tokenizer.pad([_row_of(tokenizer, self.item)], side="left")

    def _room(self) -> int:
        """Return how many new tokens there is room for where nobody says how many are wanted."""
        if self.context is None or self.task.config.encoder is not None:
            return self.default_max
        learned = self.context == self.task.config.main_stack.max_positions  # of these, a last token needs none
        room = self.context - self.prompt_tokens + learned
        if room < 1:
            raise ContextTooLong.of(self.prompt_tokens, self.context)
        return min(room, self.default_max)

    @property
    def new_tokens(self) -> int:
        """New tokens of each answer at most."""
        made = self.prepared.options
        limit = made.new_token_limit or max(1, (made.max_length or 0) - self._decoded)
        most = self.task.config.decoder.max_positions if self.task.config.decoder is not None else None
        return limit if most is None else max(1, min(limit, most - self._decoded + 1))

    @property
    def _decoded(self) -> int:
        """Tokens that the decoder has before the first new one."""
        return len(self.prepared.before) + len(self.prepared.begun)

    def reserve(self) -> None:
        """Find out how many rows it takes, and how many tokens' keys and values at worst."""
        made = self.prepared.options
        sessions = 2 if made.guidance_scale not in (None, 1) else 1
        self.rows = made.copies * (made.top_k or 1 if made.mode == "contrastive" else 1)
        self.tokens = self.rows * sessions * (self._decoded + self.new_tokens)

    # ---- while it runs --------------------------------------------------------------------------------------------

    def begin_copies(self, groups: Sequence[Sequence[int]]) -> None:
        """Begin the texts of the answers: each group of indices is one."""
        scored = self.logprobs is not None
        texts = (AnswerText(self.task.tokenizer, self.prepared, self.options.stop_strings) for _ in groups)
        self.copies = [
            Copy(self.request, group, text, scored=scored) for group, text in zip(groups, texts, strict=True)
        ]

    def time_left(self) -> float:
        """Return the seconds that are left to write in."""
        asked = self.prepared.options.max_time
        return max(min(self.deadline - time.monotonic(), asked or float("inf")), 1e-3)

    # ---- at its end -----------------------------------------------------------------------------------------------

    def finish(self, found: Generation) -> None:
        """Give the result of a generation whose rows are the answers; one row where all are alike."""
        found = without_first(found, self.prepared.uncounted)
        result = self.task.decode(self.encoded, found, self.options)[0]
        answers = (result, *result.alternatives)
        repeated = answers * (self.answers // len(answers))
        scores = None
        if self.logprobs is not None:
            each = [tuple(copy.scores or ()) for copy in self.copies]
            scores = tuple(each * (self.answers // len(each)))
        new = sum(map(len, found.token_ids))
        self.request.end(
            Outcome(
                result,
                repeated,
                scores,
                Usage(self.prompt_tokens, self.cached_tokens, new),
                self.options.seed if self.options.do_sample else None,
                self.seconds(),
            )
        )


class Stepped(Writing):
    """A request that runs by the library's own search: beams, contrastive, speculative, guided; encoder-decoders."""

    kind = "step"
    steps: Search
    scorer: Scorer | None = None

    def open(self) -> None:
        self.begin_copies(self._groups())
        self._uncounted = [self.prepared.uncounted] * len(self.copies)
        made = self.prepared.options
        if self.logprobs is not None:
            self.scorer = Scorer(self.logprobs)
        made = made.changed(max_time=self.time_left())
        self.steps = stream(self.task.model, **self.prepared.inputs, options=made, watcher=self.scorer)

    def _groups(self) -> list[list[int]]:
        """Return the answers that tokens come for: of beams the first alone, since they agree on one text at most."""
        made = self.prepared.options
        rows = made.copies if made.mode in TOKENS else 1
        return [list(range(self.answers))] if self.answers > 1 and rows == 1 and not self._several else _singly(rows)

    @property
    def _several(self) -> bool:
        """Whether the search gives several answers that differ."""
        made = self.prepared.options
        return made.num_return_sequences > 1 or made.num_alternatives > 1

    def unit(self) -> bool:
        started = time.monotonic()
        try:
            tokens, reasons = next(self.steps)
        except StopIteration as end:
            self._end(end.value)
            return True
        finally:
            self.spent["decode"] += time.monotonic() - started
        self.first = self.first or time.monotonic()
        self.request.begun()
        scores = self.scorer.taken() if self.scorer is not None else [None] * len(tokens)
        for place, copy in enumerate(self.copies):
            self._take(place, copy, tokens[place], reasons[place], scores[place])
        return False

    def _take(self, place: int, copy: Copy, token: int | None, reason: str | None, score: TokenScore | None) -> None:
        if token is not None and not copy.ended:
            if self._uncounted[place]:
                self._uncounted[place] -= 1
            else:
                copy.add(token, score)
        if reason is not None and not copy.ended and self.prepared.options.mode in TOKENS:
            copy.end(reason)

    def _end(self, found: Generation) -> None:
        for place, copy in enumerate(self.copies):
            if not copy.ended:
                copy.end(found.stop_reasons[place])
        if len(self.copies) < self.answers and self._several:  # beams but the best come whole
            texts = [
                AnswerText(self.task.tokenizer, self.prepared, self.options.stop_strings) for _ in range(self.answers)
            ]
            for place in range(1, self.answers):
                copy = Copy(self.request, [place], texts[place], scored=False)
                for token in found.token_ids[place][self.prepared.uncounted :]:
                    copy.add(token)
                copy.end(found.stop_reasons[place])
        self.finish(found)

    def close(self) -> None:
        if hasattr(self, "steps"):
            self.steps.close()


def _singly(count: int) -> list[list[int]]:
    return [[index] for index in range(count)]


class Scorer:
    """Sees the steps of a search, and keeps each token's log-probability in the model's own distribution."""

    def __init__(self, top: int) -> None:
        self.top = top
        self._raw_RV: Tensor | None = None
        self._scores: list[TokenScore] = []

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        """Keep the model's own logits."""
        if name == "logits":
            self._raw_RV = after_RV

    def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: object) -> None:
        """Score the tokens of a step."""
        assert self._raw_RV is not None
        self._scores = [
            score_of(row_V, token, self.top) for row_V, token in zip(self._raw_RV, picked_R.tolist(), strict=True)
        ]

    def taken(self) -> list[TokenScore]:
        """Return the scores of the last step."""
        return self._scores


def score_of(logits_V: Tensor, token: int, top: int) -> TokenScore:
    """Return a token's log-probability, and those of the `top` likeliest."""
    scores_V = logits_V.float().log_softmax(-1)
    likeliest: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = scores_V.topk(min(top, len(scores_V)))
        likeliest = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenScore(token, float(scores_V[token]), likeliest)


def context_of(task: Any) -> int | None:
    """Return how many tokens a model reads at once, by its positions or its training; None where nothing limits them."""
    stack = task.config.main_stack
    return least(stack.max_positions, task.config.trained_positions)


def _row_of(tokenizer: Tokenizer, ids: Sequence[int]) -> Encoding:
    """Return ids as a row of tokens of no text."""
    count = len(ids)
    tokens = [str(tokenizer.id_to_token(token)) for token in ids]
    return Encoding([*ids], [0] * count, [(0, 0)] * count, tokens, [False] * count, [None] * count, [None] * count)


def is_ids(item: Any) -> bool:
    """Whether an input is a prompt in token ids."""
    return isinstance(item, list | tuple) and bool(item) and all(type(token) is int for token in item)
