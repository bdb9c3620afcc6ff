"""The logit lens: what the model would predict if it stopped after each layer (nostalgebraist 2020, *interpreting GPT*).

The hidden state after a layer goes through the model's final norm and its head, as only the last layer's does otherwise; the
head's own transform (dense, activation and norm of a BERT; a soft cap) is part of it. Where the norm is inside the layers
(BERT, BART) there is no final one, and the hidden state goes to the head as it is. Early layers were not trained for that:
read them as hints. The last entry is the model's own prediction.

Shapes: B batch (1), D hidden size, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plainformer.explanation.candidates import NextToken, likeliest
from plainformer.model.transformer import ModelOutput
from plainformer.tasks.base import Task

LENS_TOKENS = 3  # of each layer, unless top_k says
PREDICTING = ("causal_lm", "seq2seq_lm", "masked_lm")


@dataclass(frozen=True)
class LensLayer:
    """What a layer's hidden state says.

    Attributes:
        layer: from 0; None for the embeddings, before the first layer.
        tokens: the likeliest, best first.
        rank, probability: of the token that the model predicts in the end; rank 1 is the likeliest.
    """

    layer: int | None
    tokens: tuple[NextToken, ...]
    rank: int
    probability: float


@dataclass(frozen=True)
class Lens:
    """The reading of one position: `token` is what is there, `predicted` the model's own prediction from it."""

    position: int
    token: str
    predicted: NextToken
    layers: tuple[LensLayer, ...]


def has_lens(task: Task, item: object) -> bool:
    """Return whether there is a token to predict: the next one, or a mask in the text."""
    kind = task.config.head.kind
    if kind != "masked_lm":
        return kind in PREDICTING
    mask = task.tokenizer.mask_id
    return mask is not None and isinstance(item, str) and str(task.tokenizer.id_to_token(mask)) in item


def read_lens(task: Task, output: ModelOutput, places: Sequence[tuple[int, str]], top_k: int) -> tuple[Lens, ...]:
    """Return a reading of each place (position, token), from an output with hidden states of one row."""
    assert output.hidden_states is not None and output.logits is not None
    return tuple(
        _lens(task, output.hidden_states, output.logits[0, position], position, token, top_k)
        for position, token in places
    )


def _lens(task: Task, states: Sequence[Tensor], own_V: Tensor, position: int, token: str, top_k: int) -> Lens:
    stack, head = task.model.main, task.model.head
    x_L1D = torch.stack([state_BTD[0, position] for state_BTD in states[:-1]])[:, None]
    logits_LV = head(stack.norm(x_L1D), None, None, None)[:, 0]
    (predicted,) = likeliest(task, own_V, 1)
    layers = []
    for place, logits_V in enumerate((*logits_LV, own_V)):  # the last: the logits that the model itself gave
        p = logits_V.float().softmax(-1)[predicted.token_id].item()
        rank = 1 + int((logits_V > logits_V[predicted.token_id]).sum())
        layers.append(LensLayer(place - 1 if place else None, likeliest(task, logits_V, top_k), rank, p))
    return Lens(position, token, predicted, tuple(layers))
