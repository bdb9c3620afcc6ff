"""Images of any size, and what tasks on images and audio say to files that are not what they should be."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image

from plainformer.errors import InputError, UsageError
from tests.support import models as make
from tests.support.close import close
from tests.support.media import CLIPS, RATE, clip
from tests.support.models import wav2vec2, whisper


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


# ---- sizes of images ----------------------------------------------------------------------------------------------

SIZES = [(32, 32), (48, 32), (16, 64), (8, 8), (64, 64), (8, 72)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sizes")
    for name in ("ViT", "DeiT"):
        config = getattr(transformers, f"{name}Config")(**make.TINY, num_labels=3, image_size=32, patch_size=8)
        make.save_model(root / name, f"{name}ForImageClassification", config)
        getattr(transformers, f"{name}ImageProcessor")().save_pretrained(root / name)
    make.save_model(
        root / "base", "ViTModel", transformers.ViTConfig(**make.TINY, num_labels=3, image_size=32, patch_size=8)
    )
    return {name: root / name for name in ("ViT", "DeiT", "base")}


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["ViT", "DeiT"])
def test_any_size_equals_the_reference(folders: dict[str, Path], name: str, size: tuple[int, int]) -> None:
    task = make.load(folders[name])
    theirs = getattr(transformers, f"{name}ForImageClassification").from_pretrained(folders[name]).eval()
    images = [picture(40, 30), picture(7, 90, 1)]
    pixels = task.encode(images, task.Options(image_size=size))
    assert pixels.shape == (2, 3, *size)
    expected = theirs(pixel_values=pixels, interpolate_pos_encoding=True).logits.softmax(-1)
    close([[s.score for s in r.scores] for r in task(images, image_size=size)], expected)
    # Resized to the size itself, and not cropped: what the reference's ViT processor does at that size.
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    settings = dict(mean="image_mean", std="image_std", resample="resample")
    processor = ViTImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        **{key: getattr(task.processor, field) for field, key in settings.items()},
    )
    close(pixels, processor(images, return_tensors="pt")["pixel_values"])


@torch.no_grad()
@pytest.mark.parametrize("size", [(30, 45), (39, 39), (20, 9)])
def test_the_rest_of_a_patch_is_not_seen(folders: dict[str, Path], size: tuple[int, int]) -> None:
    """Pixels that are no whole number of patches, which only the model itself can be given: as in the reference."""
    task = make.load(folders["base"])
    theirs = transformers.ViTModel.from_pretrained(folders["base"]).eval()
    pixels = torch.randn(2, 3, *size)
    found = task.model(pixel_values=pixels).last_hidden_state
    close(found, theirs(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state)
    cut = pixels[..., : size[0] // 8 * 8, : size[1] // 8 * 8]
    close(task.model(pixel_values=cut).last_hidden_state, found)


def test_sizes_of_features(folders: dict[str, Path]) -> None:
    task = make.load(folders["base"])
    image = picture(50, 70)
    close(task(image, image_size=32).vector, task(image, image_size=(32, 32)).vector)
    close(task(image, image_size=(32, 32)).vector, task(image.resize((32, 32), Image.Resampling.BILINEAR)).vector)
    assert not torch.allclose(task(image, image_size=(64, 32)).vector, task(image).vector)
    close(task(image, image_size=[16, 8], pooling="mean", normalize=True).vector.norm(), 1)


def test_sizes_that_cannot_work(folders: dict[str, Path]) -> None:
    task = make.load(folders["ViT"])
    for wrong in (0, -8, (32,), (32, 32, 3), "32", (32, 0), (32.0, 32), True, (True, 8), {"height": 32, "width": 32}):
        with pytest.raises(UsageError, match="is not a size"):
            task(picture(9, 9), image_size=wrong)
    for size, near_by in ((33, (32, 32)), ((32, 3), (32, 8)), ((45, 36), (48, 32))):
        with pytest.raises(UsageError, match="whole number of patches") as caught:
            task(picture(9, 9), image_size=size)
        assert str(near_by) in caught.value.fix
    with pytest.raises(UsageError, match="more than 89,478,485 pixels"):
        task(picture(9, 9), image_size=80_000)
    with pytest.raises(UsageError, match="did you mean 'image_size'"):
        task(picture(9, 9), imagesize=32)


# ---- images -------------------------------------------------------------------------------------------------------


def test_the_smallest_and_the_oddest_images(folders: dict[str, Path]) -> None:
    """One pixel, grey, palette, alpha, 16 bits, turned by EXIF: each equals its plain RGB picture."""
    task = make.load(folders["ViT"])
    dot = Image.new("RGB", (1, 1), (10, 200, 30))
    flat = Image.new("RGB", (50, 20), (10, 200, 30))
    assert task(dot) == task(flat)
    assert task(Image.new("RGBA", (3, 3), (10, 200, 30, 128))) == task(dot)
    grey = Image.new("L", (5, 4), 77)
    assert task(grey) == task(Image.new("RGB", (5, 4), (77, 77, 77)))
    assert task(Image.new("I;16", (5, 4), 77 * 256)) == task(grey)
    assert task(png(flat.quantize(4))) == task(flat)
    tall = picture(20, 10)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn clockwise
    stored = png(tall.transpose(Image.Transpose.ROTATE_90), exif=turned)
    assert task(stored) == task(tall)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_broken_images(folders: dict[str, Path], tmp_path: Path, fmt: str) -> None:
    task = make.load(folders["ViT"])
    whole = png(picture(40, 30), fmt)
    path = tmp_path / f"cut.{fmt.lower()}"
    for content in (b"", whole[:10], whole[: len(whole) // 2], b"\0" * 500, b"<html>not found</html>"):
        path.write_bytes(content)
        for source in (content, path, str(path)):
            with pytest.raises(
                InputError, match=r"not an image we can read|empty, 0 bytes|truncated or corrupt"
            ) as caught:
                task(source)
            assert caught.value.fix
        with pytest.raises(InputError, match="input 1: the given bytes: "):
            task([picture(9, 9), content])


# ---- audio --------------------------------------------------------------------------------------------------------


def encoded(wave: np.ndarray, rate: int, fmt: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=fmt, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("ears")
    wav2vec2(root / "wave", "Wav2Vec2ForSequenceClassification")
    whisper(root / "mel", model="WhisperForAudioClassification")
    return {name: make.load(root / name) for name in ("wave", "mel")}


def scores(result: Any) -> list[float]:
    return [s.score for s in result.scores]


@pytest.mark.parametrize("name", ["wave", "mel"])
@pytest.mark.parametrize(("fmt", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("MP3", None), ("OGG", "VORBIS")])
def test_formats_rates_and_channels(
    ears: dict[str, Any], name: str, fmt: str, subtype: str | None, tmp_path: Path
) -> None:
    """Every format by bytes and by path, stereo at 44.1 kHz: close to the array at the model's own rate."""
    seconds = np.arange(22_050) / 44_100
    tone = 0.3 * np.sin(2 * np.pi * 440 * seconds)
    stereo = np.stack([tone * 1.5, tone * 0.5], axis=1).astype(np.float32)
    content = encoded(stereo, 44_100, fmt, subtype)
    path = tmp_path / f"clip.{fmt.lower()}"
    path.write_bytes(content)
    task = ears[name]
    assert task(content) == task(path) == task(str(path))
    own = {"array": tone.astype(np.float32), "sampling_rate": 44_100}
    close(scores(task({"array": stereo, "sampling_rate": 44_100})), scores(task(own)), rel=1e-4)
    lossless = fmt in ("WAV", "FLAC")
    close(scores(task(content)), scores(task(own)), rel=5e-3 if lossless else 0.1)


@pytest.mark.parametrize("name", ["wave", "mel"])
def test_silence_is_an_answer(ears: dict[str, Any], name: str) -> None:
    quiet = {"array": np.zeros(4000, np.float32), "sampling_rate": RATE}
    (result,) = ears[name]([quiet])
    assert sum(scores(result)) == pytest.approx(1) and all(np.isfinite(scores(result)))
    close(scores(ears[name]([CLIPS[0], quiet])[1]), scores(result))


@pytest.mark.parametrize("name", ["wave", "mel"])
def test_broken_clips(ears: dict[str, Any], name: str, tmp_path: Path) -> None:
    task = ears[name]
    whole = encoded(CLIPS[0]["array"], RATE, "FLAC")
    for content in (b"", whole[:20], whole[: len(whole) // 2], b"\0" * 500, encoded(np.zeros(0), RATE, "WAV")):
        path = tmp_path / "clip.flac"
        path.write_bytes(content)
        for source in (content, path):
            with pytest.raises(InputError, match=r"empty, 0 bytes|no samples|corrupt, truncated") as caught:
                task(source)
            assert caught.value.fix
    bad = CLIPS[0]["array"].copy()
    bad[7] = np.nan
    for array, message in ((bad, "NaN"), (np.zeros(0, np.float32), "no samples"), (np.zeros((2, 2, 2)), "shape")):
        with pytest.raises(InputError, match=message):
            task({"array": array, "sampling_rate": RATE})
    for rate in (None, 0, -1, "16000", 1.5, True):
        with pytest.raises(InputError, match=r"no sampling rate|is not between 1000 and 1000000 hertz"):
            task({"array": CLIPS[0]["array"], "sampling_rate": rate})


def test_clips_shorter_than_the_convolutions(ears: dict[str, Any]) -> None:
    needed = ears["wave"].processor.min_samples
    assert len(scores(ears["wave"](clip(needed)))) == 3
    for short in (1, needed - 1):
        with pytest.raises(InputError, match=f"at least {needed}"):
            ears["wave"](clip(short))
    with pytest.raises(InputError, match=f"at least {needed}"):
        ears["wave"]([CLIPS[0], clip(1)])
    assert len(scores(ears["mel"](clip(1)))) == 3  # Whisper hears it with the silence behind
