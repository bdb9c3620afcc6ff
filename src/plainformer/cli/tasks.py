"""`plainformer tasks`: what can be done, grouped by field."""

from __future__ import annotations

from plainformer.cli.options import Json, write_json
from plainformer.cli.screen import console, table


def tasks(*, json: Json = False) -> None:
    """List the tasks: what each reads and answers, and the field it belongs to.

    Example: plainformer tasks --json
    """
    from plainformer.tasks import ALIASES, TASKS

    names = {info.name: [alias for alias, name in ALIASES.items() if name == info.name] for info in TASKS.values()}
    if json:
        said = ("name", "field", "reads", "answers")
        write_json(
            {**{key: getattr(info, key) for key in said}, "aliases": names[info.name]} for info in TASKS.values()
        )
        return
    shown = table("task", "field", "reads", "answers", "also called")
    for info in TASKS.values():
        shown.add_row(info.name, info.field, info.reads, info.answers, ", ".join(names[info.name]))
    console().print(shown)
    console().print(
        "\nNLU: understanding language. NLG: generating it. NLP: processing it in general; both are parts of it."
    )
