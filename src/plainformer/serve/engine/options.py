"""The options of an engine. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from plainformer.config.options import OptionSet, flag, number, one_of, option, whole

QUEUE, MEMORY, TIME = "Queue", "Memory", "Time"


@dataclass(frozen=True, kw_only=True)
class EngineOptions(OptionSet):
    """How many requests an engine takes, how much memory it uses, and how long it waits.

    prefix_cache: "exact" reuses the keys and values of what earlier prompts began with, which changes no bit of an answer;
        "fast" also those of earlier answers, whose last bits may differ from what reading them anew gives; "off" none.
    """

    # fmt: off
    max_rows: int = option(24, help="Answers that are written at once; a CPU's kernels take 24.", group=QUEUE, check=whole(1, 256))
    max_queue: int = option(256, help="Requests that may wait; further ones are refused.", group=QUEUE, check=whole(1))
    max_per_client: int | None = option(
        None, help="Answers of one client that are written at once while others wait.", group=QUEUE, check=whole(1))
    queue_timeout: float = option(120.0, help="Seconds that a request may wait for its turn.", group=TIME, check=number("(0, inf)"))
    stall_timeout: float = option(
        60.0, help="Seconds that an answer may wait for a reader who does not read it.", group=TIME, check=number("(0, inf)"))
    timeout: float = option(600.0, help="Seconds that a request may take in all.", group=TIME, check=number("(0, inf)"))
    kv_memory_bytes: int | None = option(
        None, help="Memory for keys and values, in bytes; default: a quarter of what is free.", group=MEMORY, check=whole(1))
    prefix_cache: str = option(
        "exact", help="What is kept of earlier requests for later ones that begin alike: exact, fast or off.", group=MEMORY,
        check=one_of("exact", "fast", "off"))
    default_max_tokens: int = option(1024, help="New tokens at most where a request does not say.", check=whole(1))
    outbox: int = option(256, help="Tokens that may wait for a slow reader.", check=whole(1))
    exact_batches: bool = option(
        False, help="Run each request of an encoder alone: the same bits as by itself, and slower.", check=flag())
    # fmt: on
