"""On a card that is there: the constants of GPUs, and the peaks of a step and of an answer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from plainformer.measuring import measure
from plainformer.plan.devices import GIB, extras, find_device
from plainformer.planning import plan
from tests.support.cli import ENVIRONMENT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# What a process takes of the card before its first tensor, with the kernels of one product: bytes.
CONTEXT = """
import torch
_, total = torch.cuda.mem_get_info()
x = torch.rand(64, 64, device="cuda")
(x @ x).sum().item()
print(total - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved())
"""


def test_the_context_is_about_what_the_constant_says() -> None:
    done = subprocess.run([sys.executable, "-c", CONTEXT], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    with_kernels = int(done.stdout)
    if with_kernels > 4 * GIB:
        pytest.skip("other processes use the card")
    assert extras().context / 4 < with_kernels < extras().context * 3


def test_the_memory_of_a_known_card() -> None:
    name = torch.cuda.get_device_name()
    total = torch.cuda.get_device_properties(0).total_memory
    sizes = []
    for word in ("H100", "H200", "A100", "T4", "L4", "V100", "4090", "3090"):
        for size in (16, 24, 32, 40, 80, 141):
            if word in name and abs(total / 1e9 / size - 1) < 0.15:
                sizes.append(find_device(f"{'RTX ' if word.isdigit() else ''}{word} {size}GB"))
    if not sizes:
        pytest.skip(f"{name} is not in the table")
    assert any(abs(one.memory / total - 1) < 0.03 for one in sizes)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"purpose": "training", "batch": 4, "length": 256, "padded": False}, 0.05),
        ({"purpose": "training", "batch": 4, "length": 256, "padded": False, "precision": "bf16"}, 0.05),
        ({"purpose": "training", "batch": 4, "length": 256, "padded": False, "checkpointing": "all"}, 0.05),
        ({"dtype": "bf16", "batch": 4, "prompt": 512, "new": 16, "padded": False}, 0.05),
    ],
    ids=["fp32", "bf16", "checkpointing", "inference"],
)
def test_peaks(options: dict[str, Any], bound: float) -> None:
    made = plan(params="135M", memory="16GB", **options)
    assert abs(measure(made, "cuda").difference) < bound
