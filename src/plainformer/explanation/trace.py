"""Record a generation, and run a recording again: the same tokens and the same draws, or an error that says where not.

`record` makes a `Trace` (see `trace_format`), `replay` repeats it with a model that is given; a `Recorder` alone watches
any generation of one prompt.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from plainformer.config.options import specs
from plainformer.config.values import no_effect
from plainformer.errors import PlainformerError, UsageError, opt
from plainformer.explanation.recorder import Recorder, without_ended
from plainformer.explanation.trace_format import Trace, TracedAnswer, TraceStep
from plainformer.generation.options import GenerationOptions
from plainformer.generation.prompt import left_align
from plainformer.generation.result import Generation
from plainformer.generation.search import ENCODER_INPUTS, generate
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer

__all__ = ["Recorded", "Recorder", "ReplayError", "Replayed", "Trace", "record", "replay"]

# Inputs and objects that are not options of the search.
_INPUTS = (*ENCODER_INPUTS, "encoder_output")
# They save work and change no token, so that a replay does without them.
_NO_EFFECT = ("cache", "prefill_chunk", "output_scores")


@dataclass(frozen=True)
class Recorded:
    """A generation, and how it came about."""

    generation: Generation
    trace: Trace


@dataclass(frozen=True)
class Replayed:
    """A replay that gave the same tokens. `logit_difference`: by how much a logit of a token that was kept differed at most."""

    generation: Generation
    logit_difference: float


class ReplayError(PlainformerError):
    """A replay went another way. `step` counts from 1, and is None for what concerns the whole."""

    def __init__(self, what: str, step: int | None, expected: Any, got: Any) -> None:
        self.step, self.expected, self.got = step, expected, got
        where = f" at step {step}" if step is not None else ""
        fix = "it takes the trace as it was written, and the same weights, dtype and backend"
        super().__init__(f"the replay diverges{where}: {what} is {expected!r} in the trace, and {got!r} now", fix)


def record(
    model: Transformer,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    decoder_input_ids: Tensor | None = None,
    encoder_output: StackOutput | None = None,
    width: int = 5,
    about: Mapping[str, Any] | None = None,
    options: GenerationOptions | None = None,
    **named: Any,
) -> Recorded:
    """Run `generate` for one prompt, and trace every step.

    Args:
        width: how many tokens of each row and step the trace keeps.
        about: plain values to keep with the trace.
        options, named: as of `generate`. Where tokens are drawn and no seed is given, one is made and kept.
    Raises:
        UsageError: a batch of several prompts; otherwise as `generate`.
    """
    inputs = {name: named.pop(name) for name in ENCODER_INPUTS if name in named}
    inputs = {**inputs, "decoder_input_ids": decoder_input_ids, "encoder_output": encoder_output}
    if options is None:
        options, named = GenerationOptions.of(named, "generation"), {}
    if options.do_sample and options.seed is None:
        options = options.changed(seed=secrets.randbits(63))
    recorder = Recorder(width)
    prompt_ids, encoder_ids = _ids(model, input_ids, attention_mask, decoder_input_ids)
    generation = generate(model, input_ids, attention_mask, **inputs, **named, options=options, watcher=recorder)
    plain, needs = _plain_options(
        {name: getattr(options, name) for name in specs(type(options)) if name in options.given}
    )
    also = {name: value for name, value in inputs.items() if name != "decoder_input_ids" and value is not None}
    trace = Trace(
        options.mode,
        _describe(model),
        plain,
        {**needs, **{name: _kind(value) for name, value in also.items()}},
        prompt_ids,
        encoder_ids,
        without_ended(recorder.steps, [len(ids) for ids in generation.token_ids]),
        _answers(generation),
        dict(about or {}),
    )
    return Recorded(generation, trace)


def replay(model: Transformer, trace: Trace, **given: Any) -> Replayed:
    """Run a trace's generation again.

    Args:
        model: the one it was made with.
        given: what the trace `needs`: options and inputs that JSON cannot hold, by name.
    Raises:
        ReplayError: another token, draw, beam or answer than in the trace; it says at which step.
        UsageError: something that the trace needs is missing, or something that it does not is given.
    """
    if (model_now := _describe(model)) != trace.model:
        raise ReplayError("the model", None, trace.model, model_now)
    missing, unknown = sorted(set(trace.needs) - set(given)), sorted(set(given) - set(trace.needs))
    if missing:
        what = f"the trace was made with {missing[0]}={trace.needs[missing[0]]}"
        raise UsageError(what, f"give {opt(missing[0], ...)} again")
    for name in unknown:
        no_effect(True, name, "on this replay", "leave it out: the trace has all other options")
    options = {**_restored(trace.options, model.device), **given}
    if any(answer.stop_reason == "time" for answer in trace.answers):
        _stop_as_the_clock_did(options, trace)
    follower = _Follower(trace)
    generation = generate(model, **_inputs(model, trace), watcher=follower, **options)  # type: ignore[arg-type]
    _compare_answers(trace, generation)
    return Replayed(generation, follower.difference)


def _inputs(model: Transformer, trace: Trace) -> dict[str, Any]:
    prompt = torch.tensor([trace.prompt_ids], device=model.device)
    if model.config.encoder is None:
        return {"input_ids": prompt}
    ids = torch.tensor([trace.encoder_ids], device=model.device) if trace.encoder_ids is not None else None
    return {"input_ids": ids, "decoder_input_ids": prompt}


def _stop_as_the_clock_did(options: dict[str, Any], trace: Trace) -> None:
    """The steps that there was time for are counted instead of timed."""
    options.pop("max_time", None)
    given, count = options.get("stop_when"), len(trace.steps)
    options["stop_when"] = lambda ids: len(ids) >= count or (given is not None and given(ids))


class _Follower(Recorder):
    """Compares each step with the trace's as soon as it is complete."""

    def __init__(self, trace: Trace) -> None:
        width = max((len(ladder.top_ids) for step in trace.steps for ladder in step.ladders), default=1)
        super().__init__(width)
        self.trace = trace
        self.expected = {self._place(step): step for step in trace.steps}
        self.difference = 0.0

    def _place(self, step: TraceStep) -> tuple[int, int]:
        """Return which step it is; and of which row, where rows come one after the other."""
        return (step.picks[0].row if self.trace.mode == "speculative" else 0), step.number

    def closed(self, step: TraceStep) -> None:
        number, expected = step.number, self.expected.get(self._place(step))
        if expected is None:
            if self.trace.mode == "speculative":  # tokens after an answer's end are judged with it
                return
            raise ReplayError("the number of steps", number, len(self.trace.steps), f"{number} or more")
        got = {pick.row: pick for pick in step.picks}
        for pick in expected.picks:
            now = got.get(pick.row)
            if now is None or now.draw != pick.draw:
                raise ReplayError(f"the draw of row {pick.row}", number, pick.draw, now and now.draw)
            if now.token_id != pick.token_id:
                raise ReplayError(f"the token of row {pick.row}", number, pick.token_id, now.token_id)
        if (was := _fates(expected)) != (is_now := _fates(step)):
            place = next(i for i in range(max(len(was), len(is_now))) if was[i : i + 1] != is_now[i : i + 1])
            both = (fates[place : place + 1] for fates in (was, is_now))
            raise ReplayError(f"candidate {place + 1} of the beams", number, *both)
        self.difference = max(self.difference, _difference(expected, step))
        self.steps[-1] = TraceStep(number, 0, 0, ())  # only its number is needed from here on


def _fates(step: TraceStep) -> list[tuple[int, int, int, str]]:
    """Return what beam search did in a step: group, source, token, fate."""
    return [(group.group, b.parent, b.token_id, b.fate) for group in step.groups for b in group.branches]


def _difference(expected: TraceStep, got: TraceStep) -> float:
    """Return the largest difference between logits of tokens that both steps kept."""
    now = {ladder.row: dict(zip(ladder.top_ids, ladder.logits, strict=True)) for ladder in got.ladders}
    worst = 0.0
    for ladder in expected.ladders:
        for token_id, logit in zip(ladder.top_ids, ladder.logits, strict=True):
            other = now.get(ladder.row, {}).get(token_id)
            if logit is not None and other is not None:
                worst = max(worst, abs(logit - other))
    return worst


def _compare_answers(trace: Trace, generation: Generation) -> None:
    answers = _answers(generation)
    if len(answers) != len(trace.answers):
        raise ReplayError("the number of answers", None, len(trace.answers), len(answers))
    for number, (was, now) in enumerate(zip(trace.answers, answers, strict=True)):
        if was.token_ids != now.token_ids:
            both = zip(was.token_ids, now.token_ids, strict=False)
            shorter = min(len(was.token_ids), len(now.token_ids))
            place = next((i for i, (a, b) in enumerate(both) if a != b), shorter)
            one = slice(place, place + 1)
            raise ReplayError(f"the token of answer {number}", place + 1, was.token_ids[one], now.token_ids[one])
        if was.stop_reason not in ("time", now.stop_reason):
            raise ReplayError(f"why answer {number} stopped", len(was.token_ids), was.stop_reason, now.stop_reason)


def _answers(generation: Generation) -> tuple[TracedAnswer, ...]:
    scores = generation.scores or (None,) * len(generation.token_ids)
    return tuple(
        TracedAnswer(ids, reason, score)
        for ids, reason, score in zip(generation.token_ids, generation.stop_reasons, scores, strict=True)
    )


def _ids(
    model: Transformer, input_ids: Tensor | None, mask: Tensor | None, decoder_input_ids: Tensor | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return what the decoder begins with, and what the encoder reads, if that is tokens; without padding."""
    encoder_ids = None
    if input_ids is not None:
        ids, real = left_align(input_ids, mask)
        if len(ids) > 1 or real is not None:
            raise UsageError(f"a trace records one prompt; got {len(ids)}", "record each by itself")
        encoder_ids = tuple(ids[0].tolist())
    if model.config.encoder is None:
        return encoder_ids or (), None
    if decoder_input_ids is not None:
        return tuple(decoder_input_ids[0].tolist()), encoder_ids
    start = model.config.decoder_start_id
    return (() if start is None else (start,)), encoder_ids


def _describe(model: Transformer) -> str:
    config = model.config
    stack = config.main_stack
    return f"{config.family}, {stack.num_layers} layers of width {stack.hidden_size}, vocabulary {config.head.out_size}"


def _plain_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return options as JSON can hold them, and those that it cannot, with what they are."""
    plain: dict[str, Any] = {}
    needs: dict[str, str] = {}
    for name, value in options.items():
        if name in _NO_EFFECT:
            continue
        try:
            plain[name] = _plain(value)
        except TypeError:
            needs[name] = _kind(value)
    return plain, needs


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(part)] for key, part in value.items()]
    if isinstance(value, list | tuple | range | set | frozenset) and not is_dataclass(value):
        return [_plain(part) for part in value]
    raise TypeError(type(value).__name__)


def _restored(options: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """`_plain_options` undone."""
    restore: dict[str, Callable[[Any], Any]] = {
        "sequence_bias": lambda pairs: {tuple(ids): float(bias) for ids, bias in pairs},
        "forced": dict,
        "negative_ids": lambda ids: torch.tensor(ids, device=device),
        "exponential_decay": tuple,
    }
    try:
        return {name: restore[name](value) if name in restore else value for name, value in options.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(f"the trace is damaged: its options cannot be read: {error}", "record it again") from None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor of " + " x ".join(map(str, value.shape))
    return type(value).__name__
