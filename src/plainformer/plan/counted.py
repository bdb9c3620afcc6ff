"""What each rank of a layout holds, phase by phase. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from plainformer.config.layout import Layout, Place
from plainformer.config.local import Local
from plainformer.config.model import ModelConfig
from plainformer.plan.inference import inference_phases, loading_of
from plainformer.plan.result import Phase, RankPlan, alike
from plainformer.plan.stored import FileType, StoredFile
from plainformer.plan.training import training_phases
from plainformer.plan.weights import Held, weights
from plainformer.plan.workload import Workload


def rank_plans(
    config: ModelConfig,
    workload: Workload,
    layout: Layout,
    *,
    on_gpu: bool = False,
    stored: str | StoredFile | None = None,
) -> tuple[RankPlan, ...]:
    """Return what the ranks hold; those that hold the same are one. `stored`: as the weights are in their file."""
    found = []
    for place, ranks in classes(workload, layout):
        here = _local(config, layout, place)
        found.append(RankPlan(ranks, place_said(layout, place), phases(here, workload, on_gpu=on_gpu, stored=stored)))
    return alike(found)


@lru_cache(maxsize=64)  # what is asked changes more often than what is held: a search for what fits asks many times
def _local(config: ModelConfig, layout: Layout, place: Place) -> Local:
    return Local(config, layout, place)


def phases(
    here: Local, workload: Workload, *, on_gpu: bool = False, stored: str | StoredFile | None = None
) -> tuple[Phase, ...]:
    """Return the phases of one rank."""
    if workload.training:
        return training_phases(here, workload, on_gpu=on_gpu, stored=stored)
    return inference_phases(here, workload, on_gpu=on_gpu, stored=stored)


def file_types(
    config: ModelConfig, workload: Workload, file: StoredFile, *, alone: bool = True, on_gpu: bool = False
) -> tuple[FileType, ...]:
    """Return what a file stores, type by type, with the bytes of the same weights once they are loaded.

    `alone`: whether one device has them all.
    """
    held: dict[str, list[Held]] = {}
    if alone:
        source, same = file.by_parameter, dict(config.tied)
        for one in weights(config, loading_of(config, workload, file, on_gpu=on_gpu)).held:
            found = source.get(one.name) or source.get(same.get(one.name, one.name))
            held.setdefault(found.kind if found is not None else "", []).append(one)
    return tuple(
        FileType(
            kind,
            len(tensors),
            sum(tensor.numbers for tensor in tensors),
            sum(tensor.bytes for tensor in tensors),
            sum(one.own + one.mapped for one in held.get(kind, ())) if alone else None,
            " and ".join(dict.fromkeys(one.dtype for one in held.get(kind, ()))),
        )
        for kind, tensors in file.kinds().items()
    )


def classes(workload: Workload, layout: Layout) -> Iterator[tuple[Place, tuple[int, ...]]]:
    """Yield places among which every kind of rank is, with the ranks that each stands for.

    Of many tensor-parallel ranks only the last can have fewer rows than the first; of data-parallel ones the same, unless ZeRO
    deals out whole tensors: then each has its own.
    """
    own = layout.zero == 1 and layout.dp <= 8 and workload.training
    for stage in range(layout.pp):
        for data in _groups(layout.dp, own=own, alike=layout.zero == 0 or not workload.training):
            for tensor in _groups(layout.tp):
                ranks = [layout.rank(Place(stage, dp, tp)) for dp in data for tp in tensor]
                yield Place(stage, data[0], tensor[0]), tuple(sorted(ranks))


def _groups(count: int, *, own: bool = False, alike: bool = False) -> list[list[int]]:
    """Return the places along an axis in groups that hold the same."""
    if alike:
        return [list(range(count))]
    if own or count == 1:
        return [[place] for place in range(count)]
    return [list(range(count - 1)), [count - 1]]


def place_said(layout: Layout, place: Place) -> str:
    """Return where a rank is, as far as there is more than one place."""
    sizes = (("stage", place.pp, layout.pp), ("data part", place.dp, layout.dp), ("tensor part", place.tp, layout.tp))
    return ", ".join(f"{name} {index + 1} of {count}" for name, index, count in sizes if count > 1)
