"""Pictures and sounds, in memory and as files."""

from __future__ import annotations

import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

RATE = 16_000


def clip(samples: int, seed: int = 0) -> dict[str, Any]:
    """Noise, as what a sound file holds."""
    samples_T = np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1
    return {"array": samples_T, "sampling_rate": RATE}


CLIPS = [clip(3000), clip(4100, 1), clip(1000, 2)]
SECONDS = [clip(16_000, 3), clip(9_000, 4)]


def noise(seconds: float, seed: int = 0) -> dict[str, Any]:
    """Tones that come and go in noise of changing loudness."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    time = np.arange(samples) / RATE
    pitch = 200 + 150 * np.sin(2 * np.pi * 0.21 * time + generator.uniform(0, 6))
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) * (np.sin(2 * np.pi * 0.13 * time) > 0)
    tone = 0.3 * tone + 0.05 * generator.standard_normal(samples) * (1 + np.sin(2 * np.pi * 0.05 * time))
    return {"array": tone.astype(np.float32), "sampling_rate": RATE}


def pictures() -> list[Any]:
    """Two pictures of noise, of different sizes."""
    from PIL import Image

    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 30), (32, 32))]


def write_png(path: Path, width: int = 40, height: int = 30) -> Path:
    """A picture with a gradient."""
    from PIL import Image

    picture = Image.new("RGB", (width, height))
    picture.putdata([(x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256) for y in range(height) for x in range(width)])
    picture.save(path)
    return path


def write_wav(path: Path, samples: int = 4000, rate: int = 16000) -> Path:
    """A tone that rises."""
    time = torch.arange(samples) / rate
    values = (torch.sin(2 * torch.pi * (200 + 2000 * time) * time) * 20000).to(torch.int16).tolist()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{samples}h", *values))
    return path
