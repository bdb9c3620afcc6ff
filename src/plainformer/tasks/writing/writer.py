"""A generating task that reads and writes text: predict, decode and stream for decoders and encoder-decoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from plainformer.config.values import no_effect
from plainformer.errors import placed
from plainformer.generation.constraints.stop_strings import StopStrings
from plainformer.generation.options import GenerationOptions
from plainformer.generation.result import Generation, joined
from plainformer.generation.search import generate, stream
from plainformer.tasks.calls import Given, ItemCall, method_with
from plainformer.tasks.writing.answers import Answer, AnswerStream, first_row, make_answer
from plainformer.tasks.writing.base import GeneratingTask
from plainformer.tasks.writing.checkpoint_settings import FILE, read_generation_settings
from plainformer.tasks.writing.detokenize import AnswerText
from plainformer.tasks.writing.options import PromptOptions, WritingOptions
from plainformer.tasks.writing.prepared import Beginning, Prepared

if TYPE_CHECKING:
    from plainformer.generation.constraints.healing import TokenIndex
    from plainformer.inputs.text.encoding import Encoding, TextBatch

A = TypeVar("A", bound=Answer)
Whole = TypeVar("Whole", bound=Answer)


class WritingTask(GeneratingTask, Generic[A]):
    """A task whose answers continue a text, or a decoder's start tokens."""

    companions = (FILE,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = read_generation_settings(self.checkpoint, self.config)

    @abstractmethod
    def beginning(self, row: Encoding, options: Any) -> Beginning:
        """Return what the answer to an input continues, and what it begins with."""

    @abstractmethod
    def result(self, row: Encoding, answers: Sequence[Answer], options: Any) -> A:
        """Return the answers to an input as one result."""

    def predict(self, encoded: TextBatch, options: Any) -> Generation:
        if self._must_be_alone(encoded, options):
            alone = [self.tokenizer.pad([row], side="left") for row in encoded.encodings]
            return joined([self.predict(one, options.of_rows([place])) for place, one in enumerate(alone)])
        prepared = self.prepared(encoded, options)
        return without_first(generate(self.model, **prepared.inputs, options=prepared.options), prepared.uncounted)

    def decode(self, encoded: TextBatch, predicted: Generation, options: Any) -> list[A]:
        count = len(predicted.token_ids) // max(1, len(encoded.encodings))
        results = []
        for index, row in enumerate(encoded.encodings):
            beginning = self.beginning(row, options)
            places = range(index * count, (index + 1) * count)
            texts = [beginning.added(self.tokenizer, predicted.token_ids[place]) for place in places]
            answers = [
                make_answer(predicted, place, beginning.lead, text, options.stop_strings)
                for place, text in zip(places, texts, strict=True)
            ]
            results.append(self.result(row, answers, options))
        return results

    if not TYPE_CHECKING:  # which sees each task's own

        def stream(self, item: Any, /, **options: Any) -> AnswerStream[A]:
            """Return the answer piece by piece; see `streams_with`."""
            return self.streamed(item, self.make_options(options))

    def streamed(self, item: Any, options: Any) -> AnswerStream[A]:
        """`stream`, with options that are made already."""
        for name in ("num_return_sequences", "num_alternatives"):
            no_effect(getattr(options, name) != 1, name, "in a stream, which is of one answer")
        no_effect(options.on_error != "stop", "on_error", "in a stream, which raises what is wrong")
        with placed(None), torch.inference_mode():
            encoded = self.encode([item], options)
            prepared = self.prepared(encoded, options)
        return AnswerStream(self._write(encoded, prepared, options))

    def _write(self, encoded: TextBatch, prepared: Prepared, options: Any) -> Generator[str, None, A]:
        ended: list[Generation] = []
        text = AnswerText(self.tokenizer, prepared, options.stop_strings)
        if first := text.begin():
            yield first
        tokens = first_row(stream(self.model, **prepared.inputs, options=prepared.options), ended)
        for token in islice(tokens, prepared.uncounted, None):
            if piece := text.push(token):
                yield piece
        if rest := text.end():
            yield rest
        return self.decode(encoded, without_first(ended[0], prepared.uncounted), options)[0]

    # ---- prompts --------------------------------------------------------------------------------------------------

    def engine_options_after(
        self, beginnings: Sequence[Beginning], options: PromptOptions, *, bare: bool, **changes: Any
    ) -> GenerationOptions:
        """`engine_options` for answers with these beginnings, which may be healed."""
        if not options.heal:
            return self.engine_options(options, bare=bare, **changes)
        from plainformer.generation.constraints.healing import Heal

        healing = Heal(self._index, [((*one.before, *one.begun), one.taken) for one in beginnings])
        stop = None
        if options.stop_strings:
            first = beginnings[0]
            there = len(replace(first, repeated=0).added(self.tokenizer, ()))
            stop = StopStrings(
                options.stop_strings, self.text_of, after=(*first.before, *first.begun), skip=first.repeated - there
            )
        return self.engine_options(options, bare=bare, healing=healing, stop=stop, **changes)

    def healed(self, ids: Sequence[int]) -> tuple[tuple[int, ...], bytes]:
        """Return a prompt's ids without the last ones, which the model writes again, and the bytes of those."""
        from plainformer.generation.constraints.healing import heal

        kept, taken = heal(ids, self._index)
        return tuple(kept), taken

    @cached_property
    def _index(self) -> TokenIndex:
        from plainformer.generation.constraints.healing import TokenIndex

        return TokenIndex(self._bytes.tokens, self._bytes.special_ids)

    def _must_be_alone(self, encoded: TextBatch, options: PromptOptions) -> bool:
        """Return whether to run prompts one by one: healed ones may become equal in a batch, or begin at other places."""
        if not options.heal or len(encoded.encodings) < 2:
            return False
        found = {self.beginning(row, options) for row in encoded.encodings}
        apart = {(one.before, one.begun) for one in found}
        return len(found) > 1 and (bool(options.stop_strings) or len(apart) < len(found))

    def is_bare(self, rows: Sequence[Sequence[int]]) -> bool:
        """Whether rows of ids are special tokens alone."""
        return all(i in self.tokenizer.output.special_ids for row in rows for i in row)


def streams_with(options: Callable[Given, WritingOptions], answer: type[Whole]) -> ItemCall[Given, AnswerStream[Whole]]:
    """The `stream` of a task that writes: its options, and what the whole answer is."""
    doc = "Return the answer piece by piece, in every mode; beams give what they agree on. Its `.result` is the whole."
    return method_with(options, AnswerStream[Whole], doc, lambda task, item, made: task.streamed(item, made))


def without_first(found: Generation, count: int) -> Generation:
    """Return a generation without the first tokens of each row."""
    if not count:
        return found
    chances = found.log_probabilities
    kept = None if chances is None else tuple(row[count:] for row in chances)
    return replace(found, token_ids=tuple(row[count:] for row in found.token_ids), log_probabilities=kept)
