"""Generation settings stored in a checkpoint: `generation_config.json`, or `config.json` where there is no such file.

As in transformers (5.23), the first file replaces the second one's entries rather than adding to them.
These settings always apply; defaults of the search are in `checkpoint_defaults.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plainformer.checkpoint.opened import Checkpoint
from plainformer.config import ModelConfig
from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError

FILE = "generation_config.json"
MAX_ID = 1 << 31  # past every vocabulary


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of a checkpoint.

    Attributes:
        eos_ids: tokens that end an answer. forced_bos_id: what every answer begins with, after the start token.
        suppress: tokens that are never picked. suppress_first: tokens that are not picked first. bad_words: sequences
            of two and more tokens that are not written.
        forced: position in the answer → token, of Whisper's older checkpoints; None is chosen by the caller.
        values: everything, for what one task alone reads.
    """

    eos_ids: tuple[int, ...] = ()
    decoder_start_id: int | None = None
    forced_bos_id: int | None = None
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    forced: Mapping[int, int | None] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def read_generation_settings(checkpoint: Checkpoint, config: ModelConfig) -> GenerationSettings:
    """Return the settings of a checkpoint; those of its model's configuration where it has no file of its own."""
    stated = checkpoint.json(FILE)
    values = config.source if stated is None else stated
    start = _ids(values, "decoder_start_token_id")
    forced_bos = _ids(values, "forced_bos_token_id")
    eos_ids = _ids(values, "eos_token_id") or config.eos_ids
    banned = _bad_words(values)
    # Marian bans its padding token, which alone is common. transformers never bans the end so.
    single = [word[0] for word in banned if len(word) == 1 and word[0] not in eos_ids]
    # Whisper's older files have -1 for "none" in suppress_tokens.
    return GenerationSettings(
        eos_ids=eos_ids,
        decoder_start_id=start[0] if start else config.decoder_start_id,
        forced_bos_id=forced_bos[0] if forced_bos else None,
        suppress=tuple(i for i in (*_ids(values, "suppress_tokens"), *single) if i >= 0),
        suppress_first=_ids(values, "begin_suppress_tokens"),
        bad_words=tuple(word for word in banned if len(word) > 1),
        forced=_forced(values.get("forced_decoder_ids") or ()),
        values=values,
    )


def _bad_words(values: Mapping[str, Any]) -> list[tuple[int, ...]]:
    banned = values.get("bad_words_ids") or []
    if not isinstance(banned, list) or not all(isinstance(word, list) for word in banned):
        raise CheckpointError(f"bad_words_ids={banned!r} is not a list of lists of ids", f"mend {FILE}")
    return [_ids({"bad_words_ids": word}, "bad_words_ids") for word in banned]


def _ids(values: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return an entry's token ids: one, a list, or none."""
    found = values.get(name)
    listed = [] if found is None else found if isinstance(found, list) else [found]
    if not all(is_whole(i) and abs(i) < MAX_ID for i in listed):
        raise CheckpointError(f"{FILE}: {name}={found!r} is not a token id", "correct the entry")
    return tuple(listed)


def _forced(pairs: Any) -> dict[int, int | None]:
    whole = isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and isinstance(pair[0], int)
        and (pair[1] is None or isinstance(pair[1], int))
        for pair in pairs
    )
    if not whole:
        raise CheckpointError(f"{FILE}: forced_decoder_ids={pairs!r} are not [position, id] pairs", "correct the entry")
    return dict(pairs)
