"""A jinja2 environment for chat templates that strangers wrote: nothing dangerous in reach, and a budget on the rest.

The sandbox of jinja2 keeps a template away from Python's internals, but it does not bound work: nested loops,
`'a' * 10**10`, `x ~ x` forty times over, or lists that hold each other forty levels deep all run. So the template's
syntax tree is rewritten before it is compiled: every loop and macro body starts with a charge, every literal
container and `~` is weighed, and so is whatever is printed; every filter, test, call and arithmetic operation is
charged and weighed too. A render that overdraws its budget stops with `BudgetExceeded`. Nothing runs at compile time:
a guard without an active budget refuses, so that jinja2 cannot fold it into a constant.
"""

from __future__ import annotations

import contextvars
import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import GeneratorType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

MAX_SECONDS = 5.0
MAX_STEPS = 2_000_000  # loop iterations, calls, filters and operations together
MAX_TEXT = 16_000_000  # characters of one value, and of everything printed
MAX_ITEMS = 1_000_000  # items of one container, nested ones included
MAX_SLOW_TEXT = 200_000  # characters handed to a slow filter
MAX_NUMBER = 2**64  # an integer that a template computes

# The result of these can be (their largest integer argument) x (the size of what goes in).
_WIDENING = set.union(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "truncate"},
    {"format", "format_map", "to_bytes", "tojson", "batch", "slice", "round"},
)
# These take long for what goes in, and cannot be interrupted.
_SLOW = frozenset(["wordwrap", "urlize", "striptags", "title", "wordcount", "pprint", "xmlattr"])


class BudgetExceeded(TemplateRuntimeError):
    """The template asked for more time, text or items than a chat template can need."""


class Budget:
    """What one render may still spend."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.text = MAX_TEXT
        self.seconds = _seconds
        self.deadline = time.monotonic() + self.seconds

    def charge(self, text: int = 0) -> None:
        """Pay for one step and for `text` characters of output."""
        self.steps -= 1
        self.text -= text
        if self.steps < 0:
            raise BudgetExceeded(f"it runs more than {MAX_STEPS} steps")
        if self.text < 0:
            raise BudgetExceeded(f"it writes more than {MAX_TEXT} characters")
        if time.monotonic() > self.deadline:
            raise BudgetExceeded(f"it runs longer than {self.seconds:g} seconds")


_seconds = MAX_SECONDS


def bound_seconds(seconds: float) -> None:
    """Let templates of this process run so long: on a server, others wait meanwhile."""
    global _seconds
    _seconds = seconds


_active: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("template_budget", default=None)


@contextmanager
def budget() -> Iterator[None]:
    """Everything rendered inside draws on one fresh budget."""
    token = _active.set(Budget())
    try:
        yield
    finally:
        _active.reset(token)


def charge(text: int = 0) -> bool:
    """Draw on the active budget and return True; without one (at compile time) refuse, so that no constant is folded."""
    current = _active.get()
    if current is None:
        raise TemplateRuntimeError("guarded operations run only while rendering")
    current.charge(text)
    return True


def weigh(value: Any) -> Any:
    """Return `value` if it is small enough to handle."""
    _bulk(value)
    return value


def _bulk(value: Any) -> int:
    """Return characters and items in `value`; shared items count once per mention, as printing them would.

    Raises:
        BudgetExceeded: there are too many.
    """
    items, text, stack = 0, 0, [value]
    while stack:
        current = stack.pop()
        items += 1
        if isinstance(current, (str, bytes)):
            text += len(current)
        elif isinstance(current, Mapping):
            stack.extend(current.keys())
            stack.extend(current.values())
        elif isinstance(current, (list, tuple, set, frozenset)):
            items += len(current) if len(current) > MAX_ITEMS else 0
            stack.extend(current if len(current) <= MAX_ITEMS else ())
        elif isinstance(current, Namespace):
            stack.append(object.__getattribute__(current, "_Namespace__attrs"))
        elif isinstance(current, int) and not -MAX_NUMBER < current < MAX_NUMBER:
            raise BudgetExceeded("it computes a number of more than 64 bits")
        if items > MAX_ITEMS or text > MAX_TEXT:
            raise BudgetExceeded(f"it builds a value of more than {MAX_ITEMS} items or {MAX_TEXT} characters")
    return items + text


def _length(value: Any) -> int:
    """Return characters or items; 1 for anything without a length."""
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, set, range)) else 1


def _format_growth(template: str, values: list[Any]) -> int:
    """Return a bound on what `template % values` or `template.format(*values)` writes."""
    fields = template.count("%") + template.count("{")
    widths = [int(digits[:12]) for digits in re.findall(r"\d+", template)] + [1]
    numbers = [abs(v) for v in values if isinstance(v, int)] if "*" in template or ":{" in template else [1]
    return fields * max(max(widths), max(numbers, default=1), *(_bulk(v) for v in values), 1)


def _growth(name: str, values: list[Any]) -> int:
    """Return a bound on the size of what filter or method `name` makes of `values` (the receiver first)."""
    strings = [value for value in values if isinstance(value, str)]
    if name in ("format", "format_map") and strings:
        return _format_growth(strings[0], values[1:])
    if name in ("indent", "wordwrap") and len(strings) >= 2:  # a text goes before, or between, the lines
        lines = strings[0].count("\n") + 1 if name == "indent" else len(strings[0])
        return lines * max(len(text) for text in strings[1:])
    if name in _WIDENING:
        size = sum(_length(value) for value in values)
        return size * max([abs(value) for value in values if isinstance(value, int)] or [1])
    if name == "replace" and len(strings) >= 3:
        return (strings[0].count(strings[1]) + 1) * len(strings[2]) if len(strings[2]) > len(strings[1]) else 0
    if name == "join" and len(values) >= 2:  # the filter takes (items, separator), the method (separator, items)
        separator, items = (values[0], values[1]) if isinstance(values[0], str) else (values[1], values[0])
        return max(_length(items) * _length(separator), _length(values[0]) if isinstance(values[1], str) else 0)
    if name == "translate" and len(values) == 2 and isinstance(values[1], dict):
        return _length(values[0]) * max([_length(value) for value in values[1].values()] or [1])
    return 0


def _check(name: str, values: list[Any]) -> None:
    for value in values:
        weigh(value)
    if name == "sum" and not all(isinstance(value, (int, float, str)) for value in values[1:]):
        raise BudgetExceeded("sum() is for numbers only")  # sum(start=[]) builds lists of any length
    if name in _SLOW and sum(_length(value) for value in values) > MAX_SLOW_TEXT:
        raise BudgetExceeded(f"{name}() is given more than {MAX_SLOW_TEXT} characters")
    if _growth(name, values) > MAX_TEXT:
        raise BudgetExceeded(f"{name}() would build a value of more than {MAX_TEXT} characters")


def _materialised(value: Any) -> Any:
    """Return a generator's items as a list, charged one by one, so that a following filter can be weighed."""
    if not isinstance(value, GeneratorType):
        return value
    items = []
    for item in value:
        charge(len(item) if isinstance(item, str) else 0)
        items.append(item)
    return items


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, a filter or test, charged and weighed. The jinja2 pass_* mark travels along with the wrapper."""
    leading = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        charge()
        values = [_materialised(value) for value in args[leading:]]
        _check(name, [*values, *kwargs.values()])
        return weigh(function(*args[:leading], *values, **kwargs))

    return guarded


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; rendering keeps it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render", []), [], [], body).set_lineno(lineno)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeNamespace(Namespace):
    """`namespace()` without underscore names, which lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may pass self=...
        for name in dict(*args[1:], **kwargs):
            _SafeNamespace._check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _SafeNamespace._check_name(name)  # by class: a namespace answers attribute lookups from its own values
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace attribute may not start with an underscore: {name!r}")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON: the filter that ships with jinja2 escapes for HTML, which chat templates do not expect."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _sized(value: Any) -> Any:
    charge()
    return weigh(value)


def _concat(parts: list[Any]) -> str:
    charge()
    return str(weigh("".join(str(part) for part in weigh(parts))))


@pass_context
def _finalize(_context: Context, value: Any) -> Any:
    weigh(value)
    charge(len(value) if isinstance(value, str) else 0)
    return value


class _Rewriter:
    """Puts the guards into a parsed template."""

    def rewrite(self, node: nodes.Node) -> Any:
        """Rewrite `node` and everything below it, in place where possible; returns what to put in its stead."""
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, field, self.rewrite(value))
            elif isinstance(value, list):
                value[:] = [self.rewrite(item) if isinstance(item, nodes.Node) else item for item in value]
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            node.body.insert(0, nodes.ExprStmt(self._call(nodes.Const(text), "_charge", node.lineno)))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(self._call(nodes.Const(0), "_charge", node.lineno), node.test)
        if isinstance(node, nodes.Concat):
            return self._call(nodes.List(node.nodes), "_concat", node.lineno)
        if isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            return self._call(node, "_sized", node.lineno)
        return node

    def _call(self, value: nodes.Expr, name: str, lineno: int) -> nodes.Expr:
        call = nodes.Filter(value, name, [], [], None, None)
        call.set_lineno(lineno)
        return call


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with budgets. Templates compiled by it render only inside `with budget():`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_finalize,
        )
        self.filters["tojson"] = _tojson
        filters, tests = dict[str, Any](self.filters), dict[str, Any](self.tests)
        self.filters = {name: _guarded(name, function) for name, function in filters.items()}
        self.tests = {name: _guarded(name, function) for name, function in tests.items()}
        self.filters |= {"_charge": charge, "_sized": _sized, "_concat": _concat}
        self.globals.pop("lipsum", None)
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: datetime.now().strftime(pattern),
            "namespace": _SafeNamespace,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = _Rewriter().rewrite(super()._parse(source, name, filename))
        assert isinstance(template, nodes.Template)
        template.set_environment(self)
        return template

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Say so at once, where jinja2 would print an empty text for `{{ ''.__class__ }}`."""
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, method or macro of the template's, charged and weighed."""
        charge()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        receiver = getattr(method, "__self__", None)
        if receiver is not None and not isinstance(receiver, type):
            values = [_materialised(value) for value in args]
            _check(getattr(method, "__name__", ""), [receiver, *values, *kwargs.values()])
            args = tuple(values)
        return weigh(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Do an arithmetic operation; refuse it when its result would be huge."""
        charge()
        if operator == "*" and isinstance(left, (str, list, tuple)) + isinstance(right, (str, list, tuple)) == 1:
            sequence, count = (left, right) if isinstance(right, int) else (right, left)
            if len(sequence) * int(count) > (MAX_TEXT if isinstance(sequence, str) else MAX_ITEMS):
                raise BudgetExceeded(f"it repeats a value {count} times")
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and right > 64:
            raise BudgetExceeded("it computes a number of more than 64 bits")
        if operator == "%" and isinstance(left, str):
            values = list(right) if isinstance(right, tuple) else [right]
            if _format_growth(left, values) > MAX_TEXT:
                raise BudgetExceeded("it formats a text of huge width")
        return weigh(super().call_binop(context, operator, left, right))
