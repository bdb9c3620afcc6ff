"""The largest batch that is said to fit runs where the system enforces that limit, and the next one does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plainformer.families import config_from_dict
from plainformer.plan.devices import of_size
from plainformer.plan.planned import planned
from plainformer.plan.workload import Workload
from tests.support import ROOT

RAW = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=8000, hidden_size=64, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=128, tie_word_embeddings=True,
)  # fmt: skip
LENGTH, ROWS = 256, 6

# One process: weights and the optimizer's states are there, then a limit on what more can be taken (RLIMIT_DATA).
PROGRAM = """
import json, resource, sys
import torch
from plainformer.config.learning import OptimizerConfig
from plainformer.families import config_from_dict
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.train.losses import word_losses
from plainformer.train.optimizer import make_optimizer

raw, length, rows, room = json.loads(sys.argv[1])
torch.set_num_threads(1)
model = initialise(Transformer(config_from_dict(raw))).train()
optimizer = make_optimizer(model, OptimizerConfig(), 1e-4)

def step(rows, length):
    optimizer.zero_grad(set_to_none=True)
    ids = torch.randint(1, 8000, (rows, length))
    states = model.states(input_ids=ids).last_hidden_state.flatten(0, 1)
    word_losses(model, states, ids.flatten(), chunk=0).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def taken():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

def fits(run):
    try:
        run()
        return True
    except (RuntimeError, MemoryError) as error:
        assert isinstance(error, MemoryError) or "allocate memory" in str(error), error
        return False

for _ in range(2):
    step(1, 16)
resource.setrlimit(resource.RLIMIT_DATA, (taken() + room, resource.RLIM_INFINITY))
enforced = not fits(lambda: torch.empty(room + (64 << 20), dtype=torch.uint8))
print(json.dumps([enforced, fits(lambda: step(rows, length)), fits(lambda: step(rows + 1, length))]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit is Linux's")
def test_the_largest_batch_runs_and_the_next_does_not() -> None:
    plan = planned(config_from_dict(RAW), Workload(purpose="training", length=LENGTH, padded=False, loss_chunk=0))
    here, further = (plan.with_workload(batch=rows) for rows in (ROWS, ROWS + 1))
    assert further.peak - here.peak > 10 << 20  # what a process takes for itself is much less than a row
    memory = (here.peak + further.peak) // 2
    limited = planned(plan.config, plan.workload, device=of_size(memory))
    assert limited.largest_batch == ROWS
    kept = sum(limited.parts["clip"][name] for name in ("weights", "optimizer"))
    # Each tensor that is freed goes back to the system at once, so that the limit is one on what is alive.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT / "src")}
    asked = json.dumps([RAW, LENGTH, ROWS, memory - kept])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, asked], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    enforced, runs, next_runs = json.loads(done.stdout.splitlines()[-1])
    if not enforced:
        pytest.skip("this system does not enforce RLIMIT_DATA")
    assert runs and not next_runs
