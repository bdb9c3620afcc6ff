"""What a step gives its layers, as records that kernels read (`records.STEP`): where keys are, masks, rotations.

Shapes: R rows, one token each, L layers, S positions, H heads, K key-value heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plainformer.model.fast.compiled import address, as_array
from plainformer.model.fast.records import STEP
from plainformer.model.flow import Flow, Mask, Room
from plainformer.model.position import Rotation


class Steps:
    """The `STEP` of some layers; `kept`: what its addresses are of."""

    def __init__(self, count: int) -> None:
        self.records: Any = np.zeros(count, STEP)
        self.kept: list[Any] = []

    @property
    def address(self) -> int:
        return address(self.records)

    def put_rooms(self, rooms: Sequence[Room]) -> None:
        """Tell where the rows' keys are, and the newest positions are to be written."""
        own = self.records["own"]["own"]
        self._put_keys(own, [room.keys for room in rooms], [room.values for room in rooms])
        own["held"] = [room.held for room in rooms]
        if rooms[0].shared is not None:
            self._put_keys(self.records["own"]["shared"], *zip(*(room.shared for room in rooms), strict=True))

    def put_encoder(self, pairs: Sequence[tuple[Tensor, Tensor]], mask: Mask) -> None:
        """Tell where the encoder's keys and values are."""
        pairs = [(_whole(keys), _whole(values)) for keys, values in pairs]
        self._put_keys(self.records["encoder"]["own"], *zip(*pairs, strict=True))
        self.kept.append(pairs)
        self._put_bias(self.records["encoder"], mask, pairs[0][0].size(2))

    @staticmethod
    def _put_keys(to: Any, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        to["keys"] = [x.data_ptr() for x in keys]
        to["values"] = [x.data_ptr() for x in values]
        to["rows"] = keys[0].size(0)
        to["held"] = to["block"] = [x.size(2) for x in keys]
        to["block_bytes"] = [4 * x.stride(0) for x in keys]
        to["head_bytes"] = [4 * x.stride(1) for x in keys]

    def put_rotations(self, rotations: Sequence[Rotation | None]) -> None:
        """Tell each layer its cosines and sines, (2, R or 1, E)."""
        layers: dict[int, list[int]] = {}
        for number, rotation in enumerate(rotations):
            layers.setdefault(id(rotation), []).append(number)
        for numbers in layers.values():
            rotation = rotations[numbers[0]]
            if rotation is not None:
                turn = as_array(torch.stack([part[:, 0, 0] for part in rotation]))
                some = slice(None) if len(layers) == 1 else numbers
                for name, value in (("turn", address(turn)), ("turns", turn.shape[1]), ("turned", turn.shape[2])):
                    self.records[name][some] = value
                self.kept.append(turn)

    def put_masks(self, flow: Flow, numbers: range, windows: Sequence[int | None], hides_only_far: bool) -> None:
        """Tell each layer what it sees: all, the last positions of a window, or what a bias leaves it."""
        if all(flow.masks[layer].bias is None for layer in numbers):
            return
        for number, layer in enumerate(numbers):
            mask, window, seen = flow.masks[layer], windows[layer], self.records["own"][number]
            if mask.bias is not None and window is not None and hides_only_far:
                seen["window"] = window
            elif mask.bias is not None:
                self._put_bias(
                    self.records["own"][number : number + 1], mask, int(seen["own"]["held"] + seen["shared"]["held"])
                )

    def _put_bias(self, to: Any, mask: Mask, held: int) -> None:
        """Tell what is added to the scores, (R, H or 1, S), for the last `held` positions."""
        if mask.bias is None:
            return
        bias = mask.bias if mask.bias.dim() == 4 else mask.bias[None, None]
        array = as_array(bias[:, :, -1, -held:])
        self.kept.append(array)
        to["bias"], to["bias_rows"], to["bias_heads"] = address(array), array.shape[0], array.shape[1]


def _whole(x: Tensor) -> Tensor:
    """Return a tensor without holes, at an address for numbers."""
    return torch.from_numpy(as_array(x))
