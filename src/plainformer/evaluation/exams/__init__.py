"""The exams, by task."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from plainformer.errors import UsageError, opt

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.evaluation.exams.base import Exam

# Task → file and class.
EXAMS = {
    "text-classification": "labels:TextLabels",
    "image-classification": "labels:ImageLabels",
    "audio-classification": "labels:ClipLabels",
    "zero-shot-classification": "labels:ZeroShotLabels",
    "token-classification": "tags:Tags",
    "question-answering": "questions:Spans",
    "abstractive-question-answering": "questions:WrittenAnswers",
    "multiple-choice": "questions:Choices",
    "text2text-generation": "writing:Rewriting",
    "text-generation": "language:Perplexity",
    "fill-mask": "masked:HiddenTokens",
    "automatic-speech-recognition": "speech:Transcripts",
}
_CHAT = "writing:ChatAnswers"
_SAID = ("messages", "conversations", "conversation", "chat")
_ASKED = ({"prompt", "instruction", "question"}, {"response", "output", "answer", "completion"})


def exam_class(task: str, columns: Collection[str], objective: str | None, config: ModelConfig) -> type[Exam]:
    """Return the exam of a task.

    Text generation has two: answers in a chat, where rows have messages, or a prompt with its response, or the run trained on
    such; else the perplexity of texts.

    Args:
        columns: names that the data has, or that the caller gives to its columns. objective: of the run that is examined.
    Raises:
        UsageError: nothing is right or wrong in what the task answers.
    """
    if task not in EXAMS:
        what = f"{task} has no right answers to compare with"
        fix = f"choose another {opt('task')}; vectors are judged by what is built on them"
        raise UsageError(what, fix if task.endswith("feature-extraction") else f"it can be done for {', '.join(EXAMS)}")
    found = EXAMS[task]
    if task == "text-generation":
        there = set(columns)
        asked = all(names & there for names in _ASKED)
        chats = objective == "instruction" if objective is not None else bool(there.intersection(_SAID)) or asked
        found = _CHAT if chats else found
    module, _, name = found.partition(":")
    kind: type[Exam] = getattr(importlib.import_module(f"plainformer.evaluation.exams.{module}"), name)
    return kind
