"""`plainformer VERB ...`: finds the verb, and turns every error into a message and an exit code.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import plainformer
from plainformer.cli.options import STDIN

app = App(
    name="plainformer",
    help="The whole life of a transformer language model, plain to see.",
    version=plainformer.__version__,
    result_action="return_value",
    # "markdown" would load a parser for every --help.
    help_format="plaintext",
)
# Named by path: a verb's file is imported when the verb is used.
_VERBS = {
    "run": "Run a checkpoint on texts, files or stdin.",
    "explain": "Show how one input becomes an answer, step by step.",
    "info": "Show what a checkpoint is, without loading its weights.",
    "tasks": "List the tasks.",
    "models": "List the families that are supported and the bundled models.",
}
for _verb, _help in _VERBS.items():
    app.command(f"plainformer.cli.{_verb}:{_verb}", name=_verb, help=_help)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `plainformer` program."""
    sys.exit(run_app(list(sys.argv[1:] if arguments is None else arguments)))


def run_app(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # lone surrogates can be printed, not crash the message
    try:
        # A lone hyphen means stdin; the parser would take it for an option.
        arguments = [STDIN if argument == "-" else argument for argument in arguments]
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is wrong. Keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CycloptsError as error:
        return _say(f"error: {_first_sentence(error)}", 2)
    except Exception as error:
        return _report(error)
    return 0


def _first_sentence(error: CycloptsError) -> str:
    return " ".join(str(error).split()) + "\n  → `plainformer --help`, `plainformer VERB --help`"


def _report(error: Exception) -> int:
    from plainformer.errors import PlainformerError

    if os.environ.get("PLAINFORMER_DEBUG"):
        raise error
    if isinstance(error, PlainformerError):
        return _say(f"error: {error}", error.exit_code)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _say(f"error: out of memory: {error}\n  → fewer or shorter inputs, --dtype bf16, or a smaller model", 1)
    if isinstance(error, OSError):
        return _say(f"error: {error}", 1)
    hint = "this is a defect: please report it; PLAINFORMER_DEBUG=1 shows where it happened"
    return _say(f"error: {type(error).__name__}: {error}\n  → {hint}", 1)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
