"""Chat templates: a list of messages to the exact text that the model was trained on.

A template is a small jinja2 program inside a checkpoint, that is, code from strangers. It is run in a sandbox with a
budget for time, steps and text (`guard.py`); it can read the messages and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plainformer.errors import CheckpointError, PlainformerError, UsageError, a_type, did_you_mean, opt
from plainformer.inputs.chat.prompt import ChatPrompt, ControlTokens
from plainformer.inputs.chat.tools import as_tools

if TYPE_CHECKING:
    from jinja2 import Template

    from plainformer.inputs.text.tokenizer import Tokenizer

MAX_TEMPLATE_TEXT = 1_000_000


class ChatTemplateError(PlainformerError):
    """A chat template failed: it is malformed, refused these messages, or asked for what a template may not have."""


class ChatTemplate:
    """One or more named jinja2 chat templates and the special tokens that they may mention.

    Args:
        templates: name → source; a checkpoint with a single template calls it "default".
        special_tokens: variables such as `bos_token` that every render sees.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        self.templates = dict(templates)
        self.special_tokens = dict(special_tokens or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return the text that the model expects for `messages`.

        Args:
            messages: dicts with "role" and "content" (and whatever else the template reads), oldest first.
            add_generation_prompt: end with the words that make the model answer as the assistant.
            template: the name of one of several templates; by default "tool_use" when `tools` are given and it exists,
                otherwise "default".
            variables: further variables of the template, such as `tools` (JSON schemas, or Python functions: `tools.py`),
                `documents` or `enable_thinking`.

        Raises:
            UsageError: messages that are not dicts of plain JSON values, or an unknown template name.
            ChatTemplateError: the template is malformed, refuses the messages, or exceeds its budget.
        """
        source = self.source(template, variables.get("tools"))
        scope = self._scope(_plain_messages(messages), variables)
        return _render(source, {**scope, "add_generation_prompt": add_generation_prompt})

    def prompt(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> ChatPrompt:
        """`render`, with control tokens inside messages and variables told from those that the template writes."""
        source = self.source(template, variables.get("tools"))
        control = ControlTokens(tokenizer, source)
        scope = self._scope(_plain_messages(messages), variables)
        for name in ("tools", "documents", *variables):
            scope[name] = control.marked_value(scope[name])
        scope["messages"] = control.marked(scope["messages"])
        return control.prompt(_render(source, {**scope, "add_generation_prompt": add_generation_prompt}))

    def reads(self, template: str | None = None, tools: Any = None) -> frozenset[str]:
        """Return the names of the variables that a template reads, `messages` and special tokens among them."""
        return _variables(self.source(template, tools))

    def _scope(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a template sees: plain values."""
        given = {**variables, "tools": as_tools(variables.get("tools"))}
        plain = {name: _plain(value, name) for name, value in given.items()}
        return {"documents": None, **self.special_tokens, **plain, "messages": messages}

    def source(self, name: str | None = None, tools: Any = None) -> str:
        """Return the template of a name, or the one that is used where none is named."""
        if name is None:
            name = "tool_use" if tools and "tool_use" in self.templates else "default"
            if name not in self.templates and len(self.templates) == 1:
                name = next(iter(self.templates))
        if name not in self.templates:
            raise UsageError(
                f"no chat template is called {name!r}",
                did_you_mean(name, self.templates) or f"pass {opt('template', ...)}",
            )
        return self.templates[name]


def read_templates(value: Any, where: str) -> dict[str, str]:
    """Return the `chat_template` of a tokenizer_config.json (a text, or a list of named templates) as name → source."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        return dict(value)
    named: list[Any] = value if isinstance(value, list) else [None]
    if not all(
        isinstance(item, Mapping) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in named
    ):
        raise CheckpointError(
            f"{where}: chat_template is neither a text nor a list of {{name, template}}",
            "fix the entry, or remove it and pass plain text prompts",
        )
    return {item["name"]: item["template"] for item in named}


def _plain_messages(messages: Any) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError(
            f"messages is {a_type(messages)}, not a list of dicts",
            'pass [{"role": "user", "content": "Hello"}]',
        )
    plain = _plain(list(messages), "messages")
    for position, message in enumerate(plain):
        _check_message(message, f"messages[{position}]")
    # Interfaces write `"content": null` beside tool calls: templates know a missing key, and would print "None".
    plain = [{key: value for key, value in message.items() if value is not None} for message in plain]
    # transformers gives a message's reasoning under all its customary names (version 5, chat_template_utils).
    for message in plain:
        reasoning = next(
            (v for k in ("reasoning_content", "thinking", "reasoning") if (v := message.get(k)) is not None), None
        )
        if reasoning is not None:
            message.update({"thinking": message.get("thinking", reasoning), "reasoning_content": reasoning})
    return list(plain)


def _check_message(message: Any, where: str) -> None:
    """A message has a role and says something; beside tool calls it may say nothing."""
    fix = 'pass [{"role": "user", "content": "Hello"}]'
    if not isinstance(message, dict):
        raise UsageError(f"{where} is {a_type(message)}, not a dict", fix)
    if not isinstance(message.get("role"), str):
        raise UsageError(f"{where} has the role {message.get('role')!r}, not a text", fix)
    if message.get("content") is None and not message.get("tool_calls"):
        raise UsageError(f"{where} has no content", fix)


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a fresh copy out of JSON types only, so that a template never touches the caller's objects."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind in (str, int, float):  # a subclass, such as an enum's, brings methods along
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if depth > 100:
        raise UsageError(f"{where} is nested more than 100 levels deep", "pass flatter messages")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{position}]", depth + 1) for position, item in enumerate(value)]
    raise UsageError(
        f"{where} is {a_type(value)}; a chat template sees only plain JSON values",
        "pass texts, numbers, lists and dicts",
    )


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> Template:
    from jinja2.exceptions import TemplateError

    from plainformer.inputs.chat.guard import GuardedEnvironment

    if len(source) > MAX_TEMPLATE_TEXT:
        raise ChatTemplateError(
            f"the chat template has {len(source)} characters, more than {MAX_TEMPLATE_TEXT}", "is it a template at all?"
        )
    try:
        return GuardedEnvironment().from_string(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise ChatTemplateError(
            f"the chat template is malformed{f' at line {line}' if line else ''}: {error}",
            "fix the checkpoint's chat_template, or pass plain text",
        ) from error
    except (RecursionError, MemoryError, SyntaxError, OverflowError, ValueError) as error:
        raise ChatTemplateError(
            f"the chat template is too deeply nested to compile ({type(error).__name__})", "use a simpler template"
        ) from error


@functools.lru_cache(maxsize=64)
def _variables(source: str) -> frozenset[str]:
    from jinja2.meta import find_undeclared_variables

    _compile(source)  # says what is wrong with a template
    from plainformer.inputs.chat.guard import GuardedEnvironment

    return frozenset(find_undeclared_variables(GuardedEnvironment().parse(source)))


def _render(source: str, scope: dict[str, Any]) -> str:
    from jinja2.exceptions import SecurityError, TemplateError

    from plainformer.inputs.chat.guard import BudgetExceeded, budget

    template = _compile(source)
    try:
        with budget():
            return template.render(scope)
    except Exception as error:  # a template is a program: any Python error can come out of its expressions
        distrust = "do not trust this checkpoint's template"
        kinds: tuple[tuple[Any, str, str], ...] = (
            ((BudgetExceeded, OverflowError, MemoryError, RecursionError), "was stopped", distrust),
            (SecurityError, "was refused", distrust),
            (TemplateError, "refuses these messages", "check the roles and their order against the template"),
            (Exception, "failed", "check that every message has the keys that the template reads"),
        )
        said, fix = next((said, fix) for kind, said, fix in kinds if isinstance(error, kind))
        text = str(error) if isinstance(error, TemplateError) and str(error) else f"{type(error).__name__}: {error}"
        raise ChatTemplateError(f"the chat template {said}: {text}", fix) from error
