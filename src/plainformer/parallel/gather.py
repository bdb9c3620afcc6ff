"""Tensors of which each rank has a block: which one, how a whole is put together, and which block of a whole is whose.

A block is a range along each dimension. Tensor parallelism divides one dimension, ZeRO the first one of what that left, and
a pipeline says who has a parameter at all; copies are equal. So a checkpoint need not know of any layout: it has whole
tensors by the names of the whole model.

All ranks call everything here, in the same order. Tensors travel over the CPU.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plainformer.config.local import Local, chunk_rows
from plainformer.errors import PlainformerError, said_by

if TYPE_CHECKING:
    from plainformer.parallel.mesh import Mesh

T = TypeVar("T")
Block = tuple[tuple[int, int], ...]  # the first index, and the one after the last, along each dimension


class Share(NamedTuple):
    """What a rank has of a tensor: the whole's name and shape, and the block of it."""

    name: str
    shape: tuple[int, ...]
    block: Block

    def of(self, whole: Tensor) -> Tensor:
        """Return the block, as a view."""
        return whole[slices(self.block)] if self.shape else whole


class Held(NamedTuple):
    """A share, and what gives the numbers that it has."""

    share: Share
    dtype: torch.dtype
    tensor: Callable[[], Tensor]


class Holding(dict[str, Held]):
    """What a process has of tensors, by the whole model's names; it may be of none of them."""


def slices(block: Block) -> tuple[slice, ...]:
    """Return a block as an index."""
    return tuple(slice(start, stop) for start, stop in block)


def whole_block(shape: Sequence[int]) -> Block:
    """Return the block that is everything."""
    return tuple((0, size) for size in shape)


def local_of(tensor: Tensor) -> Tensor:
    """Return what is here of a tensor that FSDP has divided; any other as it is."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def shares(model: nn.Module) -> dict[str, Share]:
    """Return what is here of each parameter, by its name here."""
    local: Local | None = getattr(model, "local", None)
    found = {}
    for name, parameter in model.named_parameters():
        share = Share(name, tuple(parameter.shape), whole_block(parameter.shape))
        part = None if local is None else local.parts.get(name)
        if part is not None:  # adapters are whole on each rank
            ranges = list(whole_block(part.shape))
            if part.dim is not None:
                ranges[part.dim] = (part.start, part.stop)
            share = Share(part.name, part.shape, tuple(ranges))
        found[name] = _divided(share, parameter)
    return found


def _divided(share: Share, parameter: Tensor) -> Share:
    """Return what ZeRO leaves here of a share: the rows that `torch.chunk` would give this rank."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return share
    (first, last), *others = share.block
    start, stop = chunk_rows(last - first, mesh.size(), mesh.get_local_rank())
    return share._replace(block=((first + start, first + stop), *others))


def undivided(tensor: Tensor) -> Tensor:
    """Return a tensor that FSDP may have divided as it was before; all data-parallel ranks call it."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor.detach() if full is None else full().detach()


def held(tensors: Mapping[str, Tensor], of: Mapping[str, Share]) -> Holding:
    """Return tensors by the whole model's names.

    They have the names of parameters, or "PARAMETER:STATE", as those of an optimizer; a state of another shape than the
    parameter's is whole.
    """
    found = Holding()
    for name, tensor in tensors.items():
        parameter, colon, state = name.partition(":")
        share = of[parameter]
        if tensor.dim() != len(share.shape):
            share = Share(share.name, tuple(tensor.shape), whole_block(tensor.shape))
        share = share._replace(name=f"{share.name}{colon}{state}")
        found[share.name] = Held(share, tensor.dtype, partial(_here, tensor))
    return found


def _here(tensor: Tensor) -> Tensor:
    return local_of(tensor.detach())


# ----------------------------------------------------------------------------------------------------- the processes together


@dataclass(frozen=True)
class Team:
    """The processes of a run, as far as they tell each other things.

    Attributes:
        rank: of this one. count: of all.
    """

    rank: int
    count: int
    group: dist.ProcessGroup

    @classmethod
    def of(cls, mesh: Mesh) -> Team | None:
        """Return the processes of a mesh; None for one that is alone."""
        return None if mesh.world is None else cls(mesh.rank, dist.get_world_size(mesh.world), mesh.world)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank has given, in order of ranks."""
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, self.group)
        return found

    def together(self, act: Callable[[], T]) -> list[T]:
        """Return what each rank's `act` gave; what one raises, all raise.

        `act` may talk to the other ranks only in ways in which all of them fail or none.
        """
        told: list[tuple[Any, Exception | None]] = self.gather(attempted(act))
        for _, cause in told:
            if cause is not None:
                raise cause
        return [value for value, _ in told]

    def first(self, act: Callable[[], T], patience: timedelta | None = None) -> T:
        """Return what the first rank's `act` gave: it alone acts. What it raises, all raise.

        Args:
            patience: how long that may take; None: as long as any answer.
        """
        told: list[Any] = list(attempted(act)) if self.is_first else [None, None]
        group = self.group if patience is None else dist.new_group(timeout=patience, backend="gloo")
        dist.broadcast_object_list(told, src=0, group=group)
        if patience is not None:
            dist.destroy_process_group(group)
        if told[1] is not None:
            raise told[1]
        value: T = told[0]
        return value

    def send(self, tensor: Tensor, to: int) -> None:
        """Give a tensor to another rank, which calls `receive`."""
        dist.send(as_bytes(tensor), to, self.group)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        """Return the tensor that another rank sends."""
        tensor = torch.empty(tuple(shape), dtype=dtype)
        dist.recv(as_bytes(tensor), source, self.group)
        return tensor


def attempted(act: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return what `act` gave, and None; or None and what it raised, as other processes can be told of it."""
    try:
        return act(), None
    except Exception as error:  # the others wait, whatever it is
        try:
            pickle.dumps(error)
        except Exception:
            return None, PlainformerError(said_by(error))
        return None, error


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU as bytes, which every backend can carry; a view where it is there in order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


# ---------------------------------------------------------------------------------------------------------- putting together


@dataclass(frozen=True)
class Whole:
    """A tensor that all ranks have together."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Mapping[int, Block]  # by rank

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Gathered(Mapping[str, Whole]):
    """What all ranks have together, by name, in the order of ranks; `fetch` puts one tensor together."""

    def __init__(self, team: Team, mine: Mapping[str, Held]) -> None:
        self.team, self.mine = team, mine
        told = [(one.share, one.dtype) for one in mine.values()]
        found: dict[str, Whole] = {}
        for rank, theirs in enumerate(team.gather(told)):
            for share, dtype in theirs:
                whole = found.setdefault(share.name, Whole(share.shape, dtype, {}))
                if (whole.shape, whole.dtype) != (share.shape, dtype):
                    raise AssertionError(f"{share.name}: rank {rank} has {share.shape} of {dtype}, others {whole}")
                assert isinstance(whole.blocks, dict)
                whole.blocks[rank] = share.block
        self.found = found

    def __getitem__(self, name: str) -> Whole:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def fetch(self, name: str, to: int) -> Tensor | None:
        """Return a whole tensor on the CPU to one rank, and None to the others, which give what they have of it."""
        whole, rank = self.found[name], self.team.rank
        sources = covering(whole.shape, whole.blocks, to)
        if rank != to:
            if rank in sources:
                self.team.send(self.mine[name].tensor(), to)
            return None
        if list(sources) == [rank] and sources[rank] == whole_block(whole.shape):
            return self.mine[name].tensor().detach().cpu()
        found = torch.empty(whole.shape, dtype=whole.dtype)
        for source, block in sources.items():
            shape = [stop - start for start, stop in block]
            mine = source == rank
            found[slices(block)] = self.mine[name].tensor() if mine else self.team.receive(shape, whole.dtype, source)
        return found


def covering(shape: Sequence[int], blocks: Mapping[int, Block], to: int) -> dict[int, Block]:
    """Return which ranks give their blocks so that one rank has the whole: its own first, and of equal ones the first rank's.

    Blocks are equal or do not overlap: so it is everything if the sizes add up.
    """
    order = sorted(blocks, key=lambda rank: (rank != to, rank))
    chosen: dict[Block, int] = {}
    for rank in order:
        if all(stop > start for start, stop in blocks[rank]):
            chosen.setdefault(blocks[rank], rank)
    size = sum(prod(stop - start for start, stop in block) for block in chosen)
    if size != prod(shape):
        raise AssertionError(f"the ranks' blocks have {size} numbers of {prod(shape)}: {dict(blocks)}")
    return {rank: block for block, rank in chosen.items()}


# ----------------------------------------------------------------------------------------------------------- who writes what


@dataclass(frozen=True)
class File:
    """A file of those that the ranks write: its number from 1 on, who writes it, and the names in it."""

    number: int
    writer: int
    names: tuple[str, ...]


def files_of(sizes: Mapping[str, int], count: int, most: int) -> list[File]:
    """Divide tensors, in their order, into files of about the same size, one for each of `count` ranks where there are enough.

    Args:
        sizes: bytes by name. most: bytes of a file, unless one tensor has more.
    """
    number = max(count, -(-sum(sizes.values()) // most))
    target = max(1, -(-sum(sizes.values()) // number))
    groups: list[list[str]] = []
    begun = -1
    before = 0
    for name, size in sizes.items():
        place = min((before + size // 2) // target, number - 1)  # where its middle is
        if place != begun:
            groups.append([])
            begun = place
        groups[-1].append(name)
        before += size
    writers = (number * count // len(groups) for number in range(len(groups)))
    return [
        File(number, writer, tuple(names))
        for number, (writer, names) in enumerate(zip(writers, groups, strict=True), start=1)
    ]


def rounds(files: Iterable[File]) -> Iterator[list[File]]:
    """Yield files in rounds, in each of which a rank writes one at most."""
    waiting = list(files)
    while waiting:
        first = {file.writer: file for file in reversed(waiting)}
        yield [file for file in waiting if first[file.writer] is file]
        waiting = [file for file in waiting if first[file.writer] is not file]


def gathered_files(
    files: Sequence[File], rank: int, make: Callable[[str, int], Tensor | None]
) -> Iterator[tuple[File, dict[str, Tensor]]]:
    """Yield this rank's files with their tensors, each as soon as all ranks have given theirs.

    Args:
        make: name, writer → the tensor for the writer, None for the others. All ranks call it in the same order.
    """
    for together in rounds(files):
        mine: tuple[File, dict[str, Tensor]] | None = None
        for file in together:
            made = {name: make(name, file.writer) for name in file.names}
            if file.writer == rank:
                mine = file, {name: tensor for name, tensor in made.items() if tensor is not None}
        if mine is not None:
            yield mine
