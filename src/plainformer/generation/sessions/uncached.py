"""Generation without a cache: every step runs the whole sequence again. It is slow, and what a cache must agree with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.prompt import Prompt, take_encoded
from plainformer.generation.sessions.session import Session
from plainformer.model.transformer import ModelOutput, Transformer


class UncachedSession(Session):
    """A session that keeps only tokens. Its cache stays empty."""

    keeps_cache = False

    def __init__(self, model: Transformer, prompt: Prompt, **shared: Any) -> None:
        super().__init__(model, prompt, **{**shared, "prefill_chunk": None})

    def _new_cache(self, kind: str, budget: int) -> KeyValueCache:
        cache = KeyValueCache(self.model.config, len(self.prompt), 1, dtype=self.model.dtype, device=self.ids.device)
        cache.layers.clear()
        return cache

    def prefill(self) -> Tensor:
        logits_RV = super().prefill()
        if self.encoded is not None and self.copies > 1:  # a cache would share the encoder's states
            index_R = torch.arange(len(logits_RV), device=self.ids.device) // self.copies
            self.encoded = take_encoded(self.encoded, index_R)
        return logits_RV

    def forward(self, tokens_RT: Tensor, real_RS: Tensor | None, keep: int = 1, **asked: bool) -> ModelOutput:
        return super().forward(self.ids[:, : self.length], real_RS, keep, **asked)

    def finished_cache(self) -> None:
        """Return None: there is nothing to continue from."""
