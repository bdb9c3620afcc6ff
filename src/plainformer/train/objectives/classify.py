"""Text classification: one label for a text or a pair of texts, several, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from plainformer.errors import UsageError, opt
from plainformer.train.objectives.base import Arrays, Batch, Column, Encoded
from plainformer.train.objectives.labels import LABEL, LabelObjective
from plainformer.train.objectives.reading import Reading, single, tokens_of
from plainformer.train.objectives.words import text_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig

_TEXT = Column("text", ("sentence", "sentence1", "premise", "review", "content", "question"), help="A text.")
_PAIR = Column("text_pair", ("sentence2", "hypothesis"), required=False, help="The second text of a pair.")


class TextClassification(LabelObjective):
    """A text, or a pair of texts, and its label. Long ones are cut, as the tokenizer's side says, or dropped."""

    name = "text-classification"
    head = "sequence"
    columns: ClassVar[tuple[Column, ...]] = (_TEXT, _PAIR, LABEL)

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        if self.too_long == "window":
            what = f"{opt('data.too_long', 'window')} would give each window the label of the whole text"
            raise UsageError(what, f"give {opt('data.too_long', 'cut')} or {opt('data.too_long', 'drop')}")
        self.reading = Reading.of(config, model, processor)

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a text's tokens and its label."""
        label, text, pair = self.answer(row), text_of(row), row.get("text_pair")
        whole = self.processor.encode(text, text_of(row, "text_pair") if pair is not None else None, max_length=None)
        kept, cut = self.reading.fitted(whole)
        return Encoded([{**self.reading.arrays(kept), "label": label}], cut)

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return texts padded on the right, and their labels."""
        examples = single(rows)
        targets = self.targets(examples)
        return Batch(self.reading.inputs(examples), targets, len(examples), tokens_of(examples))

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return each token; the first with the label."""
        tokens = self.reading.shown(example["input_ids"])
        return [(token, self.said_label(example) if place == 0 else "") for place, token in enumerate(tokens)]
