"""`scale` and `augment` in whole runs: what is scaled by what, saved where, and turned back; training alone is augmented."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import plainformer as pf
from plainformer.config.building import build
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.errors import UsageError
from plainformer.saving import save_model
from plainformer.train.record import read_lines
from plainformer.training import prepare, train
from tests.support import models
from tests.support.media import write_wav
from tests.support.runs import results, run_data, texts, write_rows

SCALERS: dict[str, Any] = {
    "center": StandardScaler(with_std=False),
    "standardize": StandardScaler(),
    "minmax": MinMaxScaler(),
}


def configured(folder: Path, objective: str, model: Path, /, **changes: Any) -> TrainConfig:
    return build(TrainConfig, Written(run_data(folder, objective, model, **changes)))


# ---- targets


def numbered(folder: Path, count: int, seed: int) -> tuple[Path, np.ndarray]:
    """Texts with two numbers far from 0: a price, and a temperature."""
    found = texts(count, seed)
    draw = np.random.default_rng(seed)
    values = np.stack([[5000 + 300 * text.count("cat") + draw.normal(), -40 + len(text) / 9] for text in found]).astype(
        np.float32
    )
    rows = [{"text": f"{text} {seed}", "label": value.tolist()} for text, value in zip(found, values, strict=True)]
    return write_rows(folder / f"rows-{seed}.jsonl", rows), values


def regression(folder: Path, model: Path, kind: str | None, /, **changes: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    train_path, values = numbered(folder, 40, 1)
    held_path, held = numbered(folder, 17, 2)
    data = {"train": {"path": str(train_path)}, "validation": {"path": str(held_path)}}
    start = {"ref": str(model), "problem": "regression", "dropout": 0.0}
    sections = {"data": data, "model": start, "length": {"steps": 12}, "scale": {"targets": kind}, **changes}
    return configured(folder, "text-classification", model, **sections), values, held


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("fill-mask", tmp_path_factory.mktemp("bert") / "model")


@pytest.mark.parametrize("kind", sorted(SCALERS))
def test_targets_are_scaled_saved_and_turned_back(kind: str, bert: Path, tmp_path: Path) -> None:
    config, values, held = regression(tmp_path, bert, kind)
    result = train(config)
    best = result.folder / "best"
    stated = json.loads((best / "config.json").read_text())["target_scaling"]
    scaler = SCALERS[kind].fit(values.astype(np.float64))  # train's rows alone
    offset, scale = np.array(stated["offset"]), np.array(stated["scale"])
    assert np.allclose((held - offset) / scale, scaler.transform(held.astype(np.float64)), rtol=1e-9, atol=1e-9)

    rows = read_lines(result.folder / "metrics.jsonl")
    (line,) = [line for line in rows if line.get("validation") and line["step"] == result.best["step"]]
    task = pf.load(best)
    inputs = [json.loads(row)["text"] for row in (tmp_path / "rows-2.jsonl").read_text().splitlines()]
    answers = np.array([[score.score for score in found.scores] for found in task(inputs)])
    assert np.abs(answers - held).mean() == pytest.approx(line["validation"]["mean_absolute_error"], rel=1e-5)
    squared = ((answers - held) / scale) ** 2
    assert squared.mean() == pytest.approx(line["validation"]["loss"], rel=1e-4)  # the loss is that of scaled numbers
    assert abs(answers[:, 0].mean() - 5000) < 2000  # without a scaling back it would be near 0

    # transformers reads the same folder; its numbers are the scaled ones.
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(best).eval()
    ids = pf.load_tokenizer(best).encode(inputs[0]).input_ids
    with torch.no_grad():
        scaled = reference(torch.tensor([ids])).logits[0].double().numpy()
    assert np.allclose(scaled * scale + offset, answers[0], rtol=1e-5)
    card = (best / "README.md").read_text()
    assert f"answers in scaled units, {kind}: (x - " in card


def test_a_model_keeps_its_units_when_it_is_trained_on(bert: Path, tmp_path: Path) -> None:
    first = train(regression(tmp_path / "one", bert, "standardize")[0]).folder / "best"
    config, _, _ = regression(tmp_path / "two", first, None)
    again = train(config).folder / "last"
    read = [json.loads((folder / "config.json").read_text())["target_scaling"] for folder in (first, again)]
    assert read[0] == read[1]
    line = next(line for line in read_lines(again.parent / "metrics.jsonl") if line["step"] == 0)
    other = [line for line in read_lines(first.parent / "metrics.jsonl") if line.get("best")][-1]
    assert line["validation"] == pytest.approx(other["validation"], rel=1e-5)  # it begins where the first one ended
    save_model(pf.load(again, prepare=False).model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["target_scaling"] == read[0]
    with pytest.raises(UsageError, match="already answers in scaled units"):
        prepare(regression(tmp_path / "three", first, "minmax")[0])


def test_adapters_alone_answer_in_the_datas_units(bert: Path, tmp_path: Path) -> None:
    start = {"ref": str(bert), "problem": "regression", "lora": {"rank": 2}}
    config, _, held = regression(tmp_path, bert, "standardize", model=start)
    best = train(config).folder / "best"
    (score, _) = pf.load(best)("the cat sat").scores
    assert abs(score.score - held[:, 0].mean()) < 2000


def test_a_new_head_has_no_old_units(bert: Path, tmp_path: Path) -> None:
    first = train(regression(tmp_path / "one", bert, "standardize")[0]).folder / "best"
    made = pf.with_head(first, "sequence", labels=["no", "yes"], problem="single_label").model
    assert made.config.head.scaling is None and "target_scaling" not in made.config.source


def test_labels_are_not_scaled(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no effect on labels"):
        prepare(configured(tmp_path, "text-classification", bert, scale={"targets": "center"}))
    with pytest.raises(UsageError, match=r"scale\.targets"):
        configured(tmp_path, "causal-lm", bert, scale={"targets": "center"})
    with pytest.raises(UsageError, match=r"scale\.inputs"):
        configured(tmp_path, "text-classification", bert, scale={"inputs": "center"})
    with pytest.raises(UsageError, match=r"augment\.rotate"):
        configured(tmp_path, "text-classification", bert, augment={"rotate": 3})
    with pytest.raises(UsageError, match=r"augment\.time_mask"):
        configured(tmp_path, "text-classification", bert, augment={"time_mask": 0.1})


# ---- images

VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def pictures(folder: Path, channels: int = 3, **changes: Any) -> tuple[Any, np.ndarray]:
    """A run from scratch over pictures of uneven brightness, whose channels differ."""
    draw = np.random.default_rng(0)
    levels = (draw.random((40, 12, 12, channels)) ** np.array([1, 2, 4])[:channels] * 255).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    made = levels if channels == 3 else levels[..., 0]
    np.savez(folder / "train.npz", image=made[:30], label=np.arange(30) % 3)
    np.savez(folder / "held.npz", image=made[30:], label=np.arange(10) % 3)
    config = {**VIT, "image_size": 12, "patch_size": 4, "num_channels": channels}
    data = {"train": {"path": str(folder / "train.npz")}, "validation": {"path": str(folder / "held.npz")}}
    start = {"ref": None, "config": config, "dropout": 0.0}
    sections = {
        "model": start,
        "data": data,
        "length": {"steps": 8},
        "evaluate": {"every": 4, "batch_size": 4},
        **changes,
    }
    return configured(folder, "image-classification", folder, **sections), levels[:30]


@pytest.mark.parametrize("kind", sorted(SCALERS))
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_scaled_by_the_pixels_of_train(kind: str, channels: int, tmp_path: Path) -> None:
    config, levels = pictures(tmp_path, channels, scale={"inputs": kind})
    result = train(config)
    pixels = levels.reshape(-1, channels) / 255
    scaler = SCALERS[kind].fit(pixels)
    stated = json.loads((result.folder / "best" / "preprocessor_config.json").read_text())
    made = (pixels - stated["image_mean"]) / stated["image_std"]
    assert np.allclose(made, scaler.transform(pixels), atol=1e-9)
    task = pf.load(result.folder / "best")
    image = Image.fromarray(levels[0] if channels == 3 else levels[0, ..., 0])
    ours = task.processor(image).numpy()
    wanted = scaler.transform(levels[0].reshape(-1, channels) / 255).T.reshape(channels, 12, 12)
    assert np.allclose(ours[0], wanted, atol=1e-5)
    if channels == 3:  # the reference's file says the same to it
        theirs = transformers.ViTImageProcessorPil.from_pretrained(result.folder / "best")(image, return_tensors="np")
        assert np.allclose(ours, theirs["pixel_values"], atol=1e-5)
    assert prepare(config).start.processor == task.processor


def test_augmentation_is_for_training_alone_and_zero_is_none(tmp_path: Path) -> None:
    augment = {"shift": 0.2, "rotate": 20, "zoom": 0.2, "flip": True}
    runs = {"none": {}, "zero": {"shift": 0.0, "rotate": 0.0, "zoom": 0.0, "flip": False}, "all": augment}
    read = {}
    for name, section in runs.items():
        result = train(pictures(tmp_path / name, augment=section, log_every=1)[0])
        read[name] = read_lines(result.folder / "metrics.jsonl")
    strip = [[{k: v for k, v in line.items() if "second" not in k} for line in read[name]] for name in ("none", "zero")]
    assert strip[0] == strip[1]
    first = [next(line for line in read[name] if line["step"] == 0)["validation"] for name in ("none", "all")]
    assert first[0] == first[1]
    losses = [[line["loss"] for line in read[name] if "loss" in line] for name in ("none", "all")]
    assert all(a != b for a, b in zip(*losses, strict=True))


def test_a_resumed_run_sees_the_same_images(tmp_path: Path) -> None:
    sections = {"augment": {"shift": 0.2, "rotate": 20, "zoom": 0.1, "flip": True}, "scale": {"inputs": "standardize"}}
    whole, _ = pictures(tmp_path, checkpoints={"every": 2}, **sections)
    train(whole)
    before = results(Path(whole.folder))
    shutil.rmtree(whole.folder)
    left = [5]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    assert train(whole, stop=stop).ended == "stopped"
    train(whole)
    assert results(Path(whole.folder)) == before


# ---- audio


def clips(folder: Path, model: Path, objective: str = "audio-classification", **changes: Any) -> tuple[Any, list[Path]]:
    """Tones of different loudness."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    for number in range(12):
        paths.append(write_wav(folder / f"{number}.wav", 2000 + 300 * number))
        rows.append({"audio": str(paths[-1]), "label": str(number % 3)})
    data = {"train": {"path": str(write_rows(folder / "rows.jsonl", rows))}, "validation": None}
    evaluate = {"every": None, "batch_size": 32}
    sections = {"data": data, "length": {"steps": 3}, "evaluate": evaluate, **changes}
    return configured(folder, objective, model, **sections), paths


@pytest.mark.parametrize("kind", ["standardize", "minmax"])
def test_waves_are_scaled_by_all_samples_of_train(kind: str, tmp_path: Path) -> None:
    """Not each clip by itself, as the checkpoint's own `do_normalize` does."""
    models.wav2vec2(tmp_path / "model", "Wav2Vec2ForSequenceClassification", masked=True, **models.STABLE)
    config, paths = clips(tmp_path / "data", tmp_path / "model", scale={"inputs": kind})
    folder = train(config).folder / "last"
    waves = [pf.load(tmp_path / "model").processor]
    plain = [np.frombuffer(path.read_bytes()[44:], "<i2").astype(np.float64) / 32768 for path in paths]
    scaler = SCALERS[kind].fit(np.concatenate(plain)[:, None])
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    assert stated["do_normalize"] is False
    task = pf.load(folder)
    for path, wave in zip(paths[:3], plain, strict=False):
        found = task.processor(str(path)).input_values[0].numpy()
        assert np.allclose(found, scaler.transform(wave[:, None])[:, 0], atol=1e-4)
    prepared = prepare(config)  # what a step reads is what the saved processor gives
    batch = prepared.objective.collate([[prepared.examples[0]]], [np.random.default_rng(0)])
    assert torch.equal(batch.inputs["input_values"], task.processor(str(paths[0])).input_values)
    assert waves[0].mean is None


def test_spectrograms_are_scaled_by_band(tmp_path: Path) -> None:
    models.whisper(tmp_path / "model", model="WhisperForAudioClassification")
    config, paths = clips(tmp_path / "data", tmp_path / "model", scale={"inputs": "standardize"})
    folder = train(config).folder / "last"
    prepared = prepare(config)
    frames = np.concatenate([prepared.examples[n]["input_features"].T for n in range(12)])
    scaler = StandardScaler().fit(frames)
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    assert np.allclose(stated["mel_mean"], scaler.mean_) and np.allclose(stated["mel_std"], scaler.scale_)
    batch = prepared.objective.collate([[prepared.examples[0]]], [np.random.default_rng(0)])
    assert torch.equal(batch.inputs["input_features"], pf.load(folder).processor(str(paths[0])).input_features)


def test_the_vector_of_hidden_frames_is_learnt_where_frames_are_hidden(tmp_path: Path) -> None:
    models.wav2vec2(tmp_path / "model", "Wav2Vec2ForSequenceClassification", mask_time_prob=0.3, mask_time_length=4)

    def vector(folder: Path) -> torch.Tensor:
        return pf.load_model(folder, backend="plain").encoder.frontend.hidden.detach()

    first = vector(tmp_path / "model")
    losses = {}
    for name, section in {
        "stated": {},
        "off": {"time_mask": 0.0},
        "asked": {"time_mask": 0.3, "time_mask_length": 4},
    }.items():
        config, _ = clips(tmp_path / name, tmp_path / "model", augment=section, log_every=1)
        result = train(config)
        moved = not torch.equal(vector(result.folder / "last"), first)
        assert moved == (name != "off"), name
        losses[name] = [line["loss"] for line in read_lines(result.folder / "metrics.jsonl") if "loss" in line]
    assert losses["off"][0] != losses["stated"][0]
