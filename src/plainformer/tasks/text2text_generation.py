"""Text to text: an encoder-decoder turns a text into another one: a summary, a translation, an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from plainformer.errors import UsageError
from plainformer.generate.search import Generation, generate, stream
from plainformer.tasks.base import Result, Task
from plainformer.tasks.generation_settings import FILE, read_generation_settings
from plainformer.tasks.pieces import continuation, pieces

if TYPE_CHECKING:
    from plainformer.inputs.text import TextBatch


@dataclass(frozen=True)
class TransformedText(Result):
    """`text` is the whole output, `decoder_prefix` included; `stop_reason` is why it ended ("eos" or "length")."""

    text: str
    stop_reason: str
    input_tokens: int
    new_tokens: int


class Text2TextGeneration(Task):
    """A text → another text, greedily.

    An output begins with the model's start token, then the token that the checkpoint forces (`forced_bos_token_id`: a
    target language, or BART's <s>), then `decoder_prefix`; these do not count as new tokens. `forced_eos_token_id`,
    which would put an end token in place of the last word of a text that is too long, is not applied.
    """

    companions = (FILE,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = read_generation_settings(self.folder, self.config)

    def encode(self, inputs: Sequence[str], *, truncate: bool = False) -> TextBatch:
        return self.encode_texts(inputs, truncate=truncate)

    def predict(
        self,
        encoded: TextBatch,
        *,
        max_new_tokens: int = 64,
        decoder_prefix: str = "",
        eos_ids: Sequence[int] | None = None,
    ) -> Generation:
        return generate(self.model, **self._inputs(encoded, max_new_tokens, decoder_prefix, eos_ids))

    def decode(self, encoded: TextBatch, predicted: Generation, *, decoder_prefix: str = "") -> list[TransformedText]:
        start, prefix = self.start_of(decoder_prefix)
        results = []
        for row, ids, reason in zip(encoded.encodings, predicted.token_ids, predicted.stop_reasons, strict=True):
            text = continuation(self.tokenizer, start, [*prefix, *ids])
            results.append(TransformedText(text, reason, len(row.input_ids), len(ids)))
        return results

    def stream(
        self,
        item: str,
        *,
        max_new_tokens: int = 64,
        decoder_prefix: str = "",
        eos_ids: Sequence[int] | None = None,
        truncate: bool = False,
    ) -> Iterator[str]:
        """The output piece by piece, as soon as its characters are whole; joined, it is the `text` of the result."""
        batch = self.encode([item], truncate=truncate)
        steps = stream(self.model, **self._inputs(batch, max_new_tokens, decoder_prefix, eos_ids))
        start, prefix = self.start_of(decoder_prefix)
        return pieces(self.tokenizer, start, (tokens[0] for tokens, _ in steps), begun=prefix)

    def start_of(self, decoder_prefix: str = "") -> tuple[list[int], list[int]]:
        """The ids that an output begins with: those that the model demands, and those of the prefix."""
        if not isinstance(decoder_prefix, str):
            raise UsageError(
                f"decoder_prefix is a {type(decoder_prefix).__name__}", "give the text that outputs begin with"
            )
        if self.settings.decoder_start_id is None:
            raise UsageError("the checkpoint names no decoder_start_token_id", "add it to its config.json")
        start = [self.settings.decoder_start_id]
        prefix = self.tokenizer.encode(decoder_prefix, add_special_tokens=False).input_ids if decoder_prefix else []
        forced = self.settings.forced_bos_id
        # A prefix that names a language itself ("fr_XX", "__fr__") takes the place of the one that is forced.
        if forced is not None and not (prefix and prefix[0] in self.tokenizer.special_ids):
            start.append(forced)
        return start, prefix

    def _inputs(
        self, batch: TextBatch, max_new_tokens: int, decoder_prefix: str, eos_ids: Sequence[int] | None
    ) -> dict[str, Any]:
        start, prefix = self.start_of(decoder_prefix)
        first = torch.tensor([[*start, *prefix]], device=self.model.device).expand(len(batch.input_ids), -1)
        return {
            **self.model_inputs(batch),
            "decoder_input_ids": first,
            "max_new_tokens": max_new_tokens,
            "eos_ids": self.settings.eos_ids if eos_ids is None else eos_ids,
            "suppress": self.settings.suppress,
            "suppress_first": self.settings.suppress_first,
        }
