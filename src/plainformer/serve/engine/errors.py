"""What a caller of the engine can meet besides the errors of the tasks themselves."""

from __future__ import annotations

from plainformer.errors import InputError, PlainformerError, opt, plural


class EngineError(PlainformerError):
    """A request that the engine did not answer. `retry_after`: seconds after which another try makes sense, or None."""

    retry_after: float | None = None


class QueueFull(EngineError):
    """As many requests wait as may (`max_queue`)."""

    retry_after = 1.0

    @classmethod
    def of(cls, waiting: int) -> QueueFull:
        return cls(f"{plural(waiting, 'request')} are waiting already", f"try again later, or raise {opt('max_queue')}")


class QueueTimeout(EngineError):
    """A request waited too long for its turn (`queue_timeout`)."""

    retry_after = 5.0

    @classmethod
    def of(cls, seconds: float) -> QueueTimeout:
        return cls(
            f"the request waited {seconds:g} s for its turn", f"try again later, or raise {opt('queue_timeout')}"
        )


class Draining(EngineError):
    """The engine takes no more requests: it is about to end."""

    retry_after = 5.0

    @classmethod
    def now(cls) -> Draining:
        return cls("the engine is shutting down and takes no more requests", "ask another one")


class EngineDied(EngineError):
    """The thread that computes has ended by an error of its own. No request is answered any more."""

    @classmethod
    def of(cls, cause: BaseException) -> EngineDied:
        died = cls(
            f"the engine's thread has died: {type(cause).__name__}: {cause}", "make another Engine, and report this"
        )
        died.__cause__ = cause
        return died


class RequestCancelled(EngineError):
    """The request was ended before its answer was. `why`: "cancelled", "stalled", "drain", "timeout", or the caller's word."""

    why: str = "cancelled"

    @classmethod
    def of(cls, why: str) -> RequestCancelled:
        made = cls(f"the request was ended ({why})", "ask again if the answer is still wanted")
        made.why = why
        return made


class RowFailed(EngineError):
    """What belongs to one request alone raised an error that is not ours: a processor, a function of the caller's."""

    @classmethod
    def of(cls, cause: BaseException) -> RowFailed:
        failed = cls(f"this request failed: {type(cause).__name__}: {cause}", "the other requests go on")
        failed.__cause__ = cause
        return failed

    @classmethod
    def not_a_number(cls, new: int) -> RowFailed:
        return cls(
            f"the model's scores after {new} new tokens are not numbers", "look at the weights: some are not finite"
        )


class ContextTooLong(InputError):
    """A prompt, or a prompt with its new tokens, that does not fit.

    Attributes:
        prompt_tokens, new_tokens: what was asked for. limit: what fits.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    limit: int = 0

    @classmethod
    def of(cls, prompt_tokens: int, limit: int) -> ContextTooLong:
        """Return the error of a prompt that the model cannot read."""
        what = f"this model's maximum context length is {limit} tokens, and the prompt has {prompt_tokens}"
        return cls(what, "shorten it")._with(prompt_tokens, 0, limit)

    @classmethod
    def of_memory(cls, prompt_tokens: int, new_tokens: int, limit: int) -> ContextTooLong:
        """Return the error of a request that the memory for keys and values cannot hold, even alone."""
        what = (
            f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit: the maximum context length is {limit} "
            "tokens, which is the memory for keys and values"
        )
        fix = f"shorten it, give a lower {opt('max_new_tokens')}, or more {opt('kv_memory_bytes')}"
        return cls(what, fix)._with(prompt_tokens, new_tokens, limit)

    def _with(self, prompt_tokens: int, new_tokens: int, limit: int) -> ContextTooLong:
        self.prompt_tokens, self.new_tokens, self.limit = prompt_tokens, new_tokens, limit
        return self
