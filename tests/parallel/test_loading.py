"""What a rank has in memory while it loads its share of a model: the share, and little more."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.checkpoint.formats.source import TensorSource
from plainformer.config.layout import Layout
from plainformer.families import config_from_dict
from plainformer.loading import load_model
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.parallel.apply import parallelize
from plainformer.parallel.gather import local_of
from plainformer.parallel.mesh import start
from plainformer.parallel.tensor import part_of
from plainformer.saving import save_model
from tests.support.ranks import run_ranks

MB = 1 << 20
WORLD, MORE = 4, 16 * MB  # beside the share: the largest tensor (8 MB), and a layer's own rows once more
LAYOUTS = (Layout(dp=4, zero=3), Layout(dp=4, zero=2), Layout(dp=2, tp=2, zero=3), Layout(tp=4), Layout(pp=4))
LLAMA: dict[str, Any] = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=2003,
    hidden_size=1024,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=8,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def resident(what: str) -> int:
    """Bytes of this process that are in memory, by Linux: "VmRSS" now, "VmHWM" at most since `forget`."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def most_while_loading(rank: int, folder: Path) -> list[tuple[str, int, int]]:
    """Of each layout, the most bytes while a model is loaded and divided, and those of what is here then."""
    found = []
    for layout in (LAYOUTS[0], *LAYOUTS):  # the first time imports what it takes
        mesh = start(layout)
        for name in ("fp32", "bf16") if layout == LAYOUTS[0] else ("fp32",):
            before = resident("VmRSS")
            forget()
            model = load_model(folder / name, make=part_of(mesh), purpose="train")
            gradients = parallelize(model, mesh)
            most, own = resident("VmHWM") - before, sum(local_of(p).nbytes for p in model.parameters())
            found.append((f"{layout}, {name}, rank {rank}", most, own))
            del model, gradients
    return [*found[2:], ("pages of the file", *_pages_read(folder / "fp32"))]


def _pages_read(folder: Path) -> tuple[int, int]:
    """How many bytes of the file a ZeRO rank looks at, and how many are its own."""
    mesh = start(LAYOUTS[0])
    TensorSource.release = lambda self: None  # type: ignore[method-assign]  # in a process of this test alone
    before = resident("RssFile")
    model = load_model(folder, make=part_of(mesh), purpose="train")
    own = sum(p.nbytes for p in model.parameters()) // WORLD
    return resident("RssFile") - before, own


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what was in memory")
def test_a_rank_has_little_more_than_its_share(tmp_path: Path) -> None:
    model = initialise(Transformer(config_from_dict(LLAMA)))
    whole = sum(p.nbytes for p in model.parameters())
    assert whole > 200 * MB
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        save_model(model.to(dtype), tmp_path / name)
    del model
    for said, most, own in chain.from_iterable(run_ranks(most_while_loading, WORLD, tmp_path)):
        assert own < 0.28 * whole  # two stages of a pipeline have the table
        assert most < own + MORE, (said, most / MB, own / MB)
