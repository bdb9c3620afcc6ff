"""Options of the tasks that write text: those of generation, and those that are said in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from plainformer.config.options import at_file, flag, json_at_file, one_of, option, text
from plainformer.errors import UsageError, opt, plural
from plainformer.generation.options import CONTENT, GenerationOptions
from plainformer.inputs.chat.tools import as_tools
from plainformer.tasks.options import TaskOptions

W = TypeVar("W", bound="WritingOptions")
_DEFAULTS = one_of("plain", "checkpoint")


def _choices(name: str, value: Any) -> None:
    if isinstance(value, list | tuple) and not value:
        raise UsageError(f"{opt(name, value)} is an empty list: there is nothing to choose from", "give two or more")


def _schema(name: str, value: Any) -> None:
    """Refuse a text that is not JSON; what the schema means is for the library of grammars to say."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except (ValueError, RecursionError) as error:
            what = f"{opt(name, value)} is not valid JSON: {error}"
            raise UsageError(what, "write names and texts in double quotes") from None


CONSTRAINTS = ("choices", "regex", "json_schema", "grammar")
# Options of tasks that generate which change what the model reads before the first new token; all others say how it goes on.
READ = (
    *("src_lang", "tgt_lang", "prefix", "decoder_prefix", "answer_prefix", "language", "task"),
    *("tools", "documents", "template_variables", "allow_control_tokens"),
)


def of_reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `READ`."""
    return {name: value for name, value in options.items() if name in READ}


@dataclass(frozen=True, kw_only=True)
class WritingOptions(TaskOptions, GenerationOptions):
    """Options of every task whose answer is generated: those of generation, `stop` and `grammar` as text too, and more."""

    choices: Sequence[str] | None = option(
        None, help="The answer is one of these.", group=CONTENT, check=_choices, typed=list[str]
    )
    regex: str | None = option(None, help="The answer matches this regular expression.", group=CONTENT, typed=str)
    json_schema: Mapping[str, Any] | str | None = option(
        None,
        help="The answer is JSON of this schema: text, or @FILE.",
        group=CONTENT,
        check=_schema,
        typed=str,
        read=at_file,
    )
    defaults: str = option("plain", help="Default options: plain (greedy), or checkpoint (its own).", check=_DEFAULTS)

    def validate(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not isinstance(stop, list | tuple) or not all(isinstance(one, str) and one for one in stop):
            what = f"{opt('stop', self.stop)} is neither a text nor a list of texts"
            raise UsageError(what, f"for example {opt('stop', ['###'])}")
        asked = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UsageError(f"{opt(asked[0])} and {opt(asked[1])} exclude each other", "give one of them")
        if self.defaults == "plain":  # otherwise the mode is known when the checkpoint's settings have been added
            self._check_beams()
            self._check_modes()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        strings: Any = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(dict.fromkeys(strings))

    @property
    def read_ahead(self) -> int:
        """Few: writing takes so long that what is read ahead holds up the answers before it."""
        return 4

    @property
    def sorts(self) -> bool:
        """Not where a caller's function, or a cache, knows inputs by their place in a batch."""
        functions = any(callable(getattr(self, name)) for name in self.explicit)
        return not functions and not self.processors and self.cache is None

    def of_rows(self: W, places: Sequence[int]) -> W:
        """Of a list of seeds, those of these inputs."""
        if not isinstance(self.seed, list | tuple):
            return self
        if places and max(places) >= len(self.seed):
            raise UsageError(
                f"{plural(len(self.seed), 'seed')} for more inputs", "give one int, or a list of one for each"
            )
        return self.changed(seed=[self.seed[place] for place in places])


@dataclass(frozen=True, kw_only=True)
class PromptOptions(WritingOptions):
    """Options of the tasks that write after a prompt in words."""

    heal: bool = option(False, help="Let the model rewrite the prompt's last tokens.", check=flag())


CHAT = "What a chat template reads"


def _check_tools(name: str, tools: Any) -> None:
    try:
        as_tools(tools)
    except UsageError as error:
        raise error.within(opt(name)) from None


def _check_documents(name: str, documents: Any) -> None:
    listed = isinstance(documents, list | tuple)
    if not listed or not all(isinstance(one, Mapping) for one in documents):
        raise UsageError(
            f"{opt(name)} is not a list of dicts", f"for example {opt(name, [{'title': 'A', 'text': 'B'}])}"
        )


def _check_variables(name: str, variables: Any) -> None:
    if not isinstance(variables, Mapping) or not all(isinstance(key, str) for key in variables):
        raise UsageError(f"{opt(name)} is not a dict", f"for example {opt(name, {'enable_thinking': False})}")
    for key in variables:
        if key in ("messages", "tools", "documents", "add_generation_prompt"):
            raise UsageError(f"{opt(name)} names {key!r}, which has a place of its own", "leave it out there")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(PromptOptions):
    """Options of what a chat template makes of messages, each for templates that read it.

    tools: what the model may call: JSON schemas, or Python functions, whose signature and docstring become one.
    documents: dicts with "title" and "text". template_variables: whatever else a template reads, by name.
    allow_control_tokens: whether `<|im_end|>` and the like inside a message count as control tokens; they are text otherwise.
    """

    tools: Sequence[Any] | None = option(
        None, help="Tools to call, as JSON or @FILE.", check=_check_tools, group=CHAT, typed=str, read=json_at_file
    )
    documents: Sequence[Mapping[str, Any]] | None = option(
        None, help="Documents, as JSON or @FILE.", check=_check_documents, group=CHAT, typed=str, read=json_at_file
    )
    template_variables: Mapping[str, Any] | None = option(
        None,
        help="Other variables, as JSON or @FILE.",
        check=_check_variables,
        group=CHAT,
        typed=str,
        read=json_at_file,
    )
    allow_control_tokens: bool = option(
        False, help="Control tokens in messages are not read as text.", check=flag(), group=CHAT
    )

    @property
    def chat_options(self) -> list[str]:
        """The names of those that were given."""
        names = ("tools", "documents", "template_variables", "allow_control_tokens")
        return [name for name in names if name in self.given]

    @property
    def variables(self) -> dict[str, Any]:
        """What a chat template gets by name."""
        named = {"tools": self.tools, "documents": self.documents}
        return {
            **(self.template_variables or {}),
            **{name: value for name, value in named.items() if value is not None},
        }


@dataclass(frozen=True, kw_only=True)
class TextGenerationOptions(ChatOptions):
    """Options of text generation; see also `generation.options.GenerationOptions`."""

    truncate: bool = option(
        False, help="Cut over-long inputs instead of refusing them: of a prompt the beginning.", check=flag()
    )
    answer_prefix: str = option("", help="What the answer begins with (decoders).", check=text())
    negative_prompt: str | None = option(None, help="Text that guidance leads away from.", check=text())


@dataclass(frozen=True, kw_only=True)
class Text2TextOptions(PromptOptions):
    """Options of text to text; see also `generation.options.GenerationOptions`.

    prefix: default: that of the purpose that the task was loaded for, such as "summarize: ", else none.
    src_lang, tgt_lang: of a multilingual tokenizer, by its own codes (`Tokenizer.languages`); of a checkpoint that translates
        by prefixes, those of its config.json. Default: what tokenizer_config.json and generation_config.json name.
    """

    truncate: bool = option(
        False, help="Cut over-long inputs instead of refusing them: of a text the end.", check=flag()
    )
    prefix: str | None = option(None, help="What each text begins with (T5).", check=text())
    src_lang: str | None = option(None, help="Language of the text: a code such as eng_Latn or en.", check=text())
    tgt_lang: str | None = option(
        None, help="Language to write: a code such as deu_Latn or de.", check=text(), excludes="forced_bos_id"
    )
    decoder_prefix: str = option("", help="What the output begins with (encoder-decoders).", check=text())


def _check_template(name: str, value: Any) -> None:
    if not isinstance(value, str) or not all(part in value for part in ("{question}", "{context}")):
        raise UsageError(f"{opt(name, value)} has no place for both", "put {question} and {context} into it")


@dataclass(frozen=True, kw_only=True)
class AbstractiveOptions(TextGenerationOptions, Text2TextOptions):
    """Options of abstractive answers: those of both writers, of which a model takes its own."""

    template: str | None = option(
        None, help="Abstractive answers: what is read, with {question} and {context}.", check=_check_template
    )
    truncate: bool = option(
        False,
        help="Cut over-long inputs instead of refusing them: of a context the end, so that prompt and answer fit.",
        check=flag(),
    )
