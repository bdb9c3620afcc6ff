"""Images to `pixel_values`, the tensor that ViT and DeiT read.

Decode → upright, 8-bit, RGB (or grey) → resize → centre crop → rescale → normalise. Resizing is Pillow's, on 8-bit
pixels; results equal the reference's Pillow processors (transformers 5.23).

What each kind of image becomes:

- grey, palette, 1-bit, CMYK, YCbCr, LAB: converted to RGB; colour profiles are not applied. Alpha is dropped, not
  blended, as in the reference.
- 16-bit grey: the high byte, as Pillow does for 16-bit colour (its grey conversion turns all above 255 white).
- float pictures and float arrays: 0..1, made 8-bit by truncating `255 * x`, as the reference does before resizing.
- EXIF orientation is applied; of an animation or a multi-page file, the first frame is used.
- numpy arrays are (H, W) or (H, W, C); torch tensors are (H, W) or (C, H, W), with C = 1, 3 or 4. Never guessed.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from plainformer.config.processors import BILINEAR, ImageDefaults
from plainformer.errors import CheckpointError, InputError, MissingDependencyError, did_you_mean, nth
from plainformer.inputs.files import existing_file, read_preprocessor

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
        found = read_preprocessor(folder, "image_processor")
        settings = {key: value for key, value in (found or {}).items() if value is not None}
        own = _defaults(settings, config, known)
        crop = {"do_center_crop": bool(own.crop), "crop_size": own.crop}
        defaults = {**COMMON_DEFAULTS, "size": own.size, "resample": own.resample, **crop}
        if found is None and "image_size" in config:
            defaults |= _sizes_from_model(own, config["image_size"])
        _refuse_unknown_steps(settings)
        return _build({**defaults, **settings}, _channels(config))

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

        batch, single = _as_batch(images)
        planes = []
        for index, image in enumerate(batch):
            try:
                planes.append(self._prepare(image))
            except InputError as error:
                if single:
                    raise
                raise InputError(f"{nth(index)}: {error.what}", error.fix) from error
        if len({plane.shape for plane in planes}) > 1:
            sizes = ", ".join(sorted({f"{plane.shape[1]}x{plane.shape[2]}" for plane in planes}))
            raise InputError(
                f"images of different sizes ({sizes}) cannot form one batch; this checkpoint does not make them equal",
                "give them one by one, or resize them to one size first",
            )
        return torch.from_numpy(np.stack(planes))

    def _prepare(self, source: Any) -> npt.NDArray[np.float32]:
        """One image as a float32 array (C, H, W)."""
        import numpy as np

        image = _open(source)
        _check_size(image.width, image.height)
        image = _eight_bit(image)
        image = image.convert("RGB") if self.channels == 3 else image.convert("RGB").convert("L")
        image = self._resize(image)
        if self.crop is not None:
            height, width = self.crop
            # Floor division puts an odd remainder where the reference does, whether the crop is smaller or larger.
            top, left = (image.height - height) // 2, (image.width - width) // 2
            image = image.crop((left, top, left + width, top + height))
        levels_HWC = np.asarray(image).reshape(image.height, image.width, self.channels)
        table = self._level_table()
        return np.stack([table[c][levels_HWC[..., c]] for c in range(self.channels)])

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
        """The result for each of the 256 levels, (C, 256): exact, and faster than arithmetic on every pixel."""
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
    """The defaults of the kind of processor that the file names, or else of the model's own."""
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
    """The only size that the model accepts; a processor that crops resizes to as much more as it usually does."""
    edges = _pair(image_size, "image_size")
    if defaults.crop:
        return {"size": [edge * defaults.size // defaults.crop for edge in edges], "crop_size": list(edges)}
    return {"size": list(edges)}


def _refuse_unknown_steps(settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key.startswith("do_") and key not in STEPS and value:
            raise CheckpointError(f"{key}={value!r} in the preprocessor's configuration is a step we do not implement")
        if key in STEPS and not isinstance(value, bool):
            raise CheckpointError(f"{key}={value!r} in the preprocessor's configuration is neither true nor false")


def _build(settings: Mapping[str, Any], channels: int) -> ImageProcessor:
    size: tuple[int, int] | int | None = None
    if settings["do_resize"]:
        size = _resize_target(settings)
    resample = settings["resample"]
    if not _is_int(resample) or not 0 <= resample <= 5:
        raise CheckpointError(f"resample={resample!r} is not one of Pillow's filter codes", "0 to 5; 3 is bicubic")
    crop = None
    if settings["do_center_crop"]:
        crop = _pair(settings.get("crop_size", 224), "crop_size")
    factor = None
    if settings["do_rescale"]:
        factor = _number(settings["rescale_factor"], "rescale_factor")
    mean = std = None
    if settings["do_normalize"]:
        mean = _per_channel(settings["image_mean"], "image_mean", channels)
        std = _per_channel(settings["image_std"], "image_std", channels)
        if 0 in std:
            raise CheckpointError("image_std holds a zero, and the image is divided by it", "use 1.0 for no scaling")
    return ImageProcessor(size, resample, crop, factor, mean, std, channels)


def _resize_target(settings: Mapping[str, Any]) -> tuple[int, int] | int:
    size = settings["size"]
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return _edge(size["shortest_edge"], "size")
    if _is_int(size) and settings.get("default_to_square") is False:
        return _edge(size, "size")
    return _pair(size, "size")


def _pair(value: Any, name: str) -> tuple[int, int]:
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        value = (value["height"], value["width"])
    elif _is_int(value):
        value = (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise CheckpointError(
            f"{name}={value!r} is not a size", 'a number, [height, width] or {"height": …, "width": …}'
        )
    height, width = _edge(value[0], name), _edge(value[1], name)
    if height * width > MAX_PIXELS:
        raise CheckpointError(f"{name}={value!r} asks for more than {MAX_PIXELS:,} pixels an image")
    return height, width


def _edge(value: Any, name: str) -> int:
    if not _is_int(value) or not 0 < value <= MAX_PIXELS:
        raise CheckpointError(f"{name} holds {value!r}, which is not a positive whole number of pixels")
    return int(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(f"{name} holds {value!r}, which is not a finite number")
    return float(value)


def _per_channel(value: Any, name: str, channels: int) -> tuple[float, ...]:
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * channels
    if len(numbers) != channels:
        raise CheckpointError(f"{name} has {len(numbers)} values and the model reads {channels} channels")
    return tuple(_number(number, name) for number in numbers)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --- one image -------------------------------------------------------------------------------------------------------


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("images need Pillow", "pip install plainformer[image]") from error
    return Image


def _as_batch(images: Any) -> tuple[list[Any], bool]:
    """The images as a list, and whether only one was given."""
    if not isinstance(images, (list, tuple)) and getattr(images, "ndim", None) != 4:
        return [images], True
    if len(images) == 0:
        raise InputError("an empty list of images", "give at least one image")
    return list(images), False


def _open(source: Any) -> PILImage:
    """A decoded, upright PIL image from any accepted source."""
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
    """All pixels in memory and upright, so that nothing can fail later."""
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
    """The same picture with at most 8 bits a channel, in a mode that Pillow converts to RGB without loss of meaning."""
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
    """A PIL image from a numpy array (H, W[, C]) or a torch tensor ([C, ]H, W)."""
    import numpy as np

    if isinstance(source, np.ndarray):
        pixels, layout = source, "(H, W, C)"
    elif hasattr(source, "detach") and hasattr(source, "cpu"):  # a torch tensor, told without importing torch
        pixels, layout = _tensor_to_array(source), "(C, H, W)"
    else:
        raise InputError(
            f"an image cannot be a {type(source).__name__}",
            "give a path, bytes, a PIL image, a numpy array or a tensor",
        )
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


def _tensor_to_array(tensor: Any) -> npt.NDArray[Any]:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16
        tensor = tensor.float()
    array: npt.NDArray[Any] = tensor.numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 else array


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
    # float32 before truncating, as in the reference: it makes k/255 come back as exactly k for every level.
    return (pixels.astype(np.float64) * 255).astype(np.float32).astype(np.uint8)
