"""A checkpoint's defaults for beams, sampling and lengths, from its `generation_config.json`.

They apply with `defaults="checkpoint"`; transformers 5.23 always applies them (`generation/configuration_utils.py`).
Explicit options override them. Fields of `GenerationOptions` name their entry and its neutral value (`checkpoint`, `neutral`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from plainformer.config.options import specs
from plainformer.errors import CheckpointError, UsageError
from plainformer.generation.options import NEEDS, GenerationOptions
from plainformer.tasks.writing.checkpoint_settings import FILE

T = TypeVar("T", bound=GenerationOptions)

# They change the search, and are not supported.
_NOT_KNOWN = ("force_words_ids", "constraints", "watermarking_config")
_REFERENCE_TOP_K = 50  # what transformers samples from where the file does not say


def with_checkpoint_defaults(values: Mapping[str, Any], options: T) -> T:
    """Return options completed by the checkpoint's; explicit ones override them.

    Entries without effect in the resulting mode are left out: files hold settings of several modes.

    Args:
        values: the contents of generation_config.json.
    Raises:
        UsageError: the checkpoint asks for something that is not supported.
    """
    explicit = {name: getattr(options, name) for name in options.explicit}
    own = _defaults(values, explicit)
    return options.changed(**{name: value for name, value in own.items() if name not in explicit})


def says_how(values: Mapping[str, Any]) -> bool:
    """Return whether a generation_config.json says anything of how to write, besides which tokens are special."""
    return bool(_stated(values))


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
    """Return the entries that are not neutral, by option name."""
    own = {}
    for name, spec in specs(GenerationOptions).items():
        value = values.get(spec.more.get("checkpoint", ""))
        if value is not None and value != spec.more.get("neutral"):
            own[name] = _biases(value) if name == "sequence_bias" else value
    return own


def _biases(found: Any) -> dict[tuple[int, ...], float]:
    """Return the file's list of [ids, bias] pairs as a dict."""
    try:
        return {tuple(ids): float(bias) for ids, bias in found}
    except (TypeError, ValueError):
        raise CheckpointError(
            f"{FILE}: sequence_bias={found!r} are not [ids, bias] pairs", "for example [[5, 6], -2.0]"
        ) from None
