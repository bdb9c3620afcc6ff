"""Images and spectrograms that look different each time they are learnt from; all that is random comes from `draws`.

An image is changed as 8-bit levels, before it is normalised: what comes in from outside is then level 0, black, whatever
mean and deviation the model's preprocessor has, and the result is an image that a file could hold.

Images are (batch, channels, height, width): BCHW.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from plainformer.config.training import AugmentConfig

Levels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]


def changes_images(config: AugmentConfig) -> bool:
    """Return whether images are changed at all."""
    return config.flip or _moves(config)


def augmented(levels: Sequence[Levels], draws: Sequence[np.random.Generator], config: AugmentConfig) -> list[Levels]:
    """Return images of one size, (C, H, W) each: mirrored, then turned, resized and shifted, as their draws say.

    Each image takes five numbers of its source, whatever is asked for: an option more does not change what another does.
    An image's result depends on its own numbers alone, not on those beside it.
    """
    if not changes_images(config) or not levels:
        return list(levels)
    chosen_B5 = np.stack([draw.random(5) for draw in draws])
    mirrored = [
        np.ascontiguousarray(image[..., ::-1]) if config.flip and chosen[0] < 0.5 else image
        for image, chosen in zip(levels, chosen_B5, strict=True)
    ]
    if not _moves(config):
        return mirrored
    images_BCHW = torch.from_numpy(np.stack(mirrored))
    return list(moved(images_BCHW, *_amounts(chosen_B5[:, 1:], config)).numpy())


def moved(images_BCHW: Tensor, angles_B: Numbers, sizes_B: Numbers, shifts_B2: Numbers) -> Tensor:
    """Return 8-bit images that are turned around their centre, resized and then shifted.

    Each new pixel is read between the four old ones around the place that it comes from (bilinear), in fp32, and rounded to
    a level; outside the image is 0.

    Args:
        angles_B: counter-clockwise, in radians. sizes_B: factors; 2 doubles. shifts_B2: (right, down), as shares of the sides.
    """
    height, width = images_BCHW.shape[-2:]
    x_W, y_H = ((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) for side in (width, height))
    cos_B, sin_B, right_B, down_B = (
        torch.from_numpy(np.ascontiguousarray(values))[:, None, None]
        for values in (
            *(np.cos(angles_B) / sizes_B, np.sin(angles_B) / sizes_B),
            *(shifts_B2[:, 0] * width, shifts_B2[:, 1] * height),
        )
    )
    x_BHW, y_BHW = x_W[None, None, :] - right_B, y_H[None, :, None] - down_B
    # Back to where a pixel was. Rows count downwards, so that counter-clockwise has the other sign.
    from_x_BHW, from_y_BHW = cos_B * x_BHW - sin_B * y_BHW, sin_B * x_BHW + cos_B * y_BHW
    # grid_sample calls the outer edges of the outer pixels -1 and 1.
    places_BHW2 = torch.stack((from_x_BHW * (2 / width), from_y_BHW * (2 / height)), dim=-1).float()
    read_BCHW = F.grid_sample(images_BCHW.float(), places_BHW2, mode="bilinear", align_corners=False)
    return read_BCHW.round_().clamp_(0, 255).to(torch.uint8)


def _moves(config: AugmentConfig) -> bool:
    return config.shift > 0 or config.rotate > 0 or config.zoom > 0


def _amounts(chosen_B4: Numbers, config: AugmentConfig) -> tuple[Numbers, Numbers, Numbers]:
    """Return angles, factors of size and shifts of numbers in [0, 1). Sizes are uniform in their logarithm: half shrink."""
    around_B4 = 2 * chosen_B4 - 1
    angles_B = around_B4[:, 0] * math.radians(config.rotate)
    return angles_B, np.exp(around_B4[:, 1] * math.log1p(config.zoom)), around_B4[:, 2:] * config.shift
