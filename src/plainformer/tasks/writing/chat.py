"""A conversation with a model, turn by turn: each turn runs only the tokens that are new."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Unpack

from plainformer.config.values import check_text
from plainformer.errors import InputError, UsageError, a_type, did_you_mean, plural
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.options import TOKENS
from plainformer.tasks.lengths import least
from plainformer.tasks.writing.answers import AnswerStream
from plainformer.tasks.writing.chat_args import ChatArgs
from plainformer.tasks.writing.options import TextGenerationOptions
from plainformer.tasks.writing.text_generation import GeneratedText, Messages, TextGeneration

NEW_TOKENS = 512  # at most, in an answer, where nothing else is asked for
_FIRST_CAPACITY = 256
OF_THE_SESSION = ("cache", "num_return_sequences", "num_alternatives", "on_error")  # no options of a chat


class ChatSession:
    """A conversation.

        session = ChatSession(pf.load("smollm2-135m-instruct"), system="Answer in one sentence.")
        for piece in session.send("What is a transformer?"):
            print(piece, end="", flush=True)

    Greedy decoding and sampling cache the keys and values of all turns, and run only the new tokens of each prompt. Other
    modes, guidance and DoLa run the whole conversation at each turn.

    Args:
        task: text generation by a model with a chat template.
        system: the system message.
        options: of the task, for all turns; `max_new_tokens` is 512 if no limit is given.
    Attributes:
        messages: dicts with "role" and "content", oldest first.
        result: of the last answer that ended or was stopped (`stop_reason` "callback").
        answering: whether an answer is being written. stopped: whether it was asked to end.
    Raises:
        UsageError: the model has no chat template; an option is unknown or cannot work.
    """

    def __init__(self, task: TextGeneration, *, system: str | None = None, **options: Unpack[ChatArgs]) -> None:
        if not isinstance(task, TextGeneration):
            name = getattr(task, "name", type(task).__name__)
            raise UsageError(f"{name} is not text generation: it cannot chat", "load a decoder, such as a chat model")
        if not task.tokenizer.has_chat_template:
            raise UsageError(
                f"{task.ref or 'this model'} has no chat template: it was not trained to answer messages",
                "take a model that was ('instruct', 'chat'), or let this one continue a text: `plainformer run`",
            )
        self.task = task
        self.messages: Messages = []
        self.options: dict[str, Any] = {}
        self._options = TextGenerationOptions()
        self.result: GeneratedText | None = None
        self.answering = False
        self.stopped = False
        self._cache: KeyValueCache | None = None
        self.set(**options)
        if system is not None:
            self.set_system(system)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: none of an answer that is being written, nor the cache, which only one may fill."""
        return {**vars(self), "answering": False, "stopped": False, "_cache": None}

    def __repr__(self) -> str:
        return f"ChatSession({self.task.ref!r}, {plural(len(self.messages), 'message')})"

    # ---- what it is ----------------------------------------------------------------------------------------------

    def set(self, **options: Unpack[ChatArgs]) -> None:
        """Change options for the turns to come; None removes one."""
        known = [f.name for f in fields(TextGenerationOptions) if f.name not in OF_THE_SESSION]
        for name in options:
            if name not in known:
                raise UsageError(f"a chat has no option {name!r}", did_you_mean(name, known))
        changed = {name: value for name, value in {**self.options, **options}.items() if value is not None}
        made: TextGenerationOptions = self.task.make_options(changed)
        self.task.engine_options(made, bare=False)  # raises what is wrong with a constraint now
        if made.cache_kind != self._options.cache_kind:
            self._cache = None
        self.options, self._options = changed, made

    def set_system(self, text: str | None) -> None:
        """Replace the system message, which comes first; None removes it."""
        if text is not None:
            check_text("system", text)
        turns = [message for message in self.messages if message["role"] != "system"]
        self.messages = turns if text is None else [{"role": "system", "content": text}, *turns]

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self.result = None
        if self._cache is not None:
            self._cache.reset()

    def to_dict(self) -> dict[str, Any]:
        """Return model, messages and options for JSON; options that JSON cannot hold are named by their text."""
        options = {name: value if _is_json(value) else str(value) for name, value in self.options.items()}
        return {"model": self.task.ref, "messages": list(self.messages), "options": options}

    # ---- turns ---------------------------------------------------------------------------------------------------

    def send(self, text: str) -> Iterator[str]:
        """Answer a message, piece by piece.

        The message and the answer are in `messages` when the iterator has come to its end, or is closed: then the answer
        is what had been written. After an error they are not.

        Raises:
            InputError: the conversation has become longer than the model can read.
        """
        if not isinstance(text, str):
            raise InputError(f"{a_type(text)} is not a message", "give a text")
        if self.answering:
            raise UsageError("the last answer is still being written", "read it to its end, or stop() it")
        messages = [*self.messages, {"role": "user", "content": text}]
        return self._answer(messages, self._open(messages))

    def stop(self) -> None:
        """End the answer that is being written, at its next token; from a signal handler or another thread."""
        self.stopped = True

    def _answer(self, messages: Messages, stream: AnswerStream[GeneratedText]) -> Iterator[str]:
        said: list[str] = []
        self.answering, self.stopped = True, False
        try:
            for piece in stream:
                said.append(piece)
                yield piece
            self.result = stream.result
        except Exception:
            self._cache = None  # it may hold half a step
            raise
        except BaseException:
            self._cache = None
            stream.close()
            self._keep(messages, said)
            raise
        finally:
            self.answering = False
        self._keep(messages, said)

    def _keep(self, messages: Messages, said: Sequence[str]) -> None:
        self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    def _open(self, messages: Messages) -> AnswerStream[GeneratedText]:
        options, changes = self._options, dict[str, Any]()
        room = self._room(messages)
        if options.max_length is None or options.max_new_tokens is not None:
            wanted = options.max_new_tokens or NEW_TOKENS
            changes["max_new_tokens"] = wanted if room is None else min(wanted, room)
        also = options.stop_when
        changes["stop_when"] = lambda ids: self.stopped or (also is not None and bool(also(ids)))
        if self._keeps_cache:
            self._cache = self._cache or self._new_cache(options.cache_kind)
            changes.update(cache=self._cache, cache_kind="full")
        return self.task.streamed(messages, options.changed(**changes))

    @property
    def _keeps_cache(self) -> bool:
        """Whether a turn can go on from the keys and values of the last."""
        chosen = self._options
        return chosen.mode in TOKENS and chosen.guidance_scale is None and chosen.dola_layers is None

    def _new_cache(self, kind: str) -> KeyValueCache:
        model = self.task.model
        dtype, device, local = model.dtype, model.device, model.local
        return KeyValueCache(model.config, 1, _FIRST_CAPACITY, kind=kind, dtype=dtype, device=device, local=local)

    def _room(self, messages: Messages) -> int | None:
        """Return how many new tokens fit after the conversation; None where nothing limits them."""
        # Rotary positions have no end, but far beyond its training a model does not write sense.
        most = least(self.task.config.main_stack.max_positions, self.task.config.trained_positions)
        if most is None:
            return None
        count = len(self.task.row_of(messages, self._options, any_length=True))
        if self._options.truncate:
            return max(1, most - count)
        if count >= most:
            what = f"the conversation has {plural(count, 'token')}, and the model reads {most:,}"
            raise InputError(what, "forget it with reset() (/reset in the chat), or say less")
        return most - count


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
