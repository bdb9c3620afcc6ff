"""Tasks: raw input in, a typed answer out. Each is a short file with a visible `encode → predict → decode`.

`TASKS` says which there are; nothing heavy is imported until one is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.config import MelFrontend, ModelConfig, PatchFrontend, TokenFrontend, WaveFrontend
from plainformer.errors import UsageError, did_you_mean, opt

if TYPE_CHECKING:
    from plainformer.checkpoint.opened import Checkpoint
    from plainformer.tasks.base import Task
    from plainformer.tasks.options import TaskOptions


@dataclass(frozen=True)
class TaskInfo:
    """A row of the table of tasks: the field it belongs to, what goes in and out, and where its code is.

    Attributes:
        flags: of the command line that make an input of a text; where there is a `form`, a text alone is not enough.
        form: of an input as a line of JSON.
    """

    name: str
    field: str
    head: str
    reads: str
    answers: str
    module: str
    class_name: str
    flags: tuple[str, ...] = ()
    form: str = ""


_QUESTION = '{"question": ..., "context": ...}'
# fmt: off
_ROWS = (
    TaskInfo("text-generation", "NLG", "causal_lm", "text or chat messages", "the continuation",
             "writing.text_generation", "TextGeneration", flags=("chat", "system")),
    TaskInfo("text2text-generation", "NLG", "seq2seq_lm", "text", "another text",
             "writing.text2text", "Text2TextGeneration"),
    TaskInfo("fill-mask", "NLU", "masked_lm", "text with a mask token", "words for each mask",
             "text.fill_mask", "FillMask"),
    TaskInfo("text-classification", "NLU", "sequence", "text or a pair", "a label with its probability",
             "text.classification", "TextClassification", flags=("pair",)),
    TaskInfo("token-classification", "NLU", "token", "text", "a label for each token, with its span",
             "text.token_classification", "TokenClassification"),
    TaskInfo("question-answering", "NLU", "span", "a question and a context", "a span of the context",
             "answering.extractive", "QuestionAnswering", flags=("question",), form=_QUESTION),
    TaskInfo("multiple-choice", "NLU", "choice", "a prompt and choices", "the best choice",
             "text.multiple_choice", "MultipleChoice", flags=("choice",), form='{"prompt": ..., "choices": [...]}'),
    TaskInfo("feature-extraction", "NLP", "none", "text", "a vector",
             "text.embedding", "FeatureExtraction"),
    TaskInfo("image-feature-extraction", "vision", "none", "image", "a vector",
             "vision.embedding", "ImageFeatureExtraction"),
    TaskInfo("image-classification", "vision", "image", "image", "a label with its probability",
             "vision.classification", "ImageClassification"),
    TaskInfo("audio-feature-extraction", "speech", "none", "audio", "a vector",
             "speech.audio_embedding", "AudioFeatureExtraction"),
    TaskInfo("audio-classification", "speech", "audio", "audio", "a label with its probability",
             "speech.audio_classification", "AudioClassification"),
    TaskInfo("automatic-speech-recognition", "speech", "ctc", "audio", "text",
             "speech.whisper", "SpeechRecognition"),
    # Further tasks of the models above (see BUILT_ON). They come last: none is what a head implies.
    TaskInfo("zero-shot-classification", "NLU", "sequence", "text", "the labels given, best first",
             "text.zero_shot", "ZeroShotClassification"),
    TaskInfo("text-ranking", "NLU", "sequence", "a query and documents", "the documents, best first",
             "text.ranking", "TextRanking", flags=("query",), form='{"query": ..., "documents": [...]}'),
    TaskInfo("abstractive-question-answering", "NLG", "seq2seq_lm", "a question and a context",
             "an answer in the model's own words",
             "answering.abstractive", "AbstractiveQuestionAnswering", flags=("question",), form=_QUESTION),
)
# fmt: on
TASKS = {info.name: info for info in _ROWS}
# Tasks that use the model of another task, with its head as it is.
BUILT_ON = {
    "zero-shot-classification": ("text-classification",),
    "text-ranking": ("text-classification",),
    "abstractive-question-answering": ("text2text-generation", "text-generation"),
}
# Other names for the same thing.
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "summarization": "text2text-generation",
    "translation": "text2text-generation",
    "asr": "automatic-speech-recognition",
    "sentence-embedding": "feature-extraction",
    "embedding": "feature-extraction",
    "chat": "text-generation",
    "zero-shot": "zero-shot-classification",
    "reranking": "text-ranking",
    "abstractive-qa": "abstractive-question-answering",
}


def task_info(name: str | type[Task]) -> TaskInfo:
    """Return the task of that name, alias or class; raise UsageError, which offers the closest ones."""
    known = _by_name(name) if isinstance(name, str) else _task_of_class(name)
    if known not in TASKS:
        what = f"{opt('task', name)} is unknown"
        raise UsageError(what, did_you_mean(str(name), [*TASKS, *ALIASES]) or "see `plainformer tasks`")
    return TASKS[known]


def _by_name(name: str) -> str:
    """Return the task of a name or alias; "translation_en_to_de" also says which languages."""
    from plainformer.tasks.writing.purposes import TRANSLATION

    return ALIASES["translation"] if TRANSLATION.fullmatch(name) else ALIASES.get(name, name)


def _task_of_class(kind: object) -> str:
    """Return the name of the task that a class, or one that it derives from, carries out; "" where there is none."""
    homes = {(info.module, info.class_name): name for name, info in TASKS.items()}
    homes |= {home: name for (name, _), home in _BY_HEAD.items()}
    keys = ((base.__module__.removeprefix(f"{__name__}."), base.__name__) for base in getattr(kind, "__mro__", ()))
    return next((homes[key] for key in keys if key in homes), "")


# Heads with which a task is done too, by the families that have no head of its usual kind.
_OTHER_HEADS = {"automatic-speech-recognition": ("seq2seq_lm",)}


def head_for_task(name: str, heads: Collection[str]) -> str | None:
    """Return the kind of head that a task needs of a model that may have `heads`; None: the checkpoint's own will do."""
    info = task_info(name)
    if info.name in BUILT_ON:
        return None
    kinds = (info.head, *_OTHER_HEADS.get(info.name, ()))
    return next((kind for kind in kinds if kind in heads), info.head)


def default_task(config: ModelConfig) -> TaskInfo:
    """Return the task that a model's head and inputs imply."""
    first, kind = config.input_frontend, config.head.kind
    if kind == "none" or (kind == "causal_lm" and config.main_stack.direction == "both"):  # which cannot write
        return TASKS[_features(first)]
    if kind == "seq2seq_lm" and isinstance(first, MelFrontend | WaveFrontend):
        return TASKS["automatic-speech-recognition"]
    if kind == "token" and not isinstance(first, TokenFrontend):
        what = "this model labels audio frames; no task does that yet"
        raise UsageError(what, "call the model itself (load_model), or load it with task='audio-feature-extraction'")
    return next(info for info in TASKS.values() if info.head == kind)


def stated_task(checkpoint: Checkpoint) -> TaskInfo | None:
    """Return the task that a checkpoint's files name, whatever its architecture; None where they name none.

    sentence-transformers trains vectors on top of models of any head, and keeps the name of their class; of its
    cross-encoders the head is in use.
    """
    kind = (checkpoint.json("config_sentence_transformers.json") or {}).get("model_type")
    listed = checkpoint.json_list("modules.json") is not None and kind != "CrossEncoder"
    return TASKS["feature-extraction"] if listed else None


def tasks_of(config: ModelConfig) -> list[str]:
    """Return all tasks that a model can do: the one that its head implies, those built on that, and its vectors."""
    implied = default_task(config).name
    # Any classifier can be asked for it by `entailment_label`. It is offered where a label says that the model judges
    # entailment, or where three labels without names may be those of NLI; not of every model of three moods.
    nameless = config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    fits = {
        "zero-shot-classification": nameless or any("entail" in label.lower() for label in config.labels),
        "text-ranking": len(config.labels) == 1,
    }
    built = [name for name, models in BUILT_ON.items() if implied in models and fits.get(name, True)]
    return list(dict.fromkeys([implied, *built, _features(config.input_frontend)]))


def _features(frontend: Any) -> str:
    names = {PatchFrontend: "image-feature-extraction", TokenFrontend: "feature-extraction"}
    return names.get(type(frontend), "audio-feature-extraction")


# Where a head of its own kind carries a task out in its own way.
_BY_HEAD = {("automatic-speech-recognition", "ctc"): ("speech.ctc", "CtcSpeechRecognition")}


def task_class(info: TaskInfo, head: str) -> type[Task]:
    """Return the class that carries a task out with a head of that kind."""
    module, name = _BY_HEAD.get((info.name, head), (info.module, info.class_name))
    found: type[Task] = getattr(importlib.import_module(f"plainformer.tasks.{module}"), name)
    return found


def option_classes() -> list[type[TaskOptions]]:
    """Return the options of all tasks; importing them needs no torch."""
    from plainformer.tasks.options import TaskOptions

    modules = [f"plainformer.tasks.{room}.options" for room in ("text", "answering", "vision", "speech", "writing")]
    values = (value for module in modules for value in vars(importlib.import_module(module)).values())
    return list(dict.fromkeys(v for v in values if isinstance(v, type) and issubclass(v, TaskOptions)))
