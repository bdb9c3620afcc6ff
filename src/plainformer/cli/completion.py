"""`plainformer completion SHELL`: the script by which a shell completes verbs and flags."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell.")], /) -> None:
    """Print a script that lets a shell complete verbs and flags.

    Example: plainformer completion bash > ~/.local/share/bash-completion/completions/plainformer
    """
    from plainformer.cli.main import app

    print(app().generate_completion(prog_name="plainformer", shell=shell))
