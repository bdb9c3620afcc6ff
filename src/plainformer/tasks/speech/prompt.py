"""The decoder prompt of Whisper: start, language, task, no timestamps (Radford et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError, UsageError, did_you_mean, opt
from plainformer.tasks.speech.languages import CODES
from plainformer.tasks.writing.checkpoint_settings import FILE, MAX_ID, GenerationSettings

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer

TASKS = ("transcribe", "translate")
# Vocabularies from this size up are multilingual: the test of openai/whisper, model.py.
MULTILINGUAL_VOCABULARY = 51865


@dataclass(frozen=True)
class SpeechPrompt:
    """The special tokens of a checkpoint's output.

    Attributes:
        start_id: the first token. languages, tasks: name ("en", "transcribe") → id; empty for an English-only model.
        language, task: the checkpoint's defaults; None where it has none. A language may be named ("hindi") wherever one is
            given: `languages.CODES`.
        no_timestamps_id: None where the vocabulary has no such token. Ids above it are timestamps.
        previous_id: <|startofprev|>, before the text of earlier windows; None where the vocabulary has no such token.
    """

    start_id: int
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    language: str | None = None
    task: str | None = None
    no_timestamps_id: int | None = None
    previous_id: int | None = None

    @classmethod
    def read(cls, settings: GenerationSettings, tokenizer: Tokenizer, vocab_size: int) -> SpeechPrompt:
        """Read generation_config.json; what it lacks, from the names of the tokenizer's special tokens."""
        values = settings.values
        if settings.decoder_start_id is None:
            raise CheckpointError("the checkpoint names no decoder_start_token_id", f"add it to its {FILE}")
        no_timestamps = _id(values, "no_timestamps_token_id", tokenizer.token_to_id("<|notimestamps|>"))
        previous = _id(values, "prev_sot_token_id", tokenizer.token_to_id("<|startofprev|>"))
        if not values.get("is_multilingual", vocab_size >= MULTILINGUAL_VOCABULARY):
            return cls(settings.decoder_start_id, no_timestamps_id=no_timestamps, previous_id=previous)
        languages = {_bare(name): i for name, i in (_named(values, "lang_to_id") or _languages(tokenizer)).items()}
        named = {name: tokenizer.token_to_id(f"<|{name}|>") for name in TASKS}
        tasks = _named(values, "task_to_id") or {name: i for name, i in named.items() if i is not None}
        return cls(
            settings.decoder_start_id,
            languages,
            tasks,
            language=str(values["language"]) if values.get("language") else _name_of(settings.forced, languages),
            task=str(values["task"]) if values.get("task") else _name_of(settings.forced, tasks),
            no_timestamps_id=no_timestamps,
            previous_id=previous,
        )

    def ids(
        self, language: str | None, task: str | None, detected: int | None, *, timestamps: bool = False
    ) -> list[int]:
        """Return the prompt of one clip; `detected` is the id of the detected language."""
        if not self.languages:
            if language is not None or task not in (None, "transcribe"):
                what = f"this model is English-only: {opt('language')} and {opt('task')} have no effect"
                raise UsageError(what, "leave them out")
            return [self.start_id, *self._end(timestamps)]
        spoken = detected
        if language is not None:
            spoken = self._id_of(language, opt("language", language), "")
        elif self.language is not None:
            spoken = self._id_of(self.language, f"{FILE}: language={self.language!r}", f"; or give {opt('language')}")
        chosen = task or self.task or "transcribe"
        if chosen not in self.tasks:
            what = opt("task", chosen) if task else f"{FILE}: task={chosen!r}"
            raise UsageError(f"{what} is unknown to this model", did_you_mean(chosen, self.tasks))
        return [self.start_id, *([spoken] if spoken is not None else []), self.tasks[chosen], *self._end(timestamps)]

    def _id_of(self, language: str, what: str, otherwise: str) -> int:
        """Return the id of a language by its code, name or token; `what` names the place that gives it, for messages."""
        bare = _bare(language)
        code = bare if bare in self.languages else CODES.get(bare, bare)
        if code in self.languages:
            return self.languages[code]
        names = (name for name, own in CODES.items() if own in self.languages)
        hint = did_you_mean(bare, [*self.languages, *names]) or "give a code or a name, such as 'en' or 'english'"
        raise UsageError(f"{what} is unknown to this model", hint + otherwise)

    def needs_language_detection(self, language: str | None) -> bool:
        """Whether neither call nor checkpoint names the language."""
        return bool(self.languages) and language is None and self.language is None

    def language_of(self, prompt: list[int]) -> str | None:
        """Return the language that a prompt names."""
        return next((name for name, i in self.languages.items() if i in prompt), None)

    def _end(self, timestamps: bool) -> list[int]:
        if timestamps and self.no_timestamps_id is None:
            raise UsageError("this model's vocabulary has no timestamps", f"leave {opt('timestamps')} out")
        return [self.no_timestamps_id] if self.no_timestamps_id is not None and not timestamps else []


def _id(values: Mapping[str, Any], name: str, default: int | None) -> int | None:
    """Return a token id of generation_config.json; null there means none."""
    value = values.get(name, default)
    if value is not None and not (is_whole(value, 0) and value < MAX_ID):
        raise CheckpointError(f"{FILE}: {name}={value!r} is not a token id", "correct the entry")
    return value


def _named(values: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return the ids that generation_config.json gives to names; {} where it gives none."""
    value = values.get(name) or {}
    if not isinstance(value, dict) or not all(is_whole(i, 0) and i < MAX_ID for i in value.values()):
        raise CheckpointError(
            f"{FILE}: {name}={value!r:.80} is not an object of names and token ids", "correct the entry"
        )
    return value


def _bare(name: Any) -> str:
    return str(name).lower().removeprefix("<|").removesuffix("|>")


def _languages(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the special tokens that look like <|en|>."""
    tokens = {i: tokenizer.id_to_token(i) or "" for i in tokenizer.special_ids}
    return {token: i for i, token in sorted(tokens.items()) if re.fullmatch(r"<\|[a-z]{2,3}\|>", token)}


def _name_of(forced: Mapping[int, int | None], names: Mapping[str, int]) -> str | None:
    """Return the name among `names` that older checkpoints force, as an id at some position."""
    return next((name for name, i in names.items() if i in forced.values()), None)
