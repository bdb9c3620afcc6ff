"""The start of a server: a line for each model, and a first token of each that writes, so that kernels are compiled by then."""

from __future__ import annotations

from collections.abc import Iterator

from plainformer.config.model import in_millions
from plainformer.serve.api.service import Service
from plainformer.serve.log import logger


def described(service: Service) -> Iterator[str]:
    """Yield a line for each model: its task, size, memory, context and the tokens that its share of the memory holds."""
    for name, model in service.names.models.items():
        can = model.can
        parts = [
            f"{name}: {can.task}",
            f"{can.family}, {in_millions(can.parameters)}, {can.dtype} on {can.device}",
            f"context {can.context:,}" if can.context else "context unlimited",
        ]
        if can.kv_tokens:
            parts.append(f"keys and values of {can.kv_tokens:,} tokens")
        if can.writes and not can.batch_invariant:
            parts.append("answers may differ in their last bits with the load")
        yield ", ".join(parts)


def make_ready(service: Service) -> None:
    """Let each model that writes write two tokens, with kernels that are compiled by then.

    Without them the first answers would differ from later ones in their last bits.
    """
    logger.info(
        "writing a first token with each model; kernels that are not on disk yet are compiled first, some 30 s once"
    )
    for name, error in service.engine.warm().items():
        logger.warning("%s: a first token could not be written: %s", name, error.what)
