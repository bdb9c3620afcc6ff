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
# What transformers' classes of a family begin with.
_STEMS = {
    "albert": "Albert",
    "bart": "Bart",
    "bert": "Bert",
    "camembert": "Camembert",
    "deberta-v2": "DebertaV2",
    "deit": "DeiT",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "gemma3_text": "Gemma3Text",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
    "hubert": "Hubert",
    "llama": "Llama",
    "m2m_100": "M2M100",
    "marian": "Marian",
    "mbart": "MBart",
    "mistral": "Mistral",
    "modernbert": "ModernBert",
    "mpnet": "MPNet",
    "mt5": "MT5",
    "olmo2": "Olmo2",
    "pegasus": "Pegasus",
    "phi3": "Phi3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "roberta": "Roberta",
    "smollm3": "SmolLM3",
    "t5": "T5",
    "vit": "ViT",
    "wav2vec2": "Wav2Vec2",
    "whisper": "Whisper",
    "xlm-roberta": "XLMRoberta",
}
_ENDING_OF = {
    "none": "Model",
    "causal_lm": "ForCausalLM",
    "seq2seq_lm": "ForConditionalGeneration",
    "masked_lm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "choice": "ForMultipleChoice",
    "ctc": "ForCTC",
    "image": "ForImageClassification",
    "audio": "ForSequenceClassification",
}
_OTHER_CLASSES = {
    ("gemma3", "causal_lm"): "Gemma3ForConditionalGeneration",
    ("gemma3_text", "causal_lm"): "Gemma3ForCausalLM",
    ("gpt2", "causal_lm"): "GPT2LMHeadModel",
    ("marian", "seq2seq_lm"): "MarianMTModel",
    ("wav2vec2", "token"): "Wav2Vec2ForAudioFrameClassification",
    ("whisper", "audio"): "WhisperForAudioClassification",
}


def class_name(model_type: str, head: str) -> str:
    """Return what transformers calls a family's model with that head."""
    return _OTHER_CLASSES.get((model_type, head), _STEMS[model_type] + _ENDING_OF[head])


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
