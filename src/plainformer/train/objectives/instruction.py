"""Instruction tuning: conversations laid out by the chat template, with the loss on answers only (Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plainformer.errors import UsageError, opt
from plainformer.inputs.chat.template import ChatTemplateError
from plainformer.inputs.chat.turns import Conversation, conversations
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped, Encoded
from plainformer.train.objectives.causal import end_of_text
from plainformer.train.objectives.collate import NONE, Ids, as_ids
from plainformer.train.objectives.words import WordObjective, batch_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}  # of data sets that write "from" and "value"


class InstructionTuning(WordObjective):
    """Learn what the assistant says in a conversation: every answer, and the token that ends its turn.

    A row has `messages`, as a chat has them; or a `prompt`, with what it is about in `input`, and a `response`, after a
    `system` message. `tools` are given to the template.

    An example is `input_ids`, and `answers`: 1 for tokens that are to be learned.
    """

    name = "instruction"
    head = "causal_lm"
    columns = (
        Column("messages", ("conversations", "conversation", "chat"), False, "Dicts with role and content."),
        Column("prompt", ("instruction", "question"), False, "What the user says."),
        Column("input", ("context",), False, "What the prompt is about; comes after it."),
        Column("response", ("output", "answer", "completion"), False, "What the assistant says.", target=True),
        Column("system", ("system_prompt",), False, "The system's message."),
        Column("tools", (), False, "Tools that the assistant may call."),
    )

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        if self.too_long == "window":
            what = f"{opt('data.too_long', 'window')} would separate answers from what they answer"
            raise UsageError(what, f"give {opt('data.too_long', 'cut')} or {opt('data.too_long', 'drop')}")
        if not processor.has_chat_template:
            what = "this checkpoint has no chat template, which says how a conversation is written"
            raise UsageError(what, "train a chat model, or put a chat_template into tokenizer_config.json")
        processor.chat_template.reads()  # a template that is malformed is said now
        self.end_id = end_of_text(processor, model)

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a conversation as one example; as one for each answer, where the template asks for that."""
        messages = messages_of(row)
        if not any(message.get("role") == "assistant" for message in messages):
            raise Dropped("no answer")
        options = {"tools": row["tools"]} if row.get("tools") else {}
        try:
            found = conversations(self.processor, messages, self.end_id, **options)
        except ChatTemplateError:
            raise Dropped("refused by the chat template") from None
        except UsageError:
            raise Dropped("messages that a chat cannot have") from None
        fitting = [self._fitted(one) for one in found]
        examples = [example for example, _ in fitting if example["answers"][1:].max(initial=0)]
        if not examples:
            raise Dropped("no answer within max_length")
        return Encoded(examples, sum(cut for _, cut in fitting))

    def _fitted(self, found: Conversation) -> tuple[Arrays, int]:
        ids = self.known(as_ids(found.input_ids))
        answers = np.zeros(len(ids), dtype=np.uint8)
        for start, stop in found.answers:
            answers[start:stop] = 1
        if self.limit is None or len(ids) <= self.limit:
            return {"input_ids": ids, "answers": answers}, 0
        if self.too_long == "drop":
            raise Dropped("longer than max_length")
        return {"input_ids": ids[: self.limit], "answers": answers[: self.limit]}, len(ids) - self.limit

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return rows of examples."""
        ids = [[as_ids(piece["input_ids"]) for piece in row] for row in rows]
        return batch_of(ids, [[_labels(piece) for piece in row] for row in rows], self.filler)

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return each token with the next, where that is a part of an answer."""
        return self.pairs(as_ids(example["input_ids"]), _labels(example))


def _labels(piece: Arrays) -> Ids:
    """Return the token after each token, where that is a part of an answer."""
    ids = as_ids(piece["input_ids"])
    return np.concatenate((np.where(piece["answers"][1:] > 0, ids[1:], NONE), [NONE]))


def messages_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a row's conversation. Raises Dropped where there is none."""
    messages = row.get("messages")
    if messages is None:
        prompt, response = row.get("prompt"), row.get("response")
        for name, text in (("prompt", prompt), ("response", response)):
            if not isinstance(text, str) or not text:
                raise Dropped(f"no {name}")
        about = row.get("input")
        said = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        asked = f"{prompt}\n\n{about}" if about else prompt
        return [*said, {"role": "user", "content": asked}, {"role": "assistant", "content": response}]
    if not isinstance(messages, Sequence) or not all(isinstance(one, Mapping) for one in messages):
        raise Dropped("messages that are not a list of dicts")
    return [_renamed(one) if "from" in one and "value" in one else one for one in messages]


def _renamed(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
