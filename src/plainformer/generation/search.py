"""`generate` and `stream`: prompts and options in, tokens out, in every mode.

A prompt alone gives the same tokens as in any batch: padding is masked out, positions are counted over real tokens only,
processors look at each row's own tokens, and every row draws from its own stream of random numbers.

Shapes: B prompts, T positions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError, opt
from plainformer.generation.draw import Draws, new_seeds
from plainformer.generation.modes.beam import search_beams
from plainformer.generation.modes.token_loop import Picker, search_tokens
from plainformer.generation.options import BEAMS, DEFAULT_NEW_TOKENS, GenerationOptions
from plainformer.generation.order import check_ids, end_ids, make_processors
from plainformer.generation.prompt import Prompt, left_align, make_prompt
from plainformer.generation.result import Generation, Search, joined
from plainformer.generation.sessions.session import Session
from plainformer.generation.sessions.uncached import UncachedSession
from plainformer.generation.stopping import StopReason, Stops, TextStop
from plainformer.model.pausing import pause
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer

__all__ = ["DEFAULT_NEW_TOKENS", "Generation", "generate", "left_align", "stream"]

ENCODER_INPUTS = ("inputs_embeds", "input_features", "input_values", "pixel_values", "token_type_ids", "position_ids")


def generate(
    model: Transformer,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    decoder_input_ids: Tensor | None = None,
    encoder_output: StackOutput | None = None,
    watcher: Any = None,
    options: GenerationOptions | None = None,
    **named: Any,
) -> Generation:
    """Continue prompts to the end.

    Args:
        model: with a language-model head.
        input_ids: (B, T) prompts of a decoder, or the encoder's input.
        attention_mask: (B, T), 1 for real; None where nothing is padded.
        decoder_input_ids: (B, T') forced start of an encoder-decoder's output, unpadded; None is its start token.
        encoder_output: what `model.encode` gave, in place of the encoder's inputs.
        watcher: sees every step (`explain.Recorder`).
        options: made before; or
        named: `GenerationOptions` by name, and other inputs of the encoder, as input_features or inputs_embeds.
    Raises:
        UsageError, InputError: the model does not generate; a prompt is empty or leaves no room; an option is wrong or
            has no effect in the mode that the others choose.
    """
    inputs = (input_ids, attention_mask, decoder_input_ids, encoder_output)
    steps = _steps(model, inputs, options, named, watcher, streamed=False)
    with torch.inference_mode():
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: Generation = end.value
                return result
            pause()


def stream(
    model: Transformer,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    decoder_input_ids: Tensor | None = None,
    encoder_output: StackOutput | None = None,
    watcher: Any = None,
    options: GenerationOptions | None = None,
    **named: Any,
) -> Search:
    """Yield the steps of `generate`: (tokens, reasons), one of each for each row, or for each prompt in beam search.

    A token is None where the row has ended, or where beams do not agree on it yet. The iterator's return value is the
    whole `Generation`.
    """
    inputs = (input_ids, attention_mask, decoder_input_ids, encoder_output)
    steps = _steps(model, inputs, options, named, watcher, streamed=True)
    while True:
        with torch.inference_mode():  # entered anew for each step: the mode must not leak into the caller's code
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
        yield step


def _steps(
    model: Transformer,
    inputs: tuple[Tensor | None, Tensor | None, Tensor | None, StackOutput | None],
    options: GenerationOptions | None,
    named: dict[str, Any],
    watcher: Any,
    *,
    streamed: bool,
) -> Search:
    encoder_inputs = {name: named.pop(name) for name in ENCODER_INPUTS if name in named}
    if options is not None and named:
        raise UsageError(
            f"options were given both made and by name: {opt(next(iter(named)))}",
            "give one of the two, or options.changed(...)",
        )
    options = options or GenerationOptions.of(named, "generation")
    check_ids(options, model.config)
    prompt = make_prompt(model, *inputs, encoder_inputs)
    return search(model, prompt, options, watcher=watcher, streamed=streamed)


def search(
    model: Transformer, prompt: Prompt, options: GenerationOptions, *, watcher: Any = None, streamed: bool = True
) -> Search:
    """Run the search that the options choose over a prepared prompt."""
    if model.agreed is not None and options.do_sample and options.seed is None:
        options = options.changed(seed=model.agreed(new_seeds(len(prompt))))
    limits = [_limit(options, length) for length in prompt.lengths()]
    room = _room(model, prompt.ids.size(1), runs_last=options.mode == "contrastive")
    too_wide = room is not None and room < max(limits) and prompt.real is not None
    if len(prompt) > 1 and (too_wide or options.mode == "speculative"):
        return _each_alone(model, prompt, options, watcher, streamed)
    if room is not None:
        limits = [min(limit, room) for limit in limits]
    stops = Stops(
        frozenset(end_ids(options, model.config)),
        tuple(limits),
        cast("TextStop | None", options.stop),
        options.stop_when,
        options.max_time,
        agreed=model.agreed,
    )
    return _dispatch(model, prompt, options, stops, watcher, streamed)


def _dispatch(
    model: Transformer, prompt: Prompt, options: GenerationOptions, stops: Stops, watcher: Any, streamed: bool
) -> Search:
    processors = make_processors(options, model.config)
    if options.mode == "speculative":
        from plainformer.generation.modes.speculative import search_speculatively

        return search_speculatively(model, prompt, options, stops, processors, watcher=watcher)
    if options.mode == "contrastive":
        from plainformer.generation.modes.contrastive import search_contrastively

        return search_contrastively(model, prompt, options, stops, processors, watcher=watcher)
    session = make_session(model, prompt, options, max(stops.limits))
    draws = Draws(options.seed, len(prompt), options.copies) if options.do_sample else None
    if options.mode in BEAMS:
        return search_beams(session, stops, processors, options, draws=draws, watcher=watcher)
    picker = Picker(draws, spread=options.num_alternatives > 1)
    return search_tokens(
        session, stops, processors, picker, output_scores=options.output_scores, streamed=streamed, watcher=watcher
    )


def make_session(model: Transformer, prompt: Prompt, options: GenerationOptions, budget: int) -> Session:
    """Return a session of the kind that the options ask for: where its logits come from."""
    shared: dict[str, Any] = {
        "copies": options.copies,
        "budget": budget,
        "cache_kind": options.cache_kind,
        "prefill_chunk": options.prefill_chunk,
    }
    if options.dola_layers is not None or options.guidance_scale is not None:
        from plainformer.generation.sessions.guided import make_contrasting_session

        return make_contrasting_session(model, prompt, options, shared)
    if options.cache_kind == "none":
        return UncachedSession(model, prompt, **shared)
    return Session(model, prompt, cache=options.cache, **shared)


def _limit(options: GenerationOptions, prompt_length: int) -> int:
    """Return how many new tokens a prompt of this length may get."""
    if options.new_token_limit is not None:
        return options.new_token_limit
    assert options.max_length is not None
    if options.max_length <= prompt_length:
        raise InputError(
            f"a prompt of {prompt_length} tokens leaves nothing of {opt('max_length', options.max_length)}",
            f"raise it, or give {opt('max_new_tokens')}, which does not count the prompt",
        )
    return options.max_length - prompt_length


def _room(model: Transformer, prompt_length: int, *, runs_last: bool) -> int | None:
    """Return how many new tokens fit the learned positions, if any. A last token that is not run needs no position."""
    stack = model.config.decoder
    assert stack is not None
    if stack.max_positions is None:
        return None
    room = stack.max_positions - prompt_length + (0 if runs_last else 1)
    if room < 1:
        raise InputError(
            f"a prompt of {prompt_length} tokens fills the {stack.max_positions} positions this model has learned",
            f"shorten it, or encode with {opt('truncate', True)}",
        )
    return room


def _each_alone(model: Transformer, prompt: Prompt, options: GenerationOptions, watcher: Any, streamed: bool) -> Search:
    """Run each prompt on its own, streams advancing together.

    For a batch as wide as its longest prompt would cut a short prompt's answer.
    """
    alone = []
    for index in range(len(prompt)):
        own = {"seed": options.seed[index]} if isinstance(options.seed, list | tuple) else {}
        if options.negative_ids is not None:
            own["negative_ids"] = options.negative_ids[index : index + 1]
        alone.append(search(model, prompt.row(index), options.changed(**own), watcher=watcher, streamed=streamed))
    results: list[Generation | None] = [None] * len(alone)
    width: list[int] = [1] * len(alone)
    reasons: list[list[StopReason | None]] = [[None] for _ in alone]
    while any(result is None for result in results):
        step: list[list[int | None]] = [[None] * count for count in width]
        going = False
        for index, steps in enumerate(alone):
            if results[index] is None:
                try:
                    step[index], reasons[index] = next(steps)
                    going = True
                    width[index] = len(step[index])
                except StopIteration as end:
                    results[index] = end.value
        if going:
            yield [token for row in step for token in row], [reason for row in reasons for reason in row]
    return joined([result for result in results if result is not None])
