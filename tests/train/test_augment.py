"""Augmentation of images: Pillow's pixels, decided by seed, epoch and example alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from plainformer.config.training import AugmentConfig
from plainformer.train.augment import augmented, moved
from plainformer.train.draws import generator

ALL = AugmentConfig(shift=0.1, rotate=15, zoom=0.1, flip=True)


def images(count: int, channels: int = 1, height: int = 28, width: int = 28) -> list[np.ndarray]:
    """Smooth pictures, of which a mistake of half a pixel can be told from rounding."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(count, channels, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2.5, 2.5))
    return list((127 + 120 * smooth / np.abs(smooth).max()).astype(np.uint8))


def draws(numbers: list[int], epoch: int = 0, seed: int = 0) -> list[np.random.Generator]:
    return [generator(seed, epoch, number) for number in numbers]


def one(image: np.ndarray, angle: float, size: float, right: float, down: float) -> np.ndarray:
    found = moved(torch.from_numpy(image[None]), np.array([angle]), np.array([size]), np.array([[right, down]]))
    return found[0].numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("angle", "size", "right", "down"),
    [(0.3, 1.0, 0, 0), (0, 1.2, 0, 0), (0, 0.8, 0.1, -0.07), (-0.5, 1.1, 0.13, 0.21)],
)
def test_equals_pillow_and_scipy(channels: int, angle: float, size: float, right: float, down: float) -> None:
    """Turned counter-clockwise as it is seen, resized, then shifted; rectangular pictures show a mistake in the sides."""
    (image,) = images(1, channels, 24, 36)
    height, width = image.shape[1:]
    ours = one(image, angle, size, right, down)
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    # Pillow: of the new pixel (x, y) the old one is (a x + b y + c, d x + e y + f), both counted from the corner.
    x, y = width / 2, height / 2
    x_back, y_back = x + right * width, y + down * height
    matrix = (cos, -sin, x - cos * x_back + sin * y_back, sin, cos, y - sin * x_back - cos * y_back)
    for plane, made in zip(image, ours, strict=True):
        theirs = np.asarray(
            Image.fromarray(plane).transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        )
        # Where both read whole pixels: Pillow's edge is not mixed with black.
        known = (
            ndimage.affine_transform(
                np.ones((height, width)), *_scipy(cos, sin, right, down, height, width), order=1, cval=0.0
            )
            > 0.999
        )
        assert known.mean() > 0.3
        assert np.abs(made.astype(int) - theirs.astype(int))[known].max() <= 1
        ours_too = ndimage.affine_transform(
            plane.astype(float), *_scipy(cos, sin, right, down, height, width), order=1, mode="grid-constant", cval=0.0
        )
        assert np.abs(made - ours_too).max() <= 0.51


def _scipy(cos: float, sin: float, right: float, down: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """scipy's matrix and offset, in rows and columns counted between the centres of pixels."""
    matrix = np.array([[cos, sin], [-sin, cos]])
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    return matrix, middle - matrix @ (middle + np.array([down * height, right * width]))


def test_counter_clockwise_right_and_down() -> None:
    """Seen with the eyes: a quarter turn is numpy's, whole pixels of shift leave black behind."""
    (image,) = images(1)
    assert (one(image, math.pi / 2, 1.0, 0, 0) == np.rot90(image, axes=(1, 2))).all()
    right = one(image, 0, 1.0, 4 / 28, 0)
    assert (right[..., 4:] == image[..., :-4]).all() and (right[..., :4] == 0).all()
    down = one(image, 0, 1.0, 0, 4 / 28)
    assert (down[:, 4:] == image[:, :-4]).all() and (down[:, :4] == 0).all()
    assert (one(image, 0, 1.0, 0, 0) == image).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_in_any_batch(channels: int) -> None:
    given = images(13, channels)
    whole = augmented(given, draws(list(range(13))), ALL)
    for size in (1, 2, 5):
        for start in range(0, 13, size):
            part = augmented(given[start : start + size], draws(list(range(13))[start : start + size]), ALL)
            for made, of_all in zip(part, whole[start:], strict=False):
                assert (made == of_all).all()
    again = augmented(given[::-1], draws(list(range(13))[::-1]), ALL)
    assert all((a == b).all() for a, b in zip(again[::-1], whole, strict=True))


def test_epochs_and_seeds_differ() -> None:
    given = images(20)
    first, second, other = (
        augmented(given, draws(list(range(20)), epoch, seed), ALL) for epoch, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert sum((a != b).any() for a, b in zip(first, second, strict=True)) == 20
    assert sum((a != b).any() for a, b in zip(first, other, strict=True)) == 20
    assert all(made.dtype == np.uint8 and made.shape == given[0].shape for made in first)


def test_nothing_asked_is_nothing_done() -> None:
    given = images(3)
    sources = draws([0, 1, 2])
    assert all(made is image for made, image in zip(augmented(given, sources, AugmentConfig()), given, strict=True))
    assert [s.random() for s in sources] == [s.random() for s in draws([0, 1, 2])]


def test_each_option_does_its_own_and_no_more() -> None:
    """A mirror image is exact; another option changes neither who is mirrored nor how far anything is turned."""
    given = images(200)
    numbers = list(range(200))
    flipped = augmented(given, draws(numbers), AugmentConfig(flip=True))
    mirrored = [bool((made == image[..., ::-1]).all()) for made, image in zip(flipped, given, strict=True)]
    assert all(m or (made == image).all() for m, made, image in zip(mirrored, flipped, given, strict=True))
    assert 70 < sum(mirrored) < 130
    turned = augmented(given, draws(numbers), AugmentConfig(rotate=20))
    both = augmented(
        [im[..., ::-1].copy() if m else im for im, m in zip(given, mirrored, strict=True)],
        draws(numbers),
        AugmentConfig(rotate=20),
    )
    together = augmented(given, draws(numbers), AugmentConfig(rotate=20, flip=True))
    assert all((a == b).all() for a, b in zip(both, together, strict=True))
    assert sum((a != b).any() for a, b in zip(turned, given, strict=True)) == 200


def test_amounts_are_spread_to_their_limits() -> None:
    """A dot in the middle goes at most as far as the shift, and all the way to all sides."""
    image = np.zeros((1, 41, 41), np.uint8)
    image[0, 19:22, 19:22] = 255
    made = augmented([image] * 400, draws(list(range(400))), AugmentConfig(shift=0.2))
    centres = np.array([ndimage.center_of_mass(one[0]) for one in made]) - 20
    limit = 0.2 * 41
    assert np.abs(centres).max() <= limit + 0.05 and np.abs(centres).max() > 0.95 * limit
    assert np.abs(centres.mean(0)).max() < 0.8
    assert centres.std(0) == pytest.approx([limit / 3**0.5] * 2, rel=0.1)
