"""A tiny GGUF file, written by the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, INNER = 32, 48
TOKENS = ["<pad>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "ab"]


def write_gguf(path: Path, width: int = WIDTH, inner: int = INNER, **fields: Any) -> Path:
    """A tiny llama with a tokenizer of bytes; `fields` are further metadata of the architecture, whole numbers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    for name, value in fields.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    square, norm = (width, width), (width,)
    shapes = {"token_embd": (len(TOKENS), width), "output_norm": norm, "blk.0.attn_norm": norm, "blk.0.ffn_norm": norm}
    shapes |= {f"blk.0.attn_{name}": square for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner)}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_as(source: Path, target: Path, kind: str) -> None:
    """Write the same model with matrices of another type; of types that the package cannot make, in blocks of zeros."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            value, types = field.contents(), field.types
            if types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(field.name, value)
            else:
                writer.add_key_value(field.name, value, types[0])
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        numbers, bytes_ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        whole = len(shape) > 1 and shape[-1] % numbers == 0
        type_ = gguf.GGMLQuantizationType[kind if whole else "F32"]
        data = tensor.data.reshape(shape)
        try:
            made = gguf.quantize(data, type_)
        except NotImplementedError:
            made = np.zeros((*shape[:-1], shape[-1] // numbers * bytes_), np.uint8)
        writer.add_tensor(tensor.name, made, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
