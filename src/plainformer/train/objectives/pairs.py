"""What objectives share that train an encoder-decoder: a source that is read, a target that is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plainformer.model.inputs import shift_right
from plainformer.train.objectives.base import Arrays, Batch
from plainformer.train.objectives.collate import NONE, Ids, label_targets, mask, padded
from plainformer.train.objectives.words import WordObjective


class PairObjective(WordObjective):
    """An objective of encoder-decoders: the decoder reads the target one place to the right, and is to write it."""

    def pair_batch(self, sources: Sequence[Ids], targets: Sequence[Ids], labelled: Sequence[int]) -> Batch:
        """Return sources and targets as tensors.

        The decoder needs no mask: padding is after each target, where a causal decoder does not look, and has no label.

        Args:
            sources, targets: ids with special tokens. labelled: how many of each target's first tokens are labels.
        """
        labels = [ids.copy() for ids in targets]
        for row, count in zip(labels, labelled, strict=True):
            row[count:] = NONE
        written = padded(targets, self.filler)
        real = mask(targets)
        shifted = shift_right(written, self.model_config, real if real is not None else torch.ones_like(written))
        inputs = {"input_ids": padded(sources, self.filler), "decoder_input_ids": shifted}
        read = mask(sources)
        if read is not None:
            inputs["attention_mask"] = read
        chosen = label_targets(labels)
        return Batch(inputs, chosen, len(chosen["labels"]), sum(map(len, sources)) + sum(map(len, targets)))

    def shown_pair(self, source: Ids, target: Ids, labelled: int) -> list[tuple[str, str]]:
        """Return the source with nothing to learn, then what the decoder reads with what it is to write."""
        batch = self.pair_batch([source], [target], [labelled])
        read = batch.inputs["decoder_input_ids"][0].tolist()
        labels = [*target[:labelled].tolist(), *[NONE] * (len(target) - labelled)]
        return [(self.said(i), "") for i in source] + [
            (self.written(i), self.written(label)) for i, label in zip(read, labels, strict=True)
        ]

    def written(self, token_id: int) -> str:
        """Return a token of the target for people, whose vocabulary may be another (Marian); "" for NONE."""
        return "" if token_id == NONE else self.processor.output.id_to_token(int(token_id)) or f"[{token_id}]"


def pair_length(example: Arrays) -> int:
    """Return how many positions a source and its target take."""
    return len(example["input_ids"]) + len(example["target_ids"])
