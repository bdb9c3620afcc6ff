"""Where the assistant's answers are in a conversation's text: what training may learn from it.

An answer begins where the generation prompt ends, which is where the model begins to write, and ends with the token that
ends its turn, which is where it stops. Both are found by rendering: a conversation up to a turn, with the generation prompt,
is how the conversation with that turn begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.errors import CheckpointError
from plainformer.inputs.chat.prompt import ChatPrompt

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer

ANSWERS = "assistant"


@dataclass(frozen=True)
class Conversation:
    """A conversation's ids, and which of them are answers: (start, stop), in order, the token that ends a turn included."""

    input_ids: list[int]
    answers: list[tuple[int, int]]


def conversations(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], end_id: int, **options: Any
) -> list[Conversation]:
    """Return a conversation with its answers; one for each answer, where the template writes an answer in another way once
    others follow, as those do that leave out earlier reasoning: each is then what the model sees when it writes that answer.

    Args:
        end_id: ends an answer after which the template writes no special token.
        options: those of `Tokenizer.chat_prompt`, such as `tools`.
    Raises:
        ChatTemplateError: the template refuses the messages.
        CheckpointError: it writes answers that do not begin with its own generation prompt.
    """
    ends = [token for token in map(tokenizer.id_to_token, tokenizer.special_ids) if token]
    whole = tokenizer.chat_prompt(messages, add_generation_prompt=False, **options)
    found, alone = [], []
    for place, message in enumerate(messages):
        if message.get("role") != ANSWERS:
            continue
        before = tokenizer.chat_prompt(messages[:place], **options).text
        prompt = tokenizer.chat_prompt(messages[: place + 1], add_generation_prompt=False, **options)
        if not prompt.text.startswith(before):
            raise _unlike(before, prompt.text)
        start, stop = len(before), _end(prompt.text, len(before), len(prompt.text), ends)
        alone.append((prompt, start, stop))
        shared = _shared(whole.text, prompt.text)
        within = _end(whole.text, start, shared, ends) if shared > start else None
        # What follows the end of the turn is not a part of the answer: white space, and the end of the whole text.
        if within is not None and not _without(prompt.text[within:], ends).strip():
            found.append((start, within))
    if len(found) == len(alone):
        return [_encoded(tokenizer, whole, found)] if found else []
    return [_alone(tokenizer, *one, end_id) for one in alone]


def _end(text: str, start: int, stop: int, ends: Iterable[str]) -> int | None:
    """Return where the last special token between two places of a text ends; None where there is none."""
    found = [text.rfind(token, start, stop) + len(token) for token in ends if text.rfind(token, start, stop) >= 0]
    return max(found, default=None)


def _shared(first: str, second: str) -> int:
    """Return how many characters two texts begin with that are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _without(text: str, tokens: Iterable[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, "")
    return text


def _alone(tokenizer: Tokenizer, prompt: ChatPrompt, start: int, stop: int | None, end_id: int) -> Conversation:
    """Return a conversation up to an answer; an end is added where the template writes none."""
    if stop is not None:
        return _encoded(tokenizer, prompt, [(start, stop)])
    stop = max(start, len(prompt.text.rstrip()))
    found = _encoded(tokenizer, prompt, [(start, stop)])
    ((first, last),) = found.answers
    return Conversation([*found.input_ids[:last], end_id], [(first, last + 1)])


def _encoded(tokenizer: Tokenizer, prompt: ChatPrompt, answers: Sequence[tuple[int, int]]) -> Conversation:
    """Return ids; what is before an answer is tokenised by itself, as it is when the model is to write that answer."""
    pieces = list(_cut(prompt.pieces, [place for answer in answers for place in answer]))
    ids = tokenizer.encode(ChatPrompt(tuple(piece for piece, _ in pieces)), max_length=None).input_ids
    places = {0: 0, len(prompt.text): len(ids)}
    reached = 0
    for number, ((text, _), ends_here) in enumerate(pieces):
        reached += len(text)
        if ends_here and reached not in places:
            part = ChatPrompt(tuple(piece for piece, _ in pieces[: number + 1]))
            places[reached] = len(tokenizer.encode(part, max_length=None))
    return Conversation(ids, [(places[start], places[stop]) for start, stop in answers])


def _cut(pieces: Iterable[tuple[str, bool]], places: Iterable[int]) -> Iterable[tuple[tuple[str, bool], bool]]:
    """Yield the pieces of a prompt, cut at places of its text, each with whether its end is one of the places."""
    wanted = set(places)
    reached = 0
    for text, literal in pieces:
        inside = sorted(place - reached for place in wanted if reached < place < reached + len(text))
        for start, stop in zip([0, *inside], [*inside, len(text)], strict=True):
            yield (text[start:stop], literal), reached + stop in wanted
        reached += len(text)


def _unlike(before: str, text: str) -> CheckpointError:
    place = _shared(before, text)
    return CheckpointError(
        f"the chat template writes {text[place : place + 40]!r} where its generation prompt has {before[place : place + 40]!r}: "
        "a model trained on it would not see what it will be asked to continue",
        "make add_generation_prompt end with what the template writes before an answer, or use another checkpoint's template",
    )
