"""/completions: prompts go on, as texts or token ids, each with one answer or several."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from typing import Any

from plainformer.serve.api.fields import FLAG, TEXT, TEXTS_OR_IDS, Field, whole
from plainformer.serve.api.service import Call, json_response
from plainformer.serve.api.writing import (
    WRITERS,
    Scored,
    Shown,
    asks,
    completion_logprobs,
    details_of,
    finish_reason,
    spelling_of,
    usage_of,
)
from plainformer.serve.errors import invalid
from plainformer.serve.names import Served
from plainformer.serve.options import FORMAT, MOST_LIKELY, Asked, writing_table
from plainformer.serve.sse import DONE

MOST_PROMPTS = 128
TABLE = writing_table(
    Field(
        "prompt",
        TEXTS_OR_IDS,
        "A text, token ids, or a list of either.",
        required=True,
    ),
    Field("max_completion_tokens", whole(1), "New tokens at most; another name of max_tokens."),
    Field("echo", FLAG, "Begin the answer with the prompt.", neutral=(False,)),
    Field("logprobs", whole(0, MOST_LIKELY), "Return log-probabilities: each token's, and this many of the likeliest."),
    Field("best_of", whole(1), "Answers to choose from.", neutral=(1,), why="all answers are returned: use n."),
    Field(
        "suffix",
        TEXT,
        "Text after the answer.",
        neutral=("",),
        why="models here write what follows, not what lies between.",
    ),
    Field("response_format", FORMAT, "What the answer is: text, any JSON object, or JSON of a schema."),
)


async def completions(call: Call) -> Any:
    """Continue prompts."""
    given = await call.read(TABLE)
    model = call.find(given.get("model"), WRITERS, "completions")
    prompts = _prompts(given["prompt"])
    if len(prompts) > MOST_PROMPTS:
        raise invalid(f"{len(prompts)} prompts are more than {MOST_PROMPTS}\n  → send fewer at once", "prompt")
    asked = asks(call, model, given)
    asked.logprobs = given.get("logprobs")
    echo = _Echo(call, model, prompts, asked.logprobs if given.get("echo") else None, bool(given.get("echo")))
    works = [
        call.engine.generate(model.name, one, asked.options, n=asked.n, logprobs=asked.logprobs, **call.identity())
        for one in prompts
    ]
    try:
        await echo.prepare(works)
    except BaseException:
        for work in works:
            work.cancel("refused")
        raise
    answer = _Answer(call, model, asked, works, echo)
    if not given.get("stream"):
        return json_response(answer.whole(await call.outcomes(*works)))
    with_usage = bool(given.get("stream_options", {}).get("include_usage"))
    return await call.stream(works, answer.chunks(with_usage), DONE)


def _prompts(given: Any) -> list[Any]:
    if isinstance(given, str) or isinstance(given[0], int | float):
        return [given if isinstance(given, str) else [int(one) for one in given]]
    return [one if isinstance(one, str) else [int(i) for i in one] for one in given]


class _Echo:
    """What an answer begins with where its prompt is echoed: the text, and the scores of its tokens where these are asked for.

    Attributes:
        texts: of each prompt, "" without echo. scores: of each prompt, its tokens with their places; None where not asked for.
    """

    def __init__(self, call: Call, model: Served, prompts: list[Any], logprobs: int | None, wanted: bool) -> None:
        self.call, self.model, self.prompts, self.logprobs, self.wanted = call, model, prompts, logprobs, wanted
        self.texts = [""] * len(prompts)
        self.scores: list[dict[str, Any] | None] = [None] * len(prompts)

    async def prepare(self, works: list[Any]) -> None:
        """Score the prompts, once the engine has found that they fit; `works`: what it does with them."""
        if not self.wanted:
            return
        decode = self.model.tokenizer.decode
        self.texts = [one if isinstance(one, str) else decode(one) for one in self.prompts]
        if self.logprobs is None:
            return
        if self.model.can.task != "text-generation":
            raise invalid(
                "echo with logprobs has no effect: this model does not continue its prompt\n  → leave one out", "echo"
            )
        if self.logprobs:
            raise invalid(
                f"echo gives no other tokens of the prompt: logprobs={self.logprobs}\n  → give logprobs 0", "logprobs"
            )
        score, scored, most = self.model.task.score, [], self.call.options.max_score_tokens
        for text, work in zip(self.texts, works, strict=True):
            (tokens,) = await asyncio.to_thread(self.model.lengths, [text])
            if tokens > most:
                fix = "send less, or start the server with a higher --max-score-tokens"
                what = f"This model's maximum context length is {most} tokens with echo and logprobs, and the prompt has {tokens}"
                raise invalid(f"{what}\n  → {fix}", "prompt", "context_length_exceeded")
            await self.call.until_gone(work.started(), *works)
            scored.append(await self.call.alone(functools.partial(score, text)))
        self.scores = [
            {
                "tokens": [token.text for token in one.tokens],
                "token_logprobs": [token.log_probability for token in one.tokens],
                "text_offset": [token.start for token in one.tokens],
            }
            for one in scored
        ]

    def joined(self, place: int, logprobs: dict[str, Any]) -> dict[str, Any]:
        """Return log-probabilities of an answer after those of its prompt."""
        before = self.scores[place]
        if before is None:
            return logprobs
        return {**logprobs, **{name: before[name] + logprobs[name] for name in before}}


class _Answer:
    """A response to prompts, whole or in chunks. Choices are numbered prompt by prompt."""

    def __init__(self, call: Call, model: Served, asked: Asked, works: list[Any], echo: _Echo) -> None:
        self.call, self.model, self.asked, self.works, self.echo = call, model, asked, works, echo
        self.spelling = spelling_of(call.service, model) if asked.logprobs is not None else None
        created = int(time.time())
        self.head = {"id": f"cmpl-{call.id}", "object": "text_completion", "created": created, "model": model.name}

    def whole(self, outcomes: list[Any]) -> dict[str, Any]:
        """Return the response of all outcomes."""
        choices = []
        reasons = []
        for prompt, outcome in enumerate(outcomes):
            for copy, answer in enumerate(outcome.answers):
                logprobs = None
                if self.spelling is not None:
                    shown = Shown(answer.text, outcome.scores[copy], answer.stop_reason)
                    logprobs = self.echo.joined(prompt, self._logprobs(prompt, Scored(self.spelling), shown))
                text = self.echo.texts[prompt] + answer.text
                choices.append(self._choice(prompt, copy, text, logprobs, finish_reason(answer.stop_reason)))
                reasons.append((answer.stop_reason, answer.stop_string))
        details = details_of(self.call, self.asked, outcomes, reasons)
        return {**self.head, "choices": choices, "usage": usage_of(outcomes), "plainformer": details}

    async def chunks(self, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed response: those of the first prompt first."""
        head = {**self.head, **({"usage": None} if with_usage else {})}
        outcomes: list[Any] = []
        reasons: list[tuple[str | None, str | None]] = []
        for prompt, work in enumerate(self.works):
            ended: dict[int, tuple[str | None, str | None]] = {}
            last: dict[str, Any] = {}
            scored = [None if self.spelling is None else Scored(self.spelling) for _ in range(self.asked.n)]
            echoed: set[int] = set()
            async for event in work:
                copy, text, logprobs = event.index, event.text, None
                if scored[copy] is not None:
                    logprobs = self._logprobs(prompt, scored[copy], event)
                if copy not in echoed:
                    echoed.add(copy)
                    text = self.echo.texts[prompt] + text
                    logprobs = logprobs and self.echo.joined(prompt, logprobs)
                if text or (logprobs and logprobs["tokens"]):
                    yield {**head, "choices": [self._choice(prompt, copy, text, logprobs, None)]}
                if event.reason is not None:
                    ended[copy] = (event.reason, event.stop_string)
                    last = {**head, "choices": [self._choice(prompt, copy, "", None, finish_reason(event.reason))]}
                    if len(ended) < self.asked.n:
                        yield last
            outcomes.append(await work.outcome())
            reasons += [ended[copy] for copy in sorted(ended)]
            if prompt == len(self.works) - 1:
                last["plainformer"] = details_of(self.call, self.asked, outcomes, reasons)
            yield last
        if with_usage:
            yield {**head, "choices": [], "usage": usage_of(outcomes)}

    def _logprobs(self, prompt: int, scored: Any, shown: Any) -> dict[str, Any]:
        tokens = scored.take(shown)
        return completion_logprobs(scored.spelling, tokens, self.asked.logprobs or 0, len(self.echo.texts[prompt]))

    def _choice(self, prompt: int, copy: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"text": text, "index": prompt * self.asked.n + copy, "logprobs": logprobs, "finish_reason": reason}
