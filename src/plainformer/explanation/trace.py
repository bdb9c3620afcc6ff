"""Record a generation, and run it again: the same tokens and draws, or an error that says where they differ.

`record` makes a `Trace` (see `trace_format`), `replay` repeats it with a model that is given; a `Recorder` alone watches
any generation of one prompt.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import repeat
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from plainformer.config.options import specs
from plainformer.config.values import no_effect
from plainformer.errors import PlainformerError, UsageError, opt
from plainformer.explanation.recorder import Recorder, without_ended
from plainformer.explanation.trace_format import Trace, TracedAnswer, TraceStep, first_difference
from plainformer.generation.options import GenerationOptions
from plainformer.generation.prompt import left_align
from plainformer.generation.result import Generation
from plainformer.generation.search import ENCODER_INPUTS, generate
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer

# They save work and change no token: a replay does not need them.
_NO_EFFECT = ("cache", "prefill_chunk", "output_scores")


@dataclass(frozen=True)
class Recorded:
    """A generation and its trace."""

    generation: Generation
    trace: Trace


@dataclass(frozen=True)
class Replayed:
    """A replay that gave the same tokens. `logit_difference`: the largest difference of a logit that the trace keeps."""

    generation: Generation
    logit_difference: float


class ReplayError(PlainformerError):
    """A replay differs from its trace. `step` counts from 1, and is None for what concerns the whole."""

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
    plain, needs = _plain_options(options)
    del inputs["decoder_input_ids"]  # the trace's prompt_ids
    needs |= {name: _kind(value) for name, value in inputs.items() if value is not None}
    steps = without_ended(recorder.steps, [len(ids) for ids in generation.token_ids])
    what, answers = (options.mode, _describe(model), plain, needs), _answers(generation)
    return Recorded(generation, Trace(*what, prompt_ids, encoder_ids, steps, answers, dict(about or {})))


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
    prompt, ids = (row and torch.tensor([row], device=model.device) for row in (trace.prompt_ids, trace.encoder_ids))
    inputs = {"input_ids": prompt} if model.config.encoder is None else {"input_ids": ids, "decoder_input_ids": prompt}
    follower = _Follower(trace)
    generation = generate(model, **inputs, watcher=follower, **options)  # type: ignore[arg-type]
    _compare_answers(trace, generation)
    return Replayed(generation, follower.difference)


def _stop_as_the_clock_did(options: dict[str, Any], trace: Trace) -> None:
    """Stop after as many steps as there was time for."""
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
        """Return a step's row, where rows are generated one after the other (otherwise 0), and its number."""
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
        fates = [_fates(each) for each in (expected, step)]
        if (place := first_difference(*fates)) is not None:
            raise ReplayError(f"candidate {place + 1} of the beams", number, *(f[place : place + 1] for f in fates))
        was, is_now = _logits(expected), _logits(step)
        differences = (abs(was[key] - is_now[key]) for key in was.keys() & is_now.keys())
        self.difference = max(self.difference, *differences, 0.0)
        self.steps[-1] = TraceStep(number, 0, 0, 0, ())  # only its number is needed from here on


def _fates(step: TraceStep) -> list[tuple[int, int, int, str]]:
    """Return each candidate of beam search in a step: group, parent, token, fate."""
    return [(group.group, b.parent, b.token_id, b.fate) for group in step.groups for b in group.branches]


def _logits(step: TraceStep) -> dict[tuple[int, int], float]:
    """Return the finite logits that a step kept, by row and token."""
    kept = ((ladder.row, *pair) for ladder in step.ladders for pair in zip(ladder.top_ids, ladder.logits, strict=True))
    return {(row, token_id): logit for row, token_id, logit in kept if logit is not None}


def _compare_answers(trace: Trace, generation: Generation) -> None:
    answers = _answers(generation)
    if len(answers) != len(trace.answers):
        raise ReplayError("the number of answers", None, len(trace.answers), len(answers))
    for number, (was, now) in enumerate(zip(trace.answers, answers, strict=True)):
        if (place := first_difference(was.token_ids, now.token_ids)) is not None:
            both = (answer.token_ids[place : place + 1] for answer in (was, now))
            raise ReplayError(f"the token of answer {number}", place + 1, *both)
        if was.stop_reason not in ("time", now.stop_reason):
            raise ReplayError(f"why answer {number} stopped", len(was.token_ids), was.stop_reason, now.stop_reason)


def _answers(generation: Generation) -> tuple[TracedAnswer, ...]:
    scores = generation.scores or repeat(None)
    return tuple(map(TracedAnswer, generation.token_ids, generation.stop_reasons, scores))


def _ids(
    model: Transformer, input_ids: Tensor | None, mask: Tensor | None, decoder_input_ids: Tensor | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return what the decoder begins with, and what the encoder reads, if that is tokens; without padding."""
    given = None
    if input_ids is not None:
        ids, real = left_align(input_ids, mask)
        if len(ids) > 1 or real is not None:
            raise UsageError(f"a trace records one prompt; got {len(ids)}", "record each by itself")
        given = tuple(ids[0].tolist())
    if model.config.encoder is None:
        return given or (), None
    if decoder_input_ids is not None:
        return tuple(decoder_input_ids[0].tolist()), given
    start = model.config.decoder_start_id
    return (() if start is None else (start,)), given


def _describe(model: Transformer) -> str:
    config = model.config
    stack = config.main_stack
    return f"{config.family}, {stack.num_layers} layers of width {stack.hidden_size}, vocabulary {config.head.out_size}"


def _plain_options(options: GenerationOptions) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the given options as JSON can hold them; and the kinds of those that it cannot hold."""
    plain: dict[str, Any] = {}
    needs: dict[str, str] = {}
    for name in (name for name in specs(type(options)) if name in options.given and name not in _NO_EFFECT):
        value = getattr(options, name)
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
    """Undo `_plain_options`."""
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
