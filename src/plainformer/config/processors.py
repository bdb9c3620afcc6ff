"""What a family's preprocessor does where its preprocessor_config.json is silent."""

from __future__ import annotations

from dataclasses import dataclass

BILINEAR, BICUBIC = 2, 3  # Pillow's codes; 0..5 are nearest, lanczos, bilinear, bicubic, box, hamming


@dataclass(frozen=True)
class ImageDefaults:
    """The defaults of one kind of image processor.

    Attributes:
        kind: the beginning of its class's name in lower case ("vit" of ViTImageProcessor).
        size: pixels of both edges after resizing.
        crop: pixels of both edges that are cut from the centre; 0 for no crop.
        resample: Pillow's filter code.
    """

    kind: str
    size: int
    crop: int = 0
    resample: int = BILINEAR
