"""Matrices as a checkpoint stores them, and the linears of ours that each one is: what adapters belong to. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from plainformer.checkpoint.rows import Row, Transpose, TransposeSplit, WeightTable
from plainformer.config.model import ModelConfig
from plainformer.errors import UsageError, did_you_mean, opt

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Matrix:
    """A matrix of the checkpoint that is one or more linears of ours: `theirs` without ".weight", and their names."""

    theirs: str
    ours: tuple[str, ...]
    row: Row

    @property
    def transposed(self) -> bool:
        """Return whether it is stored as (I, O), as GPT-2's are."""
        return isinstance(self.row.op, Transpose | TransposeSplit)

    @property
    def leaf(self) -> str:
        """Return the last part of its name: "q_proj"."""
        return self.theirs.rpartition(".")[2]

    @property
    def of_attention(self) -> bool:
        """Return whether it makes queries, keys, values, or attention's output."""
        return any(part in ("attention", "cross") for part in self.ours[0].split("."))


def matrices_of(config: ModelConfig, names: Collection[str], table: WeightTable) -> list[Matrix]:
    """Return every matrix of the checkpoint that is made of linears here, the head's too.

    Args:
        names: of the weights of all linears, "decoder.layers.0.attention.qkv.q.weight".
    """
    tied = {name for pair in config.tied for name in pair}
    base = table.prefix if config.head.kind == "none" else ""
    found = []
    for row in table.rows:
        for theirs, ours in row.instances(names) if row.kind == "map" and row.ours else ():
            whole = theirs.endswith(".weight") and all(name in names and name not in tied for name in ours)
            if whole:
                linears = tuple(name.removesuffix(".weight") for name in ours)
                found.append(Matrix(theirs.removeprefix(base).removesuffix(".weight"), linears, row))
    return found


def chosen(known: Sequence[Matrix], targets: Sequence[str] | None, option: str) -> list[Matrix]:
    """Return the matrices that get adapters.

    Args:
        targets: last parts of names in the checkpoint, whole names, or "all-linear"; None takes attention's.
        option: what the targets were given by.
    Raises:
        UsageError: a target that is not a linear layer of this model, or is tied to another tensor.
    """
    usable = [matrix for matrix in known if not matrix.ours[0].startswith("head.")]
    if targets is None:
        return [matrix for matrix in usable if matrix.of_attention]
    asked = [targets] if isinstance(targets, str) else list(targets)
    if ALL_LINEAR in asked:
        return usable
    for target in asked:
        if not any(is_meant(matrix.theirs, target) for matrix in usable):
            leaves = sorted({matrix.leaf for matrix in usable})
            what = f"{opt(option, target)} is not a linear of this model's layers"
            raise UsageError(what, did_you_mean(target, leaves) or f"give some of {', '.join(leaves)}")
    return [matrix for matrix in usable if any(is_meant(matrix.theirs, target) for target in asked)]


def check_rank(rank: int, matrix: Matrix, outputs: int, inputs: int, option: str) -> None:
    """Refuse a rank that is more than a matrix has."""
    if rank > min(inputs, outputs):
        what = f"{opt(option, rank)} is more than {matrix.theirs} has: it is {outputs} x {inputs}"
        raise UsageError(what, f"give {min(inputs, outputs)} or less")


def is_meant(theirs: str, target: str) -> bool:
    """Return whether a target is this matrix: by its whole name, or the end of it."""
    return theirs == target or theirs.endswith(f".{target}")
