"""Causal language modelling: each token is to be predicted from those before it (Radford et al. 2019, GPT-2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plainformer.errors import CheckpointError
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.train.objectives.base import Arrays, Batch, Dropped, Encoded
from plainformer.train.objectives.collate import NONE, Ids, as_ids
from plainformer.train.objectives.words import TEXT, WordObjective, batch_of, spans, text_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig


class CausalLanguageModel(WordObjective):
    """Predict the next token of a document, its end included, so that the model learns to stop.

    Every token of a document but the first is a label once. Packed, documents are cut where rows end, and nothing is left
    out: the piece knows the token after it. Otherwise `data.max_length` and `data.too_long` say what becomes of long ones.

    An example is `input_ids`; `next`, the token after them, where there is one; and `seen`, how many of its first labels the
    window before it has already.
    """

    name = "causal-lm"
    head = "causal_lm"
    columns = (TEXT,)
    packs = True

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        self.end_id = end_of_text(processor, model)

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a document's tokens, between the tokenizer's beginning token, if it has one, and the end token."""
        text = text_of(row)
        encoding = self.processor.encode(text, max_length=None).once(self.processor.bos_id, self.processor.eos_id)
        if all(encoding.special):
            raise Dropped("text without tokens")
        ids = encoding.input_ids
        return self.examples(self.known(as_ids(ids if ids[-1] == self.end_id else [*ids, self.end_id])))

    def examples(self, ids: Ids) -> Encoded:
        """Return a document as one example, or as several windows where it is too long for a row of its own."""
        if self.config.batches.packed or self.limit is None or len(ids) <= self.limit:
            return Encoded([_example(ids, 0, len(ids), 0)])
        how = self.too_long
        if how == "drop":
            raise Dropped("longer than max_length")
        if how == "cut":
            return Encoded([_example(ids[: self.limit], 0, self.limit, 0)], cut=len(ids) - self.limit)
        shared = self.config.data.stride
        found = spans(len(ids) - 1, self.limit, shared)  # the last token is only a label
        return Encoded([_example(ids, start, stop, shared if start else 0) for start, stop in found])

    def part(self, example: Arrays, start: int, stop: int | None) -> Arrays:
        """Return a piece of a document and the token after it."""
        ids = example["input_ids"]
        if stop is None or stop >= len(ids):
            return {**example, "input_ids": ids[start:]}
        return {**example, "input_ids": ids[start:stop], "next": ids[stop : stop + 1]}

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return rows of pieces; each piece attends to itself alone."""
        ids = [[as_ids(piece["input_ids"]) for piece in row] for row in rows]
        return batch_of(ids, [[_labels(piece) for piece in row] for row in rows], self.filler)

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return each token with the next."""
        return self.pairs(as_ids(example["input_ids"]), _labels(example))


def _example(ids: Ids, start: int, stop: int, seen: int) -> Arrays:
    return {"input_ids": ids[start:stop], "next": ids[stop : stop + 1], "seen": as_ids([seen])}


def _labels(piece: Arrays) -> Ids:
    """Return the token after each token of a piece; of the last one, where it is known."""
    ids, after = as_ids(piece["input_ids"]), as_ids(piece["next"])
    labels = np.concatenate((ids[1:], after if len(after) else as_ids([NONE])))
    labels[: int(piece["seen"][0])] = NONE
    return labels


def end_of_text(tokenizer: Tokenizer, config: ModelConfig) -> int:
    """Return the id of the token that ends a text: the tokenizer's, else the model's.

    Raises:
        CheckpointError: neither names one, so the model could never learn to stop.
    """
    known = (tokenizer.eos_id, *config.eos_ids, tokenizer.sep_id)
    found = next((i for i in known if i is not None), None)
    if found is None:
        what = "neither the tokenizer nor config.json names an end token: a model trained without one never stops"
        raise CheckpointError(what, "add eos_token to tokenizer_config.json, or eos_token_id to config.json")
    return found
