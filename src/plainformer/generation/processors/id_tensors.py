"""Token ids as tensors: a processor's own, on the logits' device; and those of the rows, with padding told apart.

Shapes: R rows, T positions, S positions searched, W windows, N tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor

from plainformer.errors import UsageError, opt
from plainformer.generation.processors.context import Context

PADDING = -1  # the id of a padded position: equal to no token


class Constant:
    """Numbers of a processor as a tensor, copied to each device once: a copy at each step would wait for a GPU."""

    def __init__(self, values: Any, dtype: torch.dtype = torch.long) -> None:
        self._values = torch.tensor(values, dtype=dtype)
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self._values.to(device)
        return self._copies[device]


class TokenIds(tuple[int, ...]):
    """Distinct token ids that a processor was given, also as an index into the vocabulary.

    Attributes:
        name: of the option they were given as, for messages.
    """

    def __new__(cls, ids: Iterable[int] = (), name: str = "") -> Self:
        made = super().__new__(cls, ids)
        made.name, made._known = name, {}
        return made

    name: str
    _known: dict[int, Constant]

    def known(self, logits_RV: Tensor) -> Tensor:
        """Return those inside the vocabulary: a checkpoint may count end-of-sequence tokens beyond its own head."""
        size = logits_RV.size(-1)
        if size not in self._known:
            self._known[size] = Constant([i for i in self if i < size])
        return self._known[size].on(logits_RV.device)

    def checked(self, logits_RV: Tensor) -> Tensor:
        """Return all of them. Raises UsageError where one is outside the vocabulary."""
        index = self.known(logits_RV)
        if len(index) < len(self):
            check_inside(self.name, self, logits_RV.size(-1))
        return index


def check_inside(name: str, ids: tuple[int, ...], vocabulary: int) -> None:
    """Refuse ids that the vocabulary does not have."""
    if ids and max(ids) >= vocabulary:
        outside = [i for i in ids if i >= vocabulary]
        raise UsageError(
            f"{opt(name)}: ids {outside[:5]} are outside the vocabulary, 0 to {vocabulary - 1}", "leave them out"
        )


def marked(ids_RT: Tensor, real_RT: Tensor | None) -> Tensor:
    """Return the ids, (R, T), with PADDING at padded positions."""
    return ids_RT if real_RT is None else ids_RT.masked_fill(~real_RT, PADDING)


def new_tokens(context: Context) -> Tensor:
    """Return the generated tokens, (R, steps), with PADDING where a row had ended."""
    return marked(context.ids, context.real)[:, context.prompt_columns :]


def source_tokens(context: Context) -> Tensor:
    """Return what the rows answer to, (R, S): the encoder's input, or a decoder's prompt; with PADDING."""
    if context.encoder_ids is not None:
        return marked(context.encoder_ids, context.encoder_real)
    return marked(context.ids, context.real)[:, : context.prompt_columns]


def row_lengths(context: Context) -> Tensor:
    """Return how many real tokens each row has, prompt included: (R,)."""
    if context.real is None:
        return context.ids.new_full((context.ids.size(0),), context.ids.size(1))
    return context.real.sum(-1)


def _columns(marked_RT: Tensor, vocabulary: int) -> Tensor:
    # An embedding may know more tokens than the head can pick: those, like padding, count in a spare last column.
    return marked_RT.masked_fill((marked_RT < 0) | (marked_RT >= vocabulary), vocabulary)


def seen(marked_RT: Tensor, vocabulary: int) -> Tensor:
    """Return which tokens of the vocabulary occur in each row: (R, V) bool."""
    found = marked_RT.new_zeros((marked_RT.size(0), vocabulary + 1), dtype=torch.bool)
    return found.scatter_(1, _columns(marked_RT, vocabulary), True)[:, :vocabulary]


def counts(marked_RT: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """Return how often each token of the vocabulary occurs in each row: (R, V)."""
    columns_RT = _columns(marked_RT, vocabulary)
    found = torch.zeros((marked_RT.size(0), vocabulary + 1), dtype=dtype, device=marked_RT.device)
    return found.scatter_add_(1, columns_RT, found.new_ones(columns_RT.shape))[:, :vocabulary]


def completions(marked_RT: Tensor, source_RS: Tensor, size: int, vocabulary: int) -> Tensor:
    """Return which next tokens would end an n-gram of `source_RS`, (R, V) bool; n is `size`.

    Each window of n source tokens whose first n - 1 are the row's last n - 1 bans its own last token. A window or a row's
    end that holds padding is not an n-gram.
    """
    length = marked_RT.size(1)
    if source_RS.size(1) < size or length < size - 1:
        return torch.zeros((marked_RT.size(0), vocabulary), dtype=torch.bool, device=marked_RT.device)
    windows_RWN = source_RS.unfold(1, size, 1)
    end_R1N = marked_RT[:, None, length - size + 1 :]
    equal_RW = (windows_RWN[..., :-1] == end_R1N).all(-1) & (windows_RWN != PADDING).all(-1)
    return seen(windows_RWN[..., -1].masked_fill(~equal_RW, PADDING), vocabulary)


def ban(logits_RV: Tensor, banned_RV: Tensor) -> Tensor:
    """Return the logits, with -inf where `banned_RV`, (R, V) or (V,), is true."""
    return logits_RV.masked_fill(banned_RV, -math.inf)


def only(logits_RV: Tensor, index: Tensor) -> Tensor:
    """Return logits that leave nothing but the tokens of `index`: 0 there, -inf elsewhere."""
    return torch.full_like(logits_RV, -math.inf).index_fill_(1, index, 0.0)
