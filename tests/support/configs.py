"""The least config.json of every family."""

from __future__ import annotations

from plainformer.families.by_hand import PROBE as TINY

__all__ = ["TINY", "tiny"]


def tiny(model_type: str, architecture: str = "") -> dict[str, object]:
    named = {"architectures": [architecture]} if architecture else {}
    raw = {**TINY, "model_type": model_type, **named}
    return {**raw, "text_config": TINY} if model_type == "gemma3" else raw
