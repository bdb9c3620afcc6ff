"""What robust losses and trimming do where labels are wrong: SST-2 with a share of the labels to learn from flipped.

    python benchmarks/regularisation.py --data data/sst2 --model all-minilm-l6-v2 --device cuda --out noisy-labels

For each seed, that share of the sentences of train.tsv gets the other label; a tenth of them, flips included, is what
checkpoints are chosen by, so that nothing but the last line of each run looks at a clean label. Plain cross entropy,
generalised cross entropy and trimming then learn from the same rows in the same order, and answer dev.tsv, which is clean.
An example's difference is the mean over seeds; its sign is flipped at random for p (10,000 times), and Holm's method
corrects for the number of comparisons. Written to --out: `results.json`, and a table on the screen.

The hyper-parameters were set before anything was run: q = 0.7 is the paper's; trimming leaves out less than is wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import plainformer as pf
from plainformer.training import prepare

NAMES = ("negative", "positive")
VALIDATION, RESAMPLES = 0.1, 10_000
Rows = list[tuple[str, int]]


def main() -> None:
    asked = arguments()
    train, dev = (read(asked.data / name, limit) for name, limit in (("train.tsv", asked.limit), ("dev.tsv", None)))
    asked.out.mkdir(parents=True, exist_ok=True)
    arms = {
        "cross entropy": {},
        f"gce, q = {asked.q:g}": {"kind": "gce", "q": asked.q},
        f"trimming, {asked.trim:g}": {"trim": asked.trim, "trim_after": asked.trim_after},
    }
    runs = []
    for seed in range(asked.seeds):
        wrong = write_rows(asked.out, train, asked.flip, seed)
        for arm, loss in arms.items():
            runs.append(one_run(asked, arm, loss, seed, wrong, dev))
            print(said(runs[-1]), flush=True)
    found = {
        "data": {"train": len(train), "dev": len(dev), "flipped": asked.flip},
        "options": {name: str(value) for name, value in vars(asked).items()},
        "runs": [{name: value for name, value in run.items() if name != "right"} for run in runs],
        "comparisons": {which: compared(runs, list(arms), which) for which in ("last", "best")},
    }
    (asked.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for which, rows in found["comparisons"].items():
        print(f"\n{which} checkpoint, {len(dev)} clean sentences, {asked.seeds} seeds\n\n" + table(rows))


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with train.tsv and dev.tsv: text, tab, 0 or 1")
    add("--model", default="all-minilm-l6-v2", help="checkpoint to start from: folder or bundled name")
    add("--out", type=Path, default=Path("noisy-labels"), help="folder for results.json")
    add("--device", default="cpu")
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, default=6)
    add("--batch", type=int, default=32)
    add("--learning-rate", type=float, default=1e-4)
    add("--flip", type=float, default=0.4, help="share of the labels to learn from that are flipped")
    add("--q", type=float, default=0.7)
    add("--trim", type=float, default=0.3)
    add("--trim-after", type=float, default=1.0)
    add("--limit", type=int, default=None, help="use only this many rows of train.tsv")
    return parser.parse_args()


def read(path: Path, limit: int | None) -> Rows:
    """Return texts with their labels."""
    lines = path.read_text(encoding="utf-8").splitlines()[:limit]
    return [(text, int(label)) for text, _, label in (line.rpartition("\t") for line in lines)]


def write_rows(folder: Path, rows: Rows, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Write the rows of a seed, noisy-train.jsonl and noisy-validation.jsonl; return which of the former are flipped."""
    draws = np.random.Generator(np.random.Philox(seed))
    flipped = np.zeros(len(rows), dtype=bool)
    flipped[draws.permutation(len(rows))[: round(share * len(rows))]] = True
    order = draws.permutation(len(rows))
    held = round(VALIDATION * len(rows))
    for name, chosen in (("validation", order[:held]), ("train", order[held:])):
        lines = [
            json.dumps({"text": rows[i][0], "label": NAMES[rows[i][1] ^ int(flipped[i])]}, ensure_ascii=False)
            for i in chosen.tolist()
        ]
        (folder / f"noisy-{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return flipped[order[held:]]


def one_run(
    asked: Any, arm: str, loss: dict[str, Any], seed: int, wrong: npt.NDArray[np.bool_], dev: Rows
) -> dict[str, Any]:
    """Train, answer the clean sentences with the last and with the best checkpoint, and delete the run."""
    folder = asked.out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    config = {
        "objective": "text-classification",
        "folder": str(folder),
        "model": {"ref": asked.model},
        "data": {
            "train": {"path": str(asked.out / "noisy-train.jsonl")},
            "validation": {"path": str(asked.out / "noisy-validation.jsonl")},
            "duplicates": "allow",  # short phrases come several times; dropping some would depend on their labels
            "labels": list(NAMES),
            "cache": str(asked.out / "cache"),
        },
        "batches": {"size": asked.batch},
        "length": {"epochs": asked.epochs},
        "optimizer": {"learning_rate": asked.learning_rate},
        "loss": loss,
        "evaluate": {"patience": 0, "metric": "accuracy", "batch_size": 128},
        "checkpoints": {"every": 10**6},
        "device": asked.device,
        "seed": seed,
    }
    began = time.perf_counter()
    result = pf.train(config)
    seconds = time.perf_counter() - began
    right = {which: answered(folder / which, dev, asked.device) for which in ("last", "best")}
    found = {
        "arm": arm,
        "seed": seed,
        "seconds": round(seconds, 1),
        "best_step": (result.best or {}).get("step"),
        "noisy_validation": (result.best or {}).get("value"),
        "accuracy": {which: float(values.mean()) for which, values in right.items()},
        "trimmed": left_out(folder, prepare(config).examples.rows, wrong),
        "right": right,
    }
    shutil.rmtree(folder)
    return found


def answered(folder: Path, rows: Rows, device: str) -> npt.NDArray[np.float64]:
    """Return whether each answer of a checkpoint is right."""
    task = pf.load(folder, device=device)
    answers = task([text for text, _ in rows], truncate=True)
    return np.array([answer.label == NAMES[label] for answer, (_, label) in zip(answers, rows, strict=True)], float)


def left_out(folder: Path, row_of: npt.NDArray[np.integer], wrong: npt.NDArray[np.bool_]) -> dict[str, float] | None:
    """Return how many examples were left out in all, and the share of those whose labels were flipped."""
    path = folder / "trimmed.jsonl"
    if not path.exists():
        return None
    steps = [json.loads(line)["examples"] for line in path.read_text(encoding="utf-8").splitlines()]
    flipped = wrong[row_of[np.concatenate(steps)]]
    tail = wrong[row_of[np.concatenate(steps[-(len(steps) // 5 or 1) :])]]
    return {
        "examples": len(flipped),
        "flipped": float(flipped.mean()),
        "flipped_in_the_last_fifth": float(tail.mean()),
        "flipped_of_all": float(wrong.mean()),
    }


def compared(runs: Sequence[dict[str, Any]], arms: list[str], which: str) -> list[dict[str, Any]]:
    """Return each arm's accuracy and its difference from the first, with an interval over sentences and p."""
    right = {arm: np.mean([run["right"][which] for run in runs if run["arm"] == arm], axis=0) for arm in arms}
    rows = []
    for arm in arms:
        each = [run["accuracy"][which] for run in runs if run["arm"] == arm]
        difference = right[arm] - right[arms[0]]
        rows.append({"arm": arm, "accuracy": float(right[arm].mean()), "each": each, **tested(difference)})
    order = sorted(rows[1:], key=lambda row: row["p"])
    worst = 0.0
    for place, row in enumerate(order):  # Holm (1979)
        worst = max(worst, min(1.0, row["p"] * (len(order) - place)))
        row["p_holm"] = worst
    return rows


def tested(difference: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean difference, its 95 % interval (bootstrap over sentences), and p of random signs, two-sided."""
    draws = np.random.Generator(np.random.Philox(0))
    count, mean = len(difference), difference.mean()
    signs = draws.integers(0, 2, (RESAMPLES, count), dtype=np.int8) * 2 - 1
    as_far = np.abs(signs @ difference) >= abs(mean * count) - 1e-9
    weights = draws.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    low, high = np.percentile(weights @ difference / count, [2.5, 97.5])
    return {
        "difference": float(mean),
        "interval": [float(low), float(high)],
        "p": (1 + int(as_far.sum())) / (RESAMPLES + 1),
    }


def said(run: dict[str, Any]) -> str:
    trimmed = run["trimmed"]
    more = f", {trimmed['flipped']:.1%} of {trimmed['examples']:,} left out were flipped" if trimmed else ""
    accuracy = ", ".join(f"{which} {value:.2%}" for which, value in run["accuracy"].items())
    return f"seed {run['seed']}, {run['arm']}: {accuracy}{more} ({run['seconds']} s)"


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| loss | accuracy | each seed | difference (95 %) | p (Holm) |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        each = ", ".join(f"{value:.1%}" for value in row["each"])
        low, high = row["interval"]
        told = (
            f"{row['difference']:+.1%} ({low:+.1%} to {high:+.1%}) | {row['p_holm']:.4f}" if "p_holm" in row else " | "
        )
        lines.append(f"| {row['arm']} | {row['accuracy']:.1%} | {each} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
