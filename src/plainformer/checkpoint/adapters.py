"""Adapters (PEFT): a folder with a few weights that are added to a base model's. They are recognised, not loaded yet."""

from __future__ import annotations

from pathlib import Path

from plainformer.checkpoint.formats.source import read_json_object
from plainformer.config.checks import shown
from plainformer.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
# Kinds that put their own vectors before the input, instead of changing weights: nothing to merge.
_OF_INPUTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT")

# What an adapter's `task_type` is called in the class of peft that loads it.
_CLASSES = {
    "CAUSAL_LM": "ModelForCausalLM",
    "SEQ_2_SEQ_LM": "ModelForSeq2SeqLM",
    "SEQ_CLS": "ModelForSequenceClassification",
    "TOKEN_CLS": "ModelForTokenClassification",
    "QUESTION_ANS": "ModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "ModelForFeatureExtraction",
}


def adapter_error(named: str, config: Path) -> CheckpointError:
    """Return the error for what is an adapter: its kind, its base model, and how to make a whole model of both.

    Args:
        named: what messages call it. config: its adapter_config.json.
    """
    values = read_json_object(config)
    kind, base = values.get("peft_type"), values.get("base_model_name_or_path")
    kind = {"LORA": "LoRA"}.get(kind, kind) if isinstance(kind, str) else "PEFT"
    of = f" for {shown(base)}" if isinstance(base, str) and base else ", and does not name its base model"
    what = f"{named} is an adapter ({kind[:40]}){of}: not a model of its own, and adapters are not loaded yet"
    if kind in _OF_INPUTS:
        return CheckpointError(what, "load the base model, or a fine-tuned model that is whole")
    model = _CLASSES.get(str(values.get("task_type")), "ModelForCausalLM")
    merge = f"AutoPeft{model}.from_pretrained(adapter).merge_and_unload().save_pretrained(folder)"
    return CheckpointError(what, f"merge it into its base model with peft, {merge}, and load that folder")
