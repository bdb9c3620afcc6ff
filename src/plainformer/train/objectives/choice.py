"""Multiple choice: a question, several endings, and which of them is right (Zellers et al. 2018, SWAG).

Shapes: B batch, C classes (here an example's choices), N choices of all examples, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from plainformer.errors import UsageError, a_type
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped, Encoded
from plainformer.train.objectives.classify import TextClassification
from plainformer.train.objectives.collate import padded
from plainformer.train.objectives.labels import LABEL, METRICS, named
from plainformer.train.objectives.reading import single, tokens_of, types_of
from plainformer.train.objectives.words import text_of

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class MultipleChoice(TextClassification):
    """Each choice is read after the text, as a pair; a softmax over the choices' scores says which is right.

    Examples may have different numbers of choices. `label` is the right one's number from 0, its letter, or its text.
    """

    name = "multiple-choice"
    head = "choice"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("text", ("question", "context", "premise", "sent1", "ctx"), help="What the choices follow."),
        Column("choices", ("endings", "options", "answers"), help="A list of texts."),
        LABEL,
    )

    @classmethod
    def labels_of(cls, config: TrainConfig, rows: Iterable[Mapping[str, Any]]) -> None:  # type: ignore[override]
        """Return None: a head of choices gives one number for each."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.problem, self.metrics = "single_label", METRICS["single_label"]  # type: ignore[misc]
        self.distils = False  # a choice that an example lacks has no probability to compare

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return the tokens of all pairs, one after the other, with the length of each and the right one's number."""
        text, choices = text_of(row), row.get("choices")
        if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
            raise UsageError(
                f"the column 'choices' holds {a_type(choices)}, not a list of texts", "map it: data.columns"
            )
        if len(choices) < 2:
            raise Dropped("fewer than two choices")
        label = right_choice(row.get("label"), list(choices))
        pairs, cut = [], 0
        for choice in choices:
            pair = self.processor.encode(text, choice, max_length=None)
            kept, left_out = self.reading.fitted(pair)
            pairs.append(self.reading.arrays(kept))
            cut += left_out
        return Encoded(
            [
                {
                    "input_ids": np.concatenate([pair["input_ids"] for pair in pairs]),
                    "token_type_ids": np.concatenate([types_of(pair) for pair in pairs]),
                    "lengths": np.array([len(pair["input_ids"]) for pair in pairs], dtype=np.int64),
                    "label": np.array([label], dtype=np.int64),
                }
            ],
            cut,
        )

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return the choices of all examples as (1, N, T), and where each example's are among them."""
        examples = single(rows)
        inputs = self.reading.inputs([pair for example in examples for pair in _pairs(example, self.reading.types)])
        counts = [len(example["lengths"]) for example in examples]
        starts = np.cumsum([0, *counts[:-1]])
        places = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        targets = {**self.targets(examples), "places": padded(places, -1)}
        return Batch({name: x[None] for name, x in inputs.items()}, targets, len(examples), tokens_of(examples))

    def scores(self, model: Any, batch: Batch) -> Tensor:
        """Return the scores of each example's choices, (B, C); minus infinity where it has fewer."""
        scores_N, places_BC = super().scores(model, batch)[0], batch.targets["places"]
        return torch.where(places_BC >= 0, scores_N[places_BC.clamp_min(0)], -torch.inf)

    def losses(self, scores_BC: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the loss of each example, (B,); what is smoothed goes to the choices that there are."""
        logs_BC, real_BC = scores_BC.log_softmax(-1), scores_BC > -torch.inf
        right_B = -logs_BC.gather(-1, labels[:, None])[:, 0]
        if smoothing == 0:
            return right_B
        even_B = -torch.where(real_BC, logs_BC, 0.0).sum(-1) / real_BC.sum(-1)
        return (1 - smoothing) * right_B + smoothing * even_B

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return the tokens of each choice; its first says whether it is the right one."""
        found = []
        for number, pair in enumerate(_pairs(example, self.reading.types)):
            said = "right" if number == int(example["label"][0]) else "wrong"
            tokens = self.reading.shown(pair["input_ids"])
            found += [(token, said if place == 0 else "") for place, token in enumerate(tokens)]
        return found


def _pairs(example: Arrays, types: bool) -> list[Arrays]:
    ends = np.cumsum(example["lengths"])[:-1]
    names = ("input_ids", "token_type_ids") if types else ("input_ids",)
    columns = [np.split(example[name], ends) for name in names]
    return [dict(zip(names, parts, strict=True)) for parts in zip(*columns, strict=True)]


def right_choice(value: Any, choices: list[str]) -> int:
    """Return the number of the right choice."""
    if value is None or value == "":
        raise Dropped("no label")
    name = named(value)
    if name.isdecimal() and int(name) < len(choices):
        return int(name)
    if name in choices:
        return choices.index(name)
    if len(name) == 1 and name.lower() in _LETTERS[: len(choices)]:
        return _LETTERS.index(name.lower())
    fix = f"give a number from 0 to {len(choices) - 1}, a letter, or the choice's own text"
    raise UsageError(f"the label {name!r} is none of {len(choices)} choices", fix)
