"""Images to `pixel_values`, the tensor that ViT and DeiT read.

Decode → upright, 8-bit, RGB (or grey) → resize → centre crop → rescale → normalise. Resizing is Pillow's, on 8-bit
pixels; results equal those of transformers' Pillow processors (5.23).

What each kind of image becomes:

- grey, palette, 1-bit, CMYK, YCbCr, LAB: converted to RGB; colour profiles are not applied. Alpha is dropped, not
  blended, as in transformers.
- 16-bit grey: the high byte, as Pillow does for 16-bit colour (its grey conversion turns all above 255 white).
- float pictures and float arrays: 0..1, made 8-bit by truncating `255 * x`, as transformers does before resizing.
- EXIF orientation is applied; of an animation or a multi-page file, the first frame is used.
- numpy arrays are (H, W) or (H, W, C); torch tensors are (H, W) or (C, H, W), with C = 1, 3 or 4. Never guessed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from plainformer.config.checks import reading, require, require_size, shown
from plainformer.config.fields import Fields
from plainformer.config.parts import BILINEAR, ImageDefaults
from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError, InputError, MissingDependencyError, did_you_mean, to_install
from plainformer.inputs.files import as_array, each, existing_file, read_preprocessor

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt
    import torch
    from PIL.Image import Image as PILImage

    ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | PILImage | npt.NDArray[Any] | torch.Tensor"

# Pillow's own warning level; a 4 kB file can announce billions of pixels. About 270 MB once decoded to RGB.
MAX_PIXELS = 89_478_485

# Only these decoders are tried: EPS would start an external program, rarer ones are little tested on hostile files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "QOI")

# What ViTImageProcessor and DeiTImageProcessor of transformers 5.23 have in common.
COMMON_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": 0.5,
    "image_std": 0.5,
}
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


@dataclass(frozen=True)
class ImageProcessor:
    """Turns images into `pixel_values`.

    Attributes:
        size: (height, width) to resize to; one int: length of the shorter edge, keeping proportions; None: no resize.
        resample: Pillow's filter code, 0..5.
        crop: (height, width) cut from the centre, black where the image is smaller; None: no crop.
        rescale_factor: multiplies the 8-bit levels; None: levels stay 0..255.
        mean, std: one per channel, applied after rescaling; None: no normalisation.
        channels: 3 (RGB) or 1 (grey), what the model reads.
    """

    size: tuple[int, int] | int | None = (224, 224)
    resample: int = BILINEAR
    crop: tuple[int, int] | None = None
    rescale_factor: float | None = 1 / 255
    mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    channels: int = 3

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any], known: Sequence[ImageDefaults]) -> ImageProcessor:
        """Read `preprocessor_config.json` (or `processor_config.json`) of a checkpoint folder.

        Absent keys take the defaults of the kind of processor. Where there is no such file at all, the
        size follows `config["image_size"]`, the only one the model accepts.

        Args:
            folder: the checkpoint's folder.
            config: the model's `config.json`; `model_type`, `num_channels` and `image_size` are used.
            known: the defaults of the kinds of processors that the family's checkpoints name (`ModelConfig.image_defaults`).

        Raises:
            CheckpointError: the file is not valid JSON, names another kind of processor, or has an impossible value.
        """
        return cls.from_settings(read_preprocessor(folder, "image_processor"), config, known)

    @classmethod
    def from_settings(
        cls, found: Mapping[str, Any] | None, config: Mapping[str, Any], known: Sequence[ImageDefaults]
    ) -> ImageProcessor:
        """Return what a preprocessor's settings say; with None, what the model's own kind does with images of its size."""
        settings = {key: value for key, value in (found or {}).items() if value is not None}
        own = _defaults(settings, config, known)
        crop = {"do_center_crop": bool(own.crop), "crop_size": own.crop}
        defaults = {**COMMON_DEFAULTS, "size": own.size, "resample": own.resample, **crop}
        if found is None and "image_size" in config:
            defaults |= _sizes_from_model(own, config["image_size"])
        channels = _channels(config)
        with reading("the preprocessor's configuration"):
            return _build(Fields({**defaults, **settings}), channels)

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> torch.Tensor:
        """Prepare one image or a list of them.

        Args:
            images: a path, the bytes of a file, a PIL image, a numpy array or a torch tensor (layouts and ranges: see
                the module's top), or a list of these; an array with four dimensions is a batch.

        Returns:
            `pixel_values`, float32, (B, C, H, W); one image gives B = 1. An image gives the same values in any batch.

        Raises:
            InputError: an image is missing, empty, corrupt, too large, or in no documented layout; or the sizes differ
                within the batch because the checkpoint does not resize to a fixed size.
            MissingDependencyError: Pillow is not installed.
        """
        import numpy as np
        import torch

        batch: Any = images
        planes = each("image", list(batch) if getattr(batch, "ndim", None) == 4 else batch, self._prepare)
        if len({plane.shape for plane in planes}) > 1:
            sizes = ", ".join(sorted({f"{plane.shape[1]}x{plane.shape[2]}" for plane in planes}))
            raise InputError(
                f"images of different sizes ({sizes}) cannot form one batch; this checkpoint does not make them equal",
                "give them one by one, or resize them to one size first",
            )
        return torch.from_numpy(np.stack(planes))

    def _prepare(self, source: Any) -> npt.NDArray[np.float32]:
        """Return one image as a float32 array (C, H, W)."""
        return self.scaled(self.levels(source))

    def levels(self, source: Any) -> npt.NDArray[np.uint8]:
        """Return one image, resized and cropped, as its 8-bit levels (C, H, W): a quarter of the memory of `pixel_values`."""
        import numpy as np

        image = _open(source)
        _check_size(image.width, image.height)
        image = _eight_bit(image)
        image = image.convert("RGB") if self.channels == 3 else image.convert("RGB").convert("L")
        image = self._resize(image)
        if self.crop is not None:
            height, width = self.crop
            # Floor division puts an odd remainder where transformers does, whether the crop is smaller or larger.
            top, left = (image.height - height) // 2, (image.width - width) // 2
            image = image.crop((left, top, left + width, top + height))
        levels_HWC = np.asarray(image).reshape(image.height, image.width, self.channels)
        return np.ascontiguousarray(levels_HWC.transpose(2, 0, 1))

    def scaled(self, levels_CHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return what `__call__` makes of an image of these levels, (C, H, W)."""
        import numpy as np

        return np.stack([table[plane] for table, plane in zip(self._level_table(), levels_CHW, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """Return it as `preprocessor_config.json` has it, with every step written out, in the fields that transformers reads."""
        size, crop = self.size, self.crop
        edges = {"shortest_edge": size} if isinstance(size, int) else size and {"height": size[0], "width": size[1]}
        steps: dict[str, tuple[bool, dict[str, Any]]] = {
            "do_resize": (size is not None, {"size": edges, "resample": self.resample}),
            "do_center_crop": (crop is not None, {"crop_size": crop and {"height": crop[0], "width": crop[1]}}),
            "do_rescale": (self.rescale_factor is not None, {"rescale_factor": self.rescale_factor}),
        }
        found: dict[str, Any] = {}
        for name, (done, values) in steps.items():
            found |= {name: done, **(values if done else {})}
        if self.mean is None or self.std is None:
            return {**found, "do_normalize": False}
        return {**found, "do_normalize": True, "image_mean": list(self.mean), "image_std": list(self.std)}

    def _resize(self, image: PILImage) -> PILImage:
        if self.size is None:
            return image
        if isinstance(self.size, int):
            short, long = sorted((image.width, image.height))
            new_long = int(self.size * long / short)
            height, width = (new_long, self.size) if image.width <= image.height else (self.size, new_long)
            _check_size(width, height, "after resizing its shorter edge the image")
        else:
            height, width = self.size
        return image.resize((width, height), resample=_pillow().Resampling(self.resample))

    def _level_table(self) -> npt.NDArray[np.float32]:
        """Return the result for each of the 256 levels, (C, 256): exact, and faster than arithmetic on every pixel."""
        import numpy as np

        levels = np.arange(256, dtype=np.float64)
        if self.rescale_factor is not None:
            levels = levels * self.rescale_factor
        table = np.tile(levels.astype(np.float32), (self.channels, 1))
        if self.mean is not None and self.std is not None:
            table = (table - np.array(self.mean, np.float32)[:, None]) / np.array(self.std, np.float32)[:, None]
        return table


# --- settings --------------------------------------------------------------------------------------------------------


def _defaults(settings: Mapping[str, Any], config: Mapping[str, Any], known: Sequence[ImageDefaults]) -> ImageDefaults:
    """Return the defaults of the kind of processor that the file names, or else of the model's own."""
    named = settings.get("image_processor_type") or settings.get("feature_extractor_type") or config.get("model_type")
    kind = str(named).lower()
    for suffix in ("imageprocessorfast", "imageprocessorpil", "imageprocessor", "featureextractor"):
        kind = kind.removesuffix(suffix)
    by_kind = {defaults.kind: defaults for defaults in known}
    if kind not in by_kind:
        raise CheckpointError(f"image processor {named!r} is not supported", did_you_mean(kind, by_kind))
    return by_kind[kind]


def _channels(config: Mapping[str, Any]) -> int:
    channels = config.get("num_channels", 3)
    if channels not in (1, 3):
        raise CheckpointError(f"num_channels={channels!r} in config.json: images have 3 (RGB) or 1 (grey) here")
    return int(channels)


def _sizes_from_model(defaults: ImageDefaults, image_size: Any) -> dict[str, Any]:
    """Return the only size that the model accepts; a processor that crops resizes to as much more as it usually does."""
    edges = _pair(image_size, "image_size")
    if defaults.crop:
        return {"size": [edge * defaults.size // defaults.crop for edge in edges], "crop_size": list(edges)}
    return {"size": list(edges)}


def _build(settings: Fields, channels: int) -> ImageProcessor:
    for name, value in settings.raw.items():
        known = not name.startswith("do_") or name in STEPS or not value
        require(known, f"{name}={shown(value)} is a step that is not supported")
    on = {name: settings.flag(name, default=False) for name in STEPS}
    mean = std = None
    if on["do_normalize"]:
        mean, std = (_per_channel(settings, name, channels) for name in ("image_mean", "image_std"))
        require(0 not in std, "image_std holds a zero, and the image is divided by it", "use 1.0 for no scaling")
    return ImageProcessor(
        size=_resize_target(settings) if on["do_resize"] else None,
        resample=settings.bounded("resample", 5, 0),  # Pillow's codes
        crop=_pair(settings.get("crop_size", default=224), "crop_size") if on["do_center_crop"] else None,
        rescale_factor=settings.number("rescale_factor") if on["do_rescale"] else None,
        mean=mean,
        std=std,
        channels=channels,
    )


def _resize_target(settings: Fields) -> tuple[int, int] | int:
    size = settings.get("size")
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        size = size["shortest_edge"]
    elif not is_whole(size) or settings.get("default_to_square") is not False:
        return _pair(size, "size")
    require_size("size", size, MAX_PIXELS)
    return int(size)


def _pair(value: Any, name: str) -> tuple[int, int]:
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        value = (value["height"], value["width"])
    elif is_whole(value):
        value = (value, value)
    both = isinstance(value, list | tuple) and len(value) == 2
    require(both, f"{name}={shown(value)} is not a size", 'a number, [height, width] or {"height": …, "width": …}')
    for edge in value:
        require_size(name, edge, MAX_PIXELS)
    small = value[0] * value[1] <= MAX_PIXELS
    require(small, f"{name}={shown(value)} asks for more than {MAX_PIXELS:,} pixels an image")
    return int(value[0]), int(value[1])


def _per_channel(settings: Fields, name: str, channels: int) -> tuple[float, ...]:
    value = settings.get(name)
    numbers = settings.numbers(name) if isinstance(value, list | tuple) else (settings.number(name),) * channels
    require(len(numbers) == channels, f"{name} has {len(numbers)} values and the model reads {channels} channels")
    return numbers


# --- one image -------------------------------------------------------------------------------------------------------


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("images need Pillow", to_install("image")) from error
    return Image


def _open(source: Any) -> PILImage:
    """Return a decoded, upright PIL image from any accepted source."""
    Image = _pillow()
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_file(io.BytesIO(bytes(source)), "the given bytes", len(source))
    if isinstance(source, (str, os.PathLike)):
        path = existing_file(source, "image")
        try:
            with path.open("rb") as file:
                return _open_file(file, repr(str(path)), path.stat().st_size)
        except OSError as error:
            raise InputError(f"image {str(path)!r} cannot be read: {error}", "check its permissions") from error
    return _from_array(source)


def _open_file(file: Any, name: str, length: int) -> PILImage:
    Image = _pillow()
    if length == 0:
        raise InputError(f"{name}: empty, 0 bytes", "give the content of an image file")
    Image.init()
    known = [fmt for fmt in FORMATS if fmt in Image.OPEN]  # AVIF and JPEG 2000 depend on how Pillow was built
    try:
        image = Image.open(file, formats=known)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except (
        Exception
    ) as error:  # decoders meet hostile bytes with SyntaxError, struct.error, KeyError…: all mean "corrupt"
        raise InputError(
            f"{name}: not an image we can read ({type(error).__name__})", f"known formats: {', '.join(known)}"
        ) from error
    return _decode(image, name)


def _decode(image: PILImage, name: str) -> PILImage:
    """Return all pixels in memory and upright, so that nothing can fail later."""
    from PIL import ImageOps

    _check_size(image.width, image.height)
    try:
        image.load()
    except Exception as error:  # see _open_file
        raise InputError(
            f"{name}: the image is truncated or corrupt ({error})", "fetch or export the file again"
        ) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable metadata: the pixels are whole, so the image is used as stored
        return image


def _check_size(width: int, height: int, name: str = "the image") -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name} is empty: {width} x {height} pixels", "give an image with at least one pixel")
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height} pixels")


def _too_large(name: str, size: str) -> InputError:
    return InputError(f"{name} is too large: {size}; the limit is {MAX_PIXELS:,} pixels", "scale it down first")


def _eight_bit(image: PILImage) -> PILImage:
    """Return the same picture with at most 8 bits a channel, in a mode that Pillow converts to RGB without loss of meaning."""
    import numpy as np

    Image = _pillow()
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # type: ignore[no-any-return]
    if image.mode == "F":
        return _from_array(np.asarray(image))
    if image.mode == "I":
        raise InputError(
            "a 32-bit integer image (mode 'I'): which value means white is unknown",
            "convert it to 8 bits, image.convert('L')",
        )
    if image.mode in ("La", "RGBa"):  # premultiplied alpha: undo it first, dropping alpha would darken the image
        return image.convert(image.mode.upper())
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def _from_array(source: Any) -> PILImage:
    """Return a PIL image from a numpy array (H, W[, C]) or a torch tensor ([C, ]H, W)."""
    import numpy as np

    pixels, layout = as_array(source, "an image", 3, ("(H, W, C)", "(C, H, W)"))
    shape = tuple(source.shape)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
        raise InputError(
            f"an array of shape {shape} is not an image: (H, W) or {layout} with 1, 3 or 4 channels",
            "transpose it: numpy arrays have channels last, torch tensors channels first",
        )
    _check_size(pixels.shape[1], pixels.shape[0])
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return _pillow().fromarray(np.ascontiguousarray(_levels(pixels)))  # type: ignore[no-any-return]


def _levels(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """uint8 levels of a uint8 or float (0..1) array."""
    import numpy as np

    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(
            f"pixels of type {pixels.dtype}: which value means white is unknown",
            "convert to uint8 (0..255) or float (0..1)",
        )
    if not np.isfinite(pixels).all():
        raise InputError("the image array holds NaN or infinity", "find the step that made them")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise InputError(
            f"float pixels run from {low:.4g} to {high:.4g}, outside 0..1",
            "divide by their maximum, or convert to uint8 (0..255)",
        )
    # float32 before truncating, as in transformers: it makes k/255 come back as exactly k for every level.
    return (pixels.astype(np.float64) * 255).astype(np.float32).astype(np.uint8)
