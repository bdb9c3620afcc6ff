"""What a run would do, before it does: `plainformer train CONFIG --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plainformer.cli.options import write_json
from plainformer.cli.progress import screen
from plainformer.cli.screen import console, print_facts, shown, table
from plainformer.cli.training_line import size
from plainformer.config.building import as_data
from plainformer.config.resolved import resolved_yaml
from plainformer.errors import plural

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig
    from plainformer.train.needs import Needs

MOST_TOKENS = 60  # of an example that is shown; --json has all
EXAMPLES = 2
Tokens = Sequence[tuple[str, str]]


def show_dry_run(config: TrainConfig, *, as_json: bool) -> None:
    """Print the resolved configuration, how much there is to learn from, what it needs, and the first examples."""
    from plainformer.training import prepare

    with screen.during("preparing"):
        prepared = prepare(config)
        needs = prepared.needs()
        examples = prepared.examples(EXAMPLES)
    if as_json:
        found = {
            "config": as_data(prepared.config),
            **prepared.numbers(),
            "needs": needs.to_dict(),
            "examples": examples,
        }
        write_json([found])
        return
    out = console()
    out.print(resolved_yaml(prepared.config, comments=False), markup=False)
    print_facts(out, {**prepared.facts(), **needed(needs)})
    for number, example in enumerate(examples, start=1):
        print_example(out, f"example {number}", example)


def needed(needs: Needs) -> dict[str, str]:
    """Return what a run needs, for people."""
    parts = {
        "weights": needs.weights,
        "gradients": needs.gradients,
        "optimizer": needs.optimizer,
        "average": needs.average,
        "activations": needs.activations or 0,
    }
    said = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    disk = f"{size(needs.checkpoint)} for each checkpoint, up to {size(needs.checkpoint * needs.checkpoints)}"
    return {
        "parameters": f"{needs.parameters:,}, of which {needs.trained:,} are trained",
        "memory": f"{size(needs.memory)}, an estimate: {said}",
        "disk": f"{disk} for {plural(needs.checkpoints, 'checkpoint')}",
    }


def print_example(out: Any, name: str, tokens: Tokens) -> None:
    """Print an example token by token, with what each is to learn."""
    rows = table(name, "learns")
    for token, learns in tokens[:MOST_TOKENS]:
        rows.add_row(shown(token), shown(learns))
    out.print()
    out.print(rows)
    if len(tokens) > MOST_TOKENS:
        out.print(f"... and {plural(len(tokens) - MOST_TOKENS, 'token')} more")
