"""Whisper on clips of any length, against the reference's own long-form generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

from plainformer.errors import InputError, UsageError
from plainformer.tasks.speech.fallback import compression_ratio, seed_of
from plainformer.tasks.speech.long import LongClip, cut_window
from tests.support import models as make
from tests.support.close import close
from tests.support.media import RATE, noise
from tests.support.models import FIRST_TIME, long_whisper
from tests.support.models import LONG_IDS as IDS

EXTRACTOR = transformers.WhisperFeatureExtractor(feature_size=16)
# Weights under which windows end in every way: with one timestamp, with a pair, or cut off.
WEIGHTS = [{}, {"text": 2.0, "times": 1.5}, {"seed": 0}]
CLIPS = [noise(70, 1), noise(31, 2), noise(46.37, 3)]
TRY = (0.0, 0.0, 0.0)  # greedy each time, so that the outcome is the same


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("whisper")
    return long_whisper(folder), make.load(folder)


def features(sound: dict[str, Any]) -> torch.Tensor:
    wave = sound["array"]
    padding = "longest" if len(wave) > 30 * RATE else "max_length"
    found = EXTRACTOR(wave, sampling_rate=RATE, truncation=False, padding=padding, return_tensors="pt")
    return torch.as_tensor(found.input_features)


def theirs(model: Any, sound: dict[str, Any], **options: Any) -> list[tuple[float, float, list[int]]]:
    """The reference's segments of a clip by itself: start, end, tokens."""
    found = model.generate(features(sound), return_timestamps=True, return_segments=True, num_beams=1, **options)
    return [
        (round(float(one["start"]), 2), round(float(one["end"]), 2), one["tokens"].tolist())
        for one in found["segments"][0]
    ]


def ours(task: Any, sounds: list[Any], **options: Any) -> list[list[tuple[float, float, list[int]]]]:
    return [
        [(one.start / 100, one.end / 100, list(one.ids)) for one in spoken.segments]
        for spoken in make.predicted(task, sounds, **options)
    ]


def seeks(task: Any, sound: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[int]:
    """The frame that each window of a clip begins at."""
    seen: list[int] = []
    window = LongClip.window

    def spied(clip: LongClip, frames: int) -> torch.Tensor:
        seen.append(clip.seek)
        return window(clip, frames)

    monkeypatch.setattr(LongClip, "window", spied)
    ours(task, [sound], **options)
    return seen


# ---- equal to the reference -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_segments_are_the_references(
    weights: dict[str, Any], conditioned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = long_whisper(tmp_path, **weights)
    task = make.load(tmp_path)
    found = ours(task, CLIPS, language="de", condition_on_previous_text=conditioned)
    expected = [theirs(model, clip, language="de", condition_on_prev_tokens=conditioned) for clip in CLIPS]
    assert found == expected
    assert [ours(task, [clip], language="de", condition_on_previous_text=conditioned)[0] for clip in CLIPS] == found
    for result, segments in zip(
        task(CLIPS, language="de", timestamps=True, condition_on_previous_text=conditioned), expected, strict=True
    ):
        texts = [(start, end, task.text_of(ids).strip()) for start, end, ids in segments]
        assert [(part.start, part.end, part.text) for part in result.segments] == [one for one in texts if one[2]]
        assert result.text == task.text_of([i for _, _, ids in segments for i in ids]).strip()
        assert json.dumps(result.to_dict())
    begun = seeks(task, CLIPS[0], monkeypatch, language="de", condition_on_previous_text=conditioned)
    assert len(begun) >= 3 and begun[0] == 0
    # The usual weights end segments within windows; with the others each window is settled whole.
    assert any(frame % 3000 for frame in begun) == (not weights), begun


def test_previous_text_changes_what_is_written(whisper: tuple[Any, Any]) -> None:
    _, task = whisper
    free, behind = (
        ours(task, CLIPS[:1], language="en", condition_on_previous_text=condition) for condition in (False, True)
    )
    assert free != behind


@torch.no_grad()
def test_windows_that_end_with_a_pair(tmp_path: Path) -> None:
    """What stands behind the last pair is heard again: its window begins inside the one before."""
    model = long_whisper(tmp_path, text=1.5, times=1.0)
    task = make.load(tmp_path)
    for seconds in (35, 100):
        sound = noise(seconds, 5)
        segments = ours(task, [sound], language="en")[0]
        assert segments == theirs(model, sound, language="en")
        assert any(ids[-1] >= FIRST_TIME and ids[-2] >= FIRST_TIME for _, _, ids in segments)


@torch.no_grad()
def test_language_is_heard_once_in_the_first_window(whisper: tuple[Any, Any]) -> None:
    model, task = whisper
    for sound in [*CLIPS, noise(3, 9)]:
        detected = model.detect_language(features(sound))[0].item()
        assert task(sound, max_new_tokens=3).language == task.tokenizer.id_to_token(detected).strip("<|>")
        assert ours(task, [sound], timestamps=True)[0] == theirs(model, sound, task="transcribe")


@torch.no_grad()
def test_an_english_model(tmp_path: Path) -> None:
    model = long_whisper(tmp_path, multilingual=False)
    task = make.load(tmp_path)
    assert ours(task, CLIPS[:1])[0] == theirs(model, CLIPS[0])
    assert task(CLIPS[0], max_new_tokens=4).language is None


@torch.no_grad()
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_short_clips_with_timestamps(weights: dict[str, Any], tmp_path: Path) -> None:
    model = long_whisper(tmp_path, **weights)
    task = make.load(tmp_path)
    sounds = [noise(12, 1), noise(30, 2), noise(1, 3)]
    found = ours(task, sounds, language="en", timestamps=True)
    assert found == [theirs(model, sound, language="en") for sound in sounds]


@torch.no_grad()
@pytest.mark.parametrize(
    "thresholds",
    [
        {"compression_ratio_threshold": 1.35},
        {"logprob_threshold": -3.0},
        {"logprob_threshold": -0.5, "no_speech_threshold": 1e-4},
        {"compression_ratio_threshold": 0.9, "logprob_threshold": -4.0, "no_speech_threshold": 0.6},
    ],
    ids=str,
)
def test_thresholds(whisper: tuple[Any, Any], thresholds: dict[str, float]) -> None:
    model, task = whisper
    found = ours(task, CLIPS, language="en", temperature=TRY, condition_on_previous_text=True, **thresholds)
    expected = [
        theirs(model, clip, language="en", temperature=TRY, condition_on_prev_tokens=True, **thresholds)
        for clip in CLIPS
    ]
    assert found == expected


def test_what_is_bad_is_sampled(whisper: tuple[Any, Any]) -> None:
    _, task = whisper
    plain = ours(task, CLIPS, language="en")
    given: dict[str, Any] = dict(language="en", temperature=(0.0, 0.4, 1.0), seed=5, top_k=50)
    never = ours(task, CLIPS, **given, compression_ratio_threshold=100.0)
    always = ours(task, CLIPS, **given, compression_ratio_threshold=0.0)
    assert never == plain != always
    assert always == ours(task, CLIPS, **given, compression_ratio_threshold=0.0)
    assert always == [ours(task, [clip], **given, compression_ratio_threshold=0.0)[0] for clip in CLIPS]
    # 1.0 is no low temperature: nothing is written behind what was sampled at it.
    assert always == ours(task, CLIPS, **given, compression_ratio_threshold=0.0, condition_on_previous_text=True)
    assert len({seed_of(5, window, attempt) for window in range(9) for attempt in range(9)}) == 81


@torch.no_grad()
def test_the_mean_is_of_temperature_one(whisper: tuple[Any, Any]) -> None:
    """The reference's formula, on a sampled text: log-probabilities as if nothing had been divided by the temperature."""
    from plainformer.generation.search import generate
    from plainformer.tasks.speech.fallback import LogProbabilities

    _, task = whisper
    memory = task.model.encode(input_features=make.encoded(task, [noise(5)]).input_features)
    start = torch.tensor([task.prompt.ids("en", None, None)])
    watcher = LogProbabilities(0.7)
    options: dict[str, Any] = dict(max_new_tokens=9, do_sample=True, temperature=0.7, seed=1, eos_ids=())
    found = generate(task.model, encoder_output=memory, decoder_input_ids=start, watcher=watcher, **options)
    ids = torch.tensor([[*start[0].tolist(), *found.token_ids[0]]])
    log_p = task.model(decoder_input_ids=ids, encoder_output=memory).logits.log_softmax(-1)[0, start.size(1) - 1 : -1]
    close(watcher.of_row(0, 9), log_p.gather(-1, ids[0, start.size(1) :, None])[:, 0], rel=1e-4)


def test_checkpoint_says_how(tmp_path: Path) -> None:
    """The reference takes these from generation_config.json too."""
    model = long_whisper(tmp_path, condition_on_prev_tokens=True)
    task = make.load(tmp_path)
    assert ours(task, CLIPS[:1], language="en")[0] == theirs(model, CLIPS[0], language="en")
    assert ours(task, CLIPS[:1], language="en") == ours(task, CLIPS[:1], language="en", condition_on_previous_text=True)


# ---- lengths and content --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_about_thirty_seconds(whisper: tuple[Any, Any]) -> None:
    model, task = whisper
    limit = 30 * RATE
    wave = noise(31, 4)["array"]
    for samples, is_long in ((limit, False), (limit + 1, False), (limit + 159, False), (limit + 160, True)):
        sound = {"array": wave[:samples], "sampling_rate": RATE}
        encoded = make.encoded(task, [sound])
        assert (encoded.whole is not None) is is_long and encoded.input_features.shape == (1, 16, 3000)
        close(encoded.whole[0] if is_long else encoded.input_features[0], features(sound)[0], rel=1e-6)
        assert ours(task, [sound], language="en", timestamps=True)[0] == theirs(model, sound, language="en")
        assert (
            task(sound, language="en", truncate=True).text
            == task({"array": wave[:limit], "sampling_rate": RATE}, language="en").text
        )


def test_short_clips_beside_long_ones(whisper: tuple[Any, Any]) -> None:
    _, task = whisper
    sounds = [noise(4, 1), CLIPS[1], noise(30, 2), CLIPS[2]]
    together = task(sounds, language="en")
    assert together == [task(sound, language="en") for sound in sounds]
    assert together == task(sounds, language="en", batch_size=1)
    assert together[0] == task(sounds[0], language="en", timestamps=False) and together[1].segments is None
    scored = task(sounds, language="en", output_scores=True)
    assert [one.text for one in scored] == [one.text for one in together]
    assert all(one.log_probability == pytest.approx(sum(one.log_probabilities)) for one in scored)
    assert all(one.score is None and len(one.token_ids) == len(one.log_probabilities) for one in scored)
    seeds = [1, 2, 3, 4]
    drawn = task(sounds, language="en", do_sample=True, temperature=1.0, seed=seeds)
    alone = [
        task(s, language="en", do_sample=True, temperature=1.0, seed=n) for s, n in zip(sounds, seeds, strict=True)
    ]
    assert drawn == alone


@torch.no_grad()
def test_silence(whisper: tuple[Any, Any]) -> None:
    model, task = whisper
    silence = {"array": np.zeros(65 * RATE, np.float32), "sampling_rate": RATE}
    assert ours(task, [silence], language="en")[0] == theirs(model, silence, language="en")
    result = task(silence, language="en", temperature=(0.0,), logprob_threshold=100.0, no_speech_threshold=-1.0)
    assert result.text == "" and result.stop_reason == "eos"


def test_files(whisper: tuple[Any, Any], tmp_path: Path) -> None:
    _, task = whisper
    path = tmp_path / "long.flac"
    soundfile.write(path, CLIPS[1]["array"], RATE)
    expected = task(path, language="en", max_new_tokens=8)
    assert expected.text and task(path.read_bytes(), language="en", max_new_tokens=8) == expected
    assert list(task(iter([path]), language="en", max_new_tokens=8)) == [expected]
    cut = tmp_path / "cut.flac"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    empty = {"array": np.zeros(0, np.float32), "sampling_rate": RATE}
    for wrong, match in ((cut, "corrupt|truncated"), (b"RIFF----WAVE", "corrupt"), (empty, "no samples")):
        with pytest.raises(InputError, match=match):
            task(wrong, language="en")
    with pytest.raises(InputError, match="input 1: "):
        task([path, empty], language="en")


def test_other_tasks_hear_one_window(whisper: tuple[Any, Any], tmp_path: Path) -> None:
    long_whisper(tmp_path)
    with pytest.raises(InputError, match="too long"):
        make.load(tmp_path, task="audio-feature-extraction")(CLIPS[1])
    from plainformer.explanation.one_pass import signal_inputs

    with pytest.raises(InputError, match="longer than one window"):
        signal_inputs(whisper[1], CLIPS[1])


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stop": "a"}, "stop and timestamps, which a clip of more than one window needs, exclude"),
        ({"regex": "a+"}, "regex and timestamps"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences is for clips that are read at once"),
        ({"temperature": []}, "is an empty list"),
        ({"temperature": (0.0, "hot")}, "'hot' is not a number in"),
        ({"temperature": (0.0, 1.0), "do_sample": True}, "do_sample has no effect on a list"),
        ({"compression_ratio_threshold": 1.35}, "no effect without temperatures"),
        ({"compression_ratio_threshold": 1.35, "temperature": [0.0]}, "no effect without temperatures"),
        ({"no_speech_threshold": 0.6}, "without logprob_threshold"),
        ({"logprob_threshold": "low"}, "'low' is not a finite number"),
        ({"logprob_threshold": -1.0, "num_beams": 2}, "greedy decoding and sampling"),
        ({"condition_on_previous_text": 1}, "neither True nor False"),
        ({"seed": ["a"], "temperature": (0.5,)}, "is not a whole number"),
    ],
    ids=str,
)
def test_wrong_options(whisper: tuple[Any, Any], options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        whisper[1]([CLIPS[1]], language="en", **options)


def test_beams_by_windows(whisper: tuple[Any, Any]) -> None:
    _, task = whisper
    result = task(CLIPS[1], language="en", num_beams=2, timestamps=True, max_new_tokens=12)
    assert result.text and result.segments and result.segments[-1].end <= 60
    with_fallback = task(
        CLIPS[1], language="en", num_beams=2, timestamps=True, max_new_tokens=12, temperature=(0.0, 1.0)
    )
    assert with_fallback == result


def test_a_vocabulary_without_timestamps(tmp_path: Path) -> None:
    long_whisper(tmp_path)
    task = make.load(tmp_path)
    object.__setattr__(task.prompt, "no_timestamps_id", None)
    with pytest.raises(UsageError, match="no timestamps"):
        task(CLIPS[1], language="en")


# ---- the pieces -----------------------------------------------------------------------------------------------------


def _time(seconds: float) -> int:
    return FIRST_TIME + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("parts", "cuts", "advance"),
    [
        ((0.0, "a", 2.0, 2.0, "b", 4.0), [(0, 200, 3), (200, 400, 3)], 3000),  # single ending
        ((0.0, "a", 2.0, 2.0, "b", 4.0, 4.0), [(0, 200, 3), (200, 400, 4)], 400),  # a pair at the end
        ((0.0, "a", 2.0, 2.5, "b"), [(0, 200, 4)], 200),  # cut off behind a pair
        ((1.0, "a"), [(0, 100, 2)], 3000),  # the reference takes its only timestamp for the end
        ((0.0, "a"), [(0, 3000, 2)], 3000),
        ((0.0, "a", 7.0), [(0, 700, 3)], 3000),
        (("a", "a"), [(0, 3000, 2)], 3000),
        ((), [(0, 3000, 0)], 3000),
    ],
)
def test_cutting_a_window(parts: tuple[Any, ...], cuts: list[tuple[int, int, int]], advance: int) -> None:
    ids = tuple(20 if isinstance(part, str) else _time(part) for part in parts)
    segments, frames = cut_window(ids, FIRST_TIME, 3000)
    assert [(one.start, one.end, len(one.ids)) for one in segments] == cuts and frames == advance
    if ids:
        mixin = transformers.WhisperForConditionalGeneration._retrieve_segment
        expected, offset = mixin(
            seek_sequence=torch.tensor(ids),
            seek_outputs=[None],
            time_offset=torch.zeros(1, dtype=torch.float64),
            timestamp_begin=FIRST_TIME,
            seek_num_frames=torch.tensor([3000]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 3),
        )
        found = [(one.start / 100, one.end / 100, list(one.ids)) for one in segments]
        assert found == [
            (round(float(e["start"]), 2), round(float(e["end"]), 2), e["tokens"].tolist()) for e in expected
        ]
        assert frames == int(offset)


def test_compression_ratio() -> None:
    reference = transformers.WhisperForConditionalGeneration._retrieve_compression_ratio
    for ids in ([7] * 40, list(range(40)), [IDS["<|0.00|>"], 300, 2]):
        sizes = [size for size in (255, 300, 51866, 70000) if size > max(ids)]
        assert len(sizes) >= 2
        for size in sizes:
            assert compression_ratio(ids, size) == reference(torch.tensor(ids), size)
