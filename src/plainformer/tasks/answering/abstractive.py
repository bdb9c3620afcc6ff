"""Abstractive question answering: an answer to a question about a text, in the model's own words.

An encoder-decoder reads "question: ... context: ...", as T5 was trained to (Raffel et al. 2020, appendix D.15); a chat
model is asked in a message; another decoder continues the text with its question and "Answer:" (Radford et al. 2019).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from plainformer.config.values import no_effect
from plainformer.errors import InputError, nth, plural
from plainformer.generation.options import DEFAULT_NEW_TOKENS
from plainformer.generation.result import Generation
from plainformer.tasks.base import TwoPartTask
from plainformer.tasks.calls import called_with
from plainformer.tasks.lengths import least, usual_length
from plainformer.tasks.writing.answers import Answer, AnswerStream
from plainformer.tasks.writing.base import GeneratingTask, W, prepares_with
from plainformer.tasks.writing.options import AbstractiveOptions
from plainformer.tasks.writing.prepared import Prepared
from plainformer.tasks.writing.text2text import Text2TextGeneration
from plainformer.tasks.writing.text_generation import TextGeneration
from plainformer.tasks.writing.writer import streams_with

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch

TEMPLATES = {
    "encoder-decoder": "question: {question} context: {context}",
    "chat": "Answer the question from the document alone.\n\nDocument:\n{context}\n\nQuestion: {question}",
    "decoder": "{context}\n\nQuestion: {question}\nAnswer:",
}


class AbstractiveQuestionAnswering(TwoPartTask, GeneratingTask):
    """A (question, context) tuple, or a dict with these two → an answer, as the task that writes it gives it:
    `TransformedText` of an encoder-decoder, `GeneratedText` of a decoder.

    `template` is what the model reads, with {question} and {context} in it; of a chat model, the user's message. The default
    is the one of `TEMPLATES` for the kind of model. `truncate` cuts the context's end so that a prompt fits, with room for
    a decoder's answer (`max_new_tokens`) after it. All other options are those of the writing task.
    """

    parts = ("question", "context")
    companions = Text2TextGeneration.companions
    __call__ = called_with(AbstractiveOptions, Answer)
    stream = streams_with(AbstractiveOptions, Answer)
    prepare = prepares_with(AbstractiveOptions)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writer: Text2TextGeneration | TextGeneration
        if self.config.encoder is not None:
            self.writer, kind = Text2TextGeneration(*args, **kwargs), "encoder-decoder"
        else:
            self.writer = TextGeneration(*args, **kwargs)
            kind = "chat" if self.tokenizer.has_chat_template else "decoder"
        self.kind, self.settings = kind, self.writer.settings
        self._taken = {"template", *(f.name for f in fields(self.writer.Options))}

    def fits(self, first: Any, second: Any) -> bool:
        return isinstance(first, str) and isinstance(second, str)

    def encode(self, inputs: Sequence[Any], options: AbstractiveOptions) -> TextBatch:
        own = self._written(options)
        return self.writer.encode([self._prompt(item, place, options) for place, item in enumerate(inputs)], own)

    def predict(self, encoded: TextBatch, options: AbstractiveOptions) -> Generation:
        return self.writer.predict(encoded, self._written(options))

    def decode(self, encoded: TextBatch, predicted: Generation, options: AbstractiveOptions) -> list[Answer]:
        return list(self.writer.decode(encoded, predicted, self._written(options)))

    def prepared_item(self, item: Any, options: AbstractiveOptions) -> Prepared:
        return self.writer.prepared_item(self._prompt(item, 0, options), self._written(options))

    def streamed(self, item: Any, options: AbstractiveOptions) -> AnswerStream[Any]:
        """`stream`, with options that are made already."""
        return self.writer.streamed(self._prompt(item, 0, options), self._written(options))

    def completed(self, options: W) -> W:
        for name in options.explicit:
            no_effect(name not in self._taken, name, f"on this kind of model ({self.kind})")
        return super().completed(options)

    def _written(self, options: AbstractiveOptions) -> Any:
        """Return the options of the task that writes the answer, which gets its prompt cut already."""
        own = {name: getattr(options, name) for name in options.explicit if name not in ("template", "truncate")}
        return self.writer.Options(**own)

    def _prompt(self, item: Any, place: int, options: AbstractiveOptions) -> Any:
        """Return what the writer reads: a text, or the messages of a chat."""
        question, context = self.parts_of(item, place)
        for name, text in (("question", question), ("context", context)):
            if not text.strip():
                raise InputError(f"the {name} of {nth(place)} is empty", f"give a {name} with words")
        form = TEMPLATES[self.kind] if options.template is None else options.template
        room = self._room(options) if options.truncate else None
        return (
            self._laid_out(form, question, context)
            if room is None
            else self._fit(form, question, context, room, options)
        )

    def _laid_out(self, form: str, question: str, context: str) -> Any:
        texts = {"{question}": question, "{context}": context}
        text = re.sub(r"\{question\}|\{context\}", lambda found: texts[found[0]], form)
        return [{"role": "user", "content": text}] if self.kind == "chat" else text

    def _room(self, options: AbstractiveOptions) -> int | None:
        """Return how many tokens a prompt is cut to; None where nothing limits it."""
        if self.kind == "encoder-decoder":
            return usual_length(self.config, self.tokenizer)
        most = least(usual_length(self.config, self.tokenizer), self.config.trained_positions)
        return None if most is None else most - (options.max_new_tokens or DEFAULT_NEW_TOKENS)

    def _fit(self, form: str, question: str, context: str, room: int, options: AbstractiveOptions) -> Any:
        """Return the prompt with as much of the context's beginning as there is room for."""
        row = self.tokenizer.encode(context, add_special_tokens=False, max_length=None)
        kept = len(row)
        while kept > 0:
            cut = context if kept == len(row) else context[: row.offsets[kept - 1][1]]
            prompt = self._laid_out(form, question, cut)
            if isinstance(self.writer, TextGeneration):
                count = len(self.writer.row_of(prompt, self._written(options), any_length=True))
            else:
                count = len(self.tokenizer.encode(prompt, max_length=None))
            if count <= room:
                return prompt
            kept -= count - room
        what = f"the question and the template leave no room for the context: a prompt may have {plural(room, 'token')}"
        raise InputError(what, "ask in fewer words, or give a shorter template")
