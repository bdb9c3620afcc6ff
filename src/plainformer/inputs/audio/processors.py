"""Audio to the tensors that speech models read: raw waves (wav2vec2, HuBERT) or log-mel spectrograms (Whisper).

Decode, mono, resample to the model's rate (`file.py`) → normalise, or log-mel → batch with its mask.
Silence is valid: a wave of zeros stays zeros, its log-mel is -1.5 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config.checks import reading, require
from plainformer.config.fields import Fields
from plainformer.errors import InputError, opt
from plainformer.inputs.audio.file import load_audio
from plainformer.inputs.files import each, read_preprocessor

if TYPE_CHECKING:
    import torch

    from plainformer.inputs.audio.file import AudioSource, Wave

_WHERE = "the preprocessor's configuration"
MAX_SIZE = 10_000_000


@dataclass(frozen=True)
class AudioBatch:
    """What an audio processor returns; exactly one of `input_values` and `input_features` is set.

    Attributes:
        attention_mask: int64; 1 for real positions, 0 for padding: samples (B, T) or mel frames (B, frames).
        input_values: float32 (B, T), waves for wav2vec2/HuBERT.
        input_features: float32 (B, n_mels, frames), log-mel spectrograms for Whisper; of longer clips the first window.
        whole: where clips may be longer than a window and one is: each clip's spectrogram, (n_mels, its own frames).
    """

    attention_mask: torch.Tensor
    input_values: torch.Tensor | None = None
    input_features: torch.Tensor | None = None
    whole: tuple[torch.Tensor, ...] | None = None


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
        mean, std: of all samples of a training set (`scale.inputs`), by which every clip is scaled alike, so that loud ones
            stay louder, where `do_normalize` makes each clip as loud as any other; None: no such scaling. A field that
            transformers does not read.
    """

    sampling_rate: int = 16_000
    do_normalize: bool = True
    padding_value: float = 0.0
    return_attention_mask: bool = False
    min_samples: int = 400
    mean: float | None = None
    std: float | None = None

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> WaveProcessor:
        """Read `preprocessor_config.json` (or `processor_config.json`) of a checkpoint folder.

        Args:
            folder: the checkpoint's folder. Absent keys take transformers' defaults (16 kHz, normalised, no mask);
                with no file at all the mask follows `config["feat_extract_norm"]`: layer-norm models trained with one.
            config: the model's `config.json`; its convolutions give the shortest clip.

        Raises:
            CheckpointError: the file is unreadable, is for another kind of model, or has an impossible value.
        """
        return cls.from_settings(read_preprocessor(folder, "feature_extractor"), config)

    @classmethod
    def from_settings(cls, found: Mapping[str, Any] | None, config: Mapping[str, Any]) -> WaveProcessor:
        """Do as `from_folder` with what its file says, None where there is none."""
        with reading(_WHERE):
            settings = _settings(found, "Wav2Vec2FeatureExtractor")
            require(
                settings.integer("feature_size", default=1) == 1, "feature_size is not 1: the model reads plain waves"
            )
            with_mask = found is None and config.get("feat_extract_norm") == "layer"
            return cls(
                sampling_rate=settings.bounded("sampling_rate", MAX_SIZE, default=16_000),
                do_normalize=settings.flag("do_normalize", default=True),
                padding_value=settings.number("padding_value", default=0.0),
                return_attention_mask=settings.flag("return_attention_mask", default=with_mask),
                min_samples=_receptive_field(config),
                mean=settings.maybe_number("waveform_mean"),
                std=settings.maybe_number("waveform_std"),
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what `preprocessor_config.json` says of it, without the scaling of a training set."""
        names = ("sampling_rate", "do_normalize", "padding_value", "return_attention_mask")
        own = {name: getattr(self, name) for name in names}
        return {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, **own}

    def __call__(self, audio: AudioSource | Sequence[AudioSource], *, sampling_rate: int | None = None) -> AudioBatch:
        """Prepare one clip or a list of clips.

        Args:
            audio: a path, the bytes of a file, an array, `{"array": …, "sampling_rate": …}`, or a list of these.
            sampling_rate: the rate of the arrays given, in hertz; files and dictionaries state their own.

        Returns:
            `input_values` (B, T) and `attention_mask` (B, T), T being the longest clip. A clip gets the same values
            alone and in a batch; transformers, for checkpoints without a mask, normalises over the padding as well.

        Raises:
            InputError: see `load_audio`; or a clip is shorter than `min_samples`.
        """
        import torch

        rate = self.sampling_rate
        waves = each("clip", audio, lambda clip: self._normalize(load_audio(clip, rate, array_rate=sampling_rate)))
        longest = max(len(wave) for wave in waves)
        values_BT = torch.full((len(waves), longest), self.padding_value, dtype=torch.float32)
        mask_BT = torch.zeros((len(waves), longest), dtype=torch.int64)
        for row, wave in enumerate(waves):
            values_BT[row, : len(wave)] = torch.from_numpy(wave)
            mask_BT[row, : len(wave)] = 1
        return AudioBatch(attention_mask=mask_BT, input_values=values_BT)

    def scaled(self, wave: Wave) -> Wave:
        """Return samples scaled as those of the training set were; as they are where nothing of it is known."""
        import numpy as np

        if self.mean is None or self.std is None:
            return wave
        made: Wave = ((wave - np.float64(self.mean)) / self.std).astype(np.float32)
        return made

    def _normalize(self, wave: Wave) -> Wave:
        import numpy as np

        if len(wave) < self.min_samples:
            raise InputError(
                f"too short: {len(wave)} samples, {1000 * len(wave) / self.sampling_rate:.0f} ms; the model needs at "
                f"least {self.min_samples}",
                "give a longer clip, or pad it with silence",
            )
        if not self.do_normalize:
            return self.scaled(wave)
        # 1e-7 as in Wav2Vec2FeatureExtractor (transformers 5.23): silence becomes zeros rather than a division by zero.
        normed: Wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        return self.scaled(normed)


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
        mean, std: of each mel band over a training set (`scale.inputs`); None: no such scaling. Fields that transformers does
            not read.
    """

    sampling_rate: int = 16_000
    n_mels: int = 80
    n_fft: int = 400
    hop_length: int = 160
    chunk_length: int = 30
    padding_value: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> MelProcessor:
        """Read `preprocessor_config.json` (or `processor_config.json`) of a checkpoint folder.

        Args:
            folder: the checkpoint's folder; absent keys take transformers' defaults. With no file at all, clips are as long
                as the model hears.
            config: the model's `config.json`; `num_mel_bins` is the number of bands that the model reads, and
                `max_source_positions` says how long it hears.

        Raises:
            CheckpointError: the file is unreadable, is for another kind of model, disagrees with the model, or has an
                impossible value.
        """
        return cls.from_settings(read_preprocessor(folder, "feature_extractor"), config)

    @classmethod
    def from_settings(cls, found: Mapping[str, Any] | None, config: Mapping[str, Any]) -> MelProcessor:
        """Do as `from_folder` with what its file says, None where there is none."""
        with reading(_WHERE):
            settings = _settings(found, "WhisperFeatureExtractor")
            bands = config.get("num_mel_bins")
            n_mels = settings.bounded("feature_size", MAX_SIZE, default=80 if bands is None else bands)
            require(bands in (None, n_mels), f"it makes {n_mels} mel bands and the model reads {bands}")
            no_noise = settings.number("dither", default=0.0) == 0
            require(no_noise, "dither adds random noise to the audio, which is not supported", "set it to 0.0")
            normalizes = settings.flag("do_normalize", default=False)
            require(not normalizes, "do_normalize of spectrograms is not supported; no published checkpoint uses it")
            mean, std = (settings.numbers(name) or None for name in ("mel_mean", "mel_std"))
            for name, numbers in (("mel_mean", mean), ("mel_std", std)):
                require(numbers is None or len(numbers) == n_mels, f"{name} does not have {n_mels} numbers")
            return cls(
                mean=mean,
                std=std,
                sampling_rate=settings.bounded("sampling_rate", MAX_SIZE, default=16_000),
                n_mels=n_mels,
                n_fft=settings.bounded("n_fft", MAX_SIZE, default=400),
                hop_length=settings.bounded("hop_length", MAX_SIZE, default=160),
                chunk_length=settings.bounded(
                    "chunk_length", MAX_SIZE, default=_seconds(config) if found is None else 30
                ),
                padding_value=settings.number("padding_value", default=0.0),
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what `preprocessor_config.json` says of it, without the scaling of a training set."""
        names = ("sampling_rate", "n_fft", "hop_length", "chunk_length", "padding_value")
        own = {name: getattr(self, name) for name in names}
        return {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": self.n_mels, **own}

    def __call__(
        self,
        audio: AudioSource | Sequence[AudioSource],
        *,
        sampling_rate: int | None = None,
        truncate: bool = False,
        keep_long: bool = False,
    ) -> AudioBatch:
        """Prepare one clip or a list of clips.

        Args:
            audio: a path, the bytes of a file, an array, `{"array": …, "sampling_rate": …}`, or a list of these.
            sampling_rate: the rate of the arrays given, in hertz; files and dictionaries state their own.
            truncate: keep the first `chunk_length` seconds of a longer clip; otherwise a longer clip is an error.
            keep_long: a longer clip is not an error: its whole spectrogram is kept too (`AudioBatch.whole`).

        Returns:
            `input_features` (B, n_mels, frames) and `attention_mask` (B, frames), 3000 frames for 30 s. A clip longer by
            less than a hop has no frame more, and is read like one that is not.

        Raises:
            InputError: see `load_audio`; or a clip is longer than `chunk_length`.
        """
        import torch

        # One clip at a time: a batched matrix product may round differently from that of a single clip; and a long clip's
        # samples, twice the size of its spectrogram, are gone before the next is read.
        def prepare(clip: AudioSource) -> tuple[torch.Tensor, int]:
            wave = load_audio(clip, self.sampling_rate, array_rate=sampling_rate)
            wave = wave if keep_long and not truncate else self._fit(wave, truncate)
            return self.scaled(self._log_mel(wave)), len(wave)

        whole, lengths = zip(*each("clip", audio, prepare), strict=True)
        frames = self.window_frames
        mask_BF = torch.zeros((len(whole), frames), dtype=torch.int64)
        for row, length in enumerate(lengths):
            mask_BF[row, : math.ceil(length / self.hop_length)] = 1
        first_BMF = torch.stack([spectrogram[:, :frames] for spectrogram in whole])
        long = any(spectrogram.shape[1] > frames for spectrogram in whole)
        return AudioBatch(attention_mask=mask_BF, input_features=first_BMF, whole=whole if long else None)

    def scaled(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Return a spectrogram, (..., n_mels, frames), scaled as those of the training set were."""
        import torch

        if self.mean is None or self.std is None:
            return spectrogram
        mean, std = (torch.tensor(numbers, dtype=torch.float32)[:, None] for numbers in (self.mean, self.std))
        return (spectrogram - mean) / std

    @property
    def window_frames(self) -> int:
        """Frames that the model hears at a time: 3000 for 30 s."""
        return self.chunk_length * self.sampling_rate // self.hop_length

    def _fit(self, wave: Wave, truncate: bool) -> Wave:
        limit = self.chunk_length * self.sampling_rate
        if len(wave) > limit and not truncate:
            raise InputError(
                f"too long: {len(wave) / self.sampling_rate:.2f} s, the model hears {self.chunk_length} s at a time",
                f"split the audio, or pass {opt('truncate', True)} to keep only its first {self.chunk_length} s",
            )
        return wave[:limit]

    def _log_mel(self, wave: Wave) -> torch.Tensor:
        """(n_mels, frames) for one wave; a short one is padded to the chunk.

        What is 80 dB below the loudest point of the whole clip is cut off, so no piece can be finished before the last one.
        Spectra are computed in blocks all the same: that of an hour at once would be ten times the size of the result.
        """
        import torch

        padded = torch.full(
            (max(len(wave), self.chunk_length * self.sampling_rate),), self.padding_value, dtype=torch.float32
        )
        padded[: len(wave)] = torch.from_numpy(wave)
        hop, window = self.hop_length, torch.hann_window(self.n_fft)
        frames, block = len(padded) // hop, self.window_frames
        # Centred frames: the last one, at the end itself, is not among them.
        edge = self.n_fft // 2
        mirrored = torch.nn.functional.pad(padded[None], (edge, edge), mode="reflect")[0]
        decibels_MF = torch.full((self.n_mels, frames), -10.0, dtype=torch.float32)
        # Zeros have no power, and become the least that there is: no spectrum is needed of frames without any sound.
        heard = frames if self.padding_value else min(frames, (len(wave) + edge) // hop + 1)
        for start in range(0, heard, block):
            stop = min(start + block, heard)
            part = mirrored[start * hop : (stop - 1) * hop + self.n_fft]
            spectrum = torch.stft(part, self.n_fft, hop, window=window, center=False, return_complex=True)
            decibels_MF[:, start:stop] = torch.clamp(self._filters @ (spectrum.abs() ** 2), min=1e-10).log10()
        floor = decibels_MF.max() - 8.0
        return torch.maximum(decibels_MF, floor, out=decibels_MF).add_(4.0).div_(4.0)

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


def _settings(found: Mapping[str, Any] | None, kind: str) -> Fields:
    """Return a folder's preprocessor settings, which must be those of a kind of feature extractor."""
    settings = Fields(found or {})
    named = settings.get("feature_extractor_type", default=kind)
    require(named == kind, f"feature extractor {named!r} where this model needs {kind}", "use the model's own file")
    return settings


def _receptive_field(config: Mapping[str, Any]) -> int:
    """Return how many samples wav2vec2's or HuBERT's convolutions need for one frame; 400 with the published kernels."""
    kernels = config.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = config.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    needed = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        needed = (needed - 1) * stride + kernel
    return int(needed)


def _seconds(config: Mapping[str, Any]) -> int:
    """Return how long a model hears: a position is two frames of 10 ms."""
    positions = config.get("max_source_positions")
    if positions is None:
        return 30
    require(
        positions % 50 == 0, f"max_source_positions={positions} is not a whole number of seconds, of 50 positions each"
    )
    return int(positions) // 50
