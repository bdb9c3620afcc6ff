"""Generation without a cache: every step runs the whole sequence again. It is slow, and what a cache must agree with.

Shapes: B prompts, R = B * copies rows, S positions so far, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.prompt import Prompt
from plainformer.generation.sessions.session import Session
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import ModelOutput, Transformer


class UncachedSession(Session):
    """A session that keeps tokens alone. Its cache is empty, and stays so."""

    def __init__(self, model: Transformer, prompt: Prompt, **shared: Any) -> None:
        super().__init__(model, prompt, **{**shared, "prefill_chunk": None})

    def _new_cache(self, kind: str, budget: int) -> KeyValueCache:
        cache = KeyValueCache(self.model.config, len(self.prompt), 1, dtype=self.model.dtype, device=self.ids.device)
        cache.layers.clear()
        return cache

    def forward(
        self,
        tokens_RT: Tensor,
        real_RS: Tensor | None,
        keep: int = 1,
        *,
        states: bool = False,
        only_logits: bool = False,
    ) -> ModelOutput:
        ids_RS = self.ids[:, : self.length]
        options = {"logits_to_keep": keep, "output_hidden_states": states, "only_logits": only_logits}
        if self.prompt.encoder_output is None:
            output = self.model(ids_RS, real_RS, **options)
        else:
            encoded = _repeated(self.prompt.encoder_output, len(ids_RS) // len(self.prompt))
            inputs = {"decoder_input_ids": ids_RS, "decoder_attention_mask": real_RS, "encoder_output": encoded}
            output = self.model(**inputs, **options)
        assert isinstance(output, ModelOutput)
        return output

    def finished_cache(self) -> None:
        """There is nothing to go on from."""


def _repeated(encoded: StackOutput, copies: int) -> StackOutput:
    """Return the encoder's output, repeated for each copy of a prompt."""
    real = encoded.real_BT
    real = real.repeat_interleave(copies, 0) if real is not None else None
    return StackOutput(encoded.last_hidden_state.repeat_interleave(copies, 0), real)
