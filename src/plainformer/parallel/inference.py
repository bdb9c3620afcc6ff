"""One model on several processes, for its answers: all ranks make the same calls, and all get what one process would.

What depends on chance, on a clock or on somebody's function - a seed that was not given, the time that is left, a callback - is
decided by the first rank of a model's, and told to the others: two ranks that do not agree wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import Any

import torch
import torch.distributed as dist

from plainformer.config.layout import Layout
from plainformer.config.parallel import processes
from plainformer.errors import PlainformerError, UsageError, nth, opt, plural
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh, start
from plainformer.parallel.pipeline import connect
from plainformer.parallel.sync import Ranks

BLOCK = 4  # batches of rows that a copy of the model answers before the copies' answers are put in order


def ranks_for(tp: int, pp: int, device: str | torch.device) -> Mesh:
    """Return the mesh of the processes that torchrun has started: `dp` copies of a model, each on tp x pp of them.

    Raises UsageError if they are not a multiple of that.
    """
    count = processes() or 1
    if count % (tp * pp):
        there = f"there {'is' if count == 1 else 'are'} {plural(count, 'process', 'processes')}"
        what = f"{opt('tp', tp)} x {opt('pp', pp)} ranks share one model, and {there}"
        raise UsageError(what, f"torchrun --nproc-per-node {tp * pp} -m plainformer ..., or a multiple of it")
    return _joined(Layout(dp=count // (tp * pp), tp=tp, pp=pp), str(device))


@cache
def _joined(layout: Layout, device: str) -> Mesh:
    """Join the others once: several models of one program talk in the same groups."""
    return start(layout, device=device)


def in_step(model: Transformer, mesh: Mesh) -> Transformer:
    """Let a rank's part of a model answer together with the others, in place."""
    if mesh.tp is not None or mesh.pp is not None:
        model.agreed = agreement(mesh)
    return connect(model, mesh)


def agreement(mesh: Mesh) -> Callable[[Any], Any]:
    """Return what gives all ranks of a model the value that its first rank has."""

    def agreed(value: Any) -> Any:
        for group in (mesh.tp, mesh.pp):
            if group is not None:
                said = [value]
                dist.broadcast_object_list(said, group=group, group_src=0)
                value = said[0]
        return value

    return agreed


def answered_in_turn(
    mesh: Mesh, inputs: Iterable[Any], answer: Callable[[Iterator[Any]], Iterable[Any]], batch_size: int
) -> Iterator[Any]:
    """Yield the answers to all inputs, in their order, of copies of a model that take blocks of them in turn.

    Args:
        inputs: all of them, on every rank.
        answer: inputs → their answers, by this rank's copy. An error that it raises is raised where its answer would come.
    """
    if mesh.dp is None:
        yield from answer(iter(inputs))
        return
    ranks, source, copies, before = Ranks(mesh), iter(inputs), mesh.layout.dp, 0
    while first := list(islice(source, 1)):
        block = [*first, *islice(source, BLOCK * batch_size * copies - 1)]
        size = -(-len(block) // copies)
        begin = mesh.place.dp * size
        mine = _answers(answer, block[begin : begin + size], before + begin)
        for found in chain.from_iterable(ranks.gathered(mine)):
            if isinstance(found, PlainformerError):
                raise found
            yield found
        before += len(block)


def _answers(answer: Callable[[Iterator[Any]], Iterable[Any]], inputs: list[Any], before: int) -> list[Any]:
    """Return answers, with the error that has ended them as the last; it names inputs by their places among all."""
    found: list[Any] = []
    try:
        found.extend(answer(iter(inputs)) if inputs else ())
    except PlainformerError as error:
        found.append(error.named(lambda place: nth(before + place)))
    return found
