"""A chat's prompt as pieces of text: what the template wrote, and control tokens that someone wrote into a message.

A control token in a message (`<|im_end|>` in what a user typed) is text and does not end a turn. So strings that are handed
to a template have their control tokens marked with private-use characters, and the rendered prompt is cut at the marks:
marked ones are tokenised as any other text is. Ids are those of transformers' `sanitize_control_tokens` (5.23). Two things
differ: here it is the default; and in system and assistant messages only special tokens are marked, because a model's own
`<think>` or `<tool_call>`, and a developer's example of one, are meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from plainformer.inputs.text.encoding import Encoding

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer

_START, _END = "\U000f0000", "\U000f0001"
_ESCAPED = re.compile(r"\\udb80\\udc0[01]", re.IGNORECASE)  # marks that a template wrote as ASCII JSON
_TRUSTED_ROLES = ("assistant", "system", "developer")


@dataclass(frozen=True)
class ChatPrompt:
    """What a model reads for a conversation.

    Attributes:
        pieces: the text, cut in order, each with whether it is to be read as text even where it is a token's name.
    """

    pieces: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        """The whole prompt."""
        return "".join(piece for piece, _ in self.pieces)

    def followed_by(self, text: str) -> ChatPrompt:
        """Return the prompt with a text after it, such as the beginning of the answer."""
        last, literal = self.pieces[-1]
        if literal:
            return replace(self, pieces=(*self.pieces, (text, False)))
        return replace(self, pieces=(*self.pieces[:-1], (last + text, False)))


class ControlTokens:
    """The tokens that a chat template writes and no message may: special ones, and those that the template names."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        added = tokenizer.backend.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        named = {token.content for token in added if token.content in template and not token.content.isspace()}
        self._special, self._all = _one_of(special), _one_of(special | named)

    def marked(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with the control tokens in their texts marked."""
        return [
            _marked(dict(one), self._special if one.get("role") in _TRUSTED_ROLES else self._all) for one in messages
        ]

    def marked_value(self, value: Any) -> Any:
        """Return a variable of the template with its control tokens marked."""
        return _marked(value, self._all)

    def prompt(self, rendered: str) -> ChatPrompt:
        """Return what was rendered, cut at the marks; a template may have separated the two of a token."""
        parts = re.split(f"{_START}({self._all.pattern}){_END}|[{_START}{_END}]", _ESCAPED.sub("", rendered))
        pieces = ((part, place % 2 == 1) for place, part in enumerate(parts) if part)
        return ChatPrompt(tuple(pieces) or (("", False),))


def _one_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return an expression for any of these; the longest first, as one may hold another. `(?!)` matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _marked(value: Any, tokens: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return tokens.sub(f"{_START}\\g<0>{_END}", value.replace(_START, "").replace(_END, ""))
    if isinstance(value, dict):
        return {key: _marked(item, tokens) for key, item in value.items()}
    return [_marked(item, tokens) for item in value] if isinstance(value, list | tuple) else value


# ---- pieces to ids ------------------------------------------------------------------------------------------------


def encode_pieces(tokenizer: Tokenizer, prompt: ChatPrompt) -> Encoding:
    """Return the tokens of a prompt; those of a control token that is text have its whole span as offsets."""
    newline = tokenizer.row(tokenizer.encoded("\n", add_special_tokens=False)).input_ids
    rows: list[Encoding] = []
    before = 0
    for piece, literal in prompt.pieces:
        lead = "\n" if before else ""
        row = _row(tokenizer, lead + piece, literal)
        if lead and row.input_ids[: len(newline)] == newline:
            row = row.select(range(len(newline), len(row)))
        elif lead:
            row, lead = _row(tokenizer, piece, literal), ""
        if literal and tokenizer.token_to_id(piece) in row.input_ids:  # the algorithm itself makes the token of it
            row = _joined(_row(tokenizer, character, literal) for character in piece)
        shift = before - len(lead)
        whole = (before, before + len(piece))
        spans = [whole if literal else (start + shift, end + shift) for start, end in row.offsets]
        rows.append(replace(row, offsets=spans))
        before += len(piece)
    return _joined(rows)


def _row(tokenizer: Tokenizer, text: str, literal: bool) -> Encoding:
    """Return a piece's tokens. A literal one goes through the backend's steps without its added tokens."""
    backend = tokenizer.backend
    if not literal:
        return tokenizer.row(tokenizer.encoded(text, add_special_tokens=False))
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    found = [token for word in words for token in backend.model.tokenize(word)]
    size = len(found)
    return Encoding(
        [token.id for token in found], [0] * size, [(0, 0)] * size, [token.value for token in found],
        [False] * size, [0] * size, [None] * size,
    )  # fmt: skip


def _joined(rows: Iterable[Encoding]) -> Encoding:
    names = ("input_ids", "token_type_ids", "offsets", "tokens", "special", "sequence_ids", "word_ids")
    every = list(rows)
    columns: dict[str, Any] = {name: list(chain.from_iterable(getattr(row, name) for row in every)) for name in names}
    return Encoding(**columns)
