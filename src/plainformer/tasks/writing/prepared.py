"""What a task gives to `generate` for an input, and what the answer's text is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.generation.options import GenerationOptions
from plainformer.tasks.writing.detokenize import continuation

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Beginning:
    """What an answer continues, and what it begins with.

    Attributes:
        before: ids that the answer continues. begun: ids that the answer is made to begin with.
        lead: text that the answer begins with. repeated: characters that `begun` and the new tokens write before they add
            anything to it: `lead` itself, or the end of a prompt that is healed.
        taken: bytes of the prompt's last tokens, where healing took them back.
    """

    before: tuple[int, ...]
    begun: tuple[int, ...] = ()
    lead: str = ""
    repeated: int = 0
    taken: bytes = b""

    def added(self, tokenizer: Tokenizer, new_ids: Sequence[int]) -> str:
        """Return the text that new tokens add to `lead`."""
        return continuation(tokenizer, self.before, [*self.begun, *new_ids])[self.repeated :]

    def text(self, tokenizer: Tokenizer, new_ids: Sequence[int]) -> str:
        """Return the whole answer."""
        return self.lead + self.added(tokenizer, new_ids)


@dataclass(frozen=True, kw_only=True)
class Prepared(Beginning):
    """An input ready for `generate(model, **prepared.inputs, options=prepared.options)`.

    Attributes:
        inputs: tensors by the names of `generate`'s arguments; of a batch, whose first input the `Beginning` is of.
        options: of generation, complete.
        uncounted: how many of the first new tokens are part of the start rather than of the answer.
    """

    inputs: dict[str, Any]
    options: GenerationOptions
    uncounted: int = 0

    def __repr__(self) -> str:
        return f"Prepared({', '.join(self.inputs)} of {len(self.before) + len(self.begun)} tokens, {self.options!r})"
