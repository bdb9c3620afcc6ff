"""WaveProcessor and MelProcessor against the reference's extractors, decoding, and hostile audio."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import CheckpointError, InputError, MissingDependencyError
from plainformer.inputs.audio import file as audio_file
from plainformer.inputs.audio.file import load_audio
from plainformer.inputs.audio.processors import MelProcessor, WaveProcessor
from tests.support.close import close
from tests.support.fuzz import Outcomes

RATE = 16_000


def noise(samples: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * scale).astype(np.float32)


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encode(wave: np.ndarray, rate: int = RATE, fmt: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=fmt, subtype=subtype)
    return buffer.getvalue()


def configured(folder: Path, **preprocessor: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


CLIPS = {
    "noise": noise(16_001),
    "tone": tone(1.37),
    "quiet": noise(5_000, scale=1e-5),
    "loud": noise(4_000, scale=3.0),
    "offset": noise(7_777) + 0.5,
    "silence": np.zeros(3_000, np.float32),
    "click": np.eye(1, 2_345, 77, dtype=np.float32)[0],
}


# --- waves: wav2vec2, HuBERT ------------------------------------------------------------------------------------------


def reference_waves(clips: list[np.ndarray], **options: Any) -> Any:
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(**options)(clips, sampling_rate=RATE, padding=True, return_tensors="pt")


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("do_normalize", [True, False])
def test_one_wave_equals_the_reference(tmp_path: Path, name: str, do_normalize: bool) -> None:
    processor = WaveProcessor.from_folder(configured(tmp_path, do_normalize=do_normalize), {})
    batch = processor(CLIPS[name], sampling_rate=RATE)
    assert batch.input_values is not None and batch.input_features is None
    assert batch.input_values.dtype == torch.float32
    expected = reference_waves([CLIPS[name]], do_normalize=do_normalize)["input_values"]
    close(batch.input_values, expected)
    assert do_normalize or torch.equal(batch.input_values, expected)  # however quiet it is
    assert batch.attention_mask.shape == batch.input_values.shape and bool(batch.attention_mask.all())


@pytest.mark.parametrize("padding_value", [0.0, -1.5])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_a_batch_of_waves_equals_the_reference(tmp_path: Path, do_normalize: bool, padding_value: float) -> None:
    options = {"do_normalize": do_normalize, "padding_value": padding_value, "return_attention_mask": True}
    processor = WaveProcessor.from_folder(configured(tmp_path, **options), {})
    assert processor.return_attention_mask
    batch = processor(list(CLIPS.values()), sampling_rate=RATE)
    expected = reference_waves(list(CLIPS.values()), **options)
    close(batch.input_values, expected["input_values"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"].long())


def test_waves_saved_by_the_reference(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True, padding_value=0.25).save_pretrained(
        tmp_path
    )
    assert WaveProcessor.from_folder(tmp_path, {}) == WaveProcessor(RATE, False, 0.25, True)


def test_wave_defaults(tmp_path: Path) -> None:
    assert WaveProcessor.from_folder(tmp_path, {}) == WaveProcessor()
    assert WaveProcessor.from_folder(tmp_path, {"feat_extract_norm": "layer"}).return_attention_mask
    assert not WaveProcessor.from_folder(tmp_path, {"feat_extract_norm": "group"}).return_attention_mask
    small = {"conv_kernel": [4, 3], "conv_stride": [2, 2]}
    assert WaveProcessor.from_folder(tmp_path, small).min_samples == 8


def test_clips_too_short_for_the_convolutions() -> None:
    processor = WaveProcessor()
    assert processor(noise(400), sampling_rate=RATE).attention_mask.shape == (1, 400)
    with pytest.raises(InputError, match="at least 400"):
        processor(noise(399), sampling_rate=RATE)
    with pytest.raises(InputError, match="input 1: too short"):
        processor([noise(400), noise(10)], sampling_rate=RATE)


# --- mel: Whisper -----------------------------------------------------------------------------------------------------


def reference_mel(clips: list[np.ndarray], **options: Any) -> Any:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(**options)
    return extractor(clips, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt")


@pytest.mark.parametrize("bands", [80, 128])
def test_mel_equals_the_reference(tmp_path: Path, bands: int) -> None:
    processor = MelProcessor.from_folder(configured(tmp_path, feature_size=bands), {"num_mel_bins": bands})
    clips = [*CLIPS.values(), noise(30 * RATE, 5), noise(1), noise(161)]
    batch = processor(clips, sampling_rate=RATE)
    assert batch.input_features is not None and batch.input_values is None
    assert batch.input_features.shape == (len(clips), bands, 3000) and batch.input_features.dtype == torch.float32
    expected = reference_mel(clips, feature_size=bands)
    close(batch.input_features, expected["input_features"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"].long())


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_length": 2},
        {"chunk_length": 2, "hop_length": 100, "n_fft": 512},
        {"chunk_length": 1, "padding_value": 0.1, "feature_size": 40},
        {"chunk_length": 1, "hop_length": 151},
    ],
    ids=str,
)
def test_other_mel_settings_equal_the_reference(tmp_path: Path, options: dict[str, Any]) -> None:
    processor = MelProcessor.from_folder(configured(tmp_path, **options), {})
    clips = [noise(12_345), tone(0.9), noise(200)]
    batch = processor(clips, sampling_rate=RATE)
    expected = reference_mel(clips, **options)
    close(batch.input_features, expected["input_features"])
    assert batch.attention_mask.shape == (3, expected["input_features"].shape[-1])
    if 16_000 % processor.hop_length == 0:
        assert torch.equal(batch.attention_mask, expected["attention_mask"].long())


def test_mel_longer_than_the_chunk() -> None:
    processor = MelProcessor(chunk_length=1)
    long = noise(RATE + 1)
    with pytest.raises(InputError, match="truncate=True"):
        processor(long, sampling_rate=RATE)
    cut = processor(long, sampling_rate=RATE, truncate=True)
    assert torch.equal(cut.input_features, processor(long[:RATE], sampling_rate=RATE).input_features)


def test_mel_configuration(tmp_path: Path) -> None:
    from transformers import WhisperFeatureExtractor

    assert MelProcessor.from_folder(tmp_path, {}) == MelProcessor()
    assert MelProcessor.from_folder(tmp_path, {"num_mel_bins": 128}).n_mels == 128
    WhisperFeatureExtractor(feature_size=128, chunk_length=10).save_pretrained(tmp_path)
    assert MelProcessor.from_folder(tmp_path, {"num_mel_bins": 128}) == MelProcessor(n_mels=128, chunk_length=10)
    with pytest.raises(CheckpointError, match="128 mel bands and the model reads 80"):
        MelProcessor.from_folder(tmp_path, {"num_mel_bins": 80})


def test_silence_has_a_defined_answer() -> None:
    silence = np.zeros(8_000, np.float32)
    waves = WaveProcessor()(silence, sampling_rate=RATE).input_values
    mel = MelProcessor(chunk_length=1)(silence, sampling_rate=RATE).input_features
    assert waves is not None and mel is not None
    assert bool((waves == 0).all()) and bool((mel == -1.5).all())


# --- batches ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(400, 16_000), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_batch_equals_single(lengths: list[int], seed: int) -> None:
    clips = [noise(length, seed + i) for i, length in enumerate(lengths)]
    for processor in (WaveProcessor(padding_value=7.0), MelProcessor(chunk_length=1)):
        batch = processor(clips, sampling_rate=RATE)
        name = "input_values" if batch.input_values is not None else "input_features"
        for row, clip in enumerate(clips):
            alone = processor(clip, sampling_rate=RATE)
            values, mask = getattr(alone, name)[0], alone.attention_mask[0]
            assert torch.equal(getattr(batch, name)[row, ..., : values.shape[-1]], values)
            assert int(batch.attention_mask[row].sum()) == int(mask.sum())


def test_a_batch_of_mixed_sources(tmp_path: Path) -> None:
    wave = tone(0.5)
    path = tmp_path / "tön.wav"
    path.write_bytes(encode(wave, subtype="FLOAT"))
    sources = [path, str(path), path.read_bytes(), {"array": wave, "sampling_rate": RATE, "path": "ignored"}]
    values = WaveProcessor()(sources).input_values
    assert values is not None and bool((values == values[0]).all())


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "subtype", "rounding"),
    [
        ("WAV", "FLOAT", 0),
        ("WAV", "PCM_16", 4e-5),
        ("WAV", "PCM_24", 1e-6),
        ("FLAC", "PCM_16", 4e-5),
        ("AIFF", "PCM_16", 4e-5),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.1),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_formats(tmp_path: Path, fmt: str, subtype: str, rounding: float) -> None:
    wave = tone(0.5)
    data = encode(wave, fmt=fmt, subtype=subtype)
    path = tmp_path / "clip.raw"  # the content decides, never the name
    path.write_bytes(data)
    decoded = load_audio(data, RATE)
    assert decoded.dtype == np.float32 and abs(len(decoded) - len(wave)) <= 1
    middle = slice(1000, 7000)
    close(decoded[middle], wave[middle], rel=rounding)
    np.testing.assert_array_equal(load_audio(path, RATE), decoded)


def test_channels_are_averaged() -> None:
    left, right = noise(1000, 1), noise(1000, 2)
    stereo = np.stack([left, right], axis=1)
    expected = (left + right) / 2
    for source in (stereo, torch.from_numpy(stereo.T.copy())):
        close(load_audio(source, RATE, array_rate=RATE), expected, rel=1e-7)
    close(load_audio(encode(stereo, subtype="FLOAT"), RATE), expected, rel=1e-7)


def test_decoding_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(np.stack([noise(5000, 1), noise(5000, 2)], axis=1))
    whole = load_audio(data, RATE)
    monkeypatch.setattr(audio_file, "BLOCK", 999)
    np.testing.assert_array_equal(load_audio(data, RATE), whole)
    monkeypatch.setattr(audio_file, "MAX_SAMPLES", 4000)
    with pytest.raises(InputError, match="longer than 4,000 samples"):
        load_audio(data, RATE)


def test_integer_arrays_are_pcm() -> None:
    wave = tone(0.1)
    for dtype, scale, rounding in ((np.int16, 2**15, 4e-5), (np.int32, 2**31 - 1000, 1e-6)):
        array = (wave * scale).astype(dtype)
        close(load_audio(array, RATE, array_rate=RATE), wave, rel=rounding)
    eight = (wave * 128 + 128).astype(np.uint8)
    close(load_audio(eight, RATE, array_rate=RATE), wave, rel=0.01)
    pcm = (wave * 2**15).astype(np.int16)
    np.testing.assert_array_equal(load_audio(encode(pcm), RATE), load_audio(pcm, RATE, array_rate=RATE))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_the_tone(rate: int) -> None:
    given_wave = tone(1.0, rate=rate)
    resampled = load_audio(given_wave, RATE, array_rate=rate)
    assert resampled.dtype == np.float32 and abs(len(resampled) - RATE) <= 1
    close(resampled[2000:14_000], tone(1.0)[2000:14_000], rel=1e-3)
    from_file = load_audio(encode(given_wave, rate, subtype="FLOAT"), RATE)
    np.testing.assert_array_equal(from_file, resampled)


def test_the_given_array_is_not_changed() -> None:
    wave = noise(1000)
    copy = wave.copy()
    WaveProcessor()(wave, sampling_rate=RATE)
    MelProcessor(chunk_length=1)(wave, sampling_rate=RATE)
    assert np.array_equal(wave, copy)


# --- hostile input ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("fmt", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None)],
)
def test_truncated_and_corrupt_files(fmt: str, subtype: str | None) -> None:
    data = encode(noise(3 * RATE), fmt=fmt, subtype=subtype)
    assert len(load_audio(data, RATE)) == 3 * RATE
    for keep in (1, 10, 30, len(data) // 10, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(InputError, match=r"corrupt|truncated|not audio|no samples"):
            load_audio(data[:keep], RATE)
    generator = np.random.default_rng(0)
    outcomes = Outcomes()
    for _ in range(20):  # either sound or a clear error, never anything else
        noisy = bytearray(data)
        for at in generator.integers(0, 200, 4):
            noisy[at] = generator.integers(0, 256)
        with outcomes.one():
            load_audio(bytes(noisy), RATE)
    least = 0 if fmt in ("FLAC", "OGG") else 1  # checksums leave none that could be read
    assert outcomes.counts["refused"] >= 1 and outcomes.counts["accepted"] >= least, outcomes.counts


def test_wav_written_to_a_pipe() -> None:
    """Its header cannot know the length; that is no truncation."""
    whole = encode(tone(0.5), subtype="PCM_16")
    at = whole.index(b"data") + 4
    for placeholder in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xdb\xff\xff\x7f"):
        streamed = whole[:at] + placeholder + whole[at + 4 :]
        np.testing.assert_array_equal(load_audio(streamed, RATE), load_audio(whole, RATE))


def test_flac_of_unknown_or_absurd_length() -> None:
    data = bytearray(encode(noise(RATE), fmt="FLAC"))
    data[21] |= 0x0F  # the 36-bit number of samples in STREAMINFO: 68 thousand million
    data[22:26] = b"\xff" * 4
    with pytest.raises(InputError, match=r"corrupt|truncated|longer than|not audio"):
        load_audio(bytes(data), RATE)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound in here" * 100, b"\0" * 5000, b"ID3" + b"\xff" * 500])
def test_bytes_that_are_no_audio(data: bytes) -> None:
    with pytest.raises(InputError, match="bytes") as caught:
        load_audio(data, RATE)
    assert caught.value.fix


def test_paths_that_are_no_audio(tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(encode(tone(0.1)))
    (tmp_path / "empty.wav").touch()
    with pytest.raises(InputError, match=r"did you mean 'speech\.wav'"):
        load_audio(tmp_path / "speach.wav", RATE)
    with pytest.raises(InputError, match="0 bytes"):
        load_audio(tmp_path / "empty.wav", RATE)
    with pytest.raises(InputError, match="not a file"):
        load_audio(tmp_path, RATE)
    with pytest.raises(InputError, match="address"):
        load_audio("https://example.com/a.wav", RATE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.array([0.1, np.nan], np.float32), "NaN"),
        (np.array([0.1, np.inf], np.float32), "infinity"),
        (np.array([0.1, 1e300]), "infinity"),
        (np.array([0.1, 20_000.0], np.float32), "32768"),
        (np.zeros((2, 1000), np.float32), "transpose"),
        (torch.zeros(1000, 2), "transpose"),
        (np.zeros((1, 2, 3), np.float32), "shape"),
        (np.zeros((), np.float32), "shape"),
        (np.zeros(10, np.int64), "int64"),
        (np.zeros(10, np.uint16), "uint16"),
        (np.zeros(10, complex), "complex"),
        (np.array(["a"]), "<U1"),
        (None, "cannot be None"),
        (0.5, "float"),
    ],
)
def test_impossible_arrays(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_audio(source, RATE, array_rate=RATE)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WaveProcessor()(noise(1000)), "no sampling rate"),
        (lambda: WaveProcessor()(noise(1000), sampling_rate=16), "between 1000 and"),
        (lambda: WaveProcessor()(noise(1000), sampling_rate=True), "between 1000 and"),
        (lambda: WaveProcessor()(noise(1000), sampling_rate="16k"), "between 1000 and"),  # type: ignore[arg-type]
        (lambda: WaveProcessor()(noise(1000), sampling_rate=16000.5), "between 1000 and"),  # type: ignore[arg-type]
        (lambda: WaveProcessor()(encode(noise(1000)), sampling_rate=RATE), "states its own rate"),
        (lambda: WaveProcessor()([]), "empty list"),
        (lambda: WaveProcessor()([0.1, 0.2], sampling_rate=RATE), "input 0: "),  # type: ignore[list-item]
        (lambda: WaveProcessor()({"array": noise(1000)}), "sampling_rate"),
        (lambda: WaveProcessor()({"array": noise(1000), "sampling_rate": RATE}, sampling_rate=8000), "itself says"),
        (lambda: load_audio(noise(1), 1000, array_rate=1_000_000), "too short"),
    ],
)
def test_impossible_calls(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    "preprocessor",
    [
        {"sampling_rate": 0},
        {"sampling_rate": "16000"},
        {"sampling_rate": True},
        {"feature_size": 2},
        {"do_normalize": "yes"},
        {"return_attention_mask": 1, "padding_value": None},
        {"padding_value": float("inf")},
        {"feature_extractor_type": "WhisperFeatureExtractor"},
    ],
    ids=str,
)
def test_impossible_wave_configurations(tmp_path: Path, preprocessor: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match=next(iter(preprocessor)).replace("feature_extractor_type", "feature extractor")
    ):
        WaveProcessor.from_folder(configured(tmp_path, **preprocessor), {})


@pytest.mark.parametrize(
    "preprocessor",
    [
        {"feature_size": 0},
        {"hop_length": -1},
        {"n_fft": 10**9},
        {"chunk_length": 1.5},
        {"dither": 0.1},
        {"do_normalize": True},
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
    ],
    ids=str,
)
def test_impossible_mel_configurations(tmp_path: Path, preprocessor: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match=next(iter(preprocessor)).replace("feature_extractor_type", "feature extractor")
    ):
        MelProcessor.from_folder(configured(tmp_path, **preprocessor), {})


def test_without_the_audio_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(tone(0.1))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'soundfile.* 'soxr"):
        load_audio(data, RATE)
    with pytest.raises(MissingDependencyError, match="8000 Hz must be resampled to 16000 Hz"):
        load_audio(tone(0.1), RATE, array_rate=8_000)
    assert load_audio(tone(0.1), RATE, array_rate=RATE).shape == (1600,)


def test_nothing_heavy_is_imported_early() -> None:
    import subprocess

    code = "import sys, plainformer.inputs.audio.processors, plainformer.inputs.image as i; "
    code += "print([m for m in ('torch', 'numpy', 'PIL', 'soundfile', 'soxr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
