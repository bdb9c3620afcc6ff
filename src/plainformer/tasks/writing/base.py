"""What the tasks that generate share: options in words become those of `generate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from plainformer.errors import UsageError, did_you_mean
from plainformer.generation.options import GenerationOptions, make_options
from plainformer.generation.stopping import TextStop
from plainformer.tasks.base import Task
from plainformer.tasks.legacy import LegacyTask
from plainformer.tasks.writing.checkpoint_defaults import add_defaults
from plainformer.tasks.writing.checkpoint_settings import GenerationSettings

if TYPE_CHECKING:
    from plainformer.generation.constraints.grammar import Grammar, Vocabulary
    from plainformer.generation.constraints.healing import Heal, TokenIndex
    from plainformer.inputs.text.token_bytes import TokenBytes

ENGINE_OPTIONS = frozenset(field.name for field in fields(GenerationOptions) if field.init)
CONSTRAINTS = ("choices", "regex", "json_schema", "grammar")
TEXT_OPTIONS = frozenset({"stop", "heal", "defaults", *CONSTRAINTS})
DEFAULTS = ("plain", "checkpoint")
_KEPT_GRAMMARS = 8


class GeneratingTask(LegacyTask):
    """A task whose answer is generated. All options of `generate.options.GenerationOptions` are its own, and:

    Options in words:
        stop: a text, or a list of texts, of which the first to be written ends the answer. It is not part of it.
        choices, regex, json_schema, grammar: what the answer must be: one of some texts; a text that matches a regular
            expression; JSON of a schema (a dict, or text); of a grammar (llguidance's Lark, or `generate.grammar`'s).
        heal: True lets the model write the last tokens in front of the answer again, since the end of a prompt may have
            been cut into tokens as the model never saw (`generate.healing`).
        defaults: what holds where an option is not given. "plain": the likeliest token, one at a time, at most 64 tokens.
            "checkpoint": what the checkpoint's generation_config.json says: beams of a summarizer, sampling of a chat
            model. Either way its end tokens, forced beginnings and banned tokens hold; what a call gives goes before.

    A result is always one object for one input. With `num_return_sequences`, or `num_alternatives`, it is the first
    answer (of beams the best), and its `alternatives` are the others.
    """

    more_options = ENGINE_OPTIONS | TEXT_OPTIONS
    settings: GenerationSettings

    def __call__(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        seed = options.get("seed")
        many = isinstance(inputs, list | tuple) and not self.is_one(inputs)
        if many and isinstance(seed, list | tuple) and len(seed) != len(inputs):
            raise UsageError(f"{len(seed)} seeds for {len(inputs)} inputs", "give one int, or a list of one for each")
        return super().__call__(inputs, **options)

    # ---- options --------------------------------------------------------------------------------------------------

    def sorts(self, options: Mapping[str, Any]) -> bool:
        """Not where a caller's function, or a cache, knows inputs by their place in a batch."""
        functions = any(callable(value) for value in options.values())
        return not functions and not options.get("processors") and options.get("cache") is None

    def options_of(self, places: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
        """Of a list of seeds, those of these inputs."""
        seed = options.get("seed")
        if not isinstance(seed, list | tuple):
            return options
        if places and max(places) >= len(seed):
            raise UsageError(f"{len(seed)} seeds for more inputs", "give one int, or a list of one for each")
        return {**options, "seed": [seed[place] for place in places]}

    def with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a call and, where it asks for them, those of the checkpoint."""
        given = dict(options)
        defaults = given.pop("defaults", "plain")
        if defaults not in DEFAULTS:
            raise UsageError(f"defaults={defaults!r} is unknown", did_you_mean(str(defaults), DEFAULTS))
        return add_defaults(self.settings.values, given) if defaults == "checkpoint" else given

    def stop_strings(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts that end an answer."""
        stop = self.with_defaults(options).get("stop")
        if stop is None:
            return ()
        strings = [stop] if isinstance(stop, str) else stop
        if not isinstance(strings, list | tuple) or not all(isinstance(s, str) and s for s in strings):
            raise UsageError(f"stop={stop!r} is neither a text nor a list of texts", 'give stop=["\\n\\n"], say')
        return tuple(dict.fromkeys(strings))

    def engine_options(
        self, options: Mapping[str, Any], *, bare: bool, healing: Heal | None = None, stop: TextStop | None = None
    ) -> dict[str, Any]:
        """The options of `generate`.

        Args:
            options: of the call.
            bare: whether no text stands in front of the new tokens, only special tokens.
            healing: what was taken back from the prompts. stop: looks for stop strings, where healing needs its own.
        """
        given = self.with_defaults(options)
        strings = self.stop_strings(options)
        own = {name: given.pop(name, None) for name in TEXT_OPTIONS}
        settings = self.settings
        fixed: dict[str, Any] = {
            "eos_ids": settings.eos_ids,
            "suppress": settings.suppress,
            "suppress_first": settings.suppress_first,
            "bad_words_ids": settings.bad_words or None,
        }
        given = {**fixed, **given}
        if given["eos_ids"] is None:
            given["eos_ids"] = settings.eos_ids
        if isinstance(given.get("draft_model"), Task):
            given["draft_model"] = given["draft_model"].model
        if strings:
            given["stop"] = stop or self._stops(strings, bare)
        given["grammar"] = self._constraint(own, given["eos_ids"], bare, healing)
        if healing is not None:
            given["processors"] = [*given.get("processors", ()), healing]
        make_options(given)  # what is wrong is said before anything runs
        return given

    def _stops(self, strings: Sequence[str], bare: bool) -> TextStop:
        from plainformer.generation.constraints.stop_strings import StopStrings

        # Behind any ordinary token, so that a first word keeps the space in front of it.
        before = () if bare else self.tokenizer.encode("a", add_special_tokens=False).input_ids
        return StopStrings(strings, self.text_of, behind=before)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of generated ids."""
        return self.tokenizer.decode(self.tokenizer.known(ids), skip_special_tokens=True)

    # ---- constraints ----------------------------------------------------------------------------------------------

    def _constraint(self, own: Mapping[str, Any], eos_ids: Sequence[int], bare: bool, healing: Heal | None) -> Any:
        """The grammar of the answer, None where it is free."""
        asked = [name for name in CONSTRAINTS if own[name] is not None]
        if len(asked) > 1:
            raise UsageError(f"{asked[0]} and {asked[1]} exclude each other", "give one of them")
        if not asked:
            return None
        name, value = asked[0], own[asked[0]]
        if name == "grammar" and callable(value):
            return value
        lead = self._bytes.lead if bare else ""
        if healing is not None:
            return self._grammar(name, value, eos_ids, lead, healing)
        key = f"{name} {_key(value)} {tuple(eos_ids)} {lead!r}"
        if key not in self._grammars:
            if len(self._grammars) >= _KEPT_GRAMMARS:
                self._grammars.clear()
            self._grammars[key] = self._grammar(name, value, eos_ids, lead, None)
        return self._grammars[key]

    def _grammar(self, name: str, value: Any, eos_ids: Sequence[int], lead: str, healing: Heal | None) -> Grammar:
        from plainformer.generation.constraints.grammar import Grammar

        make = {
            "choices": Grammar.choices,
            "regex": Grammar.regex,
            "json_schema": Grammar.json_schema,
            "grammar": Grammar.lark,
        }[name]
        return make(value, self._vocabulary(tuple(eos_ids)), lead=lead, healing=healing)  # type: ignore[operator]

    def _vocabulary(self, eos_ids: tuple[int, ...]) -> Vocabulary:
        from plainformer.generation.constraints.grammar import Vocabulary

        if eos_ids not in self._vocabularies:
            self._vocabularies.clear()
            self._vocabularies[eos_ids] = Vocabulary(self._bytes.tokens, eos_ids, self._bytes.special_ids)
        return self._vocabularies[eos_ids]

    @cached_property
    def _grammars(self) -> dict[str, Grammar]:
        return {}

    @cached_property
    def _vocabularies(self) -> dict[tuple[int, ...], Vocabulary]:
        return {}

    @cached_property
    def _bytes(self) -> TokenBytes:
        from plainformer.inputs.text.token_bytes import token_bytes

        return token_bytes(self.tokenizer)

    # ---- prompts --------------------------------------------------------------------------------------------------

    @cached_property
    def _index(self) -> TokenIndex:
        from plainformer.generation.constraints.healing import TokenIndex

        return TokenIndex(self._bytes.tokens, self._bytes.special_ids)

    def healed(self, ids: Sequence[int]) -> tuple[list[int], bytes]:
        """A prompt's ids without the last ones, which the model writes again, and the bytes of those."""
        from plainformer.generation.constraints.healing import heal

        return heal(ids, self._index)

    def healing(self, prompts: Sequence[tuple[Sequence[int], bytes]]) -> Heal:
        from plainformer.generation.constraints.healing import Heal

        return Heal(self._index, prompts)

    def is_bare(self, rows: Sequence[Sequence[int]]) -> bool:
        """Whether rows of ids are special tokens alone."""
        return all(i in self.tokenizer.special_ids for row in rows for i in row)

    def tensor(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows as (B, T) ids and attention mask, padded on the left."""
        width = max(map(len, rows))
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(rows):
            ids[row, width - len(own) :] = torch.tensor(own)
            mask[row, width - len(own) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)


def wants_healing(options: Mapping[str, Any]) -> bool:
    """Whether a call asks for it."""
    wanted = options.get("heal", False)
    if not isinstance(wanted, bool):
        raise UsageError(f"heal={wanted!r} is neither True nor False", "give heal=True")
    return wanted


def check_single(options: Mapping[str, Any]) -> None:
    """A stream is of one answer."""
    for name in ("num_return_sequences", "num_alternatives"):
        if options.get(name) not in (None, 1):
            raise UsageError(
                f"{name}={options[name]!r} has no effect in a stream, which is of one answer", "leave it out"
            )


def _key(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
