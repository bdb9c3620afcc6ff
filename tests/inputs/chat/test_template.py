"""Chat templates render as in the reference library, and a hostile one is stopped with a clear error."""

# ruff: noqa: E501 - templates are laid out as checkpoints have them

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from plainformer.errors import CheckpointError, PlainformerError, UsageError
from plainformer.inputs.chat.template import ChatTemplate, ChatTemplateError
from plainformer.inputs.text.tokenizer import Tokenizer

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "llama-2": """{% if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{%- else %}{% set rest = messages %}{% set system = false %}{% endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if loop.index0 == 0 and system is not false %}
        {%- set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] %}
    {%- else %}{% set content = message['content'] %}{% endif %}
    {%- if message['role'] == 'user' %}{{ bos_token ~ '[INST] ' ~ content.strip() ~ ' [/INST]' }}
    {%- else %}{{ ' ' ~ content.strip() ~ ' ' ~ eos_token }}{% endif %}
{%- endfor %}""",
    "llama-3": """{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if loop.first and message.role == 'system' %}{{- 'Today: ' + date_string + '\\n' }}{% endif %}
    {{- message.content | trim }}{{- '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{%- endif %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "mistral": """{{- bos_token }}{%- set ns = namespace(index=0) %}{%- set loop_messages = messages %}
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- endif %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and message == users[-1] %}{{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.function.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}{{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}{{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system is defined %}{{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"] + eos_token }}
    {%- endif %}{%- set ns.index = ns.index + 1 %}
{%- endfor %}{{ ns.index }}""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "phi-3": """{% for message in messages %}{% if message['role'] in ['user', 'system', 'assistant'] and message['content'] %}
{{ '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] ~ '<|end|>\\n' }}{% endif %}
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "macros": """{%- macro show(m, sep=' ') -%}{{ m.role|upper }}{{ sep }}{{ m['content']|replace('x', 'y')|default('') }}{%- endmacro %}
{%- for m in messages recursive %}{{ show(m, sep=': ') }}{% if not loop.last %}{{ ', ' }}{% endif %}
{%- if loop.index > 3 %}{% break %}{% endif %}{%- endfor %}
{%- set text %}block {{ messages|length }}{% endset %}{{ text }}
{{ messages|map(attribute='role')|join('|') }}{{ dict(a=1).items()|list }}{{ [1, 2] + [3] }}{{ {'k': ('v', 2)} }}
{{ 'a' * 3 ~ 7 // 2 ~ 2 ** 5 ~ '%s-%d' % ('x', 3) ~ '{:>4}'.format('z') }}{{ messages[-1].content.split('\\n')[0].rstrip() }}
{{ undefined_name }}{{ messages[0].missing is defined }}{{ range(3)|list }}{{ messages[0]|tojson }}{{ 'é<>&'|tojson }}
{{ messages[0].content|length > 2 and 'long' or 'short' }}{{ 'x' if false }}{{ none }}{{ true }}{{ 1.5|round|int }}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}
{% else %}{{ m.content }}|{% endif %}{% endfor %}""",
    "reasoning": """{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }}/{{ m.content }};{% endfor %}""",
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "  spaces \n lines\n"},
        {"role": "assistant", "content": "<b>é & \"quotes\" 'x'</b>"},
        {"role": "user", "content": "日本 😀"},
    ],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning": "because"},
        {"role": "user", "content": "z"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "é", "parameters": {"a": [1, None, True]}}}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def reference_text(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    return str(tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **variables))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", range(len(CHATS)))
def test_rendering_is_the_references(name: str, chat: int) -> None:
    from jinja2.exceptions import TemplateError

    template = ChatTemplate({"default": TEMPLATES[name]}, SPECIAL)
    for tools in (None, TOOLS):
        for prompt in (True, False):
            variables: dict[str, Any] = {"add_generation_prompt": prompt, "tools": tools}
            try:
                expected = reference_text(TEMPLATES[name], CHATS[chat], **variables)
            except TemplateError as error:
                with pytest.raises(ChatTemplateError, match=str(error)):
                    template.render(CHATS[chat], **variables)
            else:
                assert template.render(CHATS[chat], **variables) == expected


def test_further_variables() -> None:
    source = "{{ enable_thinking }}{{ date }}{{ documents }}{{ strftime_now('%Y') }}"
    variables = {"enable_thinking": False, "date": "today", "documents": [{"title": "a", "text": "b"}]}
    assert ChatTemplate({"default": source}).render(CHATS[0], **variables) == reference_text(
        source, CHATS[0], **variables
    )


HOSTILE = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ messages|attr('__class__') }}",
    "map attribute": "{{ [1]|map(attribute='__class__')|list }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "function globals": "{{ raise_exception.__globals__ }}",
    "generator frame": "{{ (messages|map('upper')).gi_frame }}",
    "format attribute": "{{ '{0.__class__}'.format(messages) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "namespace": "{{ namespace(__class__=1) }}",
    "mutation": "{{ messages.append(1) }}",
    "dict mutation": "{{ messages[0].update({'role': 'x'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops over text": "{% set s = 'x' * 9999 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for x in range(99999) if range(99999)|list|length < 0 %}{% endfor %}",
    "recursive loop": "{% for x in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "text times": "{{ 'a' * 10**10 }}",
    "list times": "{{ [1] * 10**10 }}",
    "times text": "{{ 10**10 * 'a' }}",
    "power": "{{ 10**10**10 }}",
    "squaring": "{% set ns = namespace(x=10) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubling text": "{% set ns = namespace(x='aa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "doubling plus": "{% set ns = namespace(x='aa') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "doubling list": "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "doubling dict": "{% set ns = namespace(x=1) %}{% for i in range(64) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "doubling join": "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}{{ ns.x }}",
    "center": "{{ 'a'.center(10**10) }}",
    "center filter": "{{ 'a'|center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "percent width": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent repeats": "{{ ('%(a)s' * 10000) % {'a': 'x' * 100000} }}",
    "format width": "{{ '{:9999999999}'.format(1) }}",
    "format nested": "{{ '{0:{1}}'.format(1, 10**10) }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "indent": "{{ 'a\n'|indent(10**9) }}",
    "wordwrap": "{{ ('a ' * 99999)|wordwrap(1, true, 'x' * 99999) }}",
    "wordwrap of a long text": "{{ ('a ' * 5000000)|wordwrap(1) }}",
    "indent by a text": "{{ ('a\n' * 99999)|indent('x' * 99999) }}",
    "filter block": "{% filter indent(100000000) %}a\nb{% endfilter %}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000) }}",
    "replace filter": "{{ ('a' * 1000000)|replace('a', 'b' * 1000) }}",
    "replace nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000) }}",
    "join": "{{ range(99999)|list|join('x' * 100000) }}",
    "join method": "{{ ('x' * 100000).join(range(99999)|map('string')) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000}) }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "tojson indent": "{{ [[1]]|tojson(indent=10**9) }}",
    "sum of lists": "{{ range(99999)|map('string')|map('list')|sum(start=[]) }}",
    "long loop of text": "{% for x in range(90000) %}" + "x" * 1000 + "{% endfor %}",
    "long loop into a variable": "{% set x %}{% for x in range(90000) %}" + "x" * 1000 + "{% endfor %}{% endset %}",
    "long loop in a macro": "{% macro f() %}{% for x in range(90000) %}"
    + "x" * 1000
    + "{% endfor %}{% endmacro %}{% set y = f() %}",
    "many prints": "{% set s = 'x' * 100000 %}{% for x in range(90000) %}{{ s }}{% endfor %}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "syntax": "{% if",
    "unknown tag": "{% nonsense %}",
    "undefined attribute": "{{ nope.x }}",
    "raise": "{{ raise_exception('no system') }}",
    "division": "{{ 1 // 0 }}",
    "wrong type": "{{ 1 + 'a' }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str) -> None:
    """Each for its own reason: none only because it happens to fail on these messages."""
    says = {
        "include": "no loader for this environment",
        "import": "no loader for this environment",
        "syntax": "malformed at line 1",
        "unknown tag": "unknown tag 'nonsense'",
        "undefined attribute": "'nope' is undefined",
        "raise": "refuses these messages: no system",
        "division": "ZeroDivisionError",
        "wrong type": "TypeError",
        "deep parentheses": "too deeply nested",
    }
    start = time.process_time()
    with pytest.raises(ChatTemplateError, match=says.get(name, "was (refused|stopped): ")) as caught:
        ChatTemplate({"default": HOSTILE[name]}).render(CHATS[0])
    assert caught.value.fix and isinstance(caught.value, PlainformerError)
    assert time.process_time() - start < 15


def test_nothing_runs_while_compiling() -> None:
    """jinja2 folds constant expressions when it compiles; a branch that is never taken must stay harmless."""
    start = time.monotonic()
    for expression in ("'a'|center(10**9)", "'a' * 10**9", "10**10**8", "('a' * 9999) ~ 'b'", "'a'.center(10**9)"):
        source = "{% if false %}{{ " + expression + " }}{% endif %}ok"
        assert ChatTemplate({"default": source}).render(CHATS[0]) == "ok"
    assert time.monotonic() - start < 2


def test_long_conversations_are_within_the_budget() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(2000)]
    for name in ("chatml", "llama-2", "mistral", "zephyr"):
        template = ChatTemplate({"default": TEMPLATES[name]}, SPECIAL)
        assert len(template.render(messages)) > 2_000_000


def test_the_callers_messages_are_untouched() -> None:
    messages = [{"role": "user", "content": "a", "reasoning": "b"}]
    ChatTemplate({"default": TEMPLATES["reasoning"]}).render(messages)
    assert messages == [{"role": "user", "content": "a", "reasoning": "b"}]


@pytest.mark.parametrize(
    "messages",
    [
        "Hello",
        {"role": "user"},
        None,
        ["Hello"],
        [{"role": "user", "content": "a"}, 5],
        [{"role": "user", "content": None}],
        [{"role": "user", "text": "a"}],
        [{"content": "a"}],
        [{"role": "user", "content": object()}],
        [[1]],
        [{"content": {"a": {1, 2}}}],
    ],
)
def test_wrong_messages_are_usage_errors(messages: Any) -> None:
    with pytest.raises(UsageError, match=r"^messages") as caught:
        ChatTemplate({"default": "x"}).render(messages)
    assert caught.value.fix


def test_a_message_beside_tool_calls_may_be_empty() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    assert ChatTemplate({"default": "{{ messages|length }}"}).render([call]) == "1"


def test_named_templates(tmp_path: Path) -> None:
    template = ChatTemplate({"default": "d", "tool_use": "t", "rag": "r"})
    assert template.render(CHATS[0]) == "d" and template.render(CHATS[0], tools=TOOLS) == "t"
    assert template.render(CHATS[0], template="rag") == "r"
    with pytest.raises(UsageError, match="no chat template is called 'rug'") as caught:
        template.render(CHATS[0], template="rug")
    assert "'rag'" in caught.value.fix
    assert ChatTemplate({"only": "o"}).render(CHATS[0]) == "o"


def test_templates_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "{{ cls_token }}one", "bos_token": "absent"}))
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(CHATS[0]) == "[CLS]one"
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "a"}, {"name": "b", "template": "B"}]})
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.apply_chat_template(CHATS[0], template="b") == "B"
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.from_folder(tmp_path / "saved").apply_chat_template(CHATS[0], template="b") == "B"
    (tmp_path / "chat_template.jinja").write_text("from a file")
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(CHATS[0]) == "from a file"
    (tmp_path / "chat_template.jinja").unlink()
    config.write_text('{"chat_template": 3}')
    with pytest.raises(CheckpointError, match="chat_template is neither"):
        Tokenizer.from_folder(tmp_path)
    config.write_text("{}")
    assert not Tokenizer.from_folder(tmp_path).has_chat_template
    with pytest.raises(UsageError, match="no chat template"):
        Tokenizer.from_folder(tmp_path).apply_chat_template(CHATS[0])
