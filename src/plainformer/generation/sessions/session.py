"""A model with its cache, in the middle of a generation: prefill → [logits → tokens → decode_step]*.

Shapes: B prompts, R = B * copies rows, T prompt positions, S positions so far, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from plainformer.errors import UsageError, opt, plural
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.processors.context import Context
from plainformer.generation.prompt import Prompt, take_rows
from plainformer.model.pausing import pause
from plainformer.model.transformer import ModelOutput, Transformer

_progress = logging.getLogger("plainformer.progress")
_LONG = 256  # tokens that may take a while to read
FIRST_ROOM = 256  # the cache makes room for this many new tokens at most before they come; then it doubles, up to all


class Session:
    """Prompts, each continued by `copies` rows.

    Attributes:
        keeps_cache: whether the model reads and fills the cache; else every step runs all tokens again.
        cache: of all tokens but the last picked ones.
        length: columns so far, prompt included.
        ended: which rows are known to have ended and only keep their place; None where none is.
    """

    keeps_cache = True

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
        self.cache.expect(self.length + budget)
        self.encoded, self.encoder_ids, self.encoder_real = (
            prompt.encoder_output,
            prompt.encoder_ids,
            prompt.encoder_real,
        )
        self.ended: list[bool] | None = None

    def _new_cache(self, kind: str, budget: int) -> KeyValueCache:
        # Copies have stores of their own for what is new, so that the prompt's is made for the prompt alone.
        capacity = self.length + (min(budget, FIRST_ROOM) if self.copies == 1 else 0)
        dtype, device, local = self.model.dtype, self.ids.device, self.model.local
        size = len(self.prompt), capacity
        return KeyValueCache(self.model.config, *size, kind=kind, dtype=dtype, device=device, local=local)

    def prefill(self) -> Tensor:
        """Run the prompts; return the logits after each, (R, V). Copies of a prompt have the same."""
        start = self._reused() if self.given else 0
        for begin, end in self._chunks(start):
            if begin > start:
                pause()
            if self.length - start >= _LONG:
                share = (begin - start) / (self.length - start)
                _progress.info("reading a prompt of %s tokens", f"{self.length:,}", extra={"share": share})
            logits_BV = self.run(self.ids[:, begin:end], self._real(end))
        if self.copies > 1:
            budget = self.ids.size(1) - self.prompt_columns
            self.cache.share(self.copies, max(min(budget, FIRST_ROOM), 1), budget)
            prompt_R = torch.arange(len(self.prompt), device=self.ids.device).repeat_interleave(self.copies)
            self.ids, self.real = self.ids[prompt_R], take_rows(self.real, prompt_R)
            self.encoder_ids = take_rows(self.encoder_ids, prompt_R)
            self.encoder_real = take_rows(self.encoder_real, prompt_R)
            logits_BV = logits_BV[prompt_R]
        return logits_BV

    def _chunks(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield the borders of chunks: at multiples of their size, wherever reading begins."""
        size = self.chunk or self.length
        while start < self.length:
            end = min((start // size + 1) * size, self.length)
            yield start, end
            start = end

    def _reused(self) -> int:
        """Return how many of the prompt's tokens a given cache holds already; forget the rest of it."""
        if len(self.prompt) != 1 or self.copies != 1 or self.prompt.encoder_output is not None:
            raise UsageError(f"{opt('cache')} continues one prompt of a decoder with one row", "leave it out")
        assert self.model.config.decoder is not None
        if self.cache.num_layers != self.model.config.decoder.num_layers:
            raise UsageError(
                f"this cache has {plural(self.cache.num_layers, 'layer')}", "pass one of this model's generations"
            )
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
        """Append one token to each row; return the logits of the next, (R, V)."""
        self.ids[:, self.length] = tokens_R
        self.length += 1
        return self.run(tokens_R[:, None], self._real(self.length))

    def _real(self, end: int) -> Tensor | None:
        return self.real[:, :end] if self.real is not None else None

    def reorder(self, index_R: Tensor) -> None:
        """Make row r a copy of row index_R[r], of the same prompt."""
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
        if self.encoded is not None:
            inputs = {f"decoder_{name}": value for name, value in inputs.items()}
        try:
            output = self.model(
                **inputs,
                encoder_output=self.encoded,
                cache=self.cache if self.keeps_cache else None,
                logits_to_keep=keep,
                only_logits=only_logits,
                output_hidden_states=states,
            )
        except BaseException:
            self.cache.reset()  # some layers hold this step, others do not: its owner must not continue from it
            raise
        assert isinstance(output, ModelOutput)
        return output

    def context(self) -> Context:
        """Return what processors see."""
        ids_RS, real_RS = self.ids[:, : self.length], self._real(self.length)
        return Context(ids_RS, self.prompt_columns, real_RS, self.encoder_ids, self.encoder_real, self.ended)

    def finished_cache(self) -> KeyValueCache | None:
        """Return the cache for a next turn, with the ids that it holds; None for more than one row."""
        if len(self.ids) != 1 or self.prompt.encoder_output is not None or self.real is not None:
            return None
        self.cache.tokens = self.ids[0, : self.cache.length].tolist()
        return self.cache
