"""One clip of audio, from a file or an array, to mono samples: decode → mean of the channels → resample.

Arrays never have their rate or layout guessed: their rate is required, numpy arrays are (samples,) or
(samples, channels), torch tensors (samples,) or (channels, samples). Integer PCM (uint8, int16, int32) is scaled to
-1..1; floats are taken as they are.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

from plainformer.errors import InputError, MissingDependencyError, opt, to_install
from plainformer.inputs.files import as_array, existing_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Wave: TypeAlias = npt.NDArray[np.float32]
    AudioSource: TypeAlias = "str | os.PathLike[str] | bytes | npt.NDArray[Any] | torch.Tensor | Mapping[str, Any]"

MAX_SAMPLES = 2**29  # 2 GiB of mono float32, three hours at 48 kHz: a small compressed file can unfold into far more
MAX_CHANNELS = 32  # more means that (samples, channels) was given the other way round
MAX_AMPLITUDE = 100.0  # floats run from -1 to 1; thousands are integer PCM kept as float, and huge ones overflow
RATES = (1_000, 1_000_000)  # hertz; outside, kilohertz or milliseconds were meant
MAX_BYTES = 2**32  # a larger file would be read into memory only to exceed MAX_SAMPLES
BLOCK = 2**20  # samples decoded at a time, so that a header that lies about the length allocates nothing


def load_audio(
    source: AudioSource, sampling_rate: int, *, array_rate: int | None = None, max_seconds: float | None = None
) -> Wave:
    """Decode one clip to mono float32 samples at `sampling_rate`.

    Args:
        source: the path or the bytes of a wav, flac, mp3, ogg/opus or aiff file; or a numpy array, a torch tensor, or
            `{"array": …, "sampling_rate": …}` (layouts: see the module's top).
        sampling_rate: the rate wanted, in hertz.
        array_rate: the rate of `source` where it is an array.
        max_seconds: of a file, at most; no more than that is decoded.

    Returns:
        Shape (samples,), at least one; channels are averaged; resampled with soxr's "HQ" where the rates differ.

    Raises:
        InputError: missing, empty, truncated or corrupt; NaN or infinity; beyond 100 in amplitude; longer than 2**29
            samples; an array without a rate, or a rate given for something that states its own.
        MissingDependencyError: soundfile is needed (files) or soxr (other rates) and not installed.
    """
    import numpy as np

    if isinstance(source, Mapping):
        source, array_rate = _from_mapping(source, array_rate)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        if array_rate is not None:
            raise InputError(
                f"{opt('sampling_rate', array_rate)} given with a file, which states its own rate", "leave it out"
            )
        wave, rate = _decode(source, max_seconds)
    else:
        wave, rate = _from_array(source), _checked_rate(array_rate)
    if wave.size == 0:
        raise InputError("the audio has no samples", "give a clip that is not empty")
    if not np.isfinite(wave).all():
        raise InputError("the audio holds NaN or infinity", "find the step that made them")
    peak = float(np.abs(wave).max())
    if peak > MAX_AMPLITUDE:
        raise InputError(
            f"samples reach {peak:.4g}, where floats run from -1 to 1",
            "divide 16-bit samples by 32768, or give them as int16",
        )
    return _resample(wave, rate, _checked_rate(sampling_rate))


def _from_mapping(source: Mapping[str, Any], array_rate: int | None) -> tuple[Any, int]:
    if set(source) - {"path"} != {"array", "sampling_rate"}:
        raise InputError(
            f"audio dictionary with keys {sorted(map(str, source))}", 'it needs "array" and "sampling_rate"'
        )
    rate = source["sampling_rate"]
    if array_rate is not None and array_rate != rate:
        raise InputError(f"{opt('sampling_rate', array_rate)} given, and the clip itself says {rate}", "leave it out")
    return source["array"], rate


def _decode(source: str | os.PathLike[str] | bytes, max_seconds: float | None) -> tuple[Wave, int]:
    """Return mono samples of a file, and their rate."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there and its C library is not
        raise MissingDependencyError("audio files need soundfile", to_install("audio")) from error
    if isinstance(source, (str, os.PathLike)):
        path = existing_file(source, "audio")
        name = f"audio {str(path)!r}"
        try:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{name}: larger than {MAX_BYTES:,} bytes", "split it into shorter files")
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error}", "check its permissions") from error
    else:
        name, content = "the given bytes", bytes(source)
    if not content:
        raise InputError(f"{name}: empty, 0 bytes", "give the content of an audio file")
    try:
        with soundfile.SoundFile(_Stream(content)) as file:
            rate = _checked_rate(file.samplerate)
            wave = _read_mono(file, name, max_seconds)
    except InputError:
        raise
    except Exception as error:  # whatever a decoder meets in hostile bytes means the same to the user
        raise InputError(
            f"{name}: corrupt, truncated, or not audio that we can read ({str(error).rpartition(': ')[2]})",
            "known formats: wav, flac, mp3, ogg, opus, aiff; convert others with: ffmpeg -i INPUT output.wav",
        ) from error
    if _ogg_cut_short(content):
        raise _truncated(name, len(wave))
    return wave, rate


class _Stream(io.BytesIO):
    """Bytes for libsndfile, which asks for positions before the start when a header is hostile."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # inside a C callback nobody could catch it; staying put lets libsndfile report the fault
            return self.tell()


def _read_mono(file: Any, name: str, max_seconds: float | None) -> Wave:
    import numpy as np

    blocks: list[Wave] = []
    samples = 0
    frames = max(1, BLOCK // file.channels)
    while len(block := file.read(frames, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1) if block.shape[1] > 1 else block[:, 0])
        samples += len(block)
        if max_seconds is not None and samples > max_seconds * file.samplerate:
            raise InputError(f"{name}: longer than {max_seconds:g} seconds", "split it into shorter files")
        if samples > MAX_SAMPLES:
            raise InputError(f"{name}: longer than {MAX_SAMPLES:,} samples", "split it into shorter files")
    # An mp3 without an index only estimates its length, hence the tolerance; a stream announces 0 or a huge number.
    lost = file.frames - samples if file.frames < 2**40 else 0
    if _cut_short(file.extra_info) or lost > max(0.01 * file.frames, 0.1 * file.samplerate):
        raise _truncated(name, samples)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _truncated(name: str, samples: int) -> InputError:
    return InputError(
        f"{name}: truncated; only {samples} samples are left of it",
        "fetch it again, or keep what is there: ffmpeg -i INPUT output.wav",
    )


def _ogg_cut_short(content: bytes) -> bool:
    """Return whether an ogg file lacks its marked last page (RFC 3533, section 6), which libsndfile forgives."""
    if not content.startswith(b"OggS"):
        return False
    page = content[content.rfind(b"OggS\0") :]
    if len(page) < 27 or not page[5] & 4:
        return True
    segments = page[27 : 27 + page[26]]
    return len(page) < 27 + page[26] + sum(segments)


def _cut_short(log: str) -> bool:
    """Return whether libsndfile's log says that a wav or aiff file is shorter than its header, which it otherwise forgives."""
    for declared, actual in re.findall(r"(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", log):
        # Programs that write to a pipe cannot know the length and put a number close to 2**31 or 2**32, or 0.
        if int(actual) < int(declared) < 0x7FFF0000:
            return True
    return False


def _from_array(source: Any) -> Wave:
    """Return mono float32 samples of a numpy array (samples[, channels]) or a torch tensor ([channels, ]samples)."""
    import numpy as np

    array, layout = as_array(source, "audio", 2, ("(samples, channels)", "(channels, samples)"))
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise InputError(
            f"an array of shape {tuple(source.shape)} is not one clip: (samples,) or {layout}",
            "transpose it, or give a list for a batch",
        )
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    elif array.dtype in (np.int16, np.int32):
        array = (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    elif not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"samples of type {array.dtype}: their full scale is unknown", "give float32 (-1..1) or int16")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which the caller reports
        wave = array.astype(np.float32)
    return wave if wave.ndim == 1 else wave.mean(axis=1)


def _checked_rate(rate: Any) -> int:
    if rate is None:
        raise InputError(
            "an array has no sampling rate of its own",
            "say it in hertz: sampling_rate= (a processor) or array_rate= (load_audio)",
        )
    number = isinstance(rate, Real) and not isinstance(rate, bool)
    if not number or not RATES[0] <= rate <= RATES[1] or int(rate) != rate:
        raise InputError(f"sampling rate {rate!r} is not between {RATES[0]} and {RATES[1]} hertz", "such as 16000")
    return int(rate)


def _resample(wave: Wave, rate: int, target: int) -> Wave:
    import numpy as np

    if rate == target:
        return np.ascontiguousarray(wave)
    try:
        import soxr
    except ImportError as error:
        raise MissingDependencyError(
            f"audio at {rate} Hz must be resampled to {target} Hz, which needs soxr", to_install("audio")
        ) from error
    resampled: Wave = np.asarray(soxr.resample(wave, rate, target), dtype=np.float32)
    if resampled.size == 0:
        raise InputError(
            f"too short: {len(wave)} samples at {rate} Hz leave nothing at {target} Hz", "give a longer clip"
        )
    return resampled
