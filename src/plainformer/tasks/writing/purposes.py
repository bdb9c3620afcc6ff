"""What a checkpoint serves: the text that its inputs begin with for a summary, or for a translation, and its parameters.

They are in config.json's `task_specific_params` (T5, Raffel et al. 2020; BART): purpose → parameters of generation, "prefix"
among them. The pipelines of transformers 4 applied those of the task that they were made for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plainformer.errors import CheckpointError

TRANSLATION = re.compile("translation_(.+)_to_(.+)")


@dataclass(frozen=True)
class Purpose:
    """What a text begins with (`prefix`), and the defaults of generation, as in generation_config.json (`values`)."""

    prefix: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def read_purposes(source: Mapping[str, Any]) -> dict[str, Purpose]:
    """Return purpose ("summarization", "translation_en_to_de") → what config.json says of it.

    A purpose without a prefix of its own has the file's `prefix`.
    """
    stated = source.get("task_specific_params") or {}
    usual = source.get("prefix") or ""
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"config.json: task_specific_params={stated!r} is not an object", "correct the entry")
    purposes = {}
    for name, values in stated.items():
        prefix = values.get("prefix") if isinstance(values, Mapping) else values
        prefix = usual if prefix is None else prefix
        if not isinstance(values, Mapping) or not isinstance(prefix, str):
            where = f"config.json: task_specific_params[{name!r}]"
            raise CheckpointError(f"{where}={values!r} is not an object with a text as its prefix", "correct the entry")
        purposes[name] = Purpose(prefix, {key: value for key, value in values.items() if key != "prefix"})
    return purposes


def translations(purposes: Mapping[str, Purpose]) -> dict[tuple[str, str], str]:
    """Return (source, target) → the purpose that translates so."""
    found = ((TRANSLATION.fullmatch(name), name) for name in purposes)
    return {(match[1], match[2]): name for match, name in found if match is not None}
