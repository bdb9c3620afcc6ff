"""A decoding step of rows of different lengths, whose keys and values lie in blocks of one buffer.

What is computed for a row depends on its own tokens alone, and is what `FastStack` computes for a row with a cache of its own.

Shapes: R rows, one token each, V vocabulary, N blocks, L layers, K key-value heads, S positions of a block, E channels of a head,
D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plainformer.model.fast.compiled import address, paths
from plainformer.model.fast.describe import HOOKS_OF_ALL
from plainformer.model.fast.seen import Steps
from plainformer.model.fast.step import FastStack
from plainformer.model.frontend import TokenEmbedding
from plainformer.model.transformer import Transformer


class BlockSteps:
    """Steps of a model's rows in `numbers`, (N, L, 2, K, S, E): keys and values in blocks."""

    def __init__(self, model: Transformer, numbers: Tensor) -> None:
        self.model, self.numbers = model, numbers
        assert isinstance(model.decoder, FastStack)
        self.stack, config = model.decoder, model.decoder.config
        block, layer, part, head = (4 * stride for stride in numbers.stride()[:4])
        self.template: Any = Steps(config.num_layers).records
        self.template["layer"] = config.layer_ids
        seen = self.template["own"]
        seen["window"] = [window or 0 for window in config.windows]
        own = seen["own"]
        own["keys"] = numbers.data_ptr() + layer * np.arange(config.num_layers)
        own["values"] = own["keys"] + part
        own["block"], own["block_bytes"], own["head_bytes"] = numbers.size(4), block, head

    def is_usual(self) -> bool:
        """Return whether a step can be one call now: all layers are ones that the kernel knows, and nobody watches."""
        stack, joined = self.stack, self.stack.follow()
        parts: list[nn.Module] = [self.model, stack, stack.norm, *stack.frontend.modules(), *self.model.head.modules()]
        hooked = any(each._forward_hooks or each._forward_pre_hooks for each in parts) or any(HOOKS_OF_ALL)
        return joined.known and not hooked and not joined.watch.is_hooked() and not self.model.training

    def __call__(
        self, tokens: Sequence[int], lengths: Sequence[int], blocks: Sequence[Sequence[int]], module: ModuleType
    ) -> Tensor:
        """Append one token to each row; return the logits of the next, (R, V). `lengths`: without the new token."""
        paths.take(self, module)
        stack, frontend = self.stack, self.stack.frontend
        assert isinstance(frontend, TokenEmbedding)
        positions_R1 = torch.tensor(lengths)[:, None]
        x_R1D = frontend(frontend.embed(torch.tensor(tokens)[:, None]), positions_R1, None, None)
        steps = Steps(len(self.template))
        steps.records[:] = self.template
        rotations = [rotary(positions_R1, x_R1D.dtype, positions_R1 + 1) for rotary in stack.rotaries]
        steps.put_rotations([None if index is None else rotations[index] for index in stack.rope_of_layer])
        held_R = np.array(lengths) + 1
        table_RN = np.zeros((len(blocks), max(map(len, blocks))), np.int64)
        for row, own in enumerate(blocks):
            table_RN[row, : len(own)] = own
        keys = steps.records["own"]["own"]
        keys["lengths"], keys["table"], keys["width"] = address(held_R), address(table_RN), table_RN.shape[1]
        x_R1D = stack.run_kernel(x_R1D, steps, module)
        return self.model.head.score(stack.norm(x_R1D))[:, -1]


def way_of(model: Transformer, cache: object) -> ModuleType | None:
    """Return the kernels that a cache's sequence is computed with in this thread; None where that is done by modules."""
    return paths.of.get(cache) if isinstance(model.decoder, FastStack) else None
