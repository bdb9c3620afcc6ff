"""Why a checkpoint's weights do not fit a model, from the names that are missing and those that are left over."""

from __future__ import annotations

import re
from collections.abc import Collection

from plainformer.errors import opt

# What quantising tools store beside or instead of a weight: GPTQ and AWQ, bitsandbytes, compressed-tensors, AQLM.
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..*|SCB|weight_format"
    r"|weight_packed|weight_shape|weight_scale|weight_scale_inv|weight_zero_point|codebooks|codes)$"
)
_ADAPTER = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save|ia3_l)(\.|$)")
# What training leaves in files and no answer needs: losses, critics and value heads, counters, the other network.
_TRAINING = re.compile(
    r"(\w*loss\w*|criterion|metrics?|optimizer|v_head|value_head|critic|teacher|ema|num_updates|global_step|n_averaged)(\.|$)"
)
_MERGE = "merge the adapter into its base model with peft's merge_and_unload, save that, and load it"
UNQUANTISED = "take the unquantised repository that it was made from, or a GGUF of it"
_TOGETHER = "take the configuration and the weights from the same place, and check it against the model card"


def why_missing(missing: Collection[str], unused: Collection[str], any_known: bool) -> tuple[str, str]:
    """Return the likely cause and the next step where weights are missing: of `unused` tensors no row knows the name."""
    if any(_QUANTISED.search(name) for name in unused):
        return "the weights are quantised, and the configuration does not say how", UNQUANTISED
    if any(_ADAPTER.search(name) for name in unused):
        return "the weights are those of an adapter (LoRA) or hold one that is not merged", _MERGE
    if not any_known:
        return (
            "no tensor has a name that this family's models have",
            "is it the configuration of another model?",
        )
    if all(name.startswith("head.") for name in missing):
        cause = "the checkpoint has no weights for this head: it was trained for another task"
        return cause, f"leave out {opt('task', ...)}, or choose a task that it was trained for"
    return "the configuration is of another model, or the weights are not all there", _TOGETHER


def what_to_do(unused: Collection[str]) -> str:
    """Return the next step where a model is complete and tensors are left over.

    Loading without them is advised only where training alone computed with them. Of any other tensor nobody knows: a bias,
    a scale, an adapter, a layer before the classifier would make other answers.
    """
    if any(_QUANTISED.search(name) for name in unused):
        return UNQUANTISED
    if any(_ADAPTER.search(name) for name in unused):
        return _MERGE
    if all(_TRAINING.match(name) for name in unused):
        return f"{opt('allow_unused', True)} loads it without"
    needed = next(name for name in unused if not _TRAINING.match(name))
    return f"a variant that computes with {needed!r} too, which this family's models do not have: {_TOGETHER}"
