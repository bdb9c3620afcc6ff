"""How a checkpoint's authors search for its answers: what `generation_config.json` says of beams, sampling and lengths.

A task takes it where it is asked to (`defaults="checkpoint"`), as the reference library does unasked (transformers 5.23,
`generation/configuration_utils.py`), and the options of the call go before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plainformer.errors import CheckpointError, UsageError
from plainformer.generation.options import NEEDS, SAMPLERS, TAKEN_BY, make_options
from plainformer.tasks.writing.checkpoint_settings import FILE

# The reference's names, where ours is another.
_RENAMED = {
    "forced_eos_token_id": "forced_eos_id",
    "renormalize_logits": "renormalize",
    "remove_invalid_values": "remove_invalid",
    "exponential_decay_length_penalty": "exponential_decay",
    "prompt_lookup_num_tokens": "prompt_lookup",
    "num_assistant_tokens": "num_draft_tokens",
    "stop_strings": "stop",
}
_SAME = (
    *("do_sample", "num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping"),
    *("num_return_sequences", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time"),
    *("penalty_alpha", "dola_layers", "guidance_scale", "repetition_penalty", "encoder_repetition_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "sequence_bias"),
    *SAMPLERS,
)
# Values that say "as if it were not there"; None always does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("temperature", "top_p", "typical_p", "length_penalty", "guidance_scale"), (1,)),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (1,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff", "top_k", "penalty_alpha"), (0,)),
    **dict.fromkeys(("do_sample", "early_stopping", "renormalize", "remove_invalid"), (False,)),
}
# They change the search, and nothing here does what they ask for.
_NOT_KNOWN = ("force_words_ids", "constraints", "watermarking_config")
_MODE = ("do_sample", "num_beams", "num_beam_groups", "penalty_alpha", "prompt_lookup", "draft_model")
_REFERENCE_TOP_K = 50  # where the file says nothing of it, sampling is over so many


def add_defaults(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call, and behind them what the checkpoint says.

    An entry of the checkpoint that has no effect in the mode that results is left out: files hold settings of several.

    Args:
        values: of generation_config.json. given: the options of the call.
    Raises:
        UsageError: the checkpoint asks for something that is not to be had here.
    """
    for name in _NOT_KNOWN:
        if values.get(name):
            raise UsageError(f"the checkpoint's {FILE} asks for {name}, which is not supported", "leave defaults out")
    own = {ours: values.get(theirs) for theirs, ours in {**{name: name for name in _SAME}, **_RENAMED}.items()}
    own = {name: value for name, value in own.items() if value is not None and value not in _NEUTRAL.get(name, ())}
    if "sequence_bias" in own:
        own["sequence_bias"] = _biases(own["sequence_bias"])
    if {"max_new_tokens", "max_length"} & set(given):
        own = {name: value for name, value in own.items() if name not in ("max_new_tokens", "max_length")}
    both = {**own, **given}
    mode = make_options({name: both[name] for name in _MODE if name in both}).mode
    if both.get("do_sample") and "top_k" not in both and values.get("top_k") is None:
        own["top_k"] = _REFERENCE_TOP_K
    return {**{name: value for name, value in own.items() if _has_effect(name, mode, both)}, **given}


def _has_effect(name: str, mode: str, both: Mapping[str, Any]) -> bool:
    if name in NEEDS and NEEDS[name] not in both:
        return False
    takers = TAKEN_BY.get(name)
    if mode == "speculative" and name in SAMPLERS and not both.get("do_sample"):
        return False
    return takers is None or mode in takers or (name == "top_k" and mode == "contrastive")


def _biases(found: Any) -> dict[tuple[int, ...], float]:
    """The file has a list of [ids, bias] pairs: JSON has no tuples to be keys."""
    try:
        return {tuple(ids): float(bias) for ids, bias in found}
    except (TypeError, ValueError):
        raise CheckpointError(f"{FILE}: sequence_bias={found!r} are not [ids, bias] pairs", "correct it") from None
