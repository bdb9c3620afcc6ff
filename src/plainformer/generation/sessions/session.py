"""A model with its cache, in the middle of a generation: prefill → [logits → tokens → decode_step]*.

Shapes: B prompts, R = B * copies rows, T prompt positions, S positions so far, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.processors.context import Context
from plainformer.generation.prompt import Prompt
from plainformer.model.transformer import ModelOutput, Transformer


class Session:
    """Prompts, each continued by `copies` rows.

    Attributes:
        cache: of all tokens but the last picked ones.
        length: columns so far, prompt included.
        ended: which rows are known to have ended and only keep their place; None where none is.
    """

    def __init__(
        self,
        model: Transformer,
        prompt: Prompt,
        *,
        copies: int = 1,
        budget: int = 64,
        cache: KeyValueCache | None = None,
        cache_kind: str = "full",
        prefill_chunk: int | None = None,
    ) -> None:
        self.model, self.prompt, self.copies, self.chunk = model, prompt, copies, prefill_chunk
        self.prompt_columns = self.length = prompt.ids.size(1)
        size = (len(prompt), self.length + budget)
        self.ids = prompt.ids.new_zeros(size)
        self.ids[:, : self.length] = prompt.ids
        self.real: Tensor | None = None
        if prompt.real is not None:
            self.real = torch.ones(size, dtype=torch.bool, device=prompt.ids.device)
            self.real[:, : self.length] = prompt.real.bool()
        self.cache = cache if cache is not None else self._new_cache(cache_kind, budget)
        self.given = cache is not None
        self.ended: list[bool] | None = None

    def _new_cache(self, kind: str, budget: int) -> KeyValueCache:
        # Copies have stores of their own for what is new, so that the prompt's is made for the prompt alone.
        capacity = self.length + (min(budget, 256) if self.copies == 1 else 0)
        return KeyValueCache(
            self.model.config, len(self.prompt), capacity, kind=kind, dtype=self.model.dtype, device=self.ids.device
        )

    def prefill(self) -> Tensor:
        """Run the prompts; return the logits after each, (R, V). Copies of a prompt have the same."""
        start = self._reused() if self.given else 0
        chunk = self.chunk or self.length
        for begin in range(start, self.length, chunk):
            end = min(begin + chunk, self.length)
            logits_BV = self.run(self.ids[:, begin:end], self._real(end))
        if self.copies > 1:
            self.cache.share(self.copies)
            self.ids = self.ids.repeat_interleave(self.copies, 0)
            self.real = self.real.repeat_interleave(self.copies, 0) if self.real is not None else None
            logits_BV = logits_BV.repeat_interleave(self.copies, 0)
        return logits_BV

    def _reused(self) -> int:
        """How many of the prompt's tokens a cache that was handed in holds already; the rest of it is forgotten."""
        if len(self.prompt) != 1 or self.copies != 1 or self.prompt.encoder_output is not None:
            raise UsageError("cache= goes on from one prompt of a decoder with one row", "leave it out")
        assert self.model.config.decoder is not None
        if len(self.cache.layers) != self.model.config.decoder.num_layers:
            raise UsageError(f"this cache has {len(self.cache.layers)} layers", "pass one of this model's generations")
        if self.cache.rows != 1 or self.cache.copies != 1 or len(self.cache.tokens) != self.cache.length:
            raise UsageError(
                "this cache does not know which tokens it holds", "pass the .cache of an earlier generation"
            )
        ids, same = self.ids[0].tolist(), 0
        most = min(len(self.cache.tokens), self.length - 1)  # the last token is run: its logits are what is wanted
        while same < most and ids[same] == self.cache.tokens[same]:
            same += 1
        if self.cache.can_crop(same):
            self.cache.crop(same)
            return same
        self.cache.reset()  # a window has moved past what is needed
        return 0

    def decode_step(self, tokens_R: Tensor) -> Tensor:
        """Append one token to each row; the logits of the next, (R, V)."""
        self.ids[:, self.length] = tokens_R
        self.length += 1
        return self.run(tokens_R[:, None], self._real(self.length))

    def _real(self, end: int) -> Tensor | None:
        return self.real[:, :end] if self.real is not None else None

    def reorder(self, index_R: Tensor) -> None:
        """Row r goes on as a copy of row index_R[r], of the same prompt."""
        self.cache.reorder(index_R)
        new = slice(self.prompt_columns, self.length)
        self.ids[:, new] = self.ids[index_R, new]

    def run(self, tokens_RT: Tensor, real_RS: Tensor | None) -> Tensor:
        """Run tokens that follow the cached ones; return the last position's logits, (R, V)."""
        logits = self.forward(tokens_RT, real_RS, only_logits=True).logits
        assert logits is not None
        return logits[:, -1]

    def forward(
        self,
        tokens_RT: Tensor,
        real_RS: Tensor | None,
        keep: int = 1,
        *,
        states: bool = False,
        only_logits: bool = False,
    ) -> ModelOutput:
        """Run the model on tokens that follow the cached ones, for modes that need more than the last logits."""
        inputs = {"input_ids": tokens_RT, "attention_mask": real_RS}
        if self.prompt.encoder_output is not None:
            inputs = {f"decoder_{name}": value for name, value in inputs.items()}
        try:
            output = self.model(
                **inputs,
                encoder_output=self.prompt.encoder_output,
                cache=self.cache,
                logits_to_keep=keep,
                only_logits=only_logits,
                output_hidden_states=states,
            )
        except BaseException:
            self.cache.reset()  # some layers hold this step, and others do not: whoever gave it must not go on from there
            raise
        assert isinstance(output, ModelOutput)
        return output

    def context(self) -> Context:
        """Return what processors see."""
        copies, prompt = self.copies, self.prompt
        encoder_ids, encoder_real = prompt.encoder_ids, prompt.encoder_real
        return Context(
            self.ids[:, : self.length],
            self.prompt_columns,
            self._real(self.length),
            encoder_ids.repeat_interleave(copies, 0) if encoder_ids is not None else None,
            encoder_real.repeat_interleave(copies, 0) if encoder_real is not None else None,
            self.ended,
        )

    def finished_cache(self) -> KeyValueCache | None:
        """The cache for a next turn, with the ids that it holds; only one row's can be gone on from."""
        if len(self.ids) != 1 or self.prompt.encoder_output is not None or self.real is not None:
            return None
        self.cache.tokens = self.ids[0, : self.cache.length].tolist()
        return self.cache
