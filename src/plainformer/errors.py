"""The errors a user can meet. Each says what was given, why it cannot work, and what to do next.

`exit_code` is what the command line returns: 2 for a mistake in how something was asked for (usage), 1 for a failure
met while doing it (a corrupt file, a missing network). Nothing else in the library is allowed to reach a user as a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlainformerError(Exception):
    """Base of every error that plainformer raises on purpose.

    Args:
        what: the value or object concerned, and why it cannot work.
        fix: the next step for the user; appended to the message.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}\n  → {fix}" if fix else what)


class UsageError(PlainformerError, ValueError):
    """The call itself cannot work: an unknown name, an impossible combination, a value out of range."""

    exit_code = 2


class CheckpointError(PlainformerError):
    """A checkpoint's files are missing, corrupt, unsafe, or do not describe a model that we know."""


class HubError(PlainformerError):
    """A reference could not be turned into local files: no network, no such repository, no permission."""


class InputError(UsageError):
    """An input (text, ids, audio, image) that the model cannot take: empty, too long, out of range, unreadable."""


class MissingDependencyError(PlainformerError):
    """An optional package is needed and not installed."""


def did_you_mean(name: str, options: Iterable[str], limit: int = 3) -> str:
    """A sentence that names the options closest to `name`, or all of them when none is close and they are few."""
    name = name[:80]  # a forged name of megabytes is near to nothing, and comparing it takes minutes
    known = sorted(set(options))
    by_lower = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=limit, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(by_lower[c]) for c in close) + "?"
    if len(known) <= 12:
        return "known: " + ", ".join(known)
    return ""
