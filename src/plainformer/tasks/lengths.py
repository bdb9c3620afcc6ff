"""How long a text may be for a model, and where it is cut.

A limit is what a model cannot pass: the rows of a table of positions, or what its vectors were made for. The length that a
tokenizer's files state (`model_max_length`) is where `truncate` cuts; it limits only a model that has such a table, since
rotary and relative positions are computed for any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from plainformer.config import ModelConfig, TokenFrontend
from plainformer.config.options import OptionSet, specs
from plainformer.errors import UsageError, opt
from plainformer.inputs.text.lengths import Limit, TooLongError

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer


def least(*limits: int | None) -> int | None:
    """Return the smallest of some limits, of which None is no limit."""
    return min((limit for limit in limits if limit is not None), default=None)


def text_limit(config: ModelConfig, stated: int | None) -> int | None:
    """Return the longest text in tokens that a model reads; None where it computes positions for any length.

    `stated`: what the tokenizer's files state, which counts where there is a table of positions. M2M-100's sinusoids are
    computed; those of Marian and Pegasus are a table of `trained_positions` rows.
    """
    stack, frontend = config.input_stack, config.input_frontend
    if not isinstance(frontend, TokenFrontend) or frontend.positions == "none":
        return stack.max_positions
    if frontend.positions == "sinusoidal":
        return None if frontend.sinusoid == "tensor2tensor" else least(config.trained_positions, stated)
    return least(stack.max_positions, stated)


def usual_length(config: ModelConfig, tokenizer: Tokenizer) -> int | None:
    """Return the length that a text is cut to where nothing else is asked for, and that of a window."""
    return least(text_limit(config, tokenizer.max_length), tokenizer.max_length)


def max_length_of(
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    truncate: bool,
    asked: int | None = None,
    made_for: int | None = None,
) -> Limit:
    """Return the `max_length` to encode a text with.

    Args:
        truncate: whether longer texts are cut. asked: the caller's limit.
        made_for: the longest text that the checkpoint's vectors were made for; `asked` moves it.
    """
    limit = text_limit(config, tokenizer.max_length)
    if asked is not None:
        if limit is not None and asked > limit:
            raise UsageError(
                f"{opt('max_length', asked)} is more than this model's limit of {limit} tokens", "give less"
            )
        return asked
    found = least(made_for, limit, usual_length(config, tokenizer) if truncate else None)
    return "own" if found is None and not truncate else found


@contextmanager
def offering(options: type[OptionSet], *, movable: bool = False) -> Iterator[None]:
    """Where a text is too long, name only those remedies that a task with these options has.

    `movable`: whether the task's `max_length` can be more than the limit was; of a task that writes, it means another thing.
    """
    try:
        yield
    except TooLongError as error:
        raise error.offering([name for name in specs(options) if movable or name != "max_length"]) from None
