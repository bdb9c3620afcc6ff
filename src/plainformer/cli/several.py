"""The same command on several processes: torchrun starts it, all ranks do the same, and the first reads stdin and speaks."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from plainformer.cli import STDIN
from plainformer.cli.options import read_stdin, restored
from plainformer.cli.progress import screen
from plainformer.config.loading import LoadOptions
from plainformer.config.parallel import is_several
from plainformer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plainformer.cli.flags import LoadFlags
    from plainformer.parallel.mesh import Mesh

DIVIDED = ("train", "run", "evaluate")  # verbs whose work several processes can share


def check_verb(verb: str) -> None:
    """Refuse a verb that each of several processes would do once more."""
    if verb not in DIVIDED and is_several():
        raise UsageError(
            f"{verb or 'plainformer'} runs in one process",
            f"start it without torchrun; {', '.join(DIVIDED[:-1])} and {DIVIDED[-1]} can share",
        )


def meet(load: LoadFlags, inputs: Sequence[str]) -> Mesh | None:
    """Meet the processes that torchrun has started; None where there is one.

    From here on, all but the first are silent. Stdin is read as a whole by the first, and given to all.
    """
    if not is_several():
        return None
    from plainformer.parallel.inference import ranks_for
    from plainformer.parallel.sync import Ranks

    asked = LoadOptions.of(load.options(), "load")
    mesh = ranks_for(asked.tp, asked.pp, asked.device)
    if not mesh.is_first:
        screen.silent = True
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    if "-" in map(restored, inputs) or STDIN in inputs:
        sys.stdin = io.TextIOWrapper(io.BytesIO(Ranks(mesh).alone(read_stdin)), encoding="utf-8")
    return mesh


def of_another(error: Exception) -> Exception:
    """Return what to say of an error that another process has caused, while answers were shared; of any other, itself."""
    from plainformer.parallel.failures import failure_of_another
    from plainformer.parallel.mesh import TIMEOUT

    return failure_of_another(error, TIMEOUT, goes_on=False) or error
