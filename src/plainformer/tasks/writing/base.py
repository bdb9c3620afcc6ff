"""The base of all generating tasks: turns options in text into those of `generate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from plainformer.errors import UsageError, placed, plural
from plainformer.generation.options import GenerationOptions
from plainformer.tasks.base import Task
from plainformer.tasks.calls import Given, ItemCall, method_with
from plainformer.tasks.options import TaskOptions
from plainformer.tasks.writing.checkpoint_defaults import with_checkpoint_defaults
from plainformer.tasks.writing.checkpoint_settings import GenerationSettings
from plainformer.tasks.writing.options import CONSTRAINTS, WritingOptions
from plainformer.tasks.writing.prepared import Prepared

if TYPE_CHECKING:
    from plainformer.generation.constraints.grammar import Grammar, Vocabulary
    from plainformer.generation.constraints.healing import Heal
    from plainformer.generation.stopping import TextStop
    from plainformer.inputs.text.token_bytes import TokenBytes

W = TypeVar("W", bound=WritingOptions)
_KEPT_GRAMMARS = 16


class GeneratingTask(Task):
    """A task whose answer is generated.

    Its options are those of `GenerationOptions`, with some in words (`WritingOptions`): stop strings, what the answer must
    be, and `defaults`. With `defaults="plain"` the likeliest token is taken, one at a time, at most 64 of them; with
    `defaults="checkpoint"` the checkpoint's generation_config.json decides. Either way its end tokens, forced beginnings and
    banned tokens hold, and explicit options override it.

    A result is always one object for one input. With `num_return_sequences`, or `num_alternatives`, it is the first
    answer (of beams the best), and its `alternatives` are the others.
    """

    settings: GenerationSettings

    def checked(self, inputs: Any, options: Any) -> Any:
        many, seeds = isinstance(inputs, list | tuple) and not self.is_one(inputs), options.seed
        if many and isinstance(seeds, list | tuple) and len(seeds) != len(inputs):
            raise UsageError(
                f"{plural(len(seeds), 'seed')} for {plural(len(inputs), 'input')}",
                "give one int, or a list of one for each",
            )
        return inputs

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: grammars hold a library's objects, which can be neither copied nor pickled."""
        return {name: value for name, value in vars(self).items() if name not in ("_grammars", "_vocabularies")}

    # ---- by hand --------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:
        prepare = cast(Any, None)  # inferred, not declared, so that each task's own is seen
    else:

        def prepare(self, item: Any, /, **options: Any) -> Prepared:
            """Return what `generate` gets for one input; see `prepares_with`."""
            return _prepare(self, item, self.make_options(options))

    def prepared_item(self, item: Any, options: Any) -> Prepared:
        """Prepare one input, with options that are made already."""
        return self.prepared(self.encode([item], options), options)

    def prepared(self, encoded: Any, options: Any) -> Prepared:
        """Prepare encoded inputs."""
        raise NotImplementedError

    def start_ids(self) -> list[int]:
        """Return the ids that the output of an encoder-decoder begins with, whatever the input."""
        return [] if self.config.decoder_start_id is None else [self.config.decoder_start_id]

    # ---- options --------------------------------------------------------------------------------------------------

    def make_options(self, given: Mapping[str, Any]) -> Any:
        """Return the options of a call, complete: with the checkpoint's own where it asks for them."""
        options: Any = super().make_options(given)
        return self.completed(options)

    def completed(self, options: W) -> W:
        """Return options with the checkpoint's own added where they ask for it."""
        if options.defaults == "plain":
            return options
        return with_checkpoint_defaults(self.default_values(options), options).changed(defaults="plain")

    def default_values(self, options: Any) -> Mapping[str, Any]:
        """Return what `defaults="checkpoint"` takes, by the names of generation_config.json."""
        return self.settings.values

    def engine_options(
        self,
        options: WritingOptions,
        *,
        bare: bool,
        healing: Heal | None = None,
        stop: TextStop | None = None,
        **changes: Any,
    ) -> GenerationOptions:
        """Return the options of `generate`.

        Args:
            bare: whether only special tokens come before the new ones, no text.
            healing: what was taken back from the prompts. stop: finds stop strings, where healing needs its own.
            changes: options that the task sets itself.
        """
        own = self.settings
        eos_ids = own.eos_ids if options.eos_ids is None else options.eos_ids
        fixed = {"suppress": own.suppress, "suppress_first": own.suppress_first, "bad_words_ids": own.bad_words or None}
        given = {**{name: value for name, value in fixed.items() if name not in options.explicit}, **changes}
        if options.choices is not None and "output_scores" not in options.explicit:
            given["output_scores"] = True  # of so short an answer it costs nothing
        if isinstance(options.draft_model, Task):
            given["draft_model"] = options.draft_model.model
        if options.stop_strings:
            stop = stop or self._stops(options.stop_strings, bare)
        if healing is not None:
            given["processors"] = [*given.get("processors", options.processors), healing]
        grammar = self._constraint(options, eos_ids, bare, healing)
        return options.engine(**{**given, "eos_ids": eos_ids, "stop": stop, "grammar": grammar})

    def _stops(self, strings: Sequence[str], bare: bool) -> TextStop:
        from plainformer.generation.constraints.stop_strings import StopStrings

        # After any ordinary token, so that a first word keeps the space before it.
        before = () if bare else self.tokenizer.output.encode("a", add_special_tokens=False).input_ids
        return StopStrings(strings, self.text_of, after=before)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids."""
        return self.tokenizer.decode(self.tokenizer.known(ids), skip_special_tokens=True)

    # ---- constraints ----------------------------------------------------------------------------------------------

    def _constraint(self, options: WritingOptions, eos_ids: Sequence[int], bare: bool, healing: Heal | None) -> Any:
        """Return the grammar of the answer, None where it is free."""
        name = next((name for name in CONSTRAINTS if getattr(options, name) is not None), None)
        if name is None:
            return None
        value = getattr(options, name)
        if name == "grammar" and callable(value):
            return value
        lead = self._bytes.lead if bare else ""
        if healing is not None:
            return self._grammar(name, value, eos_ids, lead, healing)
        key = f"{name} {_key(value)} {tuple(eos_ids)} {lead!r}"
        made = self._grammars.pop(key, None) or self._grammar(name, value, eos_ids, lead, None)
        self._grammars[key] = made  # the last of those used
        for oldest in list(self._grammars)[:-_KEPT_GRAMMARS]:
            self._grammars.pop(oldest, None)  # another thread may have done so
        return made

    def _grammar(self, name: str, value: Any, eos_ids: Sequence[int], lead: str, healing: Heal | None) -> Grammar:
        from plainformer.generation.constraints.grammar import Grammar

        make = getattr(Grammar, "lark" if name == "grammar" else name)
        made: Grammar = make(value, self._vocabulary(tuple(eos_ids)), lead=lead, healing=healing)
        return made

    def _vocabulary(self, eos_ids: tuple[int, ...]) -> Vocabulary:
        from plainformer.generation.constraints.grammar import Vocabulary

        made = self._vocabularies.get(eos_ids)
        if made is None:
            made = Vocabulary(self._bytes.tokens, eos_ids, self._bytes.special_ids)
            self._vocabularies.clear()
            self._vocabularies[eos_ids] = made
        return made

    @cached_property
    def _grammars(self) -> dict[str, Grammar]:
        return {}

    @cached_property
    def _vocabularies(self) -> dict[tuple[int, ...], Vocabulary]:
        return {}

    @cached_property
    def _bytes(self) -> TokenBytes:
        from plainformer.inputs.text.token_bytes import token_bytes

        return token_bytes(self.tokenizer.output)


def _prepare(task: Any, item: Any, options: Any) -> Prepared:
    with placed(None), torch.inference_mode():
        prepared: Prepared = task.prepared_item(item, options)
        return prepared


_BY_HAND = """Return what `generate` gets for one input: the way to run this task by hand.

    prepared = task.prepare("The capital of France is", max_new_tokens=8)
    found = generate(task.model, **prepared.inputs, options=prepared.options)
    print(prepared.text(task.tokenizer, found.token_ids[0]))"""


def prepares_with(options: Callable[Given, TaskOptions]) -> ItemCall[Given, Prepared]:
    """The `prepare` of a task whose answer is generated."""
    return method_with(options, Prepared, _BY_HAND, _prepare)


def _key(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
