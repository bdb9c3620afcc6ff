"""`quantization_config`: which quantised weights are read, and how large a block of one scale is.

Eight-bit weights beside their scales are read, as numbers that the scales multiply: DeepSeek's and Qwen3's fp8
(`weight_scale_inv`, one for each block), compressed-tensors' and ModelOpt's (`weight_scale`, one for each row, block or
tensor). Everything else packs its numbers in a way of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plainformer.checkpoint.account import UNQUANTISED
from plainformer.config.checks import shown
from plainformer.errors import CheckpointError

_FIELDS = ("quantization_config", "compression_config")  # the second is compressed-tensors' older name
_PLAIN_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "dense")


def refuse_quantised(raw: Mapping[str, Any]) -> None:
    """Refuse weights that are quantised in a way that is not read, naming the method. Raises CheckpointError."""
    for name in _FIELDS:
        stated = raw.get(name)
        if stated is None:
            continue
        if not isinstance(stated, dict):
            raise CheckpointError(f"{name}={shown(stated)} is not an object", "check it against the model card")
        method, fits = _method(stated)
        if fits:
            continue
        fix = UNQUANTISED
        if method == "bitsandbytes":  # which quantises while it loads, and leaves its mark in merged models
            fix += f"; where its weights are not quantised, remove {name} from config.json"
        raise CheckpointError(f"{name}: weights quantised by {method} are not supported", fix)


def _method(stated: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the method's name and whether its weights are read."""
    method = stated.get("quant_method")
    if method is None and (stated.get("load_in_4bit") or stated.get("load_in_8bit")):
        method = "bitsandbytes"
    if method in ("fp8", "fbgemm_fp8"):
        return method, True
    if method == "modelopt":
        algorithm = stated.get("quant_algo")
        return f"modelopt ({shown(algorithm)})", algorithm == "FP8"
    if method == "compressed-tensors":
        layout = stated.get("format", "dense")
        return f"compressed-tensors ({shown(layout)})", layout in _PLAIN_FORMATS and not _is_sparse(stated)
    return str(method)[:80] if isinstance(method, str) else f"a method that is not named ({shown(method)})", False


def _is_sparse(stated: Mapping[str, Any]) -> bool:
    sparsity = stated.get("sparsity_config")
    return isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense"


def block_size(raw: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return rows and columns of a block that shares a scale; None where the configuration does not say."""
    stated: dict[str, Any] = next((raw[name] for name in _FIELDS if isinstance(raw.get(name), dict)), {})
    groups = stated.get("config_groups")
    weights = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    found = [stated.get("weight_block_size"), *(w.get("block_structure") for w in weights if isinstance(w, dict))]
    for size in found:
        if isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
            return size[0], size[1]
    return None
