"""What a product gives a row does not depend, to the last bit, on how many rows there are, or on what is in the others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from plainformer.model.fast import compiled
from plainformer.model.fast.blocks import Blocks
from plainformer.model.fast.packed import BlockWeight, CompiledWeight, Int4Weight, Int8Weight, KernelWeight
from plainformer.model.fast.records import ACTIVATION_CODES
from tests.support import ROOT

pytestmark = pytest.mark.skipif(compiled.kernels() is None, reason="no Numba here")

SIZES = [
    1,
    3,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    48,
    63,
    64,
    65,
    100,
    127,
    129,
    255,
    256,
    500,
    511,
    576,
    769,
    1023,
    1536,
    2049,
]
LAYOUTS = {
    "fp32": CompiledWeight,
    "int8": Int8Weight,
    "int4": Int4Weight,
    "mixed": lambda weights, bias: BlockWeight(
        [Int4Weight.rounded(weights[0][:5]), Blocks.plain(weights[0][5:])], bias
    ),
}


def products(layout: str, size: int) -> tuple[KernelWeight, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    weight, bias = torch.randn(7, size, generator=generator), torch.randn(7, generator=generator)
    x_R1I = torch.randn(compiled.FEW_ROWS, 1, size, generator=generator)  # one position: a decoding step
    return LAYOUTS[layout]([weight], bias), x_R1I  # type: ignore[operator]


def differing() -> list[tuple[str, int, int]]:
    """Layouts, sizes and numbers of rows with which some row gets other bits than alone."""
    found = []
    for layout in LAYOUTS:
        for size in SIZES:
            product, x_R1I = products(layout, size)
            alone_R1O = torch.cat([product(x[None]) for x in x_R1I])
            for rows in range(1, compiled.FEW_ROWS + 1):
                if not torch.equal(product(x_R1I[:rows]), alone_R1O[:rows]):
                    found.append((layout, size, rows))
    return found + [(name, 33, rows) for name, rows in differing_activations()]


def differing_activations() -> list[tuple[str, int]]:
    found, module = [], compiled.kernels()
    assert module is not None
    product, x_R1I = products("fp32", 33)

    def run(x_R1I: torch.Tensor, code: int) -> torch.Tensor:
        y_RO = torch.empty(len(x_R1I), 7)
        module.multiply(product.matrix.address, len(x_R1I), x_R1I.data_ptr(), y_RO.data_ptr(), code, 5)
        return y_RO

    for name, code in ACTIVATION_CODES.items():
        alone_RO = torch.cat([run(x[None], code) for x in x_R1I])
        found += [(name, rows) for rows in range(1, 9) if not torch.equal(run(x_R1I[:rows], code), alone_RO[:rows])]
    return found


def test_rows_do_not_depend_on_their_number() -> None:
    assert not differing()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nor_on_their_neighbours(layout: str) -> None:
    product, x_R1I = products(layout, 100)
    before_R1O, others = product(x_R1I[:7]), x_R1I[:7].clone()
    others[torch.arange(7) != 5] *= 1e6
    others[0, 0, 3] = torch.nan
    assert torch.equal(product(others)[5], before_R1O[5])


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["znver3", "x86-64"])
def test_on_an_older_processor(processor: str) -> None:
    """Whose instructions for several numbers, and so the loops, are others: AVX2, or next to none."""
    if processor not in _known():
        pytest.skip("kernels are not for this kind of processor")
    script = "from tests.model.fast.test_rows import differing; print(differing())"
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": _known()[processor]}
    environment["PLAINFORMER_KERNELS"] = "wait"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def _known() -> dict[str, str]:
    import llvmlite.binding as llvm

    if not llvm.get_process_triple().startswith("x86_64"):
        return {}
    return {"x86-64": "", "znver3": "+avx,+avx2,+fma,+f16c,+sse4.2,+popcnt,+bmi,+bmi2"}
