"""When each word was said: against the reference's times, its paths, its medians and its words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper import generation_whisper, tokenization_whisper

from plainformer.errors import CheckpointError, UsageError
from plainformer.tasks.speech.alignment import cheapest_paths, running_median
from plainformer.tasks.speech.words import SPACELESS, split_words
from tests.support import models as make
from tests.support.media import CLIPS as WAVES
from tests.support.media import RATE, noise
from tests.support.models import long_whisper

EXTRACTOR = transformers.WhisperFeatureExtractor(feature_size=16)
TRY = (0.0, 0.0, 0.0)  # greedy each time
HEADS = [[0, 1], [1, 0], [1, 3]]
SILENCE = {"array": np.zeros(4 * RATE, np.float32), "sampling_rate": RATE}
CLIPS = [noise(41, 1), noise(12, 2), SILENCE]


def sharpened(folder: Path, **settings: Any) -> Any:
    """A Whisper whose decoder looks at some places of the sound much more than at others."""
    model = long_whisper(folder, alignment_heads=HEADS, **settings)
    for layer in model.model.decoder.layers:
        layer.encoder_attn.q_proj.weight.data *= 20
    model.save_pretrained(folder)
    return model


def theirs(model: Any, sound: dict[str, Any], **options: Any) -> list[tuple[list[int], list[int]]]:
    """The reference's segments of a clip by itself: tokens, and their times in hundredths of a second."""
    wave = sound["array"]
    long: dict[str, Any] = dict(truncation=False, padding="longest") if len(wave) > 30 * RATE else {}
    inputs = EXTRACTOR(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **long)
    asked = dict(return_timestamps=True, return_segments=True, return_token_timestamps=True, num_beams=1)
    found = model.generate(**inputs, **asked, **options)
    segments = found["segments"][0]
    return [(one["tokens"].tolist(), (one["token_timestamps"] * 100).round().int().tolist()) for one in segments]


def within(sound: dict[str, Any], segments: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
    """Leave out what was written after the end of the sound: there the reference counts positions from the wrong end."""
    return [one for one in segments if max(one[1]) * RATE < len(sound["array"]) * 100]


def ours(task: Any, sounds: list[Any], **options: Any) -> list[list[tuple[list[int], list[int]]]]:
    found = make.predicted(task, sounds, word_timestamps=True, **options)
    return [[(list(one.ids), list(one.times)) for one in spoken.segments] for spoken in found]


# ---- equal to the reference -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("weights", "conditioned"), [({}, False), ({}, True), ({"text": 2.0, "times": 1.5}, False)], ids=str
)
def test_times_of_tokens(weights: dict[str, Any], conditioned: bool, tmp_path: Path) -> None:
    model = sharpened(tmp_path, **weights)
    task = make.load(tmp_path)
    found = ours(task, CLIPS, language="de", condition_on_previous_text=conditioned)
    for sound, own in zip(CLIPS, found, strict=True):
        expected = theirs(model, sound, language="de", condition_on_prev_tokens=conditioned)
        assert [ids for ids, _ in own] == [ids for ids, _ in expected]
        assert within(sound, own) == within(sound, expected) != []
    assert found == [ours(task, [sound], language="de", condition_on_previous_text=conditioned)[0] for sound in CLIPS]
    times = [time for clip in found for _, own in clip for time in own]
    assert len(set(times)) > 5 and max(times) > 3000


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"temperature": TRY, "compression_ratio_threshold": 0.9}], ids=str
)
def test_beams_and_retries(options: dict[str, Any], tmp_path: Path) -> None:
    """The last attempt's tokens are those that have times; a beam's are where that very text looks."""
    model = sharpened(tmp_path)
    task = make.load(tmp_path)
    found = ours(task, CLIPS[1:], language="en", **options)
    plain = [
        [list(one.ids) for one in own.segments]
        for own in make.predicted(task, CLIPS[1:], language="en", timestamps=True, **options)
    ]
    assert [[ids for ids, _ in own] for own in found] == plain
    if "num_beams" not in options:
        for sound, own in zip(CLIPS[1:], found, strict=True):
            assert within(sound, own) == within(sound, theirs(model, sound, language="en", **options))


def test_words_and_segments_together(tmp_path: Path) -> None:
    sharpened(tmp_path)
    task = make.load(tmp_path)
    plain, timed = task(CLIPS[1:], language="en", timestamps=True), task(CLIPS[1:], language="en", word_timestamps=True)
    both = task(CLIPS[1:], language="en", timestamps=True, word_timestamps=True)
    for one, other, each in zip(plain, timed, both, strict=True):
        assert one.words is None and other.segments is None
        assert each.segments == one.segments and each.words == other.words and each.text == one.text == other.text
        assert "".join("".join(w.text for w in other.words).split()) == "".join(one.text.split())
        assert all(a.start <= a.end <= b.end for a, b in zip(other.words, other.words[1:], strict=False))
        assert other.lines() == [f"[{w.start:.2f} - {w.end:.2f}] {w.text}" for w in other.words]
        assert json.dumps(each.to_dict()) and "words" not in one.to_dict() and "words" in each.to_dict()
        assert other._repr_html_() != one._repr_html_()


# ---- the steps, against the reference's own ---------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["floats", "ties", "holes"])
def test_paths(values: str) -> None:
    generator = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (4, 4), (12, 40), (30, 25), (3, 60)]
    costs = [generator.standard_normal(shape) for shape in shapes]
    if values == "ties":
        costs = [np.round(cost) for cost in costs]
    if values == "holes":  # positions at which no token looks at all: 0 / 0
        costs = [np.where(np.arange(cost.shape[1]) % 7 == 3, np.nan, cost) for cost in costs]
    for cost, found in zip(costs, cheapest_paths(costs), strict=True):
        rows, columns = generation_whisper._dynamic_time_warping(cost)
        begins = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
        assert found == columns[begins].tolist()
    assert cheapest_paths([]) == []


@pytest.mark.parametrize("width", [1, 3, 7, 9])
def test_medians(width: int) -> None:
    x = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3] = x[1, 2, 7:12] = x[2, :, 30] = float("nan")
    for part in (x, x[..., :5], x[..., :4], x[..., :3], x[..., :1]):
        expected = generation_whisper._median_filter(part, width)
        torch.testing.assert_close(running_median(part, width), expected, rtol=0, atol=0, equal_nan=True)


@given(
    st.lists(
        st.sampled_from([" the", "the", " ", ",", " (", "(", ")", ".", " “", "”", "ü", "漢字", "'s", "-", "🙂", " a"]),
        max_size=12,
    ),
    st.sampled_from(["en", "zh", None]),
)
def test_words(parts: list[str], language: str | None) -> None:
    """Tokens are bytes here, so that most characters of other alphabets are cut."""
    ids = list("".join(parts).encode())

    class Bytes:
        eos_token_id = 1000

        @staticmethod
        def decode(ids: Sequence[int], **_: Any) -> str:
            return bytes(ids).decode(errors="replace")

    named = {"zh": "chinese", "en": "english", None: "english"}[language]
    texts, _, places = tokenization_whisper._combine_tokens_into_words(Bytes(), ids, named)
    assert [(word.text, word.places) for word in split_words(ids, Bytes.decode, language)] == list(
        zip(texts, places, strict=True)
    )


def test_languages_without_spaces() -> None:
    codes = {
        code
        for code, name in tokenization_whisper.LANGUAGES.items()
        if name in {"chinese", "japanese", "thai", "lao", "myanmar", "cantonese"}
    }
    assert codes == SPACELESS


# ---- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "entry", "error", "message"),
    [
        ("generation_config.json", {"alignment_heads": None}, UsageError, "does not say which heads follow the sound"),
        ("generation_config.json", {"alignment_heads": [[0, 4]]}, CheckpointError, "alignment_heads"),
        ("generation_config.json", {"alignment_heads": [[True, 1]]}, CheckpointError, "alignment_heads"),
        ("generation_config.json", {"alignment_heads": []}, CheckpointError, "alignment_heads"),
        ("generation_config.json", {"alignment_heads": {"0": 1}}, CheckpointError, "alignment_heads"),
        ("config.json", {"median_filter_width": 4}, CheckpointError, "median_filter_width=4"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_says_wrongly(
    file: str, entry: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    long_whisper(tmp_path, alignment_heads=HEADS)
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    task = make.load(tmp_path)
    assert task(noise(2), language="en").words is None
    with pytest.raises(error, match=message):
        task(noise(2), language="en", word_timestamps=True)


def test_what_excludes_word_times(tmp_path: Path) -> None:
    long_whisper(tmp_path, alignment_heads=HEADS)
    task = make.load(tmp_path)
    with pytest.raises(UsageError, match=r"word_timestamps.* exclude each other"):
        task(noise(2), language="en", word_timestamps=True, stop="x")
    with pytest.raises(UsageError, match=r"word_timestamps.*window by window"):
        task.prepare(noise(2), language="en", word_timestamps=True)
    with pytest.raises(UsageError, match="neither True nor False"):
        task(noise(2), word_timestamps="yes")


def test_ctc_has_words_too(tmp_path: Path) -> None:
    make.wav2vec2(tmp_path, "Wav2Vec2ForCTC", masked=True, **make.STABLE)
    task = make.load(tmp_path)
    for one, other in zip(task(WAVES, timestamps=True), task(WAVES, word_timestamps=True), strict=True):
        assert other.words == one.segments and other.segments is None and one.words is None


# ---- computed once ------------------------------------------------------------------------------------------------------


def test_keys_of_a_window_are_computed_once(tmp_path: Path) -> None:
    """Writing, writing again, and finding the times read the same keys and values of the encoder's output."""
    sharpened(tmp_path)
    task = make.load(tmp_path)
    calls: list[int] = []
    for block in task.model.main.layers:
        block.cross.kv.register_forward_hook(lambda *_: calls.append(1))
    options: dict[str, Any] = dict(language="en", temperature=TRY, compression_ratio_threshold=0.0)
    make.predicted(task, [noise(3)], word_timestamps=True, **options)
    together = len(calls)
    calls.clear()
    make.predicted(task, [noise(3)], timestamps=True, language="en")
    assert together == len(calls) > 0
