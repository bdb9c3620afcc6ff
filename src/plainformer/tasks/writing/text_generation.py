"""Text generation: a decoder continues a text, or answers a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, overload

import torch
from torch.nn.utils.rnn import pad_sequence

from plainformer.config.values import no_effect
from plainformer.errors import InputError, UsageError, a_type, nth, opt, placed
from plainformer.inputs.chat.prompt import ChatPrompt
from plainformer.inputs.listed import as_list
from plainformer.tasks.calls import Column, called_with
from plainformer.tasks.lengths import least, offering
from plainformer.tasks.options import TaskOptions
from plainformer.tasks.results import Results
from plainformer.tasks.writing.answers import Answer
from plainformer.tasks.writing.base import prepares_with
from plainformer.tasks.writing.detokenize import continuation
from plainformer.tasks.writing.options import TextGenerationOptions
from plainformer.tasks.writing.prepared import Beginning, Prepared
from plainformer.tasks.writing.scoring import ScoredText, score_texts
from plainformer.tasks.writing.writer import WritingTask, streams_with

if TYPE_CHECKING:
    from torch import Tensor

    from plainformer.inputs.text.encoding import Encoding, TextBatch

Messages = list[dict[str, str]]
Given = ParamSpec("Given")
A = TypeVar("A")


@dataclass(frozen=True)
class GeneratedText(Answer):
    """An `Answer`, `answer_prefix` included.

    Attributes:
        prompt: what it continues. prompt_tokens: all tokens before the first new one. prompt_ids: their ids.
        alternatives: further answers, with `num_return_sequences` or `num_alternatives`.
    """

    prompt: str = ""
    prompt_tokens: int = 0
    prompt_ids: tuple[int, ...] = field(default=(), repr=False)
    alternatives: tuple[Answer, ...] = ()


class ChatCall(Protocol[Given, A]):
    """`tasks.base.Call` where one input may be a list: the messages of a chat."""

    @overload
    def __call__(self, inputs: Sequence[dict[str, Any]], /, *args: Given.args, **options: Given.kwargs) -> A: ...
    @overload
    def __call__(
        self,
        inputs: list[Any] | Column | KeysView[Any] | ValuesView[Any],
        /,
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Results[A]: ...
    @overload
    def __call__(self, inputs: Iterator[Any], /, *args: Given.args, **options: Given.kwargs) -> Iterator[A]: ...
    @overload
    def __call__(self, inputs: Any, /, *args: Given.args, **options: Given.kwargs) -> A: ...


def chat_called_with(options: Callable[Given, TaskOptions], answer: type[A]) -> ChatCall[Given, A]:
    """`tasks.base.called_with` of a task that reads chats."""
    return cast(Any, called_with(options, answer))


class TextGeneration(WritingTask[GeneratedText]):
    """A text → its continuation; a list of chat messages → the assistant's answer.

    Control tokens inside chat messages are text (`allow_control_tokens`); in a text prompt they count.
    `truncate` cuts a prompt that is too long at its beginning: what comes right before the answer is kept. `answer_prefix`
    is what the answer begins with; constraints hold for what follows it.
    """

    cut = "left"
    __call__ = chat_called_with(TextGenerationOptions, GeneratedText)
    stream = streams_with(TextGenerationOptions, GeneratedText)
    prepare = prepares_with(TextGenerationOptions)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or _is_chat(inputs)

    def prompt_of(self, item: Any, options: TextGenerationOptions) -> str | ChatPrompt:
        """Return an input's prompt: a text, or what a chat template made, with its special tokens."""
        if isinstance(item, str):
            for name in options.chat_options:
                no_effect(True, name, "on a text: it is for chat messages")
            return item
        if not _is_chat(item):
            what = f"{nth(0)} is {a_type(item)}, neither text nor chat messages"
            raise InputError(what, "give a str or a list of dicts")
        if not self.tokenizer.has_chat_template:
            raise UsageError(f"{self.ref} has no chat template", "give it plain text to continue")
        read = self.tokenizer.chat_template.reads(tools=options.tools)
        for name in options.variables.keys() - read:
            named = name if name in ("tools", "documents") else "template_variables"
            no_effect(True, named, f": this checkpoint's chat template does not read {name!r}")
        if options.allow_control_tokens:
            return ChatPrompt(((self.tokenizer.apply_chat_template(item, **options.variables), False),))
        return self.tokenizer.chat_prompt(item, **options.variables)

    def row_of(self, item: Any, options: TextGenerationOptions, *, any_length: bool = False) -> Encoding:
        """Return the tokens of an input, with what the answer begins with.

        A text that begins with the beginning token, as a rendered prompt does, gets no second one; likewise at its end.
        """
        prompt, prefix = self.prompt_of(item, options), options.answer_prefix
        whole = prompt.followed_by(prefix) if isinstance(prompt, ChatPrompt) else prompt + prefix
        if any_length:
            (row,) = self.tokenizer.encode_batch([whole], max_length=None)
        else:
            limit = self.config.main_stack.max_positions
            most = least(limit, self.tokenizer.max_length) if options.truncate else limit
            idle = options.truncate and most is None
            no_effect(idle, "truncate", ": this model has no limit, and its tokenizer states no length")
            with offering(self.Options):
                (row,) = self.tokenizer.encode_batch(
                    [whole], truncate=self.cut_side(options.truncate), max_length="own" if most is None else most
                )
        return row if isinstance(prompt, ChatPrompt) else row.once(self.tokenizer.bos_id, self.tokenizer.eos_id)

    def encode(self, inputs: Sequence[Any], options: TextGenerationOptions) -> TextBatch:
        rows = []
        for place, item in enumerate(inputs):
            with placed([place]):
                row = self.row_of(item, options)
            if not row.input_ids:
                what = f"{nth(place)} is an empty prompt: there is nothing to continue"
                raise InputError(what, "give at least one character")
            rows.append(row)
        return self.tokenizer.pad(rows, side="left")

    def prepared_item(self, item: Any, options: TextGenerationOptions) -> Prepared:
        prepared = super().prepared_item(item, options)
        if not options.answer_prefix:
            return prepared
        prompt = tuple(self.encode([item], options.changed(answer_prefix="")).encodings[0].input_ids)
        if prepared.before[: len(prompt)] != prompt:  # the prompt's last token and the prefix's first may be one
            return prepared
        return replace(prepared, before=prompt, begun=prepared.before[len(prompt) :], lead="", repeated=0)

    def prepared(self, encoded: TextBatch, options: TextGenerationOptions) -> Prepared:
        beginnings = [self.beginning(row, options) for row in encoded.encodings]
        rows = [one.before for one in beginnings]
        changes = {}
        if options.negative_prompt is not None:
            no_effect(options.guidance_scale is None, "negative_prompt", f"without {opt('guidance_scale')}")
            own = TextGenerationOptions(truncate=options.truncate)
            ids = self.encode([options.negative_prompt], own).input_ids.to(self.model.device)
            changes["negative_ids"] = ids.expand(len(rows), -1)
        engine = self.engine_options_after(beginnings, options, bare=self.is_bare(rows), **changes)
        ids, mask = self._tensors(rows)
        return Prepared(**vars(beginnings[0]), inputs={"input_ids": ids, "attention_mask": mask}, options=engine)

    def beginning(self, row: Encoding, options: TextGenerationOptions) -> Beginning:
        if not options.heal:
            return Beginning(tuple(row.input_ids), lead=options.answer_prefix)
        kept, taken = self.healed(row.input_ids)
        again = len(continuation(self.tokenizer, kept, row.input_ids[len(kept) :]))
        return Beginning(kept, (), options.answer_prefix, again, taken)

    def result(self, row: Encoding, answers: Sequence[Answer], options: TextGenerationOptions) -> GeneratedText:
        return GeneratedText(
            **vars(answers[0]),
            prompt=self.tokenizer.decode(row.input_ids).removesuffix(options.answer_prefix),
            prompt_tokens=len(row.input_ids),
            prompt_ids=tuple(row.input_ids),
            alternatives=tuple(answers[1:]),
        )

    @overload
    def score(
        self, texts: str, *, truncate: bool = False, stride: int | None = None, max_length: int | None = None
    ) -> ScoredText: ...
    @overload
    def score(
        self,
        texts: list[str] | tuple[str, ...] | Column,
        *,
        truncate: bool = False,
        stride: int | None = None,
        max_length: int | None = None,
    ) -> Results[ScoredText]: ...
    def score(
        self,
        texts: str | list[str] | tuple[str, ...] | Column,
        *,
        truncate: bool = False,
        stride: int | None = None,
        max_length: int | None = None,
    ) -> ScoredText | Results[ScoredText]:
        """How likely each token of a text is after those before it, and the text's perplexity; a list gives a list.

        Args:
            truncate: cut a text that is too long at its beginning; otherwise it is an error, except with `stride`.
            stride: score texts of any length in windows of `max_length` tokens, each beginning `stride` tokens after the
                last: n tokens are 1 + ceil((n - max_length) / stride) windows. Every token is scored once, in the first
                window that holds it: after all tokens before it, or after at least max_length - stride of them.
            max_length: in tokens; default: what the model or the tokenizer allows.
        """
        given: Any = as_list(texts)
        if not isinstance(given, str):
            return score_texts(self, given, truncate=truncate, stride=stride, max_length=max_length)
        with placed(None):
            return score_texts(self, [given], truncate=truncate, stride=stride, max_length=max_length)[0]

    def _tensors(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return rows as (B, T) ids and attention mask, padded on the left."""
        tensors = [torch.tensor(row, dtype=torch.long, device=self.model.device) for row in rows]
        ids = pad_sequence(tensors, batch_first=True, padding_side="left")
        return ids, pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side="left")


def _is_chat(inputs: Any) -> bool:
    """Whether a list is one chat, well made or not, rather than a list of inputs."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict)
