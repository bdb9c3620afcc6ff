"""ImageProcessor against the reference's Pillow processors, on every kind of image, and on hostile ones."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plainformer.errors import CheckpointError, InputError, MissingDependencyError
from plainformer.families.vit import IMAGES
from plainformer.inputs.image import MAX_PIXELS, ImageProcessor
from tests.support.close import close
from tests.support.fuzz import Outcomes

SIZES = [(224, 224), (17, 31), (301, 199), (1, 5), (640, 3)]  # height, width


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def ours(folder: Path, preprocessor: dict[str, Any] | None = None, **config: Any) -> ImageProcessor:
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return ImageProcessor.from_folder(folder, {"model_type": "vit", **config}, IMAGES)


def theirs(kind: str, image: Any, **preprocessor: Any) -> torch.Tensor:
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    cls = {"vit": ViTImageProcessorPil, "deit": DeiTImageProcessorPil}[kind]
    return cls(**preprocessor)(image, return_tensors="pt")["pixel_values"].float()


def reference_decode(image: Image.Image) -> Image.Image:
    from transformers.image_utils import load_image

    return load_image(image)


# --- parity -----------------------------------------------------------------------------------------------------------

CONFIGS = [
    {},
    {"size": 96},
    {"size": {"height": 33, "width": 57}, "resample": 3},
    {"size": [40, 20], "resample": 0},
    {"size": {"shortest_edge": 50}, "resample": 1},
    {"size": {"shortest_edge": 50}, "do_center_crop": True, "crop_size": {"height": 41, "width": 36}},
    {"size": 30, "do_center_crop": True, "crop_size": 45},
    {"size": 31, "do_center_crop": True, "crop_size": {"height": 44, "width": 20}, "resample": 4},
    {"do_resize": False},
    {"do_resize": False, "do_center_crop": True, "crop_size": 64},
    {"do_rescale": False, "size": 20},
    {"do_normalize": False, "size": 20},
    {"do_normalize": False, "do_rescale": False, "size": 20},
    {"size": 20, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 5},
    {"size": 20, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
]


@pytest.mark.parametrize("preprocessor", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_equals_the_reference(tmp_path: Path, kind: str, preprocessor: dict[str, Any]) -> None:
    processor = ours(
        tmp_path, {**preprocessor, "image_processor_type": {"vit": "ViT", "deit": "DeiT"}[kind] + "ImageProcessor"}
    )
    for height, width in SIZES:
        image = Image.fromarray(pixels(height, width))
        got = processor(image)
        assert got.dtype == torch.float32
        close(got, theirs(kind, image, **preprocessor))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_equal_the_reference(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pixels(37, 53, 4), "RGBA")
    if mode != "RGBA":
        image = Image.new("LAB", (53, 37), (120, 30, 200)) if mode == "LAB" else image.convert("RGB")
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    processor = ours(tmp_path)
    expected = theirs("vit", reference_decode(image.copy()))
    close(processor(image), expected)


def test_grey_models_read_one_channel(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(28, 28, 0))
    processor = ours(tmp_path, {"size": 28, "image_mean": [0.5], "image_std": [0.5]}, num_channels=1)
    close(processor(image), theirs("vit", image, size=28, image_mean=[0.5], image_std=[0.5]))
    assert torch.equal(processor(image.convert("RGB")), processor(image))


def test_transparent_palette_is_like_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(20, 20)).quantize(16)
    plain = encode(image)
    transparent = encode(image, transparency=bytes([0, 128, 255] * 5 + [7]))
    processor = ours(tmp_path)
    assert torch.equal(processor(transparent), processor(plain))


def test_sixteen_bit_grey_keeps_the_high_byte(tmp_path: Path) -> None:
    levels = pixels(20, 30, 0)
    deep = Image.fromarray(levels.astype(np.uint16) << 8 | 0x7F)
    assert deep.mode == "I;16"
    processor = ours(tmp_path)
    for source in (deep, encode(deep), encode(deep, "TIFF")):
        assert torch.equal(processor(source), processor(levels))


def test_float_picture_and_premultiplied_alpha(tmp_path: Path) -> None:
    levels = pixels(20, 30, 0)
    processor = ours(tmp_path)
    picture = Image.fromarray(levels.astype(np.float32) / 255)
    assert picture.mode == "F"
    assert torch.equal(processor(picture), processor(levels))
    opaque = Image.fromarray(pixels(9, 9)).convert("RGBA")
    assert torch.equal(processor(opaque.convert("RGBa")), processor(opaque))
    assert processor(Image.new("La", (3, 3))).shape == (1, 3, 224, 224)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    processor = ours(tmp_path)
    rotated = processor(encode(image, "PNG", exif=exif))
    assert torch.equal(rotated, processor(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_corrupt_exif_is_ignored(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(40, 60))
    data = encode(image, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    processor = ours(tmp_path)
    assert torch.equal(processor(data), processor(image))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    processor = ours(tmp_path)
    assert torch.equal(processor(data), processor(frames[0]))


# --- kinds of source --------------------------------------------------------------------------------------------------


def test_all_sources_agree(tmp_path: Path) -> None:
    levels = pixels(37, 53)
    image = Image.fromarray(levels)
    path = tmp_path / "ünïcode name.png"
    image.save(path)
    processor = ours(tmp_path)
    expected = processor(image)
    sources = [
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        levels,
        levels / 255,
        (levels / 255).astype(np.float32),
        torch.from_numpy(levels).permute(2, 0, 1),
        torch.from_numpy(levels / 255).permute(2, 0, 1),
        np.concatenate([levels, np.zeros((37, 53, 1), np.uint8)], axis=-1),
        levels[::-1][::-1],
    ]
    for source in sources:
        assert torch.equal(processor(source), expected)
    grey = levels[..., 0]
    for source in (grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        assert torch.equal(processor(source), processor(grey))
    assert processor(torch.rand(3, 8, 8, dtype=torch.bfloat16)).shape == (1, 3, 224, 224)
    assert processor(torch.rand(3, 8, 8, requires_grad=True)).shape == (1, 3, 224, 224)


def test_floats_equal_the_reference(tmp_path: Path) -> None:
    values = np.random.default_rng(3).random((19, 23, 3)).astype(np.float32)
    # The reference rescales floats twice unless told not to.
    expected = theirs("vit", values, do_rescale=False, input_data_format="channels_last")
    close(ours(tmp_path)(values), expected)


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4), seed=st.integers(0, 99)
)
def test_batch_equals_single(shapes: list[tuple[int, int]], seed: int) -> None:
    processor = ImageProcessor(size=(24, 20), crop=(16, 25))
    images = [pixels(h, w, seed=seed + i) for i, (h, w) in enumerate(shapes)]
    batch = processor(images)
    assert batch.shape == (len(images), 3, 16, 25)
    for row, image in zip(batch, images, strict=True):
        assert torch.equal(row, processor(image)[0])


def test_four_dimensions_are_a_batch(tmp_path: Path) -> None:
    stack = np.stack([pixels(9, 9, seed=s) for s in range(3)])
    processor = ours(tmp_path)
    assert torch.equal(processor(stack), processor(list(stack)))
    assert torch.equal(processor(torch.from_numpy(stack).permute(0, 3, 1, 2)), processor(tuple(stack)))


def test_the_given_image_is_not_changed(tmp_path: Path) -> None:
    levels = pixels(9, 9)
    image, copy = Image.fromarray(levels), levels.copy()
    ours(tmp_path)([image, levels])
    assert np.array_equal(levels, copy) and np.array_equal(np.asarray(image), copy) and image.mode == "RGB"


# --- configuration ----------------------------------------------------------------------------------------------------


def test_defaults_without_a_file(tmp_path: Path) -> None:
    assert ours(tmp_path) == ImageProcessor()
    assert ours(tmp_path, image_size=30).size == (30, 30)
    deit = ours(tmp_path, model_type="deit", image_size=224)
    assert (deit.size, deit.crop, deit.resample) == ((256, 256), (224, 224), 3)
    assert ours(tmp_path, model_type="deit") == deit
    assert ours(tmp_path, num_channels=1).mean == (0.5,)


@pytest.mark.parametrize(
    ("named", "crop"),
    [("ViTFeatureExtractor", None), ("ViTImageProcessorFast", None), ("DeiTFeatureExtractor", (224, 224))],
)
def test_old_and_new_names(tmp_path: Path, named: str, crop: tuple[int, int] | None) -> None:
    assert ours(tmp_path, {"feature_extractor_type": named}).crop == crop
    assert ours(tmp_path, {"image_processor_type": named, "size": None}).crop == crop


def test_saved_by_the_reference(tmp_path: Path) -> None:
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    DeiTImageProcessorPil(size={"height": 40, "width": 50}, crop_size=30).save_pretrained(tmp_path)
    processor = ours(tmp_path)
    assert (processor.size, processor.crop, processor.resample) == ((40, 50), (30, 30), 3)


def test_nested_configuration_wins(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 11}}))
    assert ours(tmp_path, {"size": 12}).size == (11, 11)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert ours(tmp_path).size == (12, 12)


def test_shortest_edge_from_a_number(tmp_path: Path) -> None:
    assert ours(tmp_path, {"size": 48, "default_to_square": False}).size == 48


@pytest.mark.parametrize(
    "preprocessor",
    [
        {"size": 0},
        {"size": -3},
        {"size": True},
        {"size": "224"},
        {"size": {"width": 3}},
        {"size": {"longest_edge": 3}},
        {"size": [1, 2, 3]},
        {"size": 10**6},
        {"size": 10.5},
        {"resample": 9},
        {"resample": "bicubic"},
        {"crop_size": {"height": 3}, "do_center_crop": True},
        {"rescale_factor": "x"},
        {"rescale_factor": float("nan")},
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": [0.5, None, 0.5]},
        {"do_resize": "yes"},
        {"do_pad": True},
        {"image_processor_type": "Pix2StructImageProcessor"},
    ],
    ids=str,
)
def test_impossible_configurations(tmp_path: Path, preprocessor: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match=next(iter(preprocessor)).replace("image_processor_type", "image processor")
    ):
        ours(tmp_path, preprocessor)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 200_000, "\x00"])
def test_broken_configuration_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        ours(tmp_path)


def test_models_we_do_not_know(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="known: deit, vit"):
        ours(tmp_path, model_type="bert")
    with pytest.raises(CheckpointError, match="num_channels=5"):
        ours(tmp_path, num_channels=5)


# --- hostile input ----------------------------------------------------------------------------------------------------


def png_announcing(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_500, 12_000, 50_000, 2**31 - 1])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs(tmp_path: Path, side: int) -> None:
    with pytest.raises(InputError, match=r"too large|not an image"):
        ours(tmp_path)(png_announcing(side, side))


def test_bomb_warnings_turned_into_errors(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="too large"):
            ours(tmp_path)(png_announcing(12_000, 12_000))


def test_extreme_proportions_do_not_explode(tmp_path: Path) -> None:
    processor = ours(tmp_path, {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224})
    with pytest.raises(InputError, match=f"{MAX_PIXELS:,}"):
        processor(np.zeros((1, 100_000), np.uint8))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_and_corrupt_files(tmp_path: Path, fmt: str) -> None:
    data = encode(Image.fromarray(pixels(64, 64)), fmt)
    processor = ours(tmp_path)
    assert processor(data).shape == (1, 3, 224, 224)
    for keep in (1, 8, 20, len(data) // 3, len(data) // 2):
        with pytest.raises(InputError, match=r"not an image we can read|truncated or corrupt"):
            processor(data[:keep])
    generator = np.random.default_rng(0)
    outcomes = Outcomes()
    for _ in range(30):  # either a picture or a clear error, never anything else
        noisy = bytearray(data)
        for at in generator.integers(0, min(len(data), 300), 5):
            noisy[at] = generator.integers(0, 256)
        with outcomes.one():
            processor(bytes(noisy))
    least = 0 if fmt in ("PNG",) else 1  # checksums leave none that could be read
    assert outcomes.counts["refused"] >= 1 and outcomes.counts["accepted"] >= least, outcomes.counts


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", b"\x00" * 1000, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"],
    ids=["empty", "text", "zeros", "eps", "svg"],
)
def test_bytes_that_are_no_image(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="bytes"):
        ours(tmp_path)(data)


def test_paths_that_are_no_image(tmp_path: Path) -> None:
    processor = ours(tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "kitten.png")
    with pytest.raises(InputError, match=r"did you mean 'kitten\.png'"):
        processor(tmp_path / "kiten.png")
    for path in (tmp_path, "", "nul\0.png", "~nobody-here/x.png", "x" * 5000, tmp_path / "no" / "such.png"):
        with pytest.raises(InputError, match="not a file"):
            processor(path)
    with pytest.raises(InputError, match="address"):
        processor("https://example.com/cat.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="0 bytes"):
        processor(tmp_path / "empty.png")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4), np.inf), "NaN or infinity"),
        (np.full((4, 4), 1.5), "outside 0..1"),
        (np.full((4, 4), -0.1), "outside 0..1"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), complex), "complex"),
        (np.zeros((4, 4), object), "object"),
        (np.zeros((4, 4, 2), np.uint8), "channels last"),
        (np.zeros((4, 4, 5), np.uint8), "channels last"),
        (np.zeros((3, 40, 40), np.uint8), "channels last"),
        (np.zeros((4,), np.uint8), "not an image"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), "not an image"),
        (np.zeros((), np.uint8), "not an image"),
        (np.zeros((0, 4), np.uint8), "empty"),
        (np.zeros((4, 0, 3), np.uint8), "empty"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), "channels first"),
        (torch.zeros(3, 0, 4), "empty"),
        (Image.new("RGB", (0, 5)), "empty"),
        (Image.new("I", (5, 5)), "mode 'I'"),
        (None, "cannot be None"),
        (3, "int"),
        ({"image": 1}, "dict"),
        ([], "empty list"),
        (np.zeros((0, 4, 4, 3), np.uint8), "empty list"),
        ([[np.zeros((4, 4), np.uint8)]], "input 0: "),
        ([np.zeros((4, 4), np.uint8), b"x"], "input 1: "),
    ],
    ids=lambda value: None if not isinstance(value, str) else value,
)
def test_impossible_inputs(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ours(tmp_path)(source)
    assert caught.value.fix


def test_sizes_that_cannot_be_batched(tmp_path: Path) -> None:
    processor = ours(tmp_path, {"do_resize": False})
    with pytest.raises(InputError, match="4x4, 5x4"):
        processor([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)])


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = ours(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="pip install 'pillow"):
        processor(b"x")
