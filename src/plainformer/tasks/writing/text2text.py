"""Text to text: an encoder-decoder turns a text into another one: a summary, a translation, an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from plainformer.config.values import no_effect
from plainformer.errors import UsageError, did_you_mean, opt
from plainformer.tasks.calls import called_with
from plainformer.tasks.writing.answers import Answer
from plainformer.tasks.writing.base import prepares_with
from plainformer.tasks.writing.detokenize import continuation
from plainformer.tasks.writing.options import Text2TextOptions
from plainformer.tasks.writing.prepared import Beginning, Prepared
from plainformer.tasks.writing.purposes import TRANSLATION, read_purposes, translations
from plainformer.tasks.writing.writer import WritingTask, streams_with

if TYPE_CHECKING:
    from plainformer.inputs.text.encoding import Encoding, TextBatch


@dataclass(frozen=True)
class TransformedText(Answer):
    """An `Answer`: the whole output, `decoder_prefix` included; `alternatives` as in `GeneratedText`.

    input_tokens: how many were read, special ones included. input_ids: their ids.
    """

    input_tokens: int = 0
    input_ids: tuple[int, ...] = field(default=(), repr=False)
    alternatives: tuple[Answer, ...] = ()


class Served(NamedTuple):
    """What one call is for: a purpose of the checkpoint, and the codes of its languages; None where nothing names them.

    mark: the token that each text begins with, which names the target (Marian).
    """

    purpose: str | None = None
    source: str | None = None
    target: str | None = None
    mark: str | None = None


class Text2TextGeneration(WritingTask[TransformedText]):
    """A text → another text.

    An input begins with the prefix of the purpose that the task was loaded for (`task="summarization"`,
    "translation_en_to_de"), if the checkpoint has one, or with `prefix`; `src_lang` and `tgt_lang` choose languages.
    An output begins with the model's start token, then the token that the checkpoint forces (`forced_bos_token_id`: a
    target language, or BART's <s>), or `tgt_lang`'s, then `decoder_prefix`; these do not count as new tokens. Constraints
    hold for what follows them. `forced_eos_token_id`, which would put an end token in place of the last word of a text that
    is too long, is applied with `defaults="checkpoint"` alone.
    """

    __call__ = called_with(Text2TextOptions, TransformedText)
    stream = streams_with(Text2TextOptions, TransformedText)
    prepare = prepares_with(Text2TextOptions)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.purposes = read_purposes(self.config.source)
        self._translations = translations(self.purposes)
        self._asked = Served()

    def encode(self, inputs: Sequence[str], options: Text2TextOptions) -> TextBatch:
        served = self._served(options)
        before = f"{served.mark} " * (served.mark is not None) + self.prefix_of(options)
        for text in inputs if served.mark is not None else ():
            begins = next(
                (mark for mark in self.tokenizer.languages.marks.values() if str(text).startswith(mark)), None
            )
            no_effect(begins is not None, "tgt_lang", f"on a text that begins with {begins!r}")
        texts = [before + text if isinstance(text, str) else text for text in inputs]
        return self.encode_texts(texts, truncate=options.truncate, src_lang=served.source)

    def prepared(self, encoded: TextBatch, options: Text2TextOptions) -> Prepared:
        start, prefix = self._start(options)
        beginning = self._beginning(options)
        changes: dict[str, Any] = {}
        first, uncounted = [*beginning.before, *beginning.begun], 0
        if options.num_beams > 1 and len(start) > 1 and not prefix and options.forced_bos_id is None:
            # transformers counts the forced token where it divides a beam's score by its length.
            first, uncounted, changes["forced_bos_id"] = first[:1], 1, start[1]
            if options.new_token_limit is not None:
                changes["max_new_tokens"] = options.new_token_limit + 1
            if options.min_new_tokens:
                changes["min_new_tokens"] = options.min_new_tokens + 1
        engine = self.engine_options_after([beginning], options, bare=self.is_bare([beginning.begun]), **changes)
        ids = torch.tensor([first] * len(encoded.encodings), device=self.model.device)
        inputs = {**self.model_inputs(encoded), "decoder_input_ids": ids}
        return Prepared(**vars(beginning), inputs=inputs, options=engine, uncounted=uncounted)

    def beginning(self, row: Encoding, options: Text2TextOptions) -> Beginning:
        return self._beginning(options)

    def _beginning(self, options: Text2TextOptions) -> Beginning:
        start, prefix = self._start(options)
        lead = continuation(self.tokenizer, start, prefix)
        kept, taken = self.healed([*start, *prefix]) if options.heal else ((*start, *prefix), b"")
        return Beginning(tuple(start), kept[len(start) :], lead, len(lead), taken)

    def result(self, row: Encoding, answers: Sequence[Answer], options: Text2TextOptions) -> TransformedText:
        ids = tuple(row.input_ids)
        return TransformedText(
            **vars(answers[0]), input_tokens=len(ids), input_ids=ids, alternatives=tuple(answers[1:])
        )

    # ---- how an output begins -------------------------------------------------------------------------------------

    def start_ids(self) -> list[int]:
        return self.start_of()[0]

    def _start(self, options: Text2TextOptions) -> tuple[list[int], list[int]]:
        return self.start_of(options.decoder_prefix, self._served(options).target)

    def start_of(self, decoder_prefix: str = "", target: str | None = None) -> tuple[list[int], list[int]]:
        """Return the ids that an output begins with: those that the model demands, and those of the prefix.

        `target` is the code of a language; None takes the checkpoint's own, if it names one.
        """
        first, forced, languages = self.settings.decoder_start_id, self.settings.forced_bos_id, self.tokenizer.languages
        own = self.tokenizer.output
        prefix = own.encode(decoder_prefix, add_special_tokens=False).input_ids if decoder_prefix else []
        # A prefix that names a language itself ("fr_XX", "__fr__") takes the place of the one that is forced.
        named = bool(prefix) and prefix[0] in own.special_ids
        no_effect(named and target is not None, "tgt_lang", f"with a {opt('decoder_prefix')} that names a language")
        if target is None and not named and forced is None and first not in languages.ids.values():
            target = languages.target
        if target is not None and languages.starts and forced is None:
            first = languages.ids[target]
        elif target is not None:
            forced = languages.ids[target]
        if first is None:
            raise UsageError("the checkpoint names no decoder_start_token_id", "add it to its config.json")
        return [first, *([forced] if forced is not None and not named else [])], prefix

    # ---- purposes and languages -----------------------------------------------------------------------------------

    def loaded_as(self, name: str) -> None:
        pair = TRANSLATION.fullmatch(name)
        if name in self.purposes:
            self._asked = Served(name)
        elif pair is not None and self.tokenizer.languages:
            self._asked = Served(name, *(self.tokenizer.languages.code("task", code) for code in pair.groups()))
        elif pair is not None and pair[2] in self.tokenizer.languages.marks:
            self._asked = Served(name, mark=self.tokenizer.languages.marks[pair[2]])
        elif pair is not None:
            hint = did_you_mean(name, self.purposes) if self.purposes else f"load it for {opt('task', 'translation')}"
            raise UsageError(f"{opt('task', name)}: the checkpoint names no such translation", hint)
        elif name == "translation":
            self._asked = Served(name)

    def completed(self, options: Any) -> Any:
        self._served(options)  # raises what is wrong with languages now
        return super().completed(options)

    def default_values(self, options: Any) -> Mapping[str, Any]:
        purpose = self.purposes.get(self._served(options).purpose or "")
        return {**self.settings.values, **(purpose.values if purpose is not None else {})}

    def prefix_of(self, options: Text2TextOptions) -> str:
        """Return what each text begins with."""
        if options.prefix is not None:
            return options.prefix
        purpose = self.purposes.get(self._served(options).purpose or "")
        return purpose.prefix if purpose is not None else ""

    def _served(self, options: Any) -> Served:
        """Return what a call is for: as its options say, or as the task was loaded.

        Raises:
            UsageError: a language that the model does not have; a translation of which the target is not known.
        """
        given = {name: getattr(options, name, None) for name in ("src_lang", "tgt_lang")}
        languages = self.tokenizer.languages
        if languages:
            codes = (languages.code(name, code) if code is not None else None for name, code in given.items())
            source, target = (own or usual for own, usual in zip(codes, self._asked[1:3], strict=True))
            self._need_target(options, target)
            return Served(self._asked.purpose, source, target)
        if languages.marks and given["tgt_lang"] is not None:
            no_effect(given["src_lang"] is not None, "src_lang", "on this model, which reads the language off the text")
            return Served(self._asked.purpose, mark=languages.mark("tgt_lang", given["tgt_lang"]))
        named = [name for name, code in given.items() if code is not None]
        if named and self._translations:
            return Served(self._by_prefix(given))
        for name in named:
            languages.code(name, str(given[name]))  # has no effect: raises
        if self._asked.purpose == "translation" and self._translations and options.prefix is None:
            self._by_prefix(given)
        return self._asked

    def _by_prefix(self, given: Mapping[str, str | None]) -> str:
        """Return the purpose that translates between two languages, both of which must be given."""
        known = ", ".join(f"{source} to {target}" for source, target in self._translations)
        missing = [name for name, code in given.items() if code is None]
        if missing:
            fix = f"give {opt('src_lang', ...)} and {opt('tgt_lang', ...)}: {known}"
            raise UsageError(f"this checkpoint translates by a prefix, and {opt(missing[0])} is missing", fix)
        source, target = given.values()
        if (str(source), str(target)) not in self._translations:
            what = f"{opt('src_lang', source)} and {opt('tgt_lang', target)} are not a translation of this checkpoint"
            raise UsageError(what, f"it has {known}")
        return self._translations[str(source), str(target)]

    def _need_target(self, options: Any, target: str | None) -> None:
        """Refuse a translation into a language that nothing names."""
        own, languages = self.settings, self.tokenizer.languages
        named = (target, languages.target, own.forced_bos_id, options.forced_bos_id, options.decoder_prefix or None)
        if self._asked.purpose != "translation" or any(one is not None for one in named):
            return
        if own.decoder_start_id not in languages.ids.values():
            raise UsageError("nothing names the language to translate into", f"give {opt('tgt_lang', ...)}")
