"""When each token was said: Whisper's cross-attention, and the cheapest path through it (dynamic time warping).

Some heads of the decoder look at the sound of the word that they write; a checkpoint's generation_config.json names them
(`alignment_heads`). Their probabilities, each position of the sound normalised over the tokens and smoothed by a median, are
the gain of saying a token at a position. The monotone path of the greatest gain says when each token begins (Sakoe & Chiba
1978). Times equal those of transformers (5.23, `generation_whisper.py`) for a single clip.

Shapes: B clips, T tokens, S positions of the encoder's output (20 ms), D hidden size, N heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError, UsageError, opt
from plainformer.model.attention import CrossAttention, split_heads
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer
from plainformer.tasks.writing.checkpoint_settings import FILE

DIAGONAL, UP, LEFT = 0, 1, 2  # from which neighbour a cell of the path was reached: previous token, position, or both


@dataclass(frozen=True)
class Aligner:
    """Finds the times of tokens.

    Attributes:
        heads: (layer, head) of the decoder's cross-attention. width: positions of the median, an odd number.
    """

    model: Transformer
    heads: tuple[tuple[int, int], ...]
    width: int = 7

    @classmethod
    def read(cls, model: Transformer, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Aligner:
        """Read generation_config.json, and of config.json the median's width."""
        heads, width = settings.get("alignment_heads"), config.get("median_filter_width", 7)
        if heads is None:
            what = f"this checkpoint does not say which heads follow the sound: no alignment_heads in its {FILE}"
            raise UsageError(what, f"leave {opt('word_timestamps')} out, or add the list of its published checkpoint")
        if model.pipe is not None:
            what = f"{opt('word_timestamps')} looks into all layers, and other processes have some of them"
            raise UsageError(what, "leave it out, or run without stages")
        stack = model.config.main_stack
        limits = stack.num_layers, stack.num_heads
        pairs = heads if isinstance(heads, list) else []
        fits = all(
            isinstance(pair, list) and len(pair) == 2 and all(map(is_below, pair, limits)) for pair in pairs
        )  # fmt: skip
        if not pairs or not fits:
            what = f"{FILE}: alignment_heads={heads!r:.80} are not [layer, head] pairs of {limits[0]} layers, {limits[1]} heads"
            raise CheckpointError(what, "correct the entry")
        if not is_whole(width, 1) or width % 2 == 0:
            raise CheckpointError(f"config.json: median_filter_width={width!r} is not an odd number", "usually 7")
        return cls(model, tuple((layer, head) for layer, head in pairs), width)

    def positions(
        self,
        encoder_output: StackOutput,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        heard: Sequence[int],
    ) -> list[list[int]]:
        """Return for each token of each clip the position at which it begins.

        Args:
            prompts: what the decoder had before its text. texts: what it wrote, the end token included.
            heard: how many positions are the clip's own sound; the path does not leave them.
        """
        weights_BNTS = self._weights(encoder_output, prompts, texts)
        gains = []
        for row, (prompt, ids) in enumerate(zip(prompts, texts, strict=True)):
            # A token begins where the step that read it looked; the last, usually the end token, was never read.
            own_NTS = weights_BNTS[row, :, len(prompt) : len(prompt) + len(ids) - 1, : max(heard[row], 1)]
            gains.append(self._gain(own_NTS))
        paths = iter(cheapest_paths([-gain for gain in gains if len(gain)]))
        found = [next(paths) if len(gain) else [0] for gain in gains]
        return [[*path, path[-1]] if len(ids) > 1 else [0] for path, ids in zip(found, texts, strict=True)]

    def _weights(
        self, encoder_output: StackOutput, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return the heads' probabilities, (B, N, T, S): all clips, prompts and texts through the decoder at once."""
        rows = [[*prompt, *ids[:-1]] for prompt, ids in zip(prompts, texts, strict=True)]
        longest = max(map(len, rows))
        # What follows a text changes nothing before it: the decoder looks back only.
        ids_BT = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows], device=self.model.device)
        stack = self.model.main
        blocks = {layer: stack.layers[stack.config.layer_ids[layer]] for layer, _ in self.heads}
        watches = {layer: _Watch(block.get_submodule("cross")) for layer, block in blocks.items()}
        if encoder_output.kept is None:
            encoder_output = replace(encoder_output, kept={})
        assert encoder_output.kept is not None
        keys = encoder_output.kept
        try:
            with torch.inference_mode():
                self.model.states(decoder_input_ids=ids_BT, encoder_output=encoder_output)
                by_layer = {
                    layer: watch.probabilities(keys[layer][0], self._of(layer)) for layer, watch in watches.items()
                }
        finally:
            for watch in watches.values():
                watch.remove()
        return torch.stack([by_layer[layer][:, self._of(layer).index(head)] for layer, head in self.heads], dim=1)

    def _of(self, layer: int) -> list[int]:
        return [head for own, head in self.heads if own == layer]

    def _gain(self, weights_NTS: Tensor) -> npt.NDArray[np.float64]:
        """Return (T, S): how well each position of the sound fits each token."""
        if not weights_NTS.size(1):
            return np.empty((0, 0))
        std, mean = torch.std_mean(weights_NTS, dim=1, keepdim=True, unbiased=False)
        smooth_NTS = running_median((weights_NTS - mean) / std, self.width)
        gain: npt.NDArray[np.float64] = smooth_NTS.mean(0).cpu().double().numpy()
        return gain


def is_below(value: Any, limit: int) -> bool:
    """Whether a value is a whole number from 0 up to and without the limit."""
    return is_whole(value, 0) and value < limit


class _Watch:
    """Keeps the queries of a layer's cross-attention while the decoder runs."""

    def __init__(self, cross: nn.Module) -> None:
        assert isinstance(cross, CrossAttention)
        self.cross, self.queries_BTD = cross, torch.empty(0)
        self.hook = cross.q.register_forward_hook(self._queries)

    def _queries(self, _: Any, __: Any, output: Tensor) -> None:
        self.queries_BTD = output

    def probabilities(self, k_BHSE: Tensor, heads: list[int]) -> Tensor:
        """Return what some heads attended to, (B, n, T, S), fp32."""
        cross = self.cross
        q_BHTE = split_heads(self.queries_BTD, cross.heads)
        if cross.gather is None:
            q_BHTE, k_BHSE = q_BHTE[:, heads], k_BHSE[:, heads]
        p_BHTS = (q_BHTE * cross.scale @ k_BHSE.transpose(-1, -2)).softmax(-1, dtype=torch.float32)
        return p_BHTS if cross.gather is None else cross.gather(p_BHTS)[:, heads]

    def remove(self) -> None:
        """Watch no more."""
        self.hook.remove()


def running_median(x: Tensor, width: int) -> Tensor:
    """Return the median of `width` neighbours along the last dimension, mirrored at its ends; NaN counts as the largest.

    By a network of comparisons of whole tensors, up to the middle: many times as fast as sorting each window.
    """
    half, size = width // 2, x.size(-1)
    if size <= half:
        return x
    padded = torch.nn.functional.pad(x, (half, half), mode="reflect")
    columns = [padded[..., i : i + size] for i in range(width)]
    for last in range(width - 1, half - 1, -1):  # the largest of those that are left goes to the end
        for i in range(last):
            low, high = columns[i], columns[i + 1]
            columns[i], columns[i + 1] = torch.fmin(low, high), torch.maximum(low, high)
    return columns[half]


def cheapest_paths(costs: Sequence[npt.NDArray[np.float64]]) -> list[list[int]]:
    """Return for each cost matrix, (T, S), the column at which the cheapest monotone path enters each row.

    Cells of an antidiagonal depend on the two before it alone, so that all of them, of all matrices, are computed at once.
    Sums are kept in fp32, and ties decided, as in the reference.
    """
    if not costs:
        return []
    rows, columns = (max(cost.shape[axis] for cost in costs) for axis in (0, 1))
    # Skewed: the cell of row i and column j is in row i of diagonal i + j. Outside, nothing may pass.
    skewed_KBT = np.full((rows + columns - 1, len(costs), rows), np.inf)
    for b, cost in enumerate(costs):
        for i in range(len(cost)):
            skewed_KBT[i : i + cost.shape[1], b, i] = cost[i]
    before = np.full((len(costs), rows + 1), np.inf, np.float32)  # of diagonals, a row above the first included
    before[:, 0] = 0
    last = np.full_like(before, np.inf)
    steps_KBT = np.empty(skewed_KBT.shape, np.int8)
    for k, cost_BT in enumerate(skewed_KBT):
        both, up, left = before[:, :-1], last[:, :-1], last[:, 1:]
        diagonal = (both < up) & (both < left)
        above = ~diagonal & (up < both) & (up < left)
        steps_KBT[k] = np.where(diagonal, DIAGONAL, np.where(above, UP, LEFT))
        made = np.full_like(before, np.inf)
        made[:, 1:] = cost_BT + np.where(diagonal, both, np.where(above, up, left))
        before, last = last, made
    return [_entered(steps_KBT[:, b], *cost.shape) for b, cost in enumerate(costs)]


def _entered(steps_KT: npt.NDArray[np.int8], rows: int, columns: int) -> list[int]:
    """Follow a path back from its last cell; return the column at which it enters each row."""
    steps = steps_KT.tolist()
    entered, i, j = [0] * rows, rows - 1, columns - 1
    while i >= 0:
        step = steps[i + j][i] if j >= 0 else UP
        if step == LEFT:
            j -= 1
            continue
        entered[i] = j
        i, j = i - 1, j - (step == DIAGONAL)
    return entered
