"""Make the data of `recipes/digits-speech.yaml`: utterances of three to five spoken digits, from clips of one digit each.

    python recipes/digits_speech.py CLIPS data/digits

CLIPS is a folder of `{digit}_{speaker}_{n}.wav`, as the free-spoken-digit-dataset has them (8 kHz; CC-BY-SA-4.0). An
utterance joins clips of one speaker, with pauses between and around them whose lengths, like the digits, are drawn with a
fixed seed. Its text has them as figures: there is no spelling to learn. One speaker is held out for the test; of the others
every tenth clip is for validation alone. Every clip of a side is used equally often.

    data/digits/{train,validation,test}/*.wav, metadata.csv    file, text ("3 9 1"), speaker
    data/digits/wav2vec2/                                       how sounds are prepared, and the figures
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import wave
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

RATE = 8000
HELD_OUT = "theo"
DIGITS = (3, 5)  # fewest and most of an utterance
PAUSE = (0.05, 0.4)  # seconds
TIMES = {"train": 4, "validation": 2, "test": 2}  # how often each clip is used
HISS = 1e-3  # pauses are not silent: standard deviation of their noise

Clip = tuple[int, npt.NDArray[np.int16]]


def read_clips(folder: Path) -> dict[tuple[str, str], list[Clip]]:
    """Return the clips of each side and speaker, by name."""
    clips = defaultdict(list)
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)", path.stem)
        if match is None:
            raise SystemExit(f"{path.name} is not named digit_speaker_n.wav")
        with wave.open(str(path)) as file:
            if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (RATE, 2, 1):
                raise SystemExit(f"{path.name} is not mono, 16 bits, 8 kHz")
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        digit, speaker, number = int(match[1]), match[2], int(match[3])
        side = "test" if speaker == HELD_OUT else "validation" if number % 10 == 0 else "train"
        clips[side, speaker].append((digit, samples))
    return clips


def utterances(clips: list[Clip], times: int, rng: np.random.Generator) -> Iterator[tuple[npt.NDArray[np.int16], str]]:
    """Yield samples and text of utterances, until each clip was in `times` of them; what is left at the end is left out."""
    for _ in range(times):
        order = rng.permutation(len(clips))
        while len(order) >= DIGITS[0]:
            count = min(int(rng.integers(DIGITS[0], DIGITS[1] + 1)), len(order))
            chosen, order = [clips[i] for i in order[:count]], order[count:]
            parts = [pause(rng)]
            for _, samples in chosen:
                parts += [samples, pause(rng)]
            yield np.concatenate(parts), " ".join(str(digit) for digit, _ in chosen)


def pause(rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Return a pause."""
    count = int(RATE * rng.uniform(*PAUSE))
    return (rng.normal(0, HISS, count) * 2**15).astype(np.int16)


def write_side(folder: Path, side: str, clips: dict[tuple[str, str], list[Clip]]) -> tuple[int, float]:
    """Write the utterances of a side and their list; return how many, and how many seconds they last."""
    rng = np.random.Generator(np.random.Philox(("train", "validation", "test").index(side)))
    (folder / side).mkdir(parents=True, exist_ok=True)
    rows, seconds = [], 0.0
    for speaker in sorted(speaker for one, speaker in clips if one == side):
        for number, (samples, text) in enumerate(utterances(clips[side, speaker], TIMES[side], rng)):
            name = f"{speaker}-{number:04d}.wav"
            with wave.open(str(folder / side / name), "wb") as file:
                file.setparams((1, 2, RATE, len(samples), "NONE", ""))
                file.writeframes(samples.tobytes())
            rows.append((name, text, speaker))
            seconds += len(samples) / RATE
    with (folder / side / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "text", "speaker"), *rows])
    return len(rows), seconds


def write_processor(folder: Path) -> None:
    """Write how sounds are prepared, and the ten figures, with the tokens that CTC and the spaces need."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files = {
        "config.json": {"model_type": "wav2vec2"},
        "vocab.json": {
            token: i for i, token in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", *map(str, range(10))))
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": "|",
            **special,
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "sampling_rate": RATE,
            "do_normalize": True,
            "return_attention_mask": True,
            "padding_value": 0.0,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Read the clips and write the sides."""
    asked = argparse.ArgumentParser(description="Utterances of spoken digits.")
    asked.add_argument("clips", type=Path)
    asked.add_argument("folder", type=Path)
    given = asked.parse_args()
    clips = read_clips(given.clips)
    for side in ("train", "validation", "test"):
        count, seconds = write_side(given.folder, side, clips)
        print(f"{side:<11}{count:>6,} utterances, {seconds / 60:.1f} minutes")
    write_processor(given.folder / "wav2vec2")


if __name__ == "__main__":
    main()
