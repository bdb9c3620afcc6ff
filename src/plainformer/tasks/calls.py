"""How tasks are called, typed by their options: editors complete these, type checkers find a wrong one, `help` lists them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, KeysView, ValuesView
from functools import cached_property
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, overload

from plainformer.config.options import specs
from plainformer.tasks.options import TaskOptions
from plainformer.tasks.results import Results

if TYPE_CHECKING:
    from plainformer.tasks.base import Task

Given = ParamSpec("Given")
Answer = TypeVar("Answer")
Many = TypeVar("Many")
A = TypeVar("A", covariant=True)
M = TypeVar("M", covariant=True)
Run = Callable[[Any, Any, Any], Any]  # a task, its input, made options → what the call gives


class Column(Protocol):
    """An array or a column: numpy's, pandas'."""

    def tolist(self) -> Any: ...


class Call(Protocol[Given, A, M]):
    """How a task is called: one input → one answer; a list → a list; an iterator → an iterator of answers, in order."""

    @overload
    def __call__(
        self,
        inputs: list[Any] | Column | KeysView[Any] | ValuesView[Any] | range,
        /,
        *args: Given.args,
        **options: Given.kwargs,
    ) -> M: ...
    @overload
    def __call__(self, inputs: Iterator[Any], /, *args: Given.args, **options: Given.kwargs) -> Iterator[A]: ...
    @overload
    def __call__(self, inputs: Any, /, *args: Given.args, **options: Given.kwargs) -> A: ...


class MediaCall(Protocol[Given, A, M]):
    """`Call` where one input may be an array: a picture, a recording."""

    @overload
    def __call__(self, inputs: list[Any], /, *args: Given.args, **options: Given.kwargs) -> M: ...
    @overload
    def __call__(self, inputs: Iterator[Any], /, *args: Given.args, **options: Given.kwargs) -> Iterator[A]: ...
    @overload
    def __call__(self, inputs: Any, /, *args: Given.args, **options: Given.kwargs) -> A: ...


class ItemCall(Protocol[Given, A]):
    """How a method is called that takes one input and the task's options."""

    def __call__(self, item: Any, /, *args: Given.args, **options: Given.kwargs) -> A: ...


class Called:
    """A method of a task whose keywords are the task's options, which are checked before anything runs.

    Args:
        options: their class. returns: what `help` says it gives. doc: its description. first: the name of the input.
        run: does it, with options that are made.
    """

    def __init__(self, options: type[TaskOptions], returns: str, doc: str, first: str, run: Run) -> None:
        self.options, self.returns, self.doc, self.first, self.run = options, returns, doc, first, run
        self.name = ""

    def __set_name__(self, owner: type[Task], name: str) -> None:
        self.name = name
        owner.Options = self.options

    @cached_property
    def signature(self) -> inspect.Signature:
        """The input, then the options by name; made once, since each call of a task comes by here."""
        first = inspect.Parameter(self.first, inspect.Parameter.POSITIONAL_ONLY)
        given = inspect.signature(self.options).parameters.values()
        return inspect.Signature([first, *given], return_annotation=self.returns)

    @cached_property
    def help(self) -> str:
        """What `help` shows: what a call does, and each option."""
        found = (f"    {name}: {spec.help}" for name, spec in specs(self.options).items())
        return "\n".join([self.doc, "", *found])

    def __get__(self, task: Task | None, owner: type[Task]) -> Any:
        if task is None:
            return self._of_class(owner)

        def call(inputs: Any, /, **given: Any) -> Any:
            return self.run(task, inputs, task.make_options(given))

        call.__qualname__ = f"{owner.__name__}.{self.name}"  # what Python says of a wrong call
        call.__signature__ = self.signature  # type: ignore[attr-defined]  # what notebooks complete
        call.__doc__ = self.help
        return call

    def _of_class(self, owner: type[Task]) -> Any:
        """Return the function that `help` describes, and that a subclass calls as its base's."""

        def call(task: Task, inputs: Any, /, **given: Any) -> Any:
            return self.run(task, inputs, task.make_options(given))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = self.signature.replace(parameters=[own, *self.signature.parameters.values()])
        call.__name__, call.__qualname__, call.__doc__ = self.name, f"{owner.__name__}.{self.name}", self.help
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call


class _AnswerCall(Called):
    """The `__call__` of a task."""

    def __init__(self, options: type[TaskOptions], answer: Any, many: type[Results[Any]]) -> None:
        doc = f"Answer one input; a list of them gives {many.__name__}, an iterator an iterator."
        super().__init__(options, getattr(answer, "__name__", str(answer)), doc, "inputs", _answered)
        self.many = many

    def __set_name__(self, owner: type[Task], name: str) -> None:
        super().__set_name__(owner, name)
        owner._many = self.many


def _answered(task: Task, inputs: Any, options: Any) -> Any:
    return task.answer(inputs, options)


@overload
def called_with(
    options: Callable[Given, TaskOptions], answer: type[Answer]
) -> Call[Given, Answer, Results[Answer]]: ...
@overload
def called_with(
    options: Callable[Given, TaskOptions], answer: type[Answer], many: type[Many]
) -> Call[Given, Answer, Many]: ...
def called_with(options: Callable[Given, TaskOptions], answer: type[Any], many: type[Any] = Results) -> Any:
    """The `__call__` of a task: its options, what one answer is, and what the answers to a list are in."""
    return _AnswerCall(cast("type[TaskOptions]", options), answer, many)


def media_called_with(
    options: Callable[Given, TaskOptions], answer: type[Answer]
) -> MediaCall[Given, Answer, Results[Answer]]:
    """`called_with` for tasks of which an array is one input."""
    return cast(Any, called_with(options, answer))


def method_with(
    options: Callable[Given, TaskOptions], returns: type[Answer], doc: str, run: Callable[[Any, Any, Any], Answer]
) -> ItemCall[Given, Answer]:
    """A method for one input with the options of a task."""
    name = getattr(returns, "__name__", str(returns))
    return cast(Any, Called(cast("type[TaskOptions]", options), name, doc, "item", run))
