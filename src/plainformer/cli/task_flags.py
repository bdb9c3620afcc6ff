"""Options of tasks that do not generate, as options of the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import restored
from plainformer.errors import UsageError

# Where the library's name is another one.
_NAMES = {"label": "labels", "speech_task": "task", "no_answer_threshold": "no_answer"}


def _option(text: str) -> Any:
    return Parameter(help=text, negative="", show_default=False)


@Parameter(name="*", group="What a task does")
@dataclass(frozen=True)
class TaskFlags:
    """Options of single tasks; one that was not given is None (or False)."""

    truncate: Annotated[bool, _option("Cut over-long inputs instead of refusing them.")] = False
    window: Annotated[int | None, _option("Tokens of a long text that are read at once.")] = None
    stride: Annotated[int | None, _option("Tokens that two windows over a text share.")] = None
    # Entities
    aggregation: Annotated[str | None, _option("Entities: none, simple, first, average or max.")] = None
    scheme: Annotated[str | None, _option("Entities: IOB1, IOB2, IOBES or BILOU, strictly.")] = None
    # Answers
    max_answer_tokens: Annotated[int | None, _option("Extracted answers: the longest.")] = None
    scoring: Annotated[str | None, _option("Extracted answers: probability or squad.")] = None
    align: Annotated[str | None, _option("Extracted answers: whole words, or tokens.")] = None
    no_answer: Annotated[bool, _option("Extracted answers: there may be none.")] = False
    no_answer_threshold: Annotated[float | None, _option("The same, where that is so much likelier.")] = None
    # Labels and scores
    label: Annotated[list[str] | None, _option("Zero-shot: a label to choose from; repeat it.")] = None
    template: Annotated[str | None, _option("Zero-shot: the sentence with {}; answers: {question}, {context}.")] = None
    multi_label: Annotated[bool, _option("Zero-shot: several labels may hold.")] = False
    scores: Annotated[str | None, _option("Ranking: probabilities or logits.")] = None
    # Vectors and pictures
    pooling: Annotated[str | None, _option("Vectors: mean, cls, max, last, pooler, ..., or cls+mean.")] = None
    prompt: Annotated[str | None, _option("Vectors: the name of a prompt in the checkpoint's files.")] = None
    image_size: Annotated[str | None, _option("Pictures: HEIGHTxWIDTH in pixels, or one number.")] = None
    # Speech
    language: Annotated[str | None, _option("Language spoken, such as en (Whisper).")] = None
    speech_task: Annotated[str | None, _option("transcribe, or translate into English (Whisper).")] = None
    condition_on_previous_text: Annotated[bool, _option("Each window sees the text before it (Whisper).")] = False
    compression_ratio_threshold: Annotated[float | None, _option("Write again what repeats itself more.")] = None
    logprob_threshold: Annotated[float | None, _option("Write again what is less likely.")] = None
    no_speech_threshold: Annotated[float | None, _option("Silence, where this is likelier.")] = None
    beam_width: Annotated[int | None, _option("Prefix beam search (CTC).")] = None
    words: Annotated[str | None, _option("File of the words that there are (CTC).")] = None
    ngram: Annotated[str | None, _option("N-gram model of words, an .arpa file (CTC).")] = None
    ngram_weight: Annotated[float | None, _option("What its logarithms count; 0.5.")] = None
    word_bonus: Annotated[float | None, _option("What each word adds to a text's score (CTC).")] = None

    def given(self) -> list[str]:
        """The names of those that were given."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [name for name, value in values if value is not None and value is not False]

    def options(self) -> dict[str, Any]:
        """Those that were given, as the tasks take them."""
        if self.no_answer and self.no_answer_threshold is not None:
            raise UsageError("--no-answer has no effect with --no-answer-threshold", "leave it out")
        given = {}
        for name in self.given():
            value = getattr(self, name)
            if isinstance(value, list):
                value = [restored(one) for one in value]
            given[_NAMES.get(name, name)] = restored(value) if isinstance(value, str) else value
        if self.image_size is not None:
            given["image_size"] = _size(self.image_size)
        return given

    def option_of(self, name: str) -> str:
        """The library's name of a flag."""
        return _NAMES.get(name, name)


def _size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if match is None:
        raise UsageError(f"--image-size {text} is no size", "give 224, or 224x320 (height x width)")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))
