"""`plainformer chat REF`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli import STDIN
from plainformer.cli.flags import LoadFlags
from plainformer.cli.generation import ChatFlags
from plainformer.cli.inputs import Reading, read_texts
from plainformer.cli.options import Ref, harmless, open_stdin, restored
from plainformer.cli.progress import screen, typing_hidden
from plainformer.config.options import NotTyped, Spec, specs
from plainformer.config.values import no_effect
from plainformer.errors import PlainformerError, UsageError, did_you_mean
from plainformer.tasks.writing.options import TextGenerationOptions

if TYPE_CHECKING:
    from plainformer.tasks.writing.chat import ChatSession

HELP = """\
/reset              forget the conversation; the system message stays
/system TEXT        the system message; without TEXT, none
/set OPTION=VALUE   an option of generation (max_new_tokens=200); without VALUE, its default; alone, what is set
/save FILE          messages and settings as JSON
/help, /exit        //TEXT says /TEXT to the model; Ctrl-C stops an answer"""
# What a session decides by itself, or what has no meaning in one.
_NOT_SETTABLE = ("draft_model", "num_return_sequences", "num_alternatives", "batch_size")


def chat(
    ref: Ref,
    /,
    *,
    system: Annotated[str | None, Parameter(help="System message.")] = None,
    load: LoadFlags = LoadFlags(),  # noqa: B008
    generation: ChatFlags = ChatFlags(),  # noqa: B008
) -> None:
    """Talk to a model, turn by turn; its answers appear as they are written.

    Example: plainformer chat smollm2-135m-instruct --system "Answer in one sentence."

    Ctrl-C stops an answer, Ctrl-D or /exit ends the chat, /help lists the
    commands. Over a pipe each line is a message (or a command), and answers alone
    are written to stdout.
    """
    for name in ("num_return_sequences", "num_alternatives"):
        no_effect(name in generation.given(), name, "in a chat")
    options = generation.checked(TextGenerationOptions, "a chat")
    open_stdin()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with typing_hidden() if terminal else contextlib.nullcontext():
        task = load.load(ref, lambda kind, name, config: _check_chats(restored(ref), name))
        from plainformer.tasks.writing.chat import ChatSession

        session = ChatSession(task, system=restored(system), **options)
        if terminal:
            _make_ready(task)
    with _interruptible(session, terminal):
        _talk(session, terminal)


def _make_ready(task: Any) -> None:
    """Write two tokens: the second step compiles kernels, for which nobody should wait in the middle of an answer."""
    with screen.during("making ready"), contextlib.suppress(PlainformerError):
        task("a", min_new_tokens=2, max_new_tokens=2)


def _check_chats(ref: str, task: str) -> None:
    if task != "text-generation":
        raise UsageError(f"{ref} does {task}, and cannot chat", "`plainformer run` runs it")


def _talk(session: ChatSession, terminal: bool) -> None:
    """Messages and commands until the end. In a terminal an error is said, and the chat goes on."""
    if terminal:
        _say(f"{session.task.ref}: /help lists the commands, Ctrl-D ends the chat")
    for line in _typed() if terminal else _piped():
        try:
            if _is_exit(line):
                return
            _handle(session, line, terminal)
        except PlainformerError as error:
            if not terminal:
                raise
            _say(f"error: {error}")


def _piped() -> Iterator[str]:
    """Yield the lines of stdin that are not blank."""
    for item in read_texts([STDIN], Reading(), []):
        if item.problem is not None:
            raise item.problem
        if not item.blank:
            yield item.value


def _typed() -> Iterator[str]:
    """Yield lines that somebody types at a prompt."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _say("(Ctrl-D or /exit ends the chat)")
            continue
        if line.strip():
            yield line


def _is_exit(line: str) -> bool:
    return line.strip() in ("/exit", "/quit")


def _handle(session: ChatSession, line: str, terminal: bool) -> None:
    if not line.startswith("/") or line.startswith("//"):
        return _answer(session, line[1:] if line.startswith("//") else line, terminal)
    name, _, rest = line[1:].strip().partition(" ")
    if name not in _COMMANDS:
        hint = did_you_mean(name, [*_COMMANDS, "exit"])
        raise UsageError(f"/{name} is not a command", hint or "/help lists them; //TEXT says /TEXT to the model")
    _COMMANDS[name](session, rest.strip())


def _answer(session: ChatSession, text: str, terminal: bool) -> None:
    session.result = None
    with typing_hidden() if terminal else contextlib.nullcontext():
        with screen.during("reading"):
            pieces = session.send(text)
            first = list(islice(pieces, 1))
        for piece in chain(first, pieces):
            screen.write(harmless(piece) if terminal else piece, end="")
        screen.write("")
    reason = session.result.stop_reason if session.result is not None else None
    notes = {"callback": "(stopped)", "length": "(cut off at the limit of tokens)", "time": "(cut off: out of time)"}
    if reason is not None and reason in notes:
        _say(notes[reason])


# ---- commands ---------------------------------------------------------------------------------------------------------


def _set(session: ChatSession, text: str) -> None:
    if not text:
        _say("\n".join(f"{name}={value!r}" for name, value in session.options.items()) or "nothing is set")
        return
    name, equals, value = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    every = specs(TextGenerationOptions).items()
    known = {name: spec for name, spec in every if spec.typed is not NotTyped and name not in _NOT_SETTABLE}
    if name not in known:
        raise UsageError(f"a chat has no option {name!r}", did_you_mean(name, known) or "see `plainformer chat --help`")
    if not equals:
        raise UsageError(f"/set {name} needs a value", f"/set {name}=VALUE, or /set {name}= for its default")
    session.set(**{name: _value(known[name], value.strip())})


def _value(spec: Spec, text: str) -> Any:
    """Return what was typed for an option; None for nothing."""
    if not text:
        return None
    if spec.read is not None or spec.typed is str:
        return text if spec.read is None else spec.read(text)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _save(session: ChatSession, path: str) -> None:
    if not path:
        raise UsageError("/save needs a file", "/save FILE")
    try:
        Path(path).write_text(json.dumps(session.to_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PlainformerError(f"{path} cannot be written: {error.strerror or error}", "choose another FILE") from None
    _say(f"saved {path}")


def _alone(command: Callable[[ChatSession], None]) -> Callable[[ChatSession, str], None]:
    """A command that takes nothing more."""

    def run(session: ChatSession, rest: str) -> None:
        if rest:
            raise UsageError(f"{rest!r} has no meaning there", "give the command alone")
        command(session)

    return run


_COMMANDS: dict[str, Callable[[ChatSession, str], None]] = {
    "reset": _alone(lambda session: session.reset()),
    "system": lambda session, text: session.set_system(text or None),
    "set": _set,
    "save": _save,
    "help": _alone(lambda session: _say(HELP)),
}


def _say(text: str) -> None:
    """Print what is not an answer of the model."""
    print(text, file=sys.stderr, flush=True)


# ---- Ctrl-C -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _interruptible(session: ChatSession, terminal: bool) -> Iterator[None]:
    """Ctrl-C stops the answer. The second one, where the first has had no time to, ends the program, as outside.

    Nothing is raised while a model runs: an exception could leave a step half done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> None:
        if session.answering and not session.stopped:
            session.stop()
        elif not session.answering and terminal:
            raise KeyboardInterrupt
        elif callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
