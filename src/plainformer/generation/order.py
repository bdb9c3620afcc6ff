"""In which order processors run. It matters: a penalty before a temperature is scaled by it, one after it is not.

The documented order is that of the fields of `GenerationOptions`: the order of `generate` in transformers 5, with what it
lacks put in:

  1. what changes the model's own logits: guidance, biases, penalties on repetition (the additive ones and DRY after the
     multiplicative one, as in vLLM and llama.cpp);
  2. what bans or forces tokens. A position of `forced` is forced whatever was banned before, so it comes last of these,
     after the timestamps, which transformers passes as a custom processor;
  3. custom processors;
  4. samplers: temperature first; top-n-sigma next, which looks at all logits; those that cut off a tail; then XTC, which
     cuts off a head, and Mirostat, which steers by what the others left;
  5. the watermark, after all that decides what may be picked; and last, log-probabilities for beams.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plainformer.config import ModelConfig
from plainformer.errors import UsageError, did_you_mean, opt
from plainformer.generation import processors
from plainformer.generation.option_values import WITH_IDS, ids_in
from plainformer.generation.options import GenerationOptions, said, stages
from plainformer.generation.processors import Processor, as_token_ids
from plainformer.generation.processors.id_tensors import check_inside


def end_ids(options: GenerationOptions, config: ModelConfig) -> tuple[int, ...]:
    """Return the tokens that end a row."""
    return as_token_ids("eos_ids", config.eos_ids if options.eos_ids is None else options.eos_ids, least=0)


def check_ids(options: GenerationOptions, config: ModelConfig) -> None:
    """Refuse token ids that the model cannot write, before anything runs. Ends may be others: a head may lack some.

    Raises:
        UsageError: an option names an id outside the vocabulary.
    """
    for name in WITH_IDS if config.head.out_size else ():
        if name in options.given:
            check_inside(name, tuple(ids_in(name, getattr(options, name))), config.head.out_size)


def make_processors(options: GenerationOptions, config: ModelConfig) -> list[Processor]:
    """Return the processors that the options ask for, in the order they run."""
    ends, given = end_ids(options, config), options.given
    if options.mode == "contrastive":
        given -= {"top_k"}  # there it is not a sampler
    made: list[Processor] = []
    for name, make in said(type(options), "make").items():
        if name in given and isinstance(make, str):
            made.append(getattr(processors, make)(getattr(options, name)))
        elif name in given:
            made.append(make(processors, options, ends))
    return sort_processors([*made, *options.processors], options.order, stages(type(options)))


def sort_processors(
    processors: Iterable[Processor], order: Sequence[str] | None, documented: Sequence[tuple[str, ...]]
) -> list[Processor]:
    """Return processors in the order they run; those of one name stay as they were given.

    Args:
        processors: any.
        order: names: of each processor, and maybe of others; None is the documented order.
        documented: names of those before custom processors (which it does not name), of the samplers, and of the last.
    Raises:
        UsageError: the given order lacks the name of a processor, or has one twice.
    """
    listed = list(processors)
    if order is not None and (isinstance(order, str) or not all(isinstance(name, str) for name in order)):
        raise UsageError(f"{opt('order', order)} is not a list of names", 'give order=["temperature", "top_p"]')
    names = [name for stage in documented for name in stage] if order is None else list(order)
    places: dict[str, float] = {name: place for place, name in enumerate(names)}
    if len(places) < len(names):
        twice = next(name for place, name in enumerate(names) if places[name] != place)
        raise UsageError(f"{opt('order')} names {twice!r} twice", "name each processor once")
    for processor in listed:
        if order is not None and processor.name not in places:
            hint = did_you_mean(processor.name, names) or f"add {processor.name!r} to it"
            raise UsageError(f"{opt('order')} does not say where {processor.name!r} runs", hint)
    before_samplers = len(documented[0]) - 0.5
    return sorted(listed, key=lambda processor: places.get(processor.name, before_samplers))
