"""Weight rows: how a checkpoint's tensors become a model's parameters, as reversible data.

A `Row` pairs one tensor of the checkpoint ("theirs") with one or more parameters ("ours") through an operation that can be
undone. Loading applies rows; saving applies them backwards; so the two cannot drift apart. `{}` is a layer's number, the
same on both sides; in an `ignore` row `*` is anything.

Rows are tried in order and the first that matches counts. Where several tensors of a checkpoint would fill one
parameter, the one of the earliest row does. A row whose parameters the model does not have is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Op:
    """The tensor as it is."""

    whole_rows: ClassVar[bool] = True  # whether it only moves rows, whatever these are made of
    copies: ClassVar[bool] = False  # whether ours are other numbers, or in another order, so that they are copies

    def load(self, tensor: Tensor) -> list[Tensor]:
        """Turn their tensor into ours, one for each of the row's names."""
        return [tensor]

    def save(self, tensors: list[Tensor]) -> Tensor:
        """Turn ours into theirs: the exact inverse."""
        return tensors[0]


@dataclass(frozen=True)
class Transpose(Op):
    """(I, O) ↔ (O, I): GPT-2's Conv1D stores its weight the other way round."""

    whole_rows: ClassVar[bool] = False

    def load(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.t()]

    def save(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].t()


@dataclass(frozen=True)
class Split(Op):
    """One tensor holds several, one after the other along its first axis: fused q, k, v or gate, up."""

    sizes: tuple[int, ...]

    def load(self, tensor: Tensor) -> list[Tensor]:
        return list(tensor.split(self.sizes))

    def save(self, tensors: list[Tensor]) -> Tensor:
        import torch

        return torch.cat(tensors)


class TransposeSplit(Split):
    """GPT-2's fused q, k, v: transposed, then split."""

    whole_rows: ClassVar[bool] = False

    def load(self, tensor: Tensor) -> list[Tensor]:
        return super().load(tensor.t())

    def save(self, tensors: list[Tensor]) -> Tensor:
        return super().save(tensors).t()


@dataclass(frozen=True)
class SplitHeads(Op):
    """GPT-NeoX's fused q, k, v: for each head its q, its k, its v."""

    heads: int
    parts: int = 3
    copies: ClassVar[bool] = True

    def load(self, tensor: Tensor) -> list[Tensor]:
        by_head = tensor.unflatten(0, (self.heads, self.parts, -1))
        return [by_head[:, part].flatten(0, 1) for part in range(self.parts)]

    def save(self, tensors: list[Tensor]) -> Tensor:
        import torch

        return torch.stack([t.unflatten(0, (self.heads, -1)) for t in tensors], dim=1).flatten(0, 2)


@dataclass(frozen=True)
class DropRows(Op):
    """The first rows of a position table that no position uses: fairseq's padding rows. Restored as zeros."""

    rows: int

    def load(self, tensor: Tensor) -> list[Tensor]:
        return [tensor[self.rows :]]

    def save(self, tensors: list[Tensor]) -> Tensor:
        import torch

        return torch.cat((tensors[0].new_zeros(self.rows, tensors[0].size(1)), tensors[0]))


@dataclass(frozen=True)
class Reshape(Op):
    """The same numbers under another shape: (1, 1, D) class tokens, (1, V) biases."""

    whole_rows: ClassVar[bool] = False

    theirs: tuple[int, ...]
    ours: tuple[int, ...]

    def load(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.reshape(self.ours)]

    def save(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].reshape(self.theirs)


@dataclass(frozen=True)
class Unpermute(Op):
    """GGUF's llama files turn neighbouring channels; ours turn channel i with i + half: undo the reordering of rows."""

    heads: int
    copies: ClassVar[bool] = True

    def load(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)]

    def save(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Add(Op):
    """A constant added: GGUF's Gemma norms are stored with their 1 already added."""

    whole_rows: ClassVar[bool] = False

    value: float
    copies: ClassVar[bool] = True

    def load(self, tensor: Tensor) -> list[Tensor]:
        return [tensor + self.value]

    def save(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0] - self.value


@dataclass(frozen=True)
class Repeat(Op):
    """One tensor that serves as several of ours: each gets its own copy, and the first is what is saved."""

    count: int
    copies: ClassVar[bool] = True

    def load(self, tensor: Tensor) -> list[Tensor]:
        return [tensor, *(tensor.clone() for _ in range(self.count - 1))]


@dataclass(frozen=True)
class Sinusoids(Op):
    """The fixed position table (rows, size) of Vaswani et al. 2017 that their model stores and ours computes."""

    whole_rows: ClassVar[bool] = False

    rows: int
    size: int

    def save(self, tensors: list[Tensor]) -> Tensor:
        import torch

        exponents = torch.arange(self.size).div(2, rounding_mode="floor").double() * 2 / self.size
        angles = torch.arange(self.rows).double()[:, None] / 10000**exponents
        return torch.cat((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=1).float()


SAME = Op()


@dataclass(frozen=True)
class Row:
    """One line of a family's table.

    kind: "map" loads and saves; "also" loads another spelling if the tensor is there and never saves it; "twin" does so
    where their model has both as one parameter with two names; "ignore" is a
    known extra; "zeros" is a parameter of ours that is zero where their checkpoint does not have it; "constant" is a
    tensor of theirs that ours computes: never loaded, but saved by `op.save([])`, because their model expects it.
    """

    theirs: str
    ours: tuple[str, ...] = ()
    op: Op = SAME
    kind: Literal["map", "also", "twin", "ignore", "zeros", "constant"] = "map"

    def match(self, name: str) -> tuple[str, ...] | None:
        """Return our names for their tensor `name`; None when it is another row's."""
        found = _pattern(self.theirs).fullmatch(name)
        return None if found is None else tuple(ours.format(*found.groups()) for ours in self.ours)

    def instances(self, names: Collection[str]) -> list[tuple[str, list[str]]]:
        """Return their name and ours for each layer that has the row's parameters; `names` are a model's."""
        matches = (_pattern(self.ours[0]).fullmatch(name) for name in names)
        layers = {tuple(map(int, match.groups())) for match in matches if match is not None}
        return [(self.theirs.format(*layer), [ours.format(*layer) for ours in self.ours]) for layer in sorted(layers)]


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)").replace(r"\*", ".*"))


def row(theirs: str, *ours: str, op: Op = SAME) -> Row:
    """Return a row: their tensor is ours, through `op`."""
    return Row(theirs, ours, op)


def also(theirs: str, *ours: str, op: Op = SAME) -> Row:
    """Return a row for another spelling of a tensor that some checkpoints carry."""
    return Row(theirs, ours, op, "also")


def twin(theirs: str, *ours: str) -> Row:
    """Return a row for the second name of a parameter of theirs, which some checkpoints store as well."""
    return Row(theirs, ours, SAME, "twin")


def ignore(*patterns: str) -> list[Row]:
    """Return rows for known extras: buffers and other tasks' heads."""
    return [Row(pattern, kind="ignore") for pattern in patterns]


def constant(theirs: str, op: Op) -> Row:
    """Return a row for a tensor that their model stores and ours computes: `op` makes it when saving."""
    return Row(theirs, (), op, "constant")


def zeros(*ours: str) -> list[Row]:
    """Return rows for parameters that are zero where no tensor fills them: their model never or not always has them."""
    return [Row("", (name,), kind="zeros") for name in ours]


def linear(theirs: str, ours: str, op: Op = SAME) -> list[Row]:
    """Return rows for weight and bias, a norm's too; a row without a parameter in the model is passed over."""
    return [
        row(f"{theirs}.{leaf}", f"{ours}.{leaf}", op=op if leaf == "weight" else SAME) for leaf in ("weight", "bias")
    ]


def linears(pairs: dict[str, str], theirs: str = "", ours: str = "") -> list[Row]:
    """Return the rows of `linear` for each pair of names, after common prefixes."""
    return [r for left, right in pairs.items() for r in linear(theirs + left, ours + right)]


def fused(theirs: str, ours: Sequence[str], op: Op) -> list[Row]:
    """Return rows where one tensor of theirs is several linears of ours, weights and biases alike."""
    return [row(f"{theirs}.{leaf}", *(f"{name}.{leaf}" for name in ours), op=op) for leaf in ("weight", "bias")]


@dataclass(frozen=True)
class WeightTable:
    """A family's rows, and how its checkpoints may spell names.

    Attributes:
        prefix: what a model with a head puts before the base model's names; base models leave it out.
        aliases: (regular expression, replacement) for old spellings, applied before rows are tried.
    """

    rows: tuple[Row, ...]
    prefix: str = ""
    aliases: tuple[tuple[str, str], ...] = ()

    def for_names(self, names: Sequence[str]) -> WeightTable:
        """Return the table for a file whose names are wrapped: `_orig_mod.`, `module.`, `model.`, mixtures of them.

        What torch.compile, FSDP and data parallelism put into names is left out wherever it is. A prefix that all names
        share is left out as far as more of them are known without it.
        """
        sample = names[:: max(1, len(names) // 8)]
        if all(self.find(name) is not None for name in sample):
            return self
        unwrapped = (re.sub(_WRAPPERS, "", name).split(".")[:-1] for name in names)
        shared = [
            column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*unwrapped, strict=False))
        ]
        prefixes = ["".join(f"{part}." for part in shared[:depth]) for depth in range(len(shared) + 1)]
        tables = [
            replace(self, aliases=((_WRAPPERS, ""), (f"^{re.escape(prefix)}", ""), *self.aliases))
            for prefix in prefixes
        ]
        return max(tables, key=lambda table: table._known(names))  # of equals the first

    def _known(self, names: Sequence[str]) -> int:
        found = (self.find(name) for name in names)
        return sum(match is not None and match[0].kind != "ignore" for match in found)

    def is_zero(self, name: str) -> bool:
        """Whether a parameter is zero where no tensor fills it."""
        return any(row.kind == "zeros" and _pattern(row.ours[0]).fullmatch(name) for row in self.rows)

    def spellings(self, name: str) -> list[str]:
        """Return `name` as the rows may know it: as it is, in today's spelling, with the base model's prefix added."""
        modern = name
        for pattern, replacement in self.aliases:
            modern = re.sub(pattern, replacement, modern)
        return [name, modern, self.prefix + modern] if self.prefix else [name, modern]

    def find(self, name: str) -> tuple[Row, tuple[str, ...]] | None:
        """Return the first row that knows the tensor, and our names for it; an extra only if no spelling is one of ours."""
        found = [match for spelling in self.spellings(name) if (match := self._first(spelling)) is not None]
        return min(found, key=lambda match: match[0].kind == "ignore", default=None)

    def _first(self, spelling: str) -> tuple[Row, tuple[str, ...]] | None:
        named = (row for row in self.rows if row.kind != "zeros")
        return next(((row, ours) for row in named if (ours := row.match(spelling)) is not None), None)


Assigned = list[tuple[str, Row, Sequence[str]]]  # the tensors to read, each with its row and our names


def assigned(
    table: WeightTable, names: Sequence[str], parameters: Collection[str], tied: Collection[str]
) -> tuple[Assigned, list[str]]:
    """Return which of a file's tensors are read, in the file's order, each with its row and our names; and the unused ones.

    Args:
        names: of the file's tensors. parameters: every name of the model's. tied: those that are another's.
    """
    ranks = {row: rank for rank, row in enumerate(table.rows)}
    filled: dict[str, int] = {}  # by which row
    found: Assigned = []
    unused: list[str] = []
    for name in names:
        row, ours = table.find(name) or (None, ())
        wanted = (
            [n for n in ours if n in parameters and not (row.kind in ("also", "twin") and n in tied)] if row else []
        )
        if row is None or (row.kind == "map" and not wanted):
            unused.append(name)
        elif any(
            filled.get(n, ranks[row]) >= ranks[row] for n in wanted
        ):  # else a known extra, or filled by an earlier row
            found.append((name, row, ours))
            filled.update(dict.fromkeys(ours, ranks[row]))
    return found, unused


# What training programs put around modules, and so into names: torch.compile, data parallelism, FSDP.
_WRAPPERS = r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."

# TensorFlow's names for a norm's weight and bias, in BERT checkpoints of 2018-2019.
OLD_NORM_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
