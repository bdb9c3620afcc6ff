"""Options of the tasks that read images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from plainformer.config.options import flag, one_of, opt, option
from plainformer.config.values import is_whole
from plainformer.errors import UsageError
from plainformer.tasks.options import TaskOptions


def _check_size(name: str, value: Any) -> None:
    edges = (value, value) if isinstance(value, int) else value
    if not (isinstance(edges, tuple | list) and len(edges) == 2 and all(is_whole(edge, 1) for edge in edges)):
        raise UsageError(f"{opt(name, value)} is not a size", "give (height, width) in pixels, or one number")


def _read_size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if match is None:
        raise UsageError(f"{opt('image_size', text)} is not a size", "give 224, or 224x320 (height x width)")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


@dataclass(frozen=True, kw_only=True)
class ImageOptions(TaskOptions):
    """Options of all tasks that read images.

    image_size: (height, width) in pixels, or one number for both, that images are resized to in place of the preprocessor's
        size and crop. The model's positions are interpolated for it (Dosovitskiy et al. 2021, section 3.2).
    """

    image_size: int | tuple[int, int] | None = option(
        None, help="Pictures: HEIGHTxWIDTH in pixels, or one number.", check=_check_size, typed=str, read=_read_size
    )


@dataclass(frozen=True, kw_only=True)
class ImageFeatureExtractionOptions(ImageOptions):
    """Options of image feature extraction.

    pooling: "cls" is the class token's vector after the last norm, "pooler" what the checkpoint's pooler makes of it, "mean"
        the mean over the patches.
    """

    pooling: str = option("cls", help="Pictures: cls, pooler or mean.", check=one_of("cls", "pooler", "mean"))
    normalize: bool = option(False, help="Vectors of length 1.", check=flag())
