"""Weight files with one interface for reading: safetensors, PyTorch `.bin` (data only, no code), GGUF.

Nothing in here trusts a file: every count, size and offset is checked against the file's real size before memory is
taken for it, and nothing that a file contains is ever executed. What cannot be read is a `CheckpointError`.
Importing this package imports neither torch nor any of the format libraries.
"""

from __future__ import annotations

from plainformer.checkpoint.formats.gguf_file import open_gguf
from plainformer.checkpoint.formats.opening import open_weights
from plainformer.checkpoint.formats.safetensors_file import open_safetensors, write_safetensors
from plainformer.checkpoint.formats.source import TensorSource, find_weights, read_json_object, read_json_objects
from plainformer.checkpoint.formats.torch_file import open_torch

__all__ = [
    "TensorSource",
    "find_weights",
    "open_gguf",
    "open_safetensors",
    "open_torch",
    "open_weights",
    "read_json_object",
    "read_json_objects",
    "write_safetensors",
]
