"""In which order processors run. It matters: a penalty before a temperature is scaled by it, one after it is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plainformer.errors import UsageError, did_you_mean
from plainformer.generation.processors.context import Processor

CONTROLS = (
    "guidance",
    "sequence_bias",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry",
    "no_repeat_ngram",
    "encoder_no_repeat_ngram",
    "bad_words",
    "min_length",
    "min_new_tokens",
    "allowed_tokens",
    "token_healing",
    "grammar",
    "forced_bos",
    "forced_eos",
    "remove_invalid",
    "exponential_decay",
    "suppress",
    "suppress_first",
    "whisper_timestamps",
    "forced",
)
SAMPLERS = (
    "temperature",
    "top_n_sigma",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "typical",
    "epsilon",
    "eta",
    "xtc",
    "mirostat",
)
LAST = ("watermark", "renormalize")

ORDER: tuple[str, ...] = CONTROLS + SAMPLERS + LAST
"""The order of the reference library's `generate` (transformers 5), with ours that it lacks put in:

  1. what changes the model's own logits: guidance, biases, penalties on repetition (the additive ones and DRY after the
     multiplicative one, as in vLLM and llama.cpp);
  2. what bans or forces tokens. A position of `forced` is forced whatever was banned before, so it comes last of these,
     after the timestamps, which the reference passes as a custom processor;
  3. processors of your own, whose names are not here (`sort_processors`);
  4. samplers: temperature first; top-n-sigma next, which looks at all logits; those that cut off a tail; then XTC, which
     cuts off a head, and Mirostat, which steers by what the others left;
  5. the watermark, after all that decides what may be picked; and last, log-probabilities for beams.
"""


def sort_processors(processors: Iterable[Processor], order: Sequence[str] = ORDER) -> list[Processor]:
    """Processors in the order they run; those of one name stay as they were given.

    Args:
        processors: any.
        order: names. In the documented ORDER, processors it does not name go right before the samplers; an order of your
            own names each of them, and may name others.
    Raises:
        UsageError: an order of one's own lacks the name of a processor, or has one twice.
    """
    listed = list(processors)
    if isinstance(order, str) or not all(isinstance(name, str) for name in order):
        raise UsageError(f"order={order!r} is not a list of names", 'give order=["temperature", "top_p"]')
    places = {name: place for place, name in enumerate(order)}
    if len(places) < len(order):
        twice = next(name for place, name in enumerate(order) if places[name] != place)
        raise UsageError(f"order names {twice!r} twice", "name each processor once")
    custom = places[SAMPLERS[0]] - 0.5 if tuple(order) == ORDER else None
    for processor in listed:
        if custom is None and processor.name not in places:
            hint = did_you_mean(processor.name, order)
            raise UsageError(
                f"order does not say where {processor.name!r} runs", hint or f"add {processor.name!r} to it"
            )
    return sorted(listed, key=lambda processor: places.get(processor.name, custom or 0))
