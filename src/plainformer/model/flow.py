"""What goes along with the hidden states through the layers of a stack: masks, rotations, the cache, where padding was.

Shapes: B batch, T positions (queries), S keys, D hidden size, H heads, K key-value heads, E channels of a head, L layers,
P positions of a shared prefix.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from plainformer.model.documents import Documents
from plainformer.model.packing import Packing
from plainformer.model.position import Rotation


class Room(NamedTuple):
    """A layer's buffers, (B, K, capacity, E): the first `held` positions are in use, the caller writes the newest of them.

    `shared`: the prefix that neighbouring rows share, which comes before, (B / copies, K, P, E).
    """

    keys: Tensor
    values: Tensor
    held: int
    shared: tuple[Tensor, Tensor] | None


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a key-value cache; `generation/cache/cache.py` has the real one.

    `exact`: whether `update` returns the very keys and values that it was given.
    """

    length: int
    copies: int
    exact: bool

    def update(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new positions; return all that the layer holds, (B, K, S, E), the newest last."""

    def room(self, layer: int, rows: int, count: int) -> Room | None:
        """Return room for `count` new positions, for a caller that writes them itself; None, and no change, if `update` must."""

    def advance(self, count: int) -> None:
        """Count new positions, which all layers that are here have got."""

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the keys and values that every `copies` rows share before their own: (B / copies, K, P, E)."""

    def cross(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the keys and values of the encoder's output for this layer, if they were stored."""

    def store_cross(self, layer: int, k_BKSE: Tensor, v_BKSE: Tensor) -> None:
        """Keep the keys and values of the encoder's output for the next steps."""


@dataclass
class Mask:
    """Which keys a query may see.

    Attributes:
        bias: added to the scores, (B or 1, H or 1, T or 1, S). causal: no later keys, which needs no tensor.
        looks_back: whether no query sees a later key. plain: whether it hides nothing else, and adds nothing.
        window: how many keys a query sees, the last of which is its own; None: all.
        blocks: masks of blocks of queries where `bias` is None, by the number of heads that share keys.
    """

    bias: Tensor | None = None
    causal: bool = False
    looks_back: bool = False
    plain: bool = False
    window: int | None = None
    blocks: dict[int, Tensor] = field(default_factory=dict)

    def of(self, queries: slice) -> Mask:
        """Return the mask of some of the queries. Of a plain causal one, they are the last: these see every key."""
        if self.plain:
            return Mask(window=self.window)
        if self.bias is None or self.bias.size(-2) == 1:
            return Mask(self.bias, window=self.window)
        return Mask(self.bias[..., queries, :], window=self.window)

    def up_to(self, length: int) -> Mask:
        """Return the mask of a shorter sequence, where what it hides or adds depends on distances alone."""
        return self if self.bias is None else replace(self, bias=self.bias[..., :length, :length])


class Attentions(NamedTuple):
    """One layer's attention probabilities, (B, H, T, S) each: within the sequence, and to the encoder's output.

    None where they were not asked for, or do not exist.
    """

    own: Tensor | None = None
    cross: Tensor | None = None


@dataclass
class Flow:
    """What goes along with the hidden states through the layers of a stack; no layer changes it.

    Attributes:
        masks, rotations: one for each layer.
        length: T, the number of positions of this call.
        real_BS: True for real positions, False for padding; None without padding.
        documents: where the documents of packed rows are; None where a row is one. With `runs`, attention goes through
            these, and the masks are those of the longest document.
        packing: what rows of a padded batch were packed by, which are `documents` then; None where nothing was.
        cache: holds earlier positions; None in training, and where nothing is cached.
        encoder_BSD, encoder_mask: the encoder's output, and which of it may be attended to.
        encoder_kept: its keys and values by layer, kept beyond this call; see `StackOutput.kept`.
        relative: the table of relative positions, of models whose scores depend on it.
        each: whether every layer's output is wanted; else several layers may run as one.
        only: a layer (the last), and the positions that are wanted of its output; that layer leaves out the others.
    """

    masks: list[Mask]
    rotations: list[Rotation | None]
    length: int
    real_BS: Tensor | None = None
    documents: Documents | None = None
    packing: Packing | None = None
    cache: Cache | None = None
    encoder_BSD: Tensor | None = None
    encoder_mask: Mask = field(default_factory=Mask)
    encoder_kept: dict[int, tuple[Tensor, Tensor]] | None = None
    head_mask_LH: Tensor | None = None
    cross_head_mask_LH: Tensor | None = None
    relative: Tensor | None = None
    output_attentions: bool = False
    each: bool = True
    only: tuple[int, slice] | None = None

    def wanted(self, layer: int) -> slice | None:
        """Return the positions that are wanted of a layer's output; None for all."""
        return self.only[1] if self.only is not None and self.only[0] == layer else None

    def residual(self, x_BTD: Tensor, layer: int) -> Tensor:
        """Return those positions of a layer's input that its output is added to: the wanted ones, usually all."""
        return self.taken(x_BTD, layer)

    def taken(self, x: Tensor, layer: int, dim: int = 1) -> Tensor:
        """Return what is wanted of a layer, usually all: positions of a dimension; of packed rows, one of each.

        Those are rows of one position again, as they are where a row runs alone: what is done with them gives the same bits.
        """
        wanted = self.wanted(layer)
        if wanted is None:
            return x
        if self.packing is not None:
            return x.index_select(dim, self.packing.ends(wanted)).transpose(0, dim)
        return x[(slice(None),) * dim + (wanted,)]

    def unpacked(self, x_BTD: Tensor) -> Tensor:
        """Return hidden states as rows of the batch, with padding where it was: of packed rows (1, N, D) → (B, T, D).

        Of one position of each, (B, 1, D), only the order changes.
        """
        if self.packing is None:
            return x_BTD
        return self.packing.unpack_ends(x_BTD.transpose(0, 1)) if self.only is not None else self.packing.unpack(x_BTD)
