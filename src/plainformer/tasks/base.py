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

    from plainformer.inputs.text.tokenizer import Side, TextBatch, Tokenizer

BATCH_SIZE = 8  # on a CPU, more only need more memory: docs/decisions.md
_READ_AHEAD = 32  # batches of a stream, among which inputs of like length are found


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

    def __call__(self, inputs: Any, *, batch_size: int = BATCH_SIZE, **options: Any) -> Any:
        """One input → one result; a list → a list; an iterator → an iterator of results, in order.

        `batch_size` inputs of like length run at once: of a list, any; of an iterator, those among the next inputs, which
        are read ahead (at first `batch_size` of them, later up to 32 times as many; with batch_size=1 none).
        """
        self._check(options)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size={batch_size!r} is not a count of at least 1", f"the default is {BATCH_SIZE}")
        if self.is_one(inputs):
            return self.run([inputs], **options)[0]
        if isinstance(inputs, list | tuple):
            return list(self._results([list(inputs)], batch_size, options))
        if isinstance(inputs, Iterable) and not _is_a_value(inputs):
            return self._results(_windows(inputs, batch_size), batch_size, options)
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

    def _results(self, windows: Iterable[list[Any]], batch_size: int, options: dict[str, Any]) -> Iterator[Any]:
        """Results in the inputs' order, though a window's inputs run with others of their length, the longest first."""
        before = 0
        for window in windows:
            order = list(range(len(window)))
            if self.sorts(options):
                order.sort(key=lambda place: -self.size(window[place]))
            results: list[Any] = [None] * len(window)
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                own = self.options_of([before + place for place in places], options)
                for place, result in zip(places, self.run([window[place] for place in places], **own), strict=True):
                    results[place] = result
            yield from results
            before += len(window)

    def sorts(self, options: Mapping[str, Any]) -> bool:
        """Whether inputs may run in another order than they came in."""
        return True

    def size(self, item: Any) -> int:
        """How long an input is beside others: characters, however they are nested, or an array's last dimension."""
        if isinstance(item, Mapping):
            return sum(map(self.size, item.values()))
        if isinstance(item, list | tuple):
            return sum(map(self.size, item))
        if isinstance(item, str | bytes | bytearray | memoryview):
            return len(item)
        shape = getattr(item, "shape", ())
        return int(shape[-1]) if shape else 0

    def options_of(self, places: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
        """The options of the inputs at these places."""
        return options

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
        stride: int | None = None,
    ) -> TextBatch:
        """Texts (or `pairs`) → padded tensors.

        Args:
            truncate: cut over-long texts; otherwise they are an error.
            side: of the padding. limit: in tokens, where it is lower than the model's own.
            stride: read over-long texts in windows of the limit that share so many tokens, each a row of its own.
        """
        for text in texts:
            pair = pairs and isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
            if not isinstance(text, str) and not pair:
                raise InputError(f"a {type(text).__name__} is not an input for {self.name}", f"give {self.reads()}")
        longest = [most for most in (limit, text_limit(self.config, self.tokenizer)) if most is not None]
        most = min(longest) if longest else None
        cut = self.cut if truncate and most is not None else False
        overlap = stride if most is not None else None
        rows = self.tokenizer.encode_batch(list(texts), truncate=cut, max_length=most, stride=overlap)
        for text, row in zip(texts, rows, strict=True):
            if not row.input_ids:
                raise InputError(f"{text!r} has no tokens: there is nothing to read", "leave empty texts out")
        return self.tokenizer.pad(rows, side=side)

    def logits_of(self, batch: TextBatch) -> Tensor:
        """The logits of all rows, (B, ...), on the CPU; the windows of long texts are many, so not all at once."""
        inputs = self.model_inputs(batch)
        parts = zip(*(value.split(BATCH_SIZE) for value in inputs.values()), strict=True)
        return torch.cat([self.model(**dict(zip(inputs, part, strict=True))).logits.float().cpu() for part in parts])

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


def _windows(inputs: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    """What is read ahead: one batch, then twice as much each time; a stream without end stays in bounds."""
    iterator = iter(inputs)
    ahead = 1
    while window := list(islice(iterator, ahead * batch_size)):
        yield window
        ahead = min(2 * ahead, _READ_AHEAD if batch_size > 1 else 1)


def check_top_k(top_k: int, most: int) -> int:
    """At least 1; more than there are means all."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise UsageError(f"top_k={top_k!r} is not a count of at least 1", f"give 1 to {most}")
    return min(top_k, most)
