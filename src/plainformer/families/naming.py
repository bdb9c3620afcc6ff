"""Class names in `architectures`: which head one ends with, which family one is of, and which are code of their own."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

# What the class name in `architectures` ends with → head; longest first.
HEADS_BY_SUFFIX = {
    "ForImageClassificationWithTeacher": "image",
    "ForAudioFrameClassification": "token",
    "ForSequenceClassification": "sequence",
    "ForAudioClassification": "audio",
    "ForConditionalGeneration": "seq2seq_lm",
    "ForQuestionAnswering": "span",
    "ForTokenClassification": "token",
    "ForImageClassification": "image",
    "ForMultipleChoice": "choice",
    "ForPreTraining": "masked_lm",
    "ForMaskedLM": "masked_lm",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "MTModel": "seq2seq_lm",
    "ForCTC": "ctc",
    "EncoderModel": "none",
    "Model": "none",
}
# Endings of few families: of other ones' classes they are another's code (LlamaEncoderModel sees both directions).
_OF_FEW = {"EncoderModel": ("t5", "mt5"), "DoubleHeadsModel": ("gpt2",)}
_ENDINGS = {ending.lower(): _OF_FEW.get(ending, ()) for ending in (*HEADS_BY_SUFFIX, *_OF_FEW)}


def is_own_class(name: str, model_type: str) -> bool:
    """Return whether a class is the family's own, as transformers names it: its name, then a known ending."""
    plain = re.sub("[-_]", "", model_type)
    for stem in (plain, plain.removesuffix("text")):  # Gemma3TextModel, Gemma3ForCausalLM
        bare = re.sub("^(TF|Flax)", "", name).lower()
        few = _ENDINGS.get(bare.removeprefix(stem)) if bare.startswith(stem) else None
        if few == () or (few and model_type in few):
            return True
    return False


def foreign_class(raw: dict[str, Any], architecture: str, model_types: Collection[str]) -> str:
    """Return the class that a checkpoint is computed by if that is not a family's but code of its own; "" if there is none.

    Such code comes with the checkpoint (`auto_map`) or is somebody's library, and is never executed. A name that ends in
    no known way is another head on the same model; of a class of another family, transformers too reads the head alone.
    """
    custom = raw.get("auto_map")
    entries = custom.items() if isinstance(custom, dict) else ()
    models = [v.rpartition(".")[2] for key, v in entries if isinstance(v, str) and str(key).startswith("AutoModel")]
    known = [name for name in (architecture, *models) if any(name.endswith(ending) for ending in HEADS_BY_SUFFIX)]
    return next((name for name in known if not any(is_own_class(name, each) for each in model_types)), "")


def implied_model_type(architecture: str, raw: dict[str, Any], model_types: Collection[str]) -> str | None:
    """Return the `model_type` that a class name implies; None where it implies none."""
    found = sorted(model_type for model_type in model_types if is_own_class(architecture, model_type))
    with_text = [model_type for model_type in found if model_type.endswith("_text")]
    # Gemma3ForCausalLM is the text model alone, unless its configuration lies inside that of the multimodal one.
    return next(iter(with_text if with_text and "text_config" not in raw else found), None)
