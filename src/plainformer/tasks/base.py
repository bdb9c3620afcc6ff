"""What every task shares: `encode → predict → decode` around a model, for one input, a list, or a stream.

Same kind of input, same type of output: one input gives one result, a list gives a list, an iterator gives an iterator.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plainformer.config import ModelConfig
from plainformer.errors import InputError, UsageError, did_you_mean
from plainformer.model.transformer import Transformer

if TYPE_CHECKING:
    from torch import Tensor

    from plainformer.inputs.text import Side, TextBatch, Tokenizer

BATCH_SIZE = 16


@dataclass(frozen=True)
class Result:
    """A typed answer; `to_dict()` is what JSON gets."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class LabelScore:
    """A class and its probability (or value, for regression)."""

    label: str
    score: float


class Task(ABC):
    """A model ready to call.

    Attributes:
        name: the task. model, tokenizer, config: what it is made of. folder: where the checkpoint's other files are.
        needs_tokenizer: whether it reads or writes text. cut: the side of a text that `truncate` drops. companions: files
            of the checkpoint, besides weights and tokenizer, that the task reads; saving copies them. more_options: what a
        step that takes `**options` is given, besides what it names itself.
    """

    name: str
    needs_tokenizer = True
    cut: Side = "right"
    companions: tuple[str, ...] = ()
    more_options: frozenset[str] = frozenset()

    def __init__(
        self, name: str, model: Transformer, tokenizer: Tokenizer | None, folder: Path | None, ref: str = ""
    ) -> None:
        self.name, self.model, self.folder, self.ref = name, model, folder, ref
        self._tokenizer = tokenizer
        self.config: ModelConfig = model.config
        if self.needs_tokenizer:
            _ = self.tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; an error where it has none."""
        if self._tokenizer is None:
            raise UsageError(
                f"{self.ref or 'this checkpoint'} has no tokenizer files", "add tokenizer.json to its folder"
            )
        return self._tokenizer

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """One input → one result; a list → a list; an iterator → an iterator of results, in order."""
        self._check(options)
        if self.is_one(inputs):
            return self.run([inputs], **options)[0]
        if isinstance(inputs, list | tuple):
            return [result for batch in _batches(inputs) for result in self.run(batch, **options)]
        if isinstance(inputs, Iterable) and not _is_a_value(inputs):
            return (result for batch in _batches(inputs) for result in self.run(batch, **options))
        raise InputError(
            f"a {type(inputs).__name__} is not an input for {self.name}", f"give {self.reads()}, or a list of them"
        )

    def is_one(self, inputs: Any) -> bool:
        """Whether `inputs` is a single input rather than a collection."""
        return isinstance(inputs, str)

    def reads(self) -> str:
        """The kind of input, for messages."""
        from plainformer.tasks import TASKS

        return TASKS[self.name].reads

    @torch.inference_mode()
    def run(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """encode → predict → decode, for one batch."""
        encoded = self.encode(inputs, **self._for(self.encode, options))
        predicted = self.predict(encoded, **self._for(self.predict, options))
        return self.decode(encoded, predicted, **self._for(self.decode, options))

    @abstractmethod
    def encode(self, inputs: Sequence[Any]) -> Any:
        """Raw inputs → a batch of tensors."""

    @abstractmethod
    def predict(self, encoded: Any) -> Any:
        """The batch through the model."""

    @abstractmethod
    def decode(self, encoded: Any, predicted: Any) -> list[Any]:
        """What the model gave → results, one for each input."""

    def options(self) -> dict[str, inspect.Parameter]:
        """The keyword options that the three steps take."""
        steps = (self.encode, self.predict, self.decode)
        found = [p for step in steps for p in inspect.signature(step).parameters.values()]
        more = (inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(self.more_options))
        return {p.name: p for p in (*found, *more) if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def _check(self, options: dict[str, Any]) -> None:
        known = self.options()
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known) if known else "it takes none"
                raise UsageError(f"{self.name} has no option {name!r}", hint or "options: " + ", ".join(known))

    def _for(self, step: Any, options: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(step).parameters
        takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        names = {*parameters, *(self.more_options if takes_more else ())}
        return {name: value for name, value in options.items() if name in names}

    def encode_texts(
        self,
        texts: Sequence[Any],
        *,
        truncate: bool = False,
        side: Any = None,
        pairs: bool = False,
        limit: int | None = None,
    ) -> TextBatch:
        """Texts (or `pairs`) → padded tensors.

        Args:
            truncate: cut over-long texts; otherwise they are an error.
            side: of the padding. limit: in tokens, where it is lower than the model's own.
        """
        for text in texts:
            pair = pairs and isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
            if not isinstance(text, str) and not pair:
                raise InputError(f"a {type(text).__name__} is not an input for {self.name}", f"give {self.reads()}")
        longest = [most for most in (limit, text_limit(self.config, self.tokenizer)) if most is not None]
        most = min(longest) if longest else None
        cut = self.cut if truncate and most is not None else False
        rows = self.tokenizer.encode_batch(list(texts), truncate=cut, max_length=most)
        for text, row in zip(texts, rows, strict=True):
            if not row.input_ids:
                raise InputError(f"{text!r} has no tokens: there is nothing to read", "leave empty texts out")
        return self.tokenizer.pad(rows, side=side)

    def model_inputs(self, batch: TextBatch) -> dict[str, Tensor]:
        """The tensors that this model reads."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        frontend = (self.config.encoder or self.config.main_stack).frontend
        if getattr(frontend, "token_types", 0):
            inputs["token_type_ids"] = batch.token_type_ids
        return {name: value.to(self.model.device) for name, value in inputs.items()}


def text_limit(config: ModelConfig, tokenizer: Tokenizer) -> int | None:
    """The longest text in tokens: the learned positions' limit and the tokenizer's own, whichever is shorter."""
    stack = config.encoder or config.main_stack
    limits = [limit for limit in (stack.max_positions, tokenizer.max_length) if limit is not None]
    return min(limits) if limits else None


def _is_a_value(inputs: Any) -> bool:
    """Whether something that can be iterated over is one thing all the same: bytes, a dictionary, a path, an array."""
    return isinstance(inputs, str | bytes | bytearray | memoryview | Mapping | os.PathLike) or hasattr(inputs, "ndim")


def _batches(inputs: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(inputs)
    while batch := list(islice(iterator, BATCH_SIZE)):
        yield batch


def check_top_k(top_k: int, most: int) -> int:
    """At least 1; more than there are means all."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise UsageError(f"top_k={top_k!r} is not a count of at least 1", f"give 1 to {most}")
    return min(top_k, most)
