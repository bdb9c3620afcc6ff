"""`plainformer VERB ...`: finds the verb, and turns every error into a message and an exit code.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from plainformer.cli import STDIN
from plainformer.cli.progress import screen

if TYPE_CHECKING:
    from cyclopts import App

# Named by path: a verb's file is imported when the verb is used.
_VERBS = {
    "run": "Run a checkpoint on texts, files or stdin.",
    "chat": "Talk to a model, turn by turn.",
    "serve": "Serve models over HTTP, as OpenAI's clients speak it.",
    "entities": "Analyse the entities of documents, and rank them by what is required.",
    "train": "Train a model as a YAML file says.",
    "evaluate": "Measure a checkpoint's answers to rows that say what is right.",
    "data": "Show what a training run would read: counts, labels, lengths, duplicates.",
    "tokenizer": "Train a tokenizer on texts, for a model from scratch.",
    "explain": "Show how one input becomes an answer, step by step.",
    "plan": "Count the memory that a model needs, and say what fits.",
    "info": "Show what a checkpoint is, without loading its weights.",
    "tasks": "List the tasks.",
    "models": "List the families that are supported and the bundled models.",
    "compare": "Compare runs on the same examples: intervals, paired tests, published figures.",
    "completion": "Print the script by which bash, zsh or fish completes verbs and flags.",
    "glossary": "Explain a term of the field, with its place in this code and its source.",
}

# Options of which the value may be left out: what one looks like, what its absence means, and what there is in words.
_OPTIONAL = {
    "--attention": (r"all|(\w+\.)?\d+\.\d+", "overview", "a head as LAYER.HEAD, such as 0.1, or all"),
    "--nearest": (r"embedding|last|\d+", "embedding", "a layer's number, embedding or last"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `plainformer` program."""
    # Not KeyboardInterrupt: it may arrive inside an import or a native call, which turn it into an error of their own.
    signal.signal(signal.SIGINT, _interrupted)
    code = run_app(list(sys.argv[1:] if arguments is None else arguments))
    if _is_several():  # without a goodbye, which the others may not be there for
        end_now(code)
    sys.exit(code)


def _interrupted(number: int, frame: Any) -> None:
    screen.interrupted()
    os._exit(130)


def _is_several() -> bool:
    """Return whether torchrun has started this process beside others; what tells it is not loaded for nothing."""
    if "WORLD_SIZE" not in os.environ:
        return False
    from plainformer.config.parallel import is_several

    return is_several()


def end_now(code: int) -> NoReturn:
    """End a process whose peers may be gone: saying goodbye to them, as Python's end would, could take for ever."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@cache
def app(shown: str = "") -> App:
    """Return the verbs and their options. `shown`: the verb whose own help, with its example, --help prints."""
    from cyclopts import App, Parameter

    import plainformer

    made = App(
        name="plainformer",
        help="Load a transformer, run it, train it, measure it, and see every step.",
        version=plainformer.__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # run_app says so and returns 130
        # "markdown" would load a parser for every --help.
        help_format="plaintext",
        default_parameter=Parameter(negative=(), show_default=_default),  # neither --no-X nor --empty-X
    )
    for verb, summary in _VERBS.items():
        # A summary that is given here saves the import of a verb's file, and hides its docstring.
        made.command(f"plainformer.cli.{verb}:{verb}", name=verb, **({} if verb == shown else {"help": summary}))
    return made


def _default(value: object) -> str | None:
    """Return a default as --help shows it: that a switch is off needs no words."""
    return None if value is None or value is False else str(value)


def run_app(arguments: list[str]) -> int:
    """Run one command line; return the exit code."""
    if sys.stderr is None:  # closed by the caller; print() would write to stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        return _say("error: stdout is closed: there is nowhere to write to", 1)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # lone surrogates can be printed, not crash the message
    try:
        _dispatch(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is wrong. Keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich's own way out, in --help
            return 0
        raise
    except Exception as error:
        return _report(error)
    return 0


def _dispatch(arguments: list[str]) -> None:
    # A lone hyphen means stdin; the parser would take it for an option.
    given = [STDIN if argument == "-" else argument for argument in arguments]
    verb = given[0] if given else ""
    if _is_several():
        from plainformer.cli.several import check_verb

        check_verb(verb)
    if verb in _VERBS and given[1:] in (["--help"], ["-h"]):
        app(verb).help_print(
            [verb]
        )  # as the parser would, which first makes all options once more: a fifth of the time
        return
    app(verb)(list(_completed(given)), exit_on_error=False, print_error=False)


def _completed(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, and a value where an option may be without one: the parser would take the next argument for it."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        yield argument
        if argument in _OPTIONAL and arguments[0] == "explain":
            pattern, usual, _ = _OPTIONAL[argument]
            if not re.fullmatch(pattern, following):
                yield usual


def _report(error: Exception) -> int:
    from cyclopts import CycloptsError

    from plainformer.errors import PlainformerError

    if isinstance(error, CycloptsError):
        what, fix = _usage(error)
        return _say(f"error: {what}\n  → {fix}", 2)
    if os.environ.get("PLAINFORMER_DEBUG"):
        raise error
    if _is_several() and not isinstance(error, PlainformerError):
        from plainformer.cli.several import of_another

        error = of_another(error)
    if isinstance(error, PlainformerError):
        from plainformer.cli.flags import as_flag

        return _say(f"error: {error.message(as_flag, first=1)}", error.exit_code)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _say(f"error: out of memory: {error}\n  → fewer or shorter inputs, --dtype bf16, or a smaller model", 1)
    if isinstance(error, OSError):
        return _say(f"error: {error}\n  → check the path, its permissions and the free space", 1)
    hint = "this is a defect: please report it; PLAINFORMER_DEBUG=1 shows where it happened"
    return _say(f"error: {type(error).__name__}: {error}\n  → {hint}", 1)


def _usage(error: Exception) -> tuple[str, str]:
    """What is wrong with the command line, in one sentence, and what to do."""
    from cyclopts.exceptions import UnusedCliTokensError

    fix = "`plainformer --help`, `plainformer VERB --help`"
    if not isinstance(error, UnusedCliTokensError):
        said = " ".join(str(error).replace(STDIN, "-").split())
        return re.sub(r'unable to convert "(.*)" into float\.?', r"'\1' is not a number", said), fix
    unused = [str(token).replace(STDIN, "-") for token in error.unused_tokens or ()]
    given = list(error.root_input_tokens or ())
    for name, (_, usual, values) in _OPTIONAL.items():  # was an unexpected word meant as the value of one of these?
        if usual in given and given[given.index(usual) + 1 :][:1] == unused[:1]:
            return f"{name} does not take {unused[0]!r}", f"it takes {values}, or nothing"
    return "unexpected " + ", ".join(map(repr, unused)), fix


def _say(message: str, code: int) -> int:
    if _is_several():
        from plainformer.parallel.failures import speaks

        if not speaks(message):  # another process has said it
            return code
    print(message, file=sys.stderr)
    return code
