"""What a generation's trace holds, and its JSON form: "plainformer-trace", version 1.

JSON has no infinity: the logit of a token that is banned is None.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from plainformer.errors import InputError, plural

FORMAT, VERSION = "plainformer-trace", 2
Fate = Literal["runs", "finished", "pruned"]
T = TypeVar("T")


@dataclass(frozen=True)
class FinalToken:
    """A token after all processors: its logit and its probability."""

    token_id: int
    logit: float | None
    probability: float


@dataclass(frozen=True)
class Effect:
    """What a processor did to a row.

    Attributes:
        changed: tokens whose logit it changed and which it left possible. banned: those that it made impossible.
        left: tokens that are possible after it.
        before, after: the logits of the ladder's `top_ids`. banned_top: which of these it banned.
    """

    processor: str
    changed: int
    banned: int
    left: int
    before: tuple[float | None, ...]
    after: tuple[float | None, ...]
    banned_top: tuple[int, ...]


@dataclass(frozen=True)
class Ladder:
    """How a row's logits become the distribution that a token is picked from.

    Attributes:
        top_ids, logits: the likeliest tokens by the model's own logits (of beams: log-probabilities), the best first.
        effects: of each processor, in order.
        probabilities: of `top_ids`, after all processors. final: the likeliest tokens after them.
    """

    row: int
    top_ids: tuple[int, ...]
    logits: tuple[float | None, ...]
    effects: tuple[Effect, ...]
    probabilities: tuple[float, ...]
    final: tuple[FinalToken, ...]


@dataclass(frozen=True)
class Pick:
    """The token picked for a row. `draw`: the uniform number that chose it, None where none was drawn; `rank` 1 is likeliest."""

    row: int
    token_id: int
    probability: float
    rank: int
    draw: float | None


@dataclass(frozen=True)
class Branch:
    """A candidate of beam search: the tokens of row `parent`, then `token_id`.

    Attributes:
        log_probability: the sum over its tokens, penalties included.
        fate: "runs" on in row `row`, "finished" with `score` (that sum over length ** length_penalty), or "pruned".
    """

    parent: int
    token_id: int
    log_probability: float
    fate: Fate
    row: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class BeamGroup:
    """A group of beams in a step: all candidates, best first; `dropped`: scores of finished answers that better ones replaced."""

    group: int
    branches: tuple[Branch, ...]
    dropped: tuple[float, ...] = ()


@dataclass(frozen=True)
class TraceStep:
    """A step: `picks` where rows pick their tokens, `groups` in beam search, and the cache before it takes them in.

    cache_positions: tokens of a row that it holds. cache_used_bytes: what they take, of all rows and layers.
    cache_reserved_bytes: what is allocated, which tokens to come fill.
    """

    number: int
    cache_positions: int
    cache_used_bytes: int
    cache_reserved_bytes: int
    ladders: tuple[Ladder, ...]
    picks: tuple[Pick, ...] = ()
    groups: tuple[BeamGroup, ...] = ()


@dataclass(frozen=True)
class TracedAnswer:
    """A row of the result: its new tokens, why it stopped, and of beams the score that ranks it."""

    token_ids: tuple[int, ...]
    stop_reason: str
    score: float | None = None


@dataclass(frozen=True)
class Trace:
    """A generation from one prompt, step by step.

    Attributes:
        mode: what the options chose. model: which model it was, in words.
        options: those given, as plain values, with the seed. needs: options and inputs that are not plain values, by name,
            with what they were: replaying takes them anew.
        prompt_ids: what the decoder began with. encoder_ids: the encoder's input where it was tokens.
        answers: the result. about: whatever the caller wants to keep with it.
    """

    mode: str
    model: str
    options: dict[str, Any]
    needs: dict[str, str]
    prompt_ids: tuple[int, ...]
    encoder_ids: tuple[int, ...] | None
    steps: tuple[TraceStep, ...]
    answers: tuple[TracedAnswer, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Trace({self.mode}, {plural(len(self.steps), 'step')}, {self.model})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"format": FORMAT, "version": VERSION, **_listed(asdict(self))}

    @classmethod
    def from_dict(cls, data: Any) -> Trace:
        """Return the trace of what `to_dict` gave.

        Raises:
            InputError: this is not a trace, or one of another version; the message says where.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError("this is not a trace of a generation", f'its JSON says "format": "{FORMAT}"')
        if data.get("version") != VERSION:
            raise InputError(f"this trace is of version {data.get('version')!r}", f"this program reads {VERSION}")
        return _read(cls, {k: v for k, v in data.items() if k not in ("format", "version")}, "trace")


def first_difference(was: Sequence[Any], now: Sequence[Any]) -> int | None:
    """Return the first place, from 0, at which two sequences differ; None if they are equal."""
    places = (i for i in range(max(len(was), len(now))) if was[i : i + 1] != now[i : i + 1])
    return next(places, None)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(part) for key, part in value.items()}
    return [_listed(part) for part in value] if isinstance(value, list | tuple) else value


def _read(kind: type[T], data: Any, where: str) -> T:
    """Return a dataclass from plain values, each checked against its field's type."""
    _value(dict, data, where)
    hints = get_type_hints(kind)
    for name in data:
        if name not in hints:
            raise _damaged(f"{where} has an unknown part {name!r}")
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name not in data and each.default is MISSING and each.default_factory is MISSING:
            raise _damaged(f"{where} lacks {each.name!r}")
    return kind(**{name: _value(hints[name], part, f"{where}.{name}") for name, part in data.items()})


def _value(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # X | None
        return None if data is None else _value(arguments[0], data, where)
    if origin is Literal:
        if data not in arguments:
            raise _wrong(where, data, "one of " + ", ".join(map(str, arguments)))
        return data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise _wrong(where, data, "a list")
        return tuple(_value(arguments[0], part, f"{where}[{index}]") for index, part in enumerate(data))
    if is_dataclass(kind):
        return _read(kind, data, where)  # type: ignore[arg-type]
    expected, name = _PLAIN[origin or kind]
    if not isinstance(data, expected) or isinstance(data, bool):
        raise _wrong(where, data, name)
    return float(data) if kind is float else data  # type: ignore[arg-type]


_PLAIN: dict[Any, tuple[Any, str]] = {
    dict: (dict, "an object"),
    float: ((int, float), "a number"),
    int: (int, "a whole number"),
    str: (str, "a text"),
}


def _wrong(where: str, data: Any, expected: str) -> InputError:
    return _damaged(f"{where} is {str(data)[:60]!r}, not {expected}")


def _damaged(what: str) -> InputError:
    return InputError(f"the trace is damaged: {what}", "record it again")
