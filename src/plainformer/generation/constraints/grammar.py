"""Constrained decoding: the generated text is one of a list, matches a regular expression, is JSON of a schema, or is
what a grammar describes.

The work is done by the llguidance library (1.9): it walks the tokens' bytes through an Earley parser over a lexer of
regular-expression derivatives, and tells which tokens continue some text of the language. A token is allowed if and
only if there is such a text: no way of cutting it into tokens is preferred to another.

A row's parser state belongs to the row's generated tokens, so that rows may be reordered, shared and dropped.

Shapes: R rows, V vocabulary of the model's head, N vocabulary of the tokenizer.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor

from plainformer.errors import UsageError, a_type, opt
from plainformer.generation.constraints.healing import Heal
from plainformer.generation.constraints.row_states import RowStates
from plainformer.generation.processors.context import Context

if TYPE_CHECKING:
    import llguidance

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A definition of this size takes seconds; a far longer one could take hours.
_MOST_CHARACTERS = 1 << 18
_MOST_CHOICE_CHARACTERS = 1 << 22
# llguidance 1.9.1 compiles nested rules and `$ref`s by recursion, and would overflow a thread's usual 8 MB: a schema of
# 1000 definitions that refer to each other ended the process. This is enough for what the bound above lets pass.
_STACK_BYTES = 1 << 29
_stack_size = threading.Lock()
# JSON may have spaces between its parts. Without a bound, a weak model can write nothing but spaces.
_JSON_SPACE = r"[ \n\r\t]{0,40}"
_REGEX_SPECIAL = frozenset(r"\.+*?()|[]{}^$#&-~/")


class Vocabulary:
    """What a model's tokens write, as grammars need it. Building its index takes up to a second: keep one for a model.

    Args:
        tokens: the bytes of each id; of special tokens their name; b"" where an id has no token.
        eos_ids: tokens that end a row.
        special_ids: tokens that are not text. They are never allowed, except where a Lark grammar names them, and those
            of `eos_ids` where the text may end.

    Raises:
        UsageError: there is no end token: a row could not stop where the grammar does.
    """

    def __init__(self, tokens: Sequence[bytes], eos_ids: Sequence[int], special_ids: Iterable[int] = ()) -> None:
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        if not self.eos_ids or min(self.eos_ids) < 0:
            raise UsageError(
                f"{opt('eos_ids', list(eos_ids))} end no text", "a grammar needs the ids of the end tokens"
            )
        self.size = max(len(tokens), 1 + max(self.eos_ids))
        self.special_ids = frozenset([*special_ids, *self.eos_ids])
        missing = [b""] * (self.size - len(tokens))
        self.tokens = tuple(
            b"" if text.startswith(b"\xff") else text  # no text has this byte; to llguidance it means "special"
            for text in [*tokens, *missing]
        )
        first: dict[bytes, int] = {}
        # "A" and SentencePiece's byte "<0x41>" write the same: llguidance knows one token for each text.
        self.same_as = [
            i if i in self.special_ids or not text else first.setdefault(text, i) for i, text in enumerate(self.tokens)
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: the library's index can be neither copied nor pickled, and is built anew."""
        return {name: value for name, value in vars(self).items() if name != "library"}

    @cached_property
    def library(self) -> llguidance.LLTokenizer:
        """The index of llguidance."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_ForLibrary(self)), eos_token=list(self.eos_ids))

    @cached_property
    def ends(self) -> Tensor:
        """(N,) bool: the end tokens."""
        ends_N = torch.zeros(self.size, dtype=torch.bool)
        ends_N[list(self.eos_ids)] = True
        return ends_N

    @cached_property
    def _same_as(self) -> Tensor:
        return torch.tensor(self.same_as)

    def mask(self, bits: bytes) -> Tensor:
        """Return llguidance's bits as (N,) bool, of tokens that write the same all or none."""
        mask_N = torch.from_numpy(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: self.size]).bool()
        return mask_N[self._same_as]

    def spells(self, text: bytes) -> bool:
        """Whether tokens can write the text."""
        longest = max(map(len, self._texts), default=0)
        reached = [True] + [False] * len(text)
        for end in range(1, len(text) + 1):
            starts = range(max(0, end - longest), end)
            reached[end] = any(reached[start] and text[start:end] in self._texts for start in starts)
        return reached[-1]

    @cached_property
    def _texts(self) -> frozenset[bytes]:
        return frozenset(text for i, text in enumerate(self.tokens) if i not in self.special_ids)


class _ForLibrary:
    """The vocabulary as llguidance's `TokenizerWrapper` wants it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_ids[0]
        self.bos_token_id = None
        self.tokens = [
            text if same == i else b""
            for i, (text, same) in enumerate(zip(vocabulary.tokens, vocabulary.same_as, strict=True))
        ]
        self.special_token_ids = sorted(i for i in vocabulary.special_ids if vocabulary.tokens[i])

    def __call__(self, text: bytes | str) -> list[int]:
        """Return nothing: llguidance would force tokens where the text is certain, which `no_forcing` switches off."""
        return []


class Place(TypedDict, total=False):
    """What comes before a grammar's text in a row.

    Keys:
        lead: text that a row writes first and its decoded text does not show: the space of a first SentencePiece token
            (`TokenBytes.lead`) where nothing precedes the row; "" if not given.
        healing: what was taken back from prompts is written before the text as well; None if not given.
    """

    lead: str
    healing: Heal | None


class Grammar:
    """A processor that bans the tokens that continue no text of the language. Make it by one of the functions below.

    The end tokens are allowed exactly where the text may end, and nothing else is where it must (a language of the
    empty text alone thus gives an empty answer). Special tokens that other processors force are not part of the text. A
    row that has left the language (in a beam search with fewer texts than beams) may only end.

    Args:
        definition: an entry of llguidance's list of grammars, {"lark_grammar": text} or {"json_schema": schema}.
        vocabulary: of the model.
        title: the definition, for messages. syntax: how one is written, for messages about a wrong one.
        lead, healing: see `Place`.

    Raises:
        UsageError: the definition is wrong or too complex, or there is no text that it allows and the tokens can write.
    """

    name = "grammar"

    def __init__(
        self,
        definition: Mapping[str, Any],
        vocabulary: Vocabulary,
        *,
        title: str,
        syntax: str = "simplify it",
        lead: str = "",
        healing: Heal | None = None,
    ) -> None:
        self._definition, self._vocabulary, self._title = dict(definition), vocabulary, title
        self._syntax, self._lead, self._healing = syntax, lead, healing
        self._starts: dict[str, llguidance.LLMatcher] = {}
        # A row that has ended has no matcher, nor has one that left the language: its score is -inf already.
        self._states: RowStates[str, llguidance.LLMatcher | None] = RowStates(self._begin, self._advance)
        start = self._begin(lead)
        if healing is None:  # else what precedes the language differs from prompt to prompt
            self._allowed(start)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: without the library's matchers; rows are read again from their beginning."""
        return {name: value for name, value in vars(self).items() if name not in ("_starts", "_states")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _starts={})
        self._states = RowStates(self._begin, self._advance)

    @classmethod
    def choices(cls, texts: Sequence[str], vocabulary: Vocabulary, **place: Unpack[Place]) -> Grammar:
        """Allow one of the texts, exactly."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise UsageError(f"{opt('choices', texts)} is not a list of texts", 'for example ["yes", "no"]')
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"the choice {text!r} is {a_type(text)}", "choices are texts")
            if not vocabulary.spells(_encoded(place.get("lead", "") + text)) and place.get("healing") is None:
                raise UsageError(f"the tokens of this model cannot write the choice {text!r}", "leave it out")
        pattern = "|".join(map(_escaped, dict.fromkeys(texts)))
        _check_size("choices", pattern, _MOST_CHOICE_CHARACTERS)
        return cls(_regex(pattern), vocabulary, title=_title("choices", list(texts)), **place)

    @classmethod
    def regex(cls, pattern: str, vocabulary: Vocabulary, **place: Unpack[Place]) -> Grammar:
        """Allow texts that match the whole expression (syntax of Rust's regex crate: no look-around, no back-references)."""
        _check_text("regular expression", pattern)
        syntax = r"it is written as for Rust's regex crate: no look-around, no back-references; \[ is a literal ["
        return cls(_regex(pattern), vocabulary, title=_title("regular expression", pattern), syntax=syntax, **place)

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | bool | str, vocabulary: Vocabulary, **place: Unpack[Place]
    ) -> Grammar:
        """Allow JSON that fits the schema, with its properties in the schema's order.

        Args:
            schema: the schema, or its JSON text. Keywords that llguidance cannot enforce are errors. Spaces between the
                parts may be up to 40; the schema's own "x-guidance" (llguidance, docs/json_schema.md) can change that.
        """
        value = _parsed(schema)
        if value is False:
            raise UsageError("the JSON schema false allows nothing", "give a schema that something fits")
        value = {} if value is True else value
        if not isinstance(value, dict):
            raise UsageError(f"a JSON schema is an object, not {value!r}", 'for example {"type": "object", ...}')
        value = {"x-guidance": {"whitespace_pattern": _JSON_SPACE}, **value}
        syntax = "use types and keywords of JSON Schema that llguidance supports (its docs/json_schema.md)"
        return cls({"json_schema": value}, vocabulary, title=_title("JSON schema", schema), syntax=syntax, **place)

    @classmethod
    def lark(cls, text: str, vocabulary: Vocabulary, **place: Unpack[Place]) -> Grammar:
        """Allow what a grammar in llguidance's dialect of Lark (its docs/syntax.md) describes; its rule `start` is the text."""
        _check_text("grammar", text)
        syntax = "it is written in llguidance's dialect of Lark (its docs/syntax.md), for example start: /[0-9]+/"
        return cls({"lark_grammar": text}, vocabulary, title=_title("grammar", text), syntax=syntax, **place)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        leads = [self._lead] * len(context.ids)
        if self._healing is not None:
            leads = [lead + taken.decode() for lead, taken in zip(leads, self._healing.taken(context), strict=True)]
        matchers = self._states.of(context.new_rows, leads)
        masks = {id(m): self._allowed(m) for m in {id(m): m for m in matchers}.values()}
        size = min(logits_RV.size(-1), self._vocabulary.size)
        allowed_RV = torch.zeros(logits_RV.shape, dtype=torch.bool)
        for row, matcher in enumerate(matchers):
            allowed_RV[row, :size] = masks[id(matcher)][:size]
        return logits_RV.masked_fill(~allowed_RV.to(logits_RV.device), float("-inf"))

    # ---- states ---------------------------------------------------------------------------------------------------

    def _begin(self, lead: str) -> llguidance.LLMatcher:
        if lead not in self._starts:
            if len(self._starts) >= 64:  # healed prompts of earlier calls
                self._starts.clear()
            self._starts[lead] = _with_deep_stack(lambda: self._compiled(lead))
        return self._starts[lead]

    def _compiled(self, lead: str) -> llguidance.LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        # no_forcing: else only the first token of one way of writing a certain text is allowed.
        start = f'%llguidance {{"no_forcing": true}}\nstart: {_lark_string(lead)} @inner'
        grammars = [{"lark_grammar": start}, {**self._definition, "name": "inner"}]
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._vocabulary.library, json.dumps({"grammars": grammars}), log_level=0, limits=limits)
        if matcher.is_error():
            raise UsageError(f"the {self._title} cannot be used: {_reason(matcher)}", self._syntax)
        for warning in matcher.get_grammar_warnings():
            logger.warning("the %s: %s", self._title, warning)
        return matcher

    def _advance(self, before: llguidance.LLMatcher | None, token: int) -> llguidance.LLMatcher | None:
        vocabulary = self._vocabulary
        if before is None or token in vocabulary.eos_ids or not 0 <= token < vocabulary.size:
            return None
        matcher = before.deep_copy()
        if matcher.try_consume_tokens([vocabulary.same_as[token]]) == 1:
            return matcher
        if matcher.is_error():
            raise self._too_complex(matcher)
        return before if token in vocabulary.special_ids else None

    def _allowed(self, matcher: llguidance.LLMatcher | None) -> Tensor:
        """Return what may follow, (N,) bool."""
        if matcher is None:
            return self._vocabulary.ends
        mask_N = self._vocabulary.mask(matcher.compute_bitmask())
        if not matcher.is_error():
            return mask_N
        if _reason(matcher).startswith("NoExtensionBias"):
            raise UsageError(
                f"no token of this model continues as the {self._title} asks",
                "it allows nothing, or characters that the vocabulary lacks",
            )
        raise self._too_complex(matcher)

    def _too_complex(self, matcher: llguidance.LLMatcher) -> UsageError:
        return UsageError(f"the {self._title} cannot be followed: {_reason(matcher)}", "simplify it")


# ---- definitions ------------------------------------------------------------------------------------------------------


def _regex(pattern: str) -> dict[str, Any]:
    from llguidance import LLMatcher

    entry: dict[str, Any] = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0]
    return {"lark_grammar": entry["lark_grammar"]}


def _escaped(text: str) -> str:
    """Return the text as a regular expression."""
    return "".join(f"\\x{{{ord(c):x}}}" if c in _REGEX_SPECIAL or not c.isprintable() else c for c in text)


def _lark_string(text: str) -> str:
    """Return the text as a literal; nothing for the empty text."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in json.dumps(text, ensure_ascii=False)[1:-1])
    return f'"{shown}"' if text else ""


def _parsed(schema: Mapping[str, Any] | bool | str) -> Any:
    """Return the schema as JSON values, whichever way it was given."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False, default=dict)
        _check_text("JSON schema", text)
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"the {_title('JSON schema', schema)} is not valid JSON: {error}",
            "write names and texts in double quotes",
        ) from None


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise UsageError(f"the {what} is {a_type(text)}", "give text")
    _encoded(text)
    _check_size(what, text, _MOST_CHARACTERS)


def _check_size(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise UsageError(f"the {what} has {len(text)} characters; the limit is {most}", "shorten it")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{_title('text', text)} holds half a surrogate pair", "decode it correctly") from None


def _title(what: str, definition: object) -> str:
    shown = str(definition) if isinstance(definition, str | list) else json.dumps(definition, default=str)
    return f"{what} {shown[:100]!r}{'...' if len(shown) > 100 else ''}"


def _reason(matcher: llguidance.LLMatcher) -> str:
    """Return llguidance's message without its dump of the grammar and the parser."""
    lines = matcher.get_error().split("<non-verbose/>")[0].splitlines()
    return " ".join(line.strip() for line in lines if line.strip())[:300]


def _with_deep_stack(compute: Callable[[], T]) -> T:
    """Return `compute()`, run in a thread with a deep stack."""
    with ThreadPoolExecutor(1, "grammar") as threads:
        with _stack_size:
            usual = threading.stack_size(_STACK_BYTES)
            try:
                done = threads.submit(compute)  # starts the thread
            finally:
                threading.stack_size(usual)
        return done.result()
