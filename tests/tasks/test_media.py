"""Tasks on images and audio, against the reference's pipelines, and its model on its own features."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

import plainformer
from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.inputs.text.ctc_vocabulary import CtcVocabulary
from plainformer.tasks.speech.languages import CODES
from tests.support import models as make
from tests.support.close import close
from tests.support.media import CLIPS, RATE, SECONDS, clip, pictures
from tests.support.models import MARKS, STABLE, wav2vec2, whisper
from tests.support.vocabularies import CTC_TOKENS

# ---- images -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vit")
    for name, model in (("image", "ViTForImageClassification"), ("base", "ViTModel")):
        make.save_model(
            root / name, model, transformers.ViTConfig(**make.TINY, num_labels=3, image_size=32, patch_size=8)
        )
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / name)
    return {name: root / name for name in ("image", "base")}


def test_image_classification(vit: dict[str, Path]) -> None:
    task = make.load(vit["image"])
    theirs = transformers.pipeline("image-classification", model=str(vit["image"]), device="cpu")
    images = pictures()
    for image, result in zip(images, task(images), strict=True):
        expected = {entry["label"]: entry["score"] for entry in theirs(image, top_k=3)}
        assert {s.label for s in result.scores} == set(expected)
        close([s.score for s in result.scores], [expected[s.label] for s in result.scores], rel=2e-3)
        assert result.label == max(result.scores, key=lambda s: s.score).label
        close([s.score for s in task(image).scores], [s.score for s in result.scores])
    assert json.dumps(task(images[0]).to_dict())


@torch.no_grad()
def test_image_logits_on_the_same_pixels(vit: dict[str, Path]) -> None:
    task = make.load(vit["image"])
    theirs = transformers.ViTForImageClassification.from_pretrained(vit["image"]).eval()
    expected = theirs(task.encode(pictures(), task.Options())).logits.softmax(-1)
    close([[s.score for s in r.scores] for r in task(pictures())], expected)


def test_every_form_of_an_image(vit: dict[str, Path], tmp_path: Path) -> None:
    task = make.load(vit["image"])
    image = pictures()[0]
    image.save(tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()
    array = np.array(image)
    forms = [str(tmp_path / "picture.png"), tmp_path / "picture.png", content, bytearray(content), image, array]
    expected = task(image)
    assert all(task(form) == expected for form in [*forms, torch.from_numpy(array).permute(2, 0, 1)])
    assert len(task(forms)) == len(forms)
    assert len(task(np.stack([array, array, array]))) == 3
    assert len(list(task(iter(forms)))) == len(forms)
    assert task([]) == []
    for wrong, message in (
        (3, "an int is not an input"),
        (None, "None is not an input"),
        ([3], "input 0: an image cannot be an int"),
        ({"image": 1}, "an image cannot be a dict"),
        ("no-such-file.png", "is not a file"),
        (b"", "empty, 0 bytes"),
    ):
        with pytest.raises(InputError, match=message):
            task(wrong)
    with pytest.raises(UsageError, match="no option 'truncate'"):
        task(image, truncate=True)


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "image"])
def test_image_features(vit: dict[str, Path], name: str) -> None:
    task = make.load(vit[name], task="image-feature-extraction")
    theirs = transformers.ViTModel.from_pretrained(vit[name]).eval()
    output = theirs(task.encode(pictures(), task.Options()))
    hidden = output.last_hidden_state
    close(torch.stack([r.vector for r in task(pictures())]), hidden[:, 0])
    close(torch.stack([r.vector for r in task(pictures(), pooling="mean")]), hidden[:, 1:].mean(1))
    unit = torch.stack([r.vector for r in task(pictures(), normalize=True)])
    close(unit, torch.nn.functional.normalize(hidden[:, 0], dim=-1))
    if name == "base":
        close(torch.stack([r.vector for r in task(pictures(), pooling="pooler")]), output.pooler_output)
    else:
        with pytest.raises(UsageError, match="no pooler"):
            task(pictures()[0], pooling="pooler")
    with pytest.raises(UsageError, match="did you mean 'cls'"):
        task(pictures()[0], pooling="cl")
    assert json.dumps(task(pictures()[0]).to_dict())


# ---- waves --------------------------------------------------------------------------------------------------------


SPEECH = [("Wav2Vec2", False, {}), ("Hubert", False, {}), ("Wav2Vec2", True, STABLE), ("Wav2Vec2", True, {})]


@pytest.mark.parametrize(("family", "masked", "changes"), SPEECH)
def test_speech_recognition_by_ctc(family: str, masked: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    model = wav2vec2(tmp_path, f"{family}ForCTC", masked=masked, **changes)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    theirs = transformers.pipeline(
        "automatic-speech-recognition", model=model, tokenizer=tokenizer, feature_extractor=extractor, device="cpu"
    )
    task = make.load(tmp_path)
    assert task.name == "automatic-speech-recognition"
    together = task(CLIPS)
    for sound, result in zip(CLIPS, together, strict=True):
        expected = theirs({"raw": sound["array"], "sampling_rate": RATE})["text"]
        assert result.text == expected == task(sound).text
        assert result.language is None and result.stop_reason is None
    assert any(result.text for result in together)
    assert json.dumps(together[0].to_dict())


def test_ctc_text_follows_the_reference_tokenizer(tmp_path: Path) -> None:
    wav2vec2(tmp_path, "Wav2Vec2ForCTC")
    tokenizer = plainformer.load_tokenizer(tmp_path)
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, len(CTC_TOKENS), 40).repeat(2).tolist() for _ in range(20)]
    for settings in (
        {},
        {"do_lower_case": True},
        {"clean_up_tokenization_spaces": True},
        {"word_delimiter_token": "'"},
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), **settings)
        ours = CtcVocabulary.of(tokenizer, settings)
        for row in [*rows, [], [0, 0], [4, 5, 0, 5, 4, 4]]:
            assert ours.text(row) == theirs.decode(row)


def test_saving_keeps_how_speech_is_written(tmp_path: Path) -> None:
    wav2vec2(tmp_path / "it", "Wav2Vec2ForCTC", masked=True, **STABLE)
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "do_lower_case": True, "word_delimiter_token": "|"}
    (tmp_path / "it" / "tokenizer_config.json").write_text(json.dumps(settings))
    task = make.load(tmp_path / "it")
    plainformer.save(task, tmp_path / "copy")
    again = make.load(tmp_path / "copy")
    assert again.vocabulary == task.vocabulary and again.processor == task.processor
    assert again(CLIPS) == task(CLIPS)


def test_a_ctc_model_without_its_vocabulary(tmp_path: Path) -> None:
    wav2vec2(tmp_path, "Wav2Vec2ForCTC")
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        make.load(tmp_path)
    assert make.load(tmp_path, task="audio-feature-extraction")(CLIPS[0]).vector.shape == (32,)


@pytest.mark.parametrize(("family", "masked", "changes"), SPEECH)
def test_audio_classification(family: str, masked: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    wav2vec2(tmp_path, f"{family}ForSequenceClassification", masked=masked, **changes)
    theirs = transformers.pipeline("audio-classification", model=str(tmp_path), device="cpu")
    task = make.load(tmp_path)
    for sound, result in zip(CLIPS, task(CLIPS), strict=True):
        expected = {e["label"]: e["score"] for e in theirs({"raw": sound["array"], "sampling_rate": RATE}, top_k=3)}
        close([s.score for s in result.scores], [expected[s.label] for s in result.scores])
        close([s.score for s in task(sound).scores], [s.score for s in result.scores])


@torch.no_grad()
@pytest.mark.parametrize(("family", "masked", "changes"), SPEECH)
def test_audio_features(family: str, masked: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    model = wav2vec2(tmp_path, f"{family}Model", masked=masked, **changes)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    task = make.load(tmp_path)
    assert task.name == "audio-feature-extraction"
    for sound, result in zip(CLIPS, task(CLIPS), strict=True):
        values = extractor(sound["array"], sampling_rate=RATE, return_tensors="pt").input_values
        close(result.vector, model(values).last_hidden_state[0].mean(0))
        close(task(sound, normalize=True).vector.norm(), 1.0)


def test_group_norm_models_hear_clips_one_by_one(tmp_path: Path) -> None:
    """Only layer-norm models that were trained with a mask take unequal clips together."""
    wav2vec2(tmp_path / "group", "Wav2Vec2Model", masked=True)
    wav2vec2(tmp_path / "layer", "Wav2Vec2Model", masked=True, **STABLE)
    wav2vec2(tmp_path / "unmasked", "Wav2Vec2Model", masked=False, **STABLE)
    for name, runs in (("group", 3), ("layer", 1), ("unmasked", 3)):
        task = make.load(tmp_path / name)
        assert len(task.runs(task.encode(CLIPS, task.Options()))) == runs
        assert len(task.runs(task.encode(CLIPS[:1] * 3, task.Options()))) == 1
    task = make.load(tmp_path / "layer")
    assert "attention_mask" in task.runs(task.encode(CLIPS, task.Options()))[0]


def test_every_form_of_a_clip(tmp_path: Path) -> None:
    wav2vec2(tmp_path / "model", "Wav2Vec2ForSequenceClassification")
    task = make.load(tmp_path / "model")
    sound = CLIPS[0]
    path = tmp_path / "clip.wav"
    soundfile.write(path, sound["array"], RATE, subtype="FLOAT")
    forms = [str(path), path, path.read_bytes(), sound]
    expected = task(sound)
    assert [task(form) for form in forms] == [expected] * 4
    for results in (task(forms), list(task(iter(forms)))):
        close([[s.score for s in r.scores] for r in results], [[s.score for s in expected.scores]] * 4)
    assert task(sound["array"], sampling_rate=RATE) == expected
    with pytest.raises(InputError, match="no sampling rate"):
        task(sound["array"])
    with pytest.raises(UsageError, match="truncate has no effect"):
        task(sound, truncate=True)
    for wrong, message in (
        (3, "an int is not an input"),
        (None, "None is not an input"),
        ([[0.1, 0.2]], "input 0, a list, is not an input"),
        ({"array": sound["array"]}, "dictionary with keys"),
        ("none.wav", "is not a file"),
        (io.BytesIO(b""), "an open file is not an input"),
    ):
        with pytest.raises(InputError, match=message):
            list(task(wrong))


def test_frame_labels_are_no_task(tmp_path: Path) -> None:
    wav2vec2(tmp_path, "Wav2Vec2ForAudioFrameClassification")
    with pytest.raises(UsageError, match="labels audio frames"):
        make.load(tmp_path)
    assert make.load(tmp_path, task="audio-feature-extraction")(CLIPS[0]).vector.shape == (32,)


# ---- mel spectrograms ---------------------------------------------------------------------------------------------


def heard(model: Any, ours: Any, sound: Any, **options: Any) -> tuple[list[int], str]:
    """What the reference writes for a clip: all its new ids, and their text."""
    features = make.encoded(ours, [sound]).input_features
    found = model.generate(features, do_sample=False, num_beams=1, return_timestamps=False, **options)[0].tolist()
    words = [i for i in found if i <= ours.prompt.no_timestamps_id]
    return found, ours.tokenizer.decode(words, skip_special_tokens=True).strip()


NAMED = [
    {"language": "de"},
    {"language": "<|fr|>", "task": "translate"},
    {"language": "French"},
    {"language": "german"},
]


@pytest.mark.parametrize("options", NAMED)
def test_whisper_writes_what_the_reference_does(options: dict[str, str], tmp_path: Path) -> None:
    model = whisper(tmp_path)
    task = make.load(tmp_path)
    assert task.name == "automatic-speech-recognition"
    for sound, result in zip(SECONDS, task(SECONDS, max_new_tokens=12, **options), strict=True):
        ids, text = heard(model, task, sound, max_new_tokens=12, **options)
        assert result.text == text
        named = options["language"].strip("<|>")
        assert result.language == {"French": "fr", "german": "de"}.get(named, named)
        found = make.predicted(task, [sound], max_new_tokens=12, **options)[0]
        written = [i for i in found.ids if i != task.tokenizer.eos_id]
        assert written and written == [i for i in ids if i != task.tokenizer.eos_id][-len(written) :]
        assert result == task(sound, max_new_tokens=12, **options)
        assert json.dumps(result.to_dict())


def test_whisper_hears_the_language(tmp_path: Path) -> None:
    model = whisper(tmp_path)
    task = make.load(tmp_path)
    detected = model.detect_language(make.encoded(task, SECONDS).input_features)
    for sound, result, language in zip(SECONDS, task(SECONDS, max_new_tokens=6), detected.tolist(), strict=True):
        assert task.tokenizer.id_to_token(language) == f"<|{result.language}|>"
        expected = task(sound, language=result.language, max_new_tokens=6)
        assert result == expected


def test_names_of_languages_are_the_references() -> None:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    assert TO_LANGUAGE_CODE == CODES


def test_a_language_of_the_checkpoint(tmp_path: Path) -> None:
    """Its generation_config.json may give a name, a code or a token."""
    whisper(tmp_path)
    path = tmp_path / "generation_config.json"
    settings, options = json.loads(path.read_text()), {"max_new_tokens": 4}
    expected = make.load(tmp_path)(SECONDS[0], language="fr", **options)
    for named in ("french", "FR", "<|fr|>"):
        path.write_text(json.dumps({**settings, "language": named}))
        assert make.load(tmp_path)(SECONDS[0], **options) == expected
    path.write_text(json.dumps({**settings, "language": "frensh", "task": "translat"}))
    task = make.load(tmp_path)
    with pytest.raises(UsageError, match=r"generation_config.json: language='frensh' is unknown") as caught:
        task(SECONDS[0])
    assert "'french'" in caught.value.fix and "language" in caught.value.fix
    with pytest.raises(UsageError, match=r"generation_config.json: task='translat' is unknown"):
        task(SECONDS[0], language="fr")
    assert task(SECONDS[0], language="fr", task="transcribe", **options) == expected


def test_older_files_force_ids(tmp_path: Path) -> None:
    whisper(tmp_path)
    path = tmp_path / "generation_config.json"
    settings = json.loads(path.read_text())
    task = make.load(tmp_path)
    ids = {mark: task.tokenizer.token_to_id(mark) for mark in (*MARKS, "<|notimestamps|>")}
    settings["forced_decoder_ids"] = [[1, None], [2, ids["<|translate|>"]]]
    path.write_text(json.dumps(settings))
    forced = make.load(tmp_path)
    assert forced.prompt.task == "translate" and forced.prompt.needs_language_detection(None)
    settings["forced_decoder_ids"] = [[1, ids["<|fr|>"]], [2, ids["<|transcribe|>"]], [3, ids["<|notimestamps|>"]]]
    path.write_text(json.dumps(settings))
    french = make.load(tmp_path)
    assert not french.prompt.needs_language_detection(None)
    assert french.prompt.ids(None, None, None) == [
        ids[f"<|{name}|>"] for name in ("startoftranscript", "fr", "transcribe", "notimestamps")
    ]
    assert french(SECONDS[0], max_new_tokens=4).language == "fr"
    # Without these lists, the tokens are found by their names.
    for key in ("lang_to_id", "task_to_id", "forced_decoder_ids", "no_timestamps_token_id"):
        settings.pop(key)
    path.write_text(json.dumps(settings))
    assert make.load(tmp_path).prompt == task.prompt


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("decoder_start_token_id", -(10**20)),
        ("no_timestamps_token_id", "5"),
        ("prev_sot_token_id", 1.5),
        ("lang_to_id", {"<|fr|>": [None]}),
        ("task_to_id", 3),
    ],
)
def test_a_whisper_whose_settings_are_damaged(name: str, wrong: Any, tmp_path: Path) -> None:
    whisper(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: wrong}))
    with pytest.raises(CheckpointError, match=f"generation_config.json: {name}="):
        make.load(tmp_path)


def test_english_whisper(tmp_path: Path) -> None:
    model = whisper(tmp_path, multilingual=False)
    task = make.load(tmp_path)
    for sound, result in zip(SECONDS, task(SECONDS, max_new_tokens=12), strict=True):
        assert result.text == heard(model, task, sound, max_new_tokens=12)[1]
        assert result.language is None
    with pytest.raises(UsageError, match="English-only"):
        task(SECONDS[0], language="de")


def test_what_whisper_refuses(tmp_path: Path) -> None:
    whisper(tmp_path)
    task = make.load(tmp_path)
    long = clip(20_000)
    with pytest.raises(UsageError, match="stop and timestamps, which a clip of more than one window needs"):
        task(long, stop="a")
    assert task(long, truncate=True, language="en", max_new_tokens=3).stop_reason in ("eos", "length")
    with pytest.raises(UsageError, match="'xx' is unknown"):
        task(SECONDS[0], language="xx")
    with pytest.raises(UsageError, match="did you mean 'german'"):
        task(SECONDS[0], language="germann")
    with pytest.raises(UsageError, match="'hindi' is unknown to this model"):
        task(SECONDS[0], language="hindi")  # the model has three
    with pytest.raises(UsageError, match="did you mean 'translate'"):
        task(SECONDS[0], task="translat")
    full = make.predicted(task, SECONDS[:1], language="en")[0]
    assert full.stop_reason == "eos" or len(full.ids) == 40 - 4 + 1


@torch.no_grad()
def test_whisper_features_and_classes(tmp_path: Path) -> None:
    model = whisper(tmp_path / "base", model="WhisperModel")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).unlink()
    task = make.load(tmp_path / "base")
    for sound, result in zip(SECONDS, task(SECONDS), strict=True):
        hidden = model.encoder(make.encoded(task, [sound]).input_features).last_hidden_state[0]
        frames = -(-len(sound["array"]) // 320)
        close(result.vector, hidden[:frames].mean(0))
    classifier = whisper(tmp_path / "classes", model="WhisperForAudioClassification")
    task = make.load(tmp_path / "classes")
    expected = classifier(task.encode(SECONDS, task.Options()).input_features).logits.softmax(-1)
    close([[s.score for s in r.scores] for r in task(SECONDS)], expected)
