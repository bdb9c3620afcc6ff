"""Text to text: an encoder-decoder turns a text into another one: a summary, a translation, an answer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from plainformer.errors import UsageError
from plainformer.generation.result import Search
from plainformer.generation.search import DEFAULT_NEW_TOKENS, Generation, generate, stream
from plainformer.tasks.writing.answers import Answer, AnswerStream, TextStop, behind, first_row, make_answer, until
from plainformer.tasks.writing.base import GeneratingTask, check_single, wants_healing
from plainformer.tasks.writing.checkpoint_settings import FILE, read_generation_settings
from plainformer.tasks.writing.detokenize import continuation, pieces

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class TransformedText(Answer):
    """An `Answer`: the whole output, `decoder_prefix` included; `alternatives` as in `GeneratedText`."""

    input_tokens: int = 0
    alternatives: tuple[Answer, ...] = ()


class Text2TextGeneration(GeneratingTask):
    """A text → another text.

    An output begins with the model's start token, then the token that the checkpoint forces (`forced_bos_token_id`: a
    target language, or BART's <s>), then `decoder_prefix`; these do not count as new tokens. `forced_eos_token_id`,
    which would put an end token in place of the last word of a text that is too long, is applied with
    `defaults="checkpoint"` alone.

    Options of its own:
        truncate: True cuts a text that is too long at its end.
        decoder_prefix: what the output begins with, in every mode. Constraints hold for what comes behind it.

    The others are those of `GeneratingTask`.
    """

    companions = (FILE,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = read_generation_settings(self.checkpoint, self.config)

    def encode(self, inputs: Sequence[str], *, truncate: bool = False) -> TextBatch:
        return self.encode_texts(inputs, truncate=truncate)

    def predict(self, encoded: TextBatch, *, decoder_prefix: str = "", **options: Any) -> Generation:
        inputs, extra = self._inputs(encoded, decoder_prefix, options)
        return _without_first(generate(self.model, **inputs), extra)

    def decode(
        self, encoded: TextBatch, predicted: Generation, *, decoder_prefix: str = "", **options: Any
    ) -> list[TransformedText]:
        start, prefix = self.start_of(decoder_prefix)
        begun, free = self._begun(start, prefix, options)
        strings = self.stop_strings(options)
        count = len(predicted.token_ids) // max(1, len(encoded.encodings))
        results = []
        for index, row in enumerate(encoded.encodings):
            answers = []
            for place in range(index * count, (index + 1) * count):
                text = continuation(self.tokenizer, start, [*begun, *predicted.token_ids[place]])
                answers.append(make_answer(predicted, place, text, free, strings))
            more = {"input_tokens": len(row.input_ids), "alternatives": tuple(answers[1:])}
            results.append(TransformedText(**{**vars(answers[0]), **more}))
        return results

    def stream(
        self, item: str, *, decoder_prefix: str = "", truncate: bool = False, **options: Any
    ) -> AnswerStream[TransformedText]:
        """The output piece by piece, in every mode; beams give what they agree on. Its `.result` is the whole."""
        self._check(options)
        check_single(options)
        batch = self.encode([item], truncate=truncate)
        inputs, extra = self._inputs(batch, decoder_prefix, options)
        return AnswerStream(self._write(batch, inputs, extra, decoder_prefix, options))

    def _write(
        self, batch: TextBatch, inputs: dict[str, Any], extra: int, decoder_prefix: str, options: dict[str, Any]
    ) -> Generator[str, None, TransformedText]:
        start, prefix = self.start_of(decoder_prefix)
        begun, free = self._begun(start, prefix, options)
        ended: list[Generation] = []
        if first := continuation(self.tokenizer, start, prefix):
            yield first
        steps: Search = stream(self.model, **inputs)
        tokens = first_row(steps, ended)
        for _ in range(extra):
            next((token for token in tokens if token is not None), None)
        texts = pieces(self.tokenizer, start, tokens, begun=begun)
        yield from until(behind(texts, free), self.stop_strings(options))
        found = _without_first(ended[0], extra)
        return self.decode(batch, found, decoder_prefix=decoder_prefix, **options)[0]

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

    def _begun(self, start: list[int], prefix: list[int], options: Mapping[str, Any]) -> tuple[list[int], int]:
        """The ids of the prefix that stand in front of the new tokens, and the characters of the whole prefix."""
        free = len(continuation(self.tokenizer, start, prefix))
        if not wants_healing(options):
            return prefix, free
        kept, _ = self.healed([*start, *prefix])
        return kept[len(start) :], free

    def _inputs(self, batch: TextBatch, decoder_prefix: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The arguments of `generate`, and how many of the new tokens are no part of the output's own."""
        start, prefix = self.start_of(decoder_prefix)
        begun, free = self._begun(start, prefix, options)
        first, healing, stop = [*start, *begun], None, None
        if wants_healing(options):
            healing = self.healing([self.healed([*start, *prefix])])
            if strings := self.stop_strings(options):
                stop = TextStop(self.tokenizer, strings, start, begun, free)
        given = self.engine_options(options, bare=self.is_bare([begun]), healing=healing, stop=stop)
        extra = 0
        if given.get("num_beams", 1) > 1 and len(start) > 1 and not prefix and "forced_bos_id" not in given:
            # The reference counts the forced token where it divides a beam's score by its length.
            first, extra, given["forced_bos_id"] = first[:1], 1, start[1]
            given.update({name: given[name] + 1 for name in ("max_new_tokens", "min_new_tokens") if given.get(name)})
            if not given.get("max_new_tokens") and not given.get("max_length"):
                given["max_new_tokens"] = DEFAULT_NEW_TOKENS + 1
        ids, _ = self.tensor([first] * len(batch.encodings))
        return {**self.model_inputs(batch), "decoder_input_ids": ids, **given}, extra


def _without_first(found: Generation, count: int) -> Generation:
    """A generation without the first tokens of each row."""
    return replace(found, token_ids=tuple(row[count:] for row in found.token_ids)) if count else found
