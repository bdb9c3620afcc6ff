"""A tiny GGUF file, written by the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, INNER = 32, 48
TOKENS = ["<pad>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "ab"]


def write_gguf(path: Path, **fields: Any) -> Path:
    """A tiny llama with a tokenizer of bytes; `fields` are further metadata of the architecture, whole numbers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    for name, value in fields.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    square, norm = (WIDTH, WIDTH), (WIDTH,)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": norm, "blk.0.attn_norm": norm, "blk.0.ffn_norm": norm}
    shapes |= {f"blk.0.attn_{name}": square for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
