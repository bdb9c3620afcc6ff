"""How long a plan takes: `python -m benchmarks.plan`. It is asked for while people type, and hundreds of times by `--fit`.

The least of many runs counts: everything else is what the machine did besides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from plainformer.plan.asked import LayoutOptions
from plainformer.plan.fit import fit_layout
from plainformer.plan.planned import Plan
from plainformer.planning import plan

ASKED: dict[str, dict[str, Any]] = {
    "7B, inference": {},
    "7B, training": {"purpose": "training"},
    "7B, training, checkpointing": {"purpose": "training", "checkpointing": "all"},
    "7B, training on 64 devices, ZeRO-3": {"purpose": "training", "dp": 64, "zero": 3},
    "7B, training on 64 devices, tp 8, pp 8": {"purpose": "training", "tp": 8, "pp": 8, "accumulate": 16},
}


def least(run: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest of some runs, after one that fills caches."""
    run()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Print milliseconds."""
    for name, options in ASKED.items():
        seconds = least(lambda options=options: plan(params="7B", **options), 20)  # type: ignore[misc]
        print(f"{name:45} {1000 * seconds:8.1f} ms")
    made: Plan = plan(params="7B", purpose="training", device="H100")
    print(f"{'the largest batch':45} {1000 * least(lambda: made.with_workload().largest_batch, 3):8.1f} ms")
    print(f"{'the cheapest layout':45} {1000 * least(lambda: fit_layout(made, LayoutOptions()), 2):8.1f} ms")


if __name__ == "__main__":
    main()
