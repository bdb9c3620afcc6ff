"""Audio to the tensors that speech models read: raw waves (wav2vec2, HuBERT) or log-mel spectrograms (Whisper).

Decode → mono (mean of the channels) → resample to the model's rate → normalise, or log-mel → batch with its mask.

Arrays never have their rate or layout guessed: `sampling_rate=` is required, numpy arrays are (samples,) or
(samples, channels), torch tensors (samples,) or (channels, samples). Integer PCM (uint8, int16, int32) is scaled to
-1..1; floats are taken as they are. Silence is valid: a wave of zeros stays zeros, its log-mel is -1.5 everywhere.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from plainformer.errors import CheckpointError, InputError, MissingDependencyError
from plainformer.inputs.image import existing_file, read_preprocessor

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


@dataclass(frozen=True)
class AudioBatch:
    """What an audio processor returns; exactly one of `input_values` and `input_features` is set.

    Attributes:
        attention_mask: int64; 1 for real positions, 0 for padding: samples (B, T) or mel frames (B, frames).
        input_values: float32 (B, T), waves for wav2vec2/HuBERT.
        input_features: float32 (B, n_mels, frames), log-mel spectrograms for Whisper.
    """

    attention_mask: torch.Tensor
    input_values: torch.Tensor | None = None
    input_features: torch.Tensor | None = None


@dataclass(frozen=True)
class WaveProcessor:
    """Waves for wav2vec2 and HuBERT.

    Attributes:
        sampling_rate: the model's rate, in hertz; everything is resampled to it.
        do_normalize: zero mean and unit variance for each clip, over its real samples only.
        padding_value: what fills a batch after the end of a shorter clip.
        return_attention_mask: whether the model was trained with a mask. The batch always carries one, to tell where
            clips end, but a checkpoint with False (group norm, such as wav2vec2-base) should be run without it.
        min_samples: the shortest clip that the model's convolutions accept, in samples at `sampling_rate`.
    """

    sampling_rate: int = 16_000
    do_normalize: bool = True
    padding_value: float = 0.0
    return_attention_mask: bool = False
    min_samples: int = 400

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> WaveProcessor:
        """Read `preprocessor_config.json` (or `processor_config.json`) of a checkpoint folder.

        Args:
            folder: the checkpoint's folder. Absent keys take the reference's defaults (16 kHz, normalised, no mask);
                with no file at all the mask follows `config["feat_extract_norm"]`: layer-norm models trained with one.
            config: the model's `config.json`; its convolutions give the shortest clip.

        Raises:
            CheckpointError: the file is unreadable, is for another kind of model, or has an impossible value.
        """
        found = read_preprocessor(folder, "feature_extractor")
        settings = _Settings(found, "Wav2Vec2FeatureExtractor")
        if settings.whole("feature_size", 1) != 1:
            raise CheckpointError("feature_size is not 1: wav2vec2 and HuBERT read plain waves")
        return cls(
            sampling_rate=settings.whole("sampling_rate", 16_000),
            do_normalize=settings.flag("do_normalize", True),
            padding_value=settings.number("padding_value", 0.0),
            return_attention_mask=settings.flag(
                "return_attention_mask", found is None and config.get("feat_extract_norm") == "layer"
            ),
            min_samples=_receptive_field(config),
        )

    def __call__(self, audio: AudioSource | Sequence[AudioSource], *, sampling_rate: int | None = None) -> AudioBatch:
        """Prepare one clip or a list of clips.

        Args:
            audio: a path, the bytes of a file, an array, `{"array": …, "sampling_rate": …}`, or a list of these.
            sampling_rate: the rate of the arrays given, in hertz; files and dictionaries state their own.

        Returns:
            `input_values` (B, T) and `attention_mask` (B, T), T being the longest clip. A clip gets the same values
            alone and in a batch; the reference, for checkpoints without a mask, normalises over the padding as well.

        Raises:
            InputError: see `load_audio`; or a clip is shorter than `min_samples`.
        """
        import torch

        rate = self.sampling_rate
        waves = _each(audio, lambda clip: self._normalize(load_audio(clip, rate, array_rate=sampling_rate)))
        longest = max(len(wave) for wave in waves)
        values_BT = torch.full((len(waves), longest), self.padding_value, dtype=torch.float32)
        mask_BT = torch.zeros((len(waves), longest), dtype=torch.int64)
        for row, wave in enumerate(waves):
            values_BT[row, : len(wave)] = torch.from_numpy(wave)
            mask_BT[row, : len(wave)] = 1
        return AudioBatch(attention_mask=mask_BT, input_values=values_BT)

    def _normalize(self, wave: Wave) -> Wave:
        import numpy as np

        if len(wave) < self.min_samples:
            raise InputError(
                f"too short: {len(wave)} samples, {1000 * len(wave) / self.sampling_rate:.0f} ms; the model needs at "
                f"least {self.min_samples}",
                "give a longer clip, or pad it with silence",
            )
        if not self.do_normalize:
            return wave
        # 1e-7 as in Wav2Vec2FeatureExtractor (transformers 5.23): silence becomes zeros rather than a division by zero.
        normed: Wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        return normed


@dataclass(frozen=True)
class MelProcessor:
    """Log-mel spectrograms for Whisper (Radford et al. 2022, arXiv:2212.04356, section 2.2).

    Attributes:
        sampling_rate: the model's rate, in hertz; everything is resampled to it.
        n_mels: mel bands, 80 or 128.
        n_fft: samples in a Fourier window (Hann).
        hop_length: samples from one frame to the next.
        chunk_length: seconds that every clip is padded to.
        padding_value: the sample value that fills a clip up to `chunk_length`.
    """

    sampling_rate: int = 16_000
    n_mels: int = 80
    n_fft: int = 400
    hop_length: int = 160
    chunk_length: int = 30
    padding_value: float = 0.0

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> MelProcessor:
        """Read `preprocessor_config.json` (or `processor_config.json`) of a checkpoint folder.

        Args:
            folder: the checkpoint's folder; absent keys take the reference's defaults.
            config: the model's `config.json`; `num_mel_bins` is the number of bands that the model reads.

        Raises:
            CheckpointError: the file is unreadable, is for another kind of model, disagrees with the model, or has an
                impossible value.
        """
        settings = _Settings(read_preprocessor(folder, "feature_extractor"), "WhisperFeatureExtractor")
        bands = config.get("num_mel_bins")
        n_mels = settings.whole("feature_size", 80 if bands is None else bands)
        if bands is not None and bands != n_mels:
            raise CheckpointError(f"the preprocessor makes {n_mels} mel bands and the model reads {bands}")
        if settings.number("dither", 0.0) != 0:
            raise CheckpointError("dither adds random noise to the audio, which we do not do", "set it to 0.0")
        if settings.flag("do_normalize", False):
            raise CheckpointError("do_normalize is not implemented for Whisper; no published checkpoint uses it")
        return cls(
            sampling_rate=settings.whole("sampling_rate", 16_000),
            n_mels=n_mels,
            n_fft=settings.whole("n_fft", 400),
            hop_length=settings.whole("hop_length", 160),
            chunk_length=settings.whole("chunk_length", 30),
            padding_value=settings.number("padding_value", 0.0),
        )

    def __call__(
        self,
        audio: AudioSource | Sequence[AudioSource],
        *,
        sampling_rate: int | None = None,
        truncate: bool = False,
    ) -> AudioBatch:
        """Prepare one clip or a list of clips.

        Args:
            audio: a path, the bytes of a file, an array, `{"array": …, "sampling_rate": …}`, or a list of these.
            sampling_rate: the rate of the arrays given, in hertz; files and dictionaries state their own.
            truncate: keep the first `chunk_length` seconds of a longer clip; otherwise a longer clip is an error.

        Returns:
            `input_features` (B, n_mels, frames) and `attention_mask` (B, frames), 3000 frames for 30 s.

        Raises:
            InputError: see `load_audio`; or a clip is longer than `chunk_length`.
        """
        import torch

        rate = self.sampling_rate
        waves = _each(audio, lambda clip: self._fit(load_audio(clip, rate, array_rate=sampling_rate), truncate))
        # One clip at a time: a batched matrix product may round differently from that of a single clip.
        features_BMF = torch.stack([self._log_mel(wave) for wave in waves])
        frames = features_BMF.shape[-1]
        mask_BF = torch.zeros((len(waves), frames), dtype=torch.int64)
        for row, wave in enumerate(waves):
            mask_BF[row, : math.ceil(len(wave) / self.hop_length)] = 1
        return AudioBatch(attention_mask=mask_BF, input_features=features_BMF)

    def _fit(self, wave: Wave, truncate: bool) -> Wave:
        limit = self.chunk_length * self.sampling_rate
        if len(wave) > limit and not truncate:
            raise InputError(
                f"too long: {len(wave) / self.sampling_rate:.2f} s, the model hears {self.chunk_length} s at a time",
                f"split the audio, or pass truncate=True to keep only its first {self.chunk_length} s",
            )
        return wave[:limit]

    def _log_mel(self, wave: Wave) -> torch.Tensor:
        """(n_mels, frames) for one wave, padded to the chunk."""
        import torch

        padded = torch.full((self.chunk_length * self.sampling_rate,), self.padding_value, dtype=torch.float32)
        padded[: len(wave)] = torch.from_numpy(wave)
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(padded, self.n_fft, self.hop_length, window=window, return_complex=True)
        power = (spectrum[:, :-1].abs() ** 2).contiguous()  # centred frames: the last one would lie beyond the end
        decibels = torch.clamp(self._filters @ power, min=1e-10).log10()
        return (torch.maximum(decibels, decibels.max() - 8.0) + 4.0) / 4.0

    @cached_property
    def _filters(self) -> torch.Tensor:
        """Triangular mel filters of equal area up to 8 kHz, (n_mels, n_fft // 2 + 1); after Slaney, 1998."""
        import numpy as np
        import torch

        log_step = math.log(6.4) / 27  # the scale is linear up to 1 kHz (15 mels) and logarithmic above
        mels = np.linspace(0.0, 15 + math.log(8.0) / log_step, self.n_mels + 2)
        edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((np.maximum(mels, 15) - 15) * log_step))
        low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        bins = np.linspace(0, self.sampling_rate // 2, self.n_fft // 2 + 1)
        triangles = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
        return torch.from_numpy((triangles * 2 / (high - low)).astype(np.float32))


def load_audio(source: AudioSource, sampling_rate: int, *, array_rate: int | None = None) -> Wave:
    """Decode one clip to mono float32 samples at `sampling_rate`.

    Args:
        source: the path or the bytes of a wav, flac, mp3, ogg/opus or aiff file; or a numpy array, a torch tensor, or
            `{"array": …, "sampling_rate": …}` (layouts: see the module's top).
        sampling_rate: the rate wanted, in hertz.
        array_rate: the rate of `source` where it is an array.

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
            raise InputError(f"sampling_rate={array_rate} given with a file, which states its own rate", "leave it out")
        wave, rate = _decode(source)
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


def _each(audio: Any, prepare: Callable[[Any], Wave]) -> list[Wave]:
    """`prepare` applied to one clip or to each of a list; an error names the clip."""
    if not isinstance(audio, (list, tuple)):
        return [prepare(audio)]
    if not audio:
        raise InputError("an empty list of audio clips", "give at least one clip")
    waves = []
    for index, clip in enumerate(audio):
        try:
            waves.append(prepare(clip))
        except InputError as error:
            raise InputError(f"clip {index} of {len(audio)}: {error.what}", error.fix) from error
    return waves


# --- decoding --------------------------------------------------------------------------------------------------------


def _from_mapping(source: Mapping[str, Any], array_rate: int | None) -> tuple[Any, int]:
    if set(source) - {"path"} != {"array", "sampling_rate"}:
        raise InputError(
            f"audio dictionary with keys {sorted(map(str, source))}", 'it needs "array" and "sampling_rate"'
        )
    rate = source["sampling_rate"]
    if array_rate is not None and array_rate != rate:
        raise InputError(f"sampling_rate={array_rate} given, and the clip itself says {rate}", "leave it out")
    return source["array"], rate


def _decode(source: str | os.PathLike[str] | bytes) -> tuple[Wave, int]:
    """Mono samples of a file, and their rate."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there and its C library is not
        raise MissingDependencyError("audio files need soundfile", "pip install plainformer[audio]") from error
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
            wave, rate = _read_mono(file, name), _checked_rate(file.samplerate)
    except InputError:
        raise
    except Exception as error:  # whatever a decoder meets in hostile bytes means the same to the user
        raise InputError(
            f"{name}: corrupt, truncated, or not audio that we can read ({error})",
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


def _read_mono(file: Any, name: str) -> Wave:
    import numpy as np

    blocks: list[Wave] = []
    samples = 0
    frames = max(1, BLOCK // file.channels)
    while len(block := file.read(frames, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1) if block.shape[1] > 1 else block[:, 0])
        samples += len(block)
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
    """Whether an ogg file lacks its marked last page (RFC 3533, section 6), which libsndfile forgives."""
    if not content.startswith(b"OggS"):
        return False
    page = content[content.rfind(b"OggS\0") :]
    if len(page) < 27 or not page[5] & 4:
        return True
    segments = page[27 : 27 + page[26]]
    return len(page) < 27 + page[26] + sum(segments)


def _cut_short(log: str) -> bool:
    """Whether libsndfile's log says that a wav or aiff file is shorter than its header, which it otherwise forgives."""
    for declared, actual in re.findall(r"(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", log):
        # Programs that write to a pipe cannot know the length and put a number close to 2**31 or 2**32, or 0.
        if int(actual) < int(declared) < 0x7FFF0000:
            return True
    return False


def _from_array(source: Any) -> Wave:
    """Mono float32 samples of a numpy array (samples[, channels]) or a torch tensor ([channels, ]samples)."""
    import numpy as np

    if isinstance(source, np.ndarray):
        array, layout = source, "(samples, channels)"
    elif hasattr(source, "detach") and hasattr(source, "cpu"):  # a torch tensor, told without importing torch
        array, layout = source.detach().cpu(), "(channels, samples)"
        array = (array.float() if array.is_floating_point() else array).numpy().T
    else:
        raise InputError(
            f"audio cannot be a {type(source).__name__}",
            "give a path, bytes, a numpy array or a tensor; lists are batches",
        )
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
            f"audio at {rate} Hz must be resampled to {target} Hz, which needs soxr", "pip install plainformer[audio]"
        ) from error
    resampled: Wave = np.asarray(soxr.resample(wave, rate, target), dtype=np.float32)
    if resampled.size == 0:
        raise InputError(
            f"too short: {len(wave)} samples at {rate} Hz leave nothing at {target} Hz", "give a longer clip"
        )
    return resampled


# --- settings --------------------------------------------------------------------------------------------------------


class _Settings:
    """Typed reading of a preprocessor's configuration; null and absent keys take the default."""

    def __init__(self, found: Mapping[str, Any] | None, kind: str) -> None:
        self.values = found or {}
        named = self.values.get("feature_extractor_type", kind)
        if named != kind:
            raise CheckpointError(f"feature extractor {named!r} where this model needs {kind}")

    def _get(self, key: str, default: Any, types: type | tuple[type, ...], meaning: str) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, types) or (types is not bool and isinstance(value, bool)):
            raise CheckpointError(f"{key}={value!r} in the preprocessor's configuration is not {meaning}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, default, bool, "true or false"))

    def number(self, key: str, default: float) -> float:
        value = float(self._get(key, default, (int, float), "a number"))
        if not math.isfinite(value):
            raise CheckpointError(f"{key}={value} in the preprocessor's configuration is not finite")
        return value

    def whole(self, key: str, default: int) -> int:
        value = int(self._get(key, default, int, "a whole number"))
        if not 0 < value < 10_000_000:
            raise CheckpointError(f"{key}={value} in the preprocessor's configuration is out of range")
        return value


def _receptive_field(config: Mapping[str, Any]) -> int:
    """Samples that wav2vec2's or HuBERT's convolutions need for one frame; 400 with the published kernels."""
    kernels = config.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = config.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    needed = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        needed = (needed - 1) * stride + kernel
    return int(needed)
