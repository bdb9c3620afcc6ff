"""What every task shares: `encode → predict → decode` around a model, for one input, a list, or a stream.

Same kind of input, same type of output: one input gives one result, a list gives a list, an iterator gives an iterator.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from plainformer.config import ModelConfig
from plainformer.config.model import in_millions
from plainformer.config.options import Spec, specs
from plainformer.config.values import check_whole
from plainformer.errors import InputError, PlainformerError, UsageError, a_type, did_you_mean, nth, placed
from plainformer.inputs.listed import as_list
from plainformer.model.transformer import Transformer
from plainformer.tasks.lengths import max_length_of, offering, text_limit
from plainformer.tasks.options import BATCH_SIZE, TaskOptions
from plainformer.tasks.results import Results, Skipped
from plainformer.tasks.rows import by_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from plainformer.checkpoint.opened import Checkpoint
    from plainformer.inputs.text.tokenizer import Side, TextBatch, Tokenizer

# What a task's own code calls and overrides: left out of completion.
_FOR_TASKS = {
    "answer", "batch", "beginning", "checked", "collected", "companions", "completed", "cut", "cut_side", "default_values",
    "detect_language",
    "encode_texts", "engine_options", "engine_options_after", "fits", "frames", "gathered", "healed", "in_order", "is_bare",
    "is_one", "loaded_as",
    "logits_of", "make_options", "model_inputs", "needs_tokenizer", "not_an_input", "one", "parts", "parts_of", "prefix_of",
    "prepared", "prepared_item", "prompt_of", "prompt_text", "reads", "reads_arrays", "reads_long", "result", "row_of",
    "run", "switched", "runs", "searching", "size", "start_ids", "start_of", "streamed", "text_of", "width",
    "writer",
}  # fmt: skip


class Task(ABC):
    """A model ready to call.

    Attributes:
        name: the task. model, tokenizer, config: what it is made of. checkpoint: what it was loaded from, closed; its
            companion files can still be read.
        Options: the dataclass of its options, given whole to each of the three steps.
        needs_tokenizer: whether it reads or writes text. cut: the side of a text that `truncate` drops; None: as the checkpoint
            says. companions: files of the checkpoint, besides weights and tokenizer, that the task reads; saving copies them.
        adapters: names of those that it can use. adapter: the one in use. switched: what loads the task with another.
    """

    name: str
    Options: ClassVar[type[TaskOptions]] = TaskOptions
    _many: ClassVar[type[Results[Any]]] = Results  # what the answers to a list are in
    needs_tokenizer = True
    adapters: tuple[str, ...] = ()
    adapter: str | None = None
    switched: Callable[[str | None], Task] | None = None
    cut: Side | None = None
    companions: tuple[str, ...] = ()

    def __init__(self, name: str, model: Transformer, tokenizer: Tokenizer | None, checkpoint: Checkpoint) -> None:
        self.name, self.model, self.checkpoint = name, model, checkpoint
        self._tokenizer = tokenizer
        self.config: ModelConfig = model.config
        if self.needs_tokenizer:
            _ = self.tokenizer

    def __repr__(self) -> str:
        size = f"hidden size {self.config.main_stack.hidden_size}"
        return f"{type(self).__name__}({self.ref!r}, {in_millions(self.model.num_parameters)}, {size}, {self.model.device})"

    def __dir__(self) -> list[str]:
        """Return the names for completion: without those that only a new task needs."""
        return [name for name in super().__dir__() if name not in _FOR_TASKS]

    @property
    def ref(self) -> str:
        """The reference that the checkpoint was loaded by."""
        return self.checkpoint.ref

    @property
    def folder(self) -> Path | None:
        """The folder of the checkpoint's files; None for a GGUF file."""
        return self.checkpoint.folder

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; an error where it has none."""
        if self._tokenizer is None:
            raise UsageError(f"{self.ref} has no tokenizer files", "add tokenizer.json to its folder")
        return self._tokenizer

    def loaded_as(self, name: str) -> None:  # noqa: B027 - most tasks have nothing to take
        """Take what another name of the task adds to it: that of "summarization" may be a prefix."""

    def use_adapter(self, name: str | None) -> None:
        """Answer with another of the adapters that were loaded by name, from now on; None: with the base model alone.

        The weights are read anew, which takes as long as loading; memory is that of one model.
        """
        if self.switched is None:
            what = f"{self.ref} was loaded without adapters that have names"
            raise UsageError(what, 'name them: load(REF, adapter={"law": ..., "poems": ...})')
        if name is not None and name not in self.adapters:
            raise UsageError(f"there is no adapter {name!r}", did_you_mean(str(name), self.adapters))
        found = self.switched(name)
        if type(found) is not type(self):
            what = f"with {'the base model alone' if name is None else f'the adapter {name!r}'}, {self.ref} is for {found.name}"
            raise UsageError(what, "load it by itself")
        vars(self).clear()
        vars(self).update(vars(found))

    if TYPE_CHECKING:
        __call__ = cast(Any, None)  # inferred, not declared, so that each task's own is seen

    @abstractmethod
    def encode(self, inputs: Sequence[Any], options: Any) -> Any:
        """Turn inputs into tensors."""

    @abstractmethod
    def predict(self, encoded: Any, options: Any) -> Any:
        """Run the model."""

    @abstractmethod
    def decode(self, encoded: Any, predicted: Any, options: Any) -> list[Any]:
        """Turn what the model gives into an answer for each input."""

    def make_options(self, given: Mapping[str, Any]) -> Any:
        """Return options by name, checked."""
        return self.Options.of(given, self.name)

    @classmethod
    def options(cls) -> Mapping[str, Spec]:
        """Return the options of the task by name."""
        return specs(cls.Options)

    def answer(self, inputs: Any, options: Any, *, done: Callable[[int], object] = lambda count: None) -> Any:
        """Answer one input, a list or an iterator of them, with options that are made already.

        `batch_size` inputs of similar length run at once: of a list, any; of an iterator, those among the next inputs, which
        are read ahead: at first no more than 8, later 256, or four batches (with batch_size=1 none). `done` is told after each
        batch how many inputs it had.
        """
        inputs = self.checked(as_list(inputs), options)
        if self.is_one(inputs):
            return self.one(inputs, options)
        if isinstance(inputs, list | tuple):
            return self.gathered(list(self._answers([list(inputs)], options, done)), options)
        if isinstance(inputs, Iterable) and not _is_a_value(inputs):
            ahead = options.read_ahead if options.batch_size > 1 else 1
            return self._answers(_windows(inputs, options.batch_size, ahead), options, done)
        what = f"{a_type(inputs)} is not an input for {self.name}"
        raise InputError(what, f"give {self.reads()}, or a list of them")

    def gathered(self, found: list[Any], options: Any) -> Results[Any]:
        """Return the answers to a list, some of which may have been skipped."""
        gaps = any(isinstance(answer, Skipped) for answer in found)
        return Results(found) if gaps else self.collected(found, options)  # with gaps, vectors are not one array

    def collected(self, answers: list[Any], options: Any) -> Results[Any]:
        """Return the answers to a list."""
        return self._many(answers)

    def checked(self, inputs: Any, options: Any) -> Any:
        """Return the inputs of a call, checked against its options before anything runs."""
        return inputs

    def is_one(self, inputs: Any) -> bool:
        """Whether `inputs` is a single input rather than a collection."""
        return isinstance(inputs, str)

    def reads(self) -> str:
        """Return the kind of input, for messages."""
        from plainformer.tasks import TASKS

        return TASKS[self.name].reads

    def not_an_input(self, item: Any, place: int) -> InputError:
        """Return the error for an item of a batch of which the task cannot read the kind."""
        if item is None or str(item) in ("nan", "<NA>"):  # a gap in a column
            what = f"{nth(place)}, {item}, is missing: it is not an input for {self.name}"
            return InputError(what, "leave it out, or fill it: column.dropna(), column.fillna('')")
        what = f"{nth(place)}, {a_type(item)}, is not an input for {self.name}"
        return InputError(what, f"give {self.reads()}")

    def one(self, item: Any, options: Any) -> Any:
        """Answer a single input."""
        try:
            with placed(None):
                return self.run([item], options)[0]
        except PlainformerError as error:
            if options.on_error == "stop" or not isinstance(error, InputError):
                raise
            return Skipped(0, error)

    def _answers(self, windows: Iterable[list[Any]], options: Any, done: Callable[[int], object]) -> Iterator[Any]:
        """Yield answers in the inputs' order, though a window's inputs run with others of their length, the longest first."""
        before = 0
        for window in windows:
            order = self.in_order(window, options)
            answers: list[Any] = [None] * len(window)
            for start in range(0, len(order), options.batch_size):
                places = order[start : start + options.batch_size]
                own = [before + place for place in places]
                found = self.batch([window[place] for place in places], own, options)
                for place, answer in zip(places, found, strict=True):
                    answers[place] = answer
                done(len(places))
            yield from answers
            before += len(window)

    def in_order(self, window: Sequence[Any], options: Any) -> list[int]:
        """Return the places of inputs in the order that they run in: the longest first, where that is free."""
        order = list(range(len(window)))
        if options.sorts:
            order.sort(key=lambda place: -self.size(window[place]))
        return order

    def batch(self, inputs: Sequence[Any], places: Sequence[int], options: Any) -> list[Any]:
        """Answer a batch of inputs, which have these places in the caller's list.

        With `on_error="skip"`, an input that an error names is run by itself, and skipped if it fails there, too; the
        others run on without it. Where the error names none, or others fail as well, the batch is halved until all are found.
        """
        answers: dict[int, Any] = {}
        groups, failures = [list(range(len(inputs)))], 0
        while groups:
            group = groups.pop()
            own = [places[index] for index in group]
            try:
                with placed(own):
                    found = self.run([inputs[index] for index in group], options.of_rows(own))
            except PlainformerError as error:
                is_of_an_input = isinstance(error, InputError) or error.place is not None
                if options.on_error == "stop" or not is_of_an_input:
                    raise
                failures += 1
                if len(group) == 1:
                    found = [Skipped(own[0], error)]
                elif error.place in own and failures == 1:
                    at = own.index(error.place)
                    groups += [group[:at] + group[at + 1 :], [group[at]]]
                    continue
                else:
                    half = len(group) // 2
                    groups += [group[half:], group[:half]]
                    continue
            answers.update(zip(group, found, strict=True))
        return [answers[index] for index in range(len(inputs))]

    def size(self, item: Any) -> int:
        """Return how long an input is beside others: characters, however they are nested, or an array's last dimension."""
        if isinstance(item, Mapping):
            return sum(map(self.size, item.values()))
        if isinstance(item, list | tuple):
            return sum(map(self.size, item))
        if isinstance(item, str | bytes | bytearray | memoryview):
            return len(item)
        shape = getattr(item, "shape", ())
        return int(shape[-1]) if shape else 0

    @torch.inference_mode()
    def run(self, inputs: Sequence[Any], options: Any) -> list[Any]:
        """Run encode → predict → decode for one batch."""
        encoded = self.encode(inputs, options)
        predicted = self.predict(encoded, options)
        return self.decode(encoded, predicted, options)

    def cut_side(self, truncate: bool) -> bool | Side:
        """Return the `truncate` of a tokenizer: the side that is cut, True for the checkpoint's own, or False."""
        return (self.cut or True) if truncate else False

    def encode_texts(
        self,
        texts: Sequence[Any],
        *,
        truncate: bool = False,
        side: Any = None,
        pairs: bool = False,
        max_length: int | None = None,
        made_for: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        src_lang: str | None = None,
    ) -> TextBatch:
        """Return texts (or `pairs`) as padded tensors.

        Args:
            truncate: cut over-long texts; otherwise they are an error.
            side: of the padding. max_length, made_for: see `lengths.max_length_of`.
            window: read over-long texts in windows of this many tokens that share `stride` of them, each a row of its own.
            src_lang: the language that they are marked with, where it is not the tokenizer's usual one.
        """
        for place, text in enumerate(texts):
            if not isinstance(text, str) and not (pairs and is_pair(text)):
                raise self.not_an_input(text, place)
        if window is not None:
            rows = self.tokenizer.encode_batch(list(texts), max_length=window, stride=stride)
        else:
            most = max_length_of(self.config, self.tokenizer, truncate=truncate, asked=max_length, made_for=made_for)
            cut = self.cut_side(truncate and most is not None)
            hard = text_limit(self.config, self.tokenizer.max_length)
            with offering(self.Options, movable=most != hard):
                rows = self.tokenizer.encode_batch(list(texts), truncate=cut, max_length=most, src_lang=src_lang)
        for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
            if not row.input_ids:
                raise InputError(f"{nth(place)}, {text!r}, has no tokens: there is nothing to read", "leave it out")
        return self.tokenizer.pad(rows, side=side)

    def logits_of(self, batch: TextBatch, *, wide: bool = False) -> Tensor:
        """Return the logits of all rows, (B, ...) fp32 on the CPU; `wide`: those of each token, (B, T, ...)."""
        return by_tokens(
            self.model_inputs(batch), lambda rows: self.model(**rows, only_logits=True).logits.float(), wide=wide
        )

    def model_inputs(self, batch: TextBatch) -> dict[str, Tensor]:
        """Return the tensors that this model reads."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if getattr(self.config.input_frontend, "token_types", 0):
            inputs["token_type_ids"] = batch.token_type_ids
        return {name: value.to(self.model.device) for name, value in inputs.items()}


class TwoPartTask(Task):
    """A task whose input has two parts: a tuple of them, or a dictionary with their names."""

    parts: tuple[str, str]

    @abstractmethod
    def fits(self, first: Any, second: Any) -> bool:
        """Whether the values of a tuple are of the kinds of the two parts."""

    def is_one(self, inputs: Any) -> bool:
        pair = isinstance(inputs, tuple) and len(inputs) == 2
        return isinstance(inputs, Mapping) or (pair and self.fits(*map(as_list, inputs)))

    def parts_of(self, item: Any, place: int) -> tuple[Any, Any]:
        """Return the two parts of an item of a batch."""
        first, second = self.parts
        if isinstance(item, Mapping) and set(item) == {first, second}:
            item = (item[first], item[second])
        if isinstance(item, Mapping) or not self.is_one(item) or not all(_is_text(as_list(each)) for each in item):
            what = f"{nth(place)}, {str(item)[:60]!r}, is not {self.reads()}"
            raise InputError(what, f'give a ({first}, {second}) tuple, or {{"{first}": ..., "{second}": ...}}')
        return as_list(item[0]), as_list(item[1])


def _is_text(part: Any) -> bool:
    """Whether a part is a text, or a list of texts."""
    return isinstance(part, str) or all(isinstance(each, str) for each in part)


def is_pair(item: Any) -> bool:
    """Whether an input is a tuple of two texts."""
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)


def _is_a_value(inputs: Any) -> bool:
    """Whether something that can be iterated over is one thing all the same: bytes, a dictionary, a path, an array."""
    return isinstance(inputs, str | bytes | bytearray | memoryview | Mapping | os.PathLike) or hasattr(inputs, "ndim")


def _windows(inputs: Iterable[Any], batch_size: int, most: int) -> Iterator[list[Any]]:
    """Yield what is read ahead: a few, then twice as many each time; a stream without end stays in bounds."""
    iterator = iter(inputs)
    ahead = min(batch_size, BATCH_SIZE)
    while window := list(islice(iterator, ahead)):
        yield window
        ahead = min(2 * ahead, most * batch_size)


def best(scores_V: Tensor, count: int) -> Tensor:
    """Return the places of the highest scores, best first, (count,); of equal ones, which `topk` mixes, the first comes first."""
    lowest = scores_V.topk(count).values[-1]
    places = (scores_V >= lowest).nonzero()[:, 0]
    return places[scores_V[places].argsort(descending=True, stable=True)[:count]]


def check_top_k(top_k: int, most: int) -> int:
    """Return a checked `top_k`: at least 1; more than there are means all."""
    check_whole("top_k", top_k, fix=f"give 1 to {most}")
    return min(top_k, most)
