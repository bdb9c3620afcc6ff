"""How a checkpoint's authors search for its answers: what `generation_config.json` says of beams, sampling and lengths.

A task takes it where it is asked to (`defaults="checkpoint"`), as transformers 5.23 does unasked
(`generation/configuration_utils.py`); options of the call override it. Which entries there are, and which of their values
change nothing, is said by the fields of `GenerationOptions` (`checkpoint`, `neutral`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from plainformer.config.options import specs
from plainformer.errors import CheckpointError, UsageError
from plainformer.generation.options import NEEDS, GenerationOptions
from plainformer.tasks.writing.checkpoint_settings import FILE

T = TypeVar("T", bound=GenerationOptions)

# They change the search, and nothing here does what they ask for.
_NOT_KNOWN = ("force_words_ids", "constraints", "watermarking_config")
_REFERENCE_TOP_K = 50  # what transformers samples from where the file does not say


def with_checkpoint_defaults(values: Mapping[str, Any], options: T) -> T:
    """Options completed by what the checkpoint says; what the caller gave explicitly overrides it.

    An entry of the checkpoint that has no effect in the mode that results is left out: files hold settings of several.

    Args:
        values: the contents of generation_config.json.
    Raises:
        UsageError: the checkpoint asks for something that is not supported.
    """
    explicit = {name: getattr(options, name) for name in options.explicit}
    own = _defaults(values, explicit)
    return options.changed(**{name: value for name, value in own.items() if name not in explicit})


class _Unchecked(GenerationOptions):
    """Options of several modes."""

    def validate(self) -> None:
        pass


def _defaults(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    for name in _NOT_KNOWN:
        if values.get(name):
            raise UsageError(f"the checkpoint's {FILE} asks for {name}, which is not supported", "leave defaults out")
    own = _stated(values)
    if {"max_new_tokens", "max_length"} & set(given):
        own = {name: value for name, value in own.items() if name not in ("max_new_tokens", "max_length")}
    both = {**own, **given}
    chosen = _Unchecked(**{name: value for name, value in both.items() if name in specs(_Unchecked)})
    if chosen.do_sample and "top_k" not in both and values.get("top_k") is None:
        own["top_k"] = _REFERENCE_TOP_K
    return {n: value for n, value in own.items() if chosen.takes(n) and (n not in NEEDS or NEEDS[n] in both)}


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that change anything, by our options' names."""
    own = {}
    for name, spec in specs(GenerationOptions).items():
        value = values.get(spec.more.get("checkpoint", ""))
        if value is not None and value != spec.more.get("neutral"):
            own[name] = _biases(value) if name == "sequence_bias" else value
    return own


def _biases(found: Any) -> dict[tuple[int, ...], float]:
    """The file has a list of [ids, bias] pairs: JSON has no tuples to be keys."""
    try:
        return {tuple(ids): float(bias) for ids, bias in found}
    except (TypeError, ValueError):
        raise CheckpointError(f"{FILE}: sequence_bias={found!r} are not [ids, bias] pairs", "correct it") from None
