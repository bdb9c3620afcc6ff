"""The exam of speech recognition: what is said in a clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plainformer.evaluate.base import Scorer
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams.base import Exam, Question
from plainformer.evaluation.exams.labels import media, said_media
from plainformer.train.objectives.base import Column
from plainformer.train.objectives.ctc import CtcSpeechRecognition
from plainformer.train.objectives.words import text_of

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig


class Transcripts(Exam):
    """A clip of any length and its transcript."""

    columns: ClassVar[tuple[Column, ...]] = CtcSpeechRecognition.columns
    unit: ClassVar[str] = "clip"

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        language = None if run is None else run.data.target_language
        return {"language": language} if language is not None and "language" in known else {}

    def question(self, row: Mapping[str, Any]) -> Question:
        return Question(media(row, "audio"), text_of(row), said_media(row, "audio"))

    def answer(self, question: Question, result: Any) -> Any:
        return result.text

    def scorer(self) -> Scorer:
        return make_scorer("speech")

    def said(self, scorer: Scorer) -> str:
        normal = scorer.settings()["normalize"]
        plain = "transcripts are compared as they are written, case and punctuation included"
        return plain if normal == "none" else "transcripts are compared in lower case and without punctuation"
