"""Masked language modelling: tokens are hidden, and predicted from both sides (Devlin et al. 2019, BERT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plainformer.errors import CheckpointError
from plainformer.inputs.text.words import words
from plainformer.train.draws import generator
from plainformer.train.objectives.base import Arrays, Batch, Dropped, Encoded
from plainformer.train.objectives.collate import NONE, Ids, as_ids
from plainformer.train.objectives.words import TEXT, WordObjective, batch_of, text_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.inputs.text.encoding import Encoding

MASK_SHARE = 0.15
MASKED, REPLACED = 0.8, 0.1  # shares of the chosen tokens; the rest stays as it is, and is predicted too
_NO_WORD = -1


class MaskedLanguageModel(WordObjective):
    """Predict `loss.mask_share` of the tokens, chosen anew in every epoch (Liu et al. 2019, RoBERTa).

    Of those, 80 % become the mask token, 10 % another token, 10 % stay. Each token is chosen equally often, at least one in
    each text, special tokens never. With `loss.whole_words`, all tokens of a word are chosen together.

    An example is `input_ids`, and `units`: what is chosen together has the same number, special tokens have -1.
    """

    name = "masked-lm"
    head = "masked_lm"
    columns = (TEXT,)

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        mask_id: int | None = processor.mask_id
        if mask_id is None:
            what = "this tokenizer has no mask token, so nothing can be hidden"
            raise CheckpointError(what, "add mask_token to tokenizer_config.json, or train causal-lm or denoising")
        self.mask_id = mask_id
        self.known(as_ids([mask_id]))
        self.share = config.loss.mask_share or MASK_SHARE
        self.ordinary = ordinary_ids(processor, model.vocab_size)

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a text's tokens with the tokenizer's special ones; several windows unless `data.too_long` says otherwise."""
        text = text_of(row)
        rows, cut = self.fitted(self.processor.encode(text, max_length=None))
        examples: list[Arrays] = [
            {"input_ids": self.known(as_ids(one.input_ids)), "units": self.units(text, one)} for one in rows
        ]
        found = [example for example in examples if example["units"].max(initial=_NO_WORD) != _NO_WORD]
        if not found:
            raise Dropped("text without tokens")
        return Encoded(found, cut)

    def units(self, text: str, row: Encoding) -> npt.NDArray[np.int32]:
        """Return for each token the number of what it is chosen with: its word, or itself alone; -1 where it may not be."""
        special = self.processor.special_ids
        places = [i for i, token in enumerate(row.input_ids) if not row.special[i] and token not in special]
        groups = [[rank] for rank in range(len(places))]
        if self.config.loss.whole_words:
            groups = words(text, [row.offsets[i] for i in places], [row.word_ids[i] for i in places])
        found = np.full(len(row), _NO_WORD, dtype=np.int32)
        for number, group in enumerate(groups):
            found[[places[rank] for rank in group]] = number
        return found

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return rows with some of their tokens hidden; each row's choice depends on its own source of random numbers alone."""
        hidden = [[self.hide(piece, draw) for piece in row] for row, draw in zip(rows, draws, strict=True)]
        ids, labels = ([[piece[part] for piece in row] for row in hidden] for part in (0, 1))
        return batch_of(ids, labels, self.filler)

    def hide(self, piece: Arrays, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """Return what the model reads in place of a text, and the labels."""
        ids = as_ids(piece["input_ids"])
        chosen = np.flatnonzero(some(piece["units"], self.share, draw))
        labels = np.full_like(ids, NONE)
        labels[chosen] = ids[chosen]
        fate = draw.random(len(chosen))
        others = self.ordinary[draw.integers(0, len(self.ordinary), len(chosen))]
        ids = ids.copy()
        ids[chosen] = np.where(fate < MASKED, self.mask_id, ids[chosen])
        ids[chosen] = np.where((fate >= MASKED) & (fate < MASKED + REPLACED), others, ids[chosen])
        return ids, labels

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return what the model reads, and what it is to find there, with one choice of many."""
        return self.pairs(*self.hide(example, generator(self.config.seed, 0, 0)))


def some(units: npt.NDArray[np.int32], share: float, draw: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which tokens are chosen, (T,): a share of the numbers in `units`, at least one, each as likely as any other.

    How many is rounded at random, so that the share is right on average, and nearly so in each text.
    """
    last = int(units.max(initial=_NO_WORD))
    if last == _NO_WORD:
        return np.zeros(len(units), dtype=bool)
    first = int(units[units != _NO_WORD][0])  # not 0 in a part of a text
    count = int(share * (last - first + 1) + draw.random())
    taken = np.zeros(last + 2, dtype=bool)  # its last entry is that of _NO_WORD
    taken[first + draw.choice(last - first + 1, min(last - first + 1, max(1, count)), replace=False, shuffle=False)] = (
        True
    )
    return taken[units]


def ordinary_ids(tokenizer: Any, size: int | None) -> Ids:
    """Return the ids of all tokens that are not special and are among the model's `size`."""
    known = {tokenizer.token_to_id(token) for token in tokenizer.backend.get_vocab()}
    return as_ids(sorted(i for i in known - tokenizer.special_ids - {None} if size is None or i < size))
