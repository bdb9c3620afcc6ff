"""What routes that write have in common: counts, log-probabilities, reasons, and what OpenAI's shape has no place for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plainformer.serve.api.service import Call, Service, milliseconds
from plainformer.serve.names import Served
from plainformer.serve.options import Asked, asked_of

if TYPE_CHECKING:
    from plainformer.serve.engine import Event, Outcome, TokenScore

WRITERS = ("text-generation", "text2text-generation")
_REASONS = {"eos": "stop", "stop_string": "stop", "callback": "stop"}  # all others: cut off


def finish_reason(reason: str | None) -> str:
    """Return why an answer ended in OpenAI's words."""
    return _REASONS.get(reason or "", "length")


def asks(call: Call, model: Served, given: dict[str, Any]) -> Asked:
    """Return what a body asks of a model."""
    settings = getattr(model.task, "settings", None)
    values = {} if settings is None else settings.values
    bound = call.options.bytes_of("max_schema")
    return asked_of(given, settings=values, defaults=call.options.defaults, max_schema=bound)


def usage_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the counts of tokens."""
    prompt = sum(one.usage.prompt_tokens for one in outcomes)
    new = sum(one.usage.new_tokens for one in outcomes)
    cached = sum(one.usage.cached_tokens for one in outcomes)
    details = {"prompt_tokens_details": {"cached_tokens": cached}, "completion_tokens_details": {"reasoning_tokens": 0}}
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new, **details}


def details_of(
    call: Call, asked: Asked, outcomes: Sequence[Outcome], answers: Sequence[tuple[str | None, str | None]]
) -> dict[str, Any]:
    """Return what the library says of answers besides: enough to write them again.

    Args:
        answers: of each the library's stop reason and its stop string.
    """
    seconds = [one.seconds for one in outcomes]
    return {
        "request_id": call.id,
        "seed": outcomes[0].seed if len(outcomes) == 1 else [one.seed for one in outcomes],
        "stop_reasons": [reason for reason, _ in answers],
        "stop_strings": [string for _, string in answers],
        "queue_ms": milliseconds(sum(one.queue for one in seconds)),
        "prefill_ms": milliseconds(sum(one.prefill for one in seconds)),
        "decode_ms": milliseconds(sum(one.decode for one in seconds)),
        "warnings": [*asked.warnings, *(warning for one in outcomes for warning in one.warnings)],
    }


# ---- log-probabilities --------------------------------------------------------------------------------------------------


class Spelling:
    """What tokens of a model write."""

    def __init__(self, model: Served) -> None:
        from plainformer.inputs.text.token_bytes import token_bytes

        known = token_bytes(model.tokenizer.output)
        self.tokens, self.special = known.tokens, known.special_ids

    def bytes(self, token: int) -> bytes:
        """Return the bytes that a token writes; b"" of one that writes nothing."""
        return self.tokens[token] if token < len(self.tokens) else b""

    def text(self, token: int) -> str:
        """Return a token as a text; bytes of a part of a character as OpenAI writes them: "bytes:\\xe2\\x82"."""
        found = self.bytes(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def spelling_of(service: Service, model: Served) -> Spelling:
    """Return the spelling of a model, made once."""
    key = ("spelling", model.name)
    if key not in service.cache:
        service.cache[key] = Spelling(model)
    found: Spelling = service.cache[key]
    return found


@dataclass(frozen=True)
class Shown:
    """New text of an answer, the scores of its tokens, and why it ended, if it did."""

    text: str
    scores: Sequence[TokenScore] | None
    reason: str | None


@dataclass
class Scored:
    """The scored tokens of one answer, as they come: those that write a part of the text that is shown.

    Attributes:
        shown: bytes of the text so far. written: bytes of the tokens so far. place: characters of the text before the next token.
    """

    spelling: Spelling
    shown: int = 0
    written: int = 0
    place: int = 0
    _half: bytes = field(default=b"", repr=False)

    def take(self, event: Event | Shown) -> list[tuple[TokenScore, int]]:
        """Return those of an event's tokens that write text, each with the place in the text where it begins.

        The end token writes nothing, and tokens of a stop string write what is not shown.
        """
        self.shown += len(event.text.encode())
        found = []
        for score in event.scores or ():
            if score.id in self.spelling.special:
                continue
            written = self.spelling.bytes(score.id)
            if event.reason is not None and self.written + len(written) > self.shown:
                break
            self.written += len(written)
            found.append((score, self.place))
            self._half += written
            whole = self._half.decode(errors="ignore")
            self.place += len(whole)
            self._half = self._half[len(whole.encode()) :]
        return found


def chat_logprobs(spelling: Spelling, tokens: Sequence[tuple[TokenScore, int]], count: int) -> dict[str, Any]:
    """Return log-probabilities as chats have them."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": spelling.text(token), "logprob": logprob, "bytes": list(spelling.bytes(token))}

    content = [
        {**one(score.id, score.logprob), "top_logprobs": [one(*pair) for pair in score.top[:count]]}
        for score, _ in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    spelling: Spelling, tokens: Sequence[tuple[TokenScore, int]], count: int, start: int = 0
) -> dict[str, Any]:
    """Return log-probabilities as completions have them; `start`: characters of an echoed prompt before the text."""
    tops = [{spelling.text(token): chance for token, chance in score.top[:count]} for score, _ in tokens]
    return {
        "tokens": [spelling.text(score.id) for score, _ in tokens],
        "token_logprobs": [score.logprob for score, _ in tokens],
        "top_logprobs": tops if count else None,
        "text_offset": [start + place for _, place in tokens],
    }
