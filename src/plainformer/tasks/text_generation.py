"""Text generation: a decoder continues a text, or answers a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.errors import InputError, UsageError
from plainformer.generate.search import Generation, generate, stream
from plainformer.tasks.base import Result, Task
from plainformer.tasks.generation_settings import FILE, read_generation_settings
from plainformer.tasks.pieces import continuation, pieces
from plainformer.tasks.scoring import ScoredText, score_texts

if TYPE_CHECKING:
    from plainformer.inputs.text import TextBatch

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class GeneratedText(Result):
    """`text` is the new text alone; `prompt` what it continues; `stop_reason` why it ended ("eos" or "length")."""

    text: str
    prompt: str
    stop_reason: str
    prompt_tokens: int
    new_tokens: int


class TextGeneration(Task):
    """A text → its continuation; a list of chat messages → the assistant's answer.

    `truncate=True` cuts a prompt that is too long at its beginning: what stands next to the answer is kept.
    """

    cut = "left"
    companions = (FILE,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = read_generation_settings(self.folder, self.config)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or _is_chat(inputs)

    def prompt_of(self, item: Any) -> tuple[str, bool]:
        """The text that the model continues, and whether a chat template made it, which has its own special tokens."""
        if isinstance(item, str):
            return item, False
        if not _is_chat(item):
            raise InputError(
                f"a {type(item).__name__} is neither text nor chat messages", "give a str or a list of dicts"
            )
        if not self.tokenizer.has_chat_template:
            raise UsageError(f"{self.ref or 'this model'} has no chat template", "give it plain text to continue")
        return self.tokenizer.apply_chat_template(item, add_generation_prompt=True), True

    def encode(self, inputs: Sequence[Any], *, truncate: bool = False) -> TextBatch:
        rows = []
        for item in inputs:
            prompt, is_chat = self.prompt_of(item)
            limit = self.config.main_stack.max_positions
            cut = truncate and self.cut
            row = self.tokenizer.encode(prompt, add_special_tokens=not is_chat, truncate=cut, max_length=limit)
            if not row.input_ids:
                raise InputError("an empty prompt: there is nothing to continue", "give at least one character")
            rows.append(row)
        return self.tokenizer.pad(rows, side="left")

    def predict(
        self, encoded: TextBatch, *, max_new_tokens: int = 64, eos_ids: Sequence[int] | None = None
    ) -> Generation:
        return generate(self.model, **self._inputs(encoded, max_new_tokens, eos_ids))

    def decode(self, encoded: TextBatch, predicted: Generation) -> list[GeneratedText]:
        results = []
        for row, ids, reason in zip(encoded.encodings, predicted.token_ids, predicted.stop_reasons, strict=True):
            text = continuation(self.tokenizer, row.input_ids, ids)
            prompt = self.tokenizer.decode(row.input_ids)
            results.append(GeneratedText(text, prompt, reason, len(row.input_ids), len(ids)))
        return results

    def stream(
        self, item: Any, *, max_new_tokens: int = 64, eos_ids: Sequence[int] | None = None, truncate: bool = False
    ) -> Iterator[str]:
        """The answer piece by piece, as soon as its characters are whole; joined, it is the `text` of the result."""
        batch = self.encode([item], truncate=truncate)
        steps = stream(self.model, **self._inputs(batch, max_new_tokens, eos_ids))
        return pieces(self.tokenizer, batch.encodings[0].input_ids, (tokens[0] for tokens, _ in steps))

    def score(self, texts: str | list[str], *, truncate: bool = False) -> ScoredText | list[ScoredText]:
        """How likely each token of a text is after those before it, and the text's perplexity; a list gives a list."""
        scored = score_texts(self, [texts] if isinstance(texts, str) else texts, truncate=truncate)
        return scored[0] if isinstance(texts, str) else scored

    def _inputs(self, batch: TextBatch, max_new_tokens: int, eos_ids: Sequence[int] | None) -> dict[str, Any]:
        device = self.model.device
        return {
            "input_ids": batch.input_ids.to(device),
            "attention_mask": batch.attention_mask.to(device),
            "max_new_tokens": max_new_tokens,
            "eos_ids": self.settings.eos_ids if eos_ids is None else eos_ids,
            "suppress": self.settings.suppress,
            "suppress_first": self.settings.suppress_first,
        }


def _is_chat(inputs: Any) -> bool:
    """Whether a list is one chat, well made or not, rather than a list of inputs."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict)
