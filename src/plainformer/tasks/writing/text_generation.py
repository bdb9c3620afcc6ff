"""Text generation: a decoder continues a text, or answers a chat."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.errors import InputError, UsageError
from plainformer.generation.result import joined
from plainformer.generation.search import Generation, generate, stream
from plainformer.inputs.text.encoding import TextBatch
from plainformer.tasks.writing.answers import Answer, AnswerStream, TextStop, behind, first_row, make_answer, until
from plainformer.tasks.writing.base import GeneratingTask, check_single, wants_healing
from plainformer.tasks.writing.checkpoint_settings import FILE, read_generation_settings
from plainformer.tasks.writing.detokenize import continuation, pieces
from plainformer.tasks.writing.scoring import ScoredText, score_texts

if TYPE_CHECKING:
    from plainformer.inputs.text.encoding import Encoding

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class GeneratedText(Answer):
    """An `Answer`, `answer_prefix` included.

    Attributes:
        prompt: what it continues. prompt_tokens: all tokens in front of the first new one.
        alternatives: further answers, with `num_return_sequences` or `num_alternatives`.
    """

    prompt: str = ""
    prompt_tokens: int = 0
    alternatives: tuple[Answer, ...] = ()


class TextGeneration(GeneratingTask):
    """A text → its continuation; a list of chat messages → the assistant's answer.

    Options of its own:
        truncate: True cuts a prompt that is too long at its beginning: what stands next to the answer is kept.
        answer_prefix: what the answer begins with; the model goes on from there. Constraints hold for what it adds.
        negative_prompt: with guidance_scale, the text that the answer is led away from.

    The others are those of `GeneratingTask`.
    """

    cut = "left"
    companions = (FILE,)
    more_options = GeneratingTask.more_options | {"negative_prompt"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = read_generation_settings(self.checkpoint, self.config)

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

    def encode(self, inputs: Sequence[Any], *, truncate: bool = False, answer_prefix: str = "") -> TextBatch:
        if not isinstance(answer_prefix, str):
            raise UsageError(
                f"answer_prefix is a {type(answer_prefix).__name__}", "give the text that answers begin with"
            )
        rows = []
        for item in inputs:
            prompt, is_chat = self.prompt_of(item)
            limit = self.config.main_stack.max_positions
            cut = truncate and self.cut
            row = self.tokenizer.encode(
                prompt + answer_prefix,
                add_special_tokens=not is_chat,
                truncate=cut,
                max_length="own" if limit is None else limit,
            )
            if not row.input_ids:
                raise InputError("an empty prompt: there is nothing to continue", "give at least one character")
            rows.append(row)
        return self.tokenizer.pad(rows, side="left")

    def predict(self, encoded: TextBatch, **options: Any) -> Generation:
        if wants_healing(options) and len(encoded.encodings) > 1 and self._must_be_alone(encoded, options):
            return joined([self.predict(one, **own) for one, own in self._apart(encoded, options)])
        return generate(self.model, **self._inputs(encoded, options))

    def decode(
        self, encoded: TextBatch, predicted: Generation, *, answer_prefix: str = "", **options: Any
    ) -> list[GeneratedText]:
        strings = self.stop_strings(options)
        count = len(predicted.token_ids) // max(1, len(encoded.encodings))
        results = []
        for index, row in enumerate(encoded.encodings):
            before, skip = self._before(row, options)
            answers = []
            for place in range(index * count, (index + 1) * count):
                text = answer_prefix + continuation(self.tokenizer, before, predicted.token_ids[place])[skip:]
                answers.append(make_answer(predicted, place, text, len(answer_prefix), strings))
            prompt = self.tokenizer.decode(row.input_ids).removesuffix(answer_prefix)
            results.append(
                GeneratedText(
                    **vars(answers[0]),
                    prompt=prompt,
                    prompt_tokens=len(row.input_ids),
                    alternatives=tuple(answers[1:]),
                )
            )
        return results

    def stream(
        self, item: Any, *, truncate: bool = False, answer_prefix: str = "", **options: Any
    ) -> AnswerStream[GeneratedText]:
        """The answer piece by piece, in every mode; beams give what they agree on. Its `.result` is the whole."""
        self._check(options)
        check_single(options)
        batch = self.encode([item], truncate=truncate, answer_prefix=answer_prefix)
        return AnswerStream(self._write(batch, self._inputs(batch, options), answer_prefix, options))

    def _write(
        self, batch: TextBatch, inputs: dict[str, Any], answer_prefix: str, options: dict[str, Any]
    ) -> Generator[str, None, GeneratedText]:
        before, skip = self._before(batch.encodings[0], options)
        ended: list[Generation] = []
        if answer_prefix:
            yield answer_prefix
        texts = pieces(self.tokenizer, before, first_row(stream(self.model, **inputs), ended))
        yield from until(behind(texts, skip), self.stop_strings(options))
        return self.decode(batch, ended[0], answer_prefix=answer_prefix, **options)[0]

    def score(
        self,
        texts: str | list[str],
        *,
        truncate: bool = False,
        stride: int | None = None,
        max_length: int | None = None,
    ) -> ScoredText | list[ScoredText]:
        """How likely each token of a text is after those before it, and the text's perplexity; a list gives a list.

        Args:
            truncate: cut a text that is too long at its beginning; otherwise it is an error, except with `stride`.
            stride: score texts of any length in windows of `max_length` tokens, each beginning `stride` tokens after the
                last: n tokens are 1 + ceil((n - max_length) / stride) windows. Every token is scored once, in the first
                window that holds it: after all tokens before it, or after at least max_length - stride of them.
            max_length: in tokens; default: what the model or the tokenizer allows.
        """
        scored = score_texts(
            self, [texts] if isinstance(texts, str) else texts, truncate=truncate, stride=stride, max_length=max_length
        )
        return scored[0] if isinstance(texts, str) else scored

    # ---- prompts --------------------------------------------------------------------------------------------------

    def _before(self, row: Encoding, options: Mapping[str, Any]) -> tuple[list[int], int]:
        """The ids that the model continues, and how many characters of the prompt it writes again."""
        if not wants_healing(options):
            return row.input_ids, 0
        kept, _ = self.healed(row.input_ids)
        return kept, len(continuation(self.tokenizer, kept, row.input_ids[len(kept) :]))

    def _must_be_alone(self, encoded: TextBatch, options: Mapping[str, Any]) -> bool:
        """Healed prompts that differ in their ends alone are not told apart in a batch, nor where their texts begin."""
        healed = {(tuple(kept), taken) for kept, taken in (self.healed(row.input_ids) for row in encoded.encodings)}
        return bool(self.stop_strings(options)) or len({kept for kept, _ in healed}) < len(healed)

    def _apart(self, encoded: TextBatch, options: Mapping[str, Any]) -> list[tuple[TextBatch, dict[str, Any]]]:
        parts = []
        for index, row in enumerate(encoded.encodings):
            seed = options.get("seed")
            own = {"seed": seed[index]} if isinstance(seed, list | tuple) else {}
            parts.append((self.tokenizer.pad([row], side="left"), {**options, **own}))
        return parts

    def _inputs(self, batch: TextBatch, options: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(options)
        negative = given.pop("negative_prompt", None)
        if negative is not None:
            ids = self.encode([negative]).input_ids.to(self.model.device)
            given["negative_ids"] = ids.expand(len(batch.encodings), -1)
        rows, healing, stop = [row.input_ids for row in batch.encodings], None, None
        if wants_healing(options):
            prompts = [self.healed(row) for row in rows]
            healing = self.healing(prompts)
            strings = self.stop_strings(options)
            if strings:
                kept, skip = self._before(batch.encodings[0], options)
                stop = TextStop(self.tokenizer, strings, kept, (), skip)
            rows = [kept for kept, _ in prompts]
        ids, mask = self.tensor(rows)
        engine = self.engine_options(given, bare=self.is_bare(rows), healing=healing, stop=stop)
        return {"input_ids": ids, "attention_mask": mask, **engine}


def _is_chat(inputs: Any) -> bool:
    """Whether a list is one chat, well made or not, rather than a list of inputs."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict)
