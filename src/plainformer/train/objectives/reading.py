"""Texts as rows of tokens with their lengths in bounds: what objectives share that read whole texts, alone or in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from plainformer.config import TokenFrontend
from plainformer.train.objectives.base import Arrays
from plainformer.train.objectives.collate import as_ids, mask, padded
from plainformer.train.objectives.words import filler_of, known_ids, longest, shortened

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.inputs.text.encoding import Encoding
    from plainformer.inputs.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reading:
    """How a model reads texts.

    Attributes:
        frontend: of the model. filler: the id that padding has.
        limit: the longest row in tokens, None for any. too_long: what becomes of longer ones, as `data.too_long` says.
        types: whether the model tells the texts of a pair apart.
    """

    tokenizer: Tokenizer
    frontend: object
    filler: int
    limit: int | None
    too_long: str
    types: bool

    @classmethod
    def of(cls, config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> Reading:
        """Return how `model` reads, in the bounds of a run."""
        frontend, filler = model.input_frontend, filler_of(model, tokenizer)
        types = isinstance(frontend, TokenFrontend) and frontend.token_types > 1
        limit = longest(config.data.max_length, model, tokenizer)
        return cls(tokenizer, frontend, filler, limit, config.data.too_long or "cut", types)

    def fitted(self, row: Encoding) -> tuple[Encoding, int]:
        """Return a row of at most `limit` tokens, and how many were left out. Raises Dropped where long rows are dropped."""
        return shortened(row, self.limit, self.too_long, self.tokenizer)

    def arrays(self, row: Encoding) -> Arrays:
        """Return a row's ids, and its token types where the model has them. Raises as `known_ids`."""
        ids = {"input_ids": known_ids(as_ids(row.input_ids), self.frontend, self.tokenizer)}
        if self.types:
            ids["token_type_ids"] = np.asarray(row.token_type_ids, dtype=np.int64)
        return ids

    def inputs(self, examples: Sequence[Arrays]) -> dict[str, Tensor]:
        """Return what a model's forward takes of rows of tokens, each padded on the right to the longest."""
        rows = [example["input_ids"] for example in examples]
        inputs = {"input_ids": padded(rows, self.filler)}
        real = mask(rows)
        if real is not None:
            inputs["attention_mask"] = real
        if any(types_of(example).any() for example in examples):
            inputs["token_type_ids"] = padded([types_of(example) for example in examples], 0)
        return inputs

    def shown(self, ids: npt.NDArray[np.integer]) -> list[str]:
        """Return tokens for people."""
        return [self.tokenizer.id_to_token(int(token)) or f"[{token}]" for token in ids]


def types_of(example: Arrays) -> npt.NDArray[np.integer]:
    """Return an example's token types; zeros where it has none."""
    return example.get("token_type_ids", np.zeros(len(example["input_ids"]), np.int64))


def tokens_of(examples: Sequence[Arrays]) -> int:
    """Return how many tokens are not padding."""
    return sum(len(example["input_ids"]) for example in examples)


def single(rows: Sequence[Sequence[Arrays]]) -> list[Arrays]:
    """Return the one example of each row, of objectives that put no two into one."""
    return [row[0] for row in rows]
