"""The temperature of a classifier: fitted on validation rows, kept beside its checkpoint, applied where it is asked for.

Probabilities become softmax(log p / T), or of labels of which several may hold sigmoid(log(p / (1 - p)) / T): the same as if the
logits had been divided by T (Guo et al. 2017).

Shapes: N examples, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from plainformer.errors import CheckpointError, InputError, UsageError, opt
from plainformer.evaluate.calibration import fit_binary_temperature, fit_temperature
from plainformer.evaluate.kept import Kept
from plainformer.replacing import write_whole

FILE = "calibration.json"
LEAST, MOST = 1e-6, 1e6  # of a temperature: beyond, all probabilities are alike, or 0 and 1, in fp32 too
_LEAST = float(np.finfo(np.float32).tiny)  # below it fp32 has no logarithm of a probability


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it does to the rows that it was fitted on.

    Attributes:
        data, n: their name and number. checkpoint: digest of the model that it is of.
        before, after: calibration metrics of these rows, as they are and with the temperature.
        path: where it is kept; "" where it could not be written, and `reason` says why.
    """

    temperature: float
    data: str
    n: int
    checkpoint: str
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    path: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the temperature and its effect for people."""
        shown = [f"temperature {self.temperature:.4g}, fitted on {self.n:,} rows of {self.data}"]
        for name, value in self.before.items():
            after = self.after[name]
            if value is not None and after is not None:
                shown.append(f"{name.upper()} {value:.4f} before, {after:.4f} after")
        shown.append(f"kept in {near(self.path)}" if self.path else f"not kept: {self.reason}")
        return shown


def near(path: str) -> str:
    """Return a path as seen from the working directory, where it is in it."""
    here, found = Path.cwd(), Path(path)
    return str(found.relative_to(here)) if found.is_relative_to(here) else path


def tempered(chances: Sequence[float], temperature: float, *, together: bool = True) -> list[float]:
    """Return probabilities at a temperature; `together`: they are of one choice, and add up to 1."""
    if temperature == 1.0:
        return list(chances)
    return _tempered(np.asarray(chances, np.float64), temperature, together).tolist()


def _tempered(chances_C: Any, temperature: float, together: bool) -> Any:
    if together:
        logits_C = np.log(np.maximum(chances_C, _LEAST)) / temperature
        odds_C = np.exp(logits_C - logits_C.max())
        return odds_C / odds_C.sum()
    return 1 / (1 + np.exp(-_logits(chances_C) / temperature))


def _logits(chances: Any) -> Any:
    sure = np.clip(chances, _LEAST, 1 - 2**-24)
    return np.log(sure) - np.log1p(-sure)


def calibrate(kept: Kept, folder: Path | None) -> Calibration:
    """Fit the temperature of a kept evaluation's answers, and keep it in the checkpoint's folder.

    Raises:
        UsageError: the answers have no probabilities.
    """
    name, labels = kept.scorer.name, kept.info["scorer"]["settings"].get("labels")
    if name not in ("single-label", "multi-label", "choice"):
        raise UsageError(
            f"{kept.info['task']} gives no probabilities of labels to calibrate", f"leave out {opt('calibrate')}"
        )
    if kept.info["temperature"] != 1.0:
        raise UsageError("these answers have a temperature already", "calibrate an evaluation without one")
    answers = [(line["reference"], line["answer"]) for line in kept.predictions()]
    if not answers:
        raise InputError("there are no rows to calibrate on", "give validation rows")
    if name == "multi-label":
        targets = [[float(label in reference) for label in labels] for reference, _ in answers]
        temperature = fit_binary_temperature(_logits(np.array([one["probabilities"] for _, one in answers])), targets)
    else:
        temperature = _fitted(answers, labels)
    before = kept.scorer.measure(kept.rows)(np.ones(len(kept.rows)))
    changed = [_with(answer, temperature, name) for _, answer in answers]
    rows = np.array([kept.scorer.row(right, one) for (right, _), one in zip(answers, changed, strict=True)])
    after = kept.scorer.measure(rows)(np.ones(len(rows)))
    shown = [metric for metric in ("ece", "nll", "brier") if metric in before]
    found = Calibration(
        temperature,
        kept.info["data"]["name"],
        len(answers),
        kept.info["checkpoint"]["digest"],
        {metric: before[metric] for metric in shown},
        {metric: after[metric] for metric in shown},
    )
    return _kept(found, folder)


def _fitted(answers: Sequence[tuple[Any, Any]], labels: Sequence[str] | None) -> float:
    """Return the temperature of answers that choose one; questions may have different numbers of choices."""
    most = max(len(one["probabilities"]) for _, one in answers)
    logits_NC = np.full((len(answers), most), -1e4)  # of what a question lacks: no probability at any temperature
    for row, (_, one) in enumerate(answers):
        logits_NC[row, : len(one["probabilities"])] = np.log(np.maximum(one["probabilities"], _LEAST))
    places = {label: place for place, label in enumerate(labels or ())}
    return fit_temperature(logits_NC, [places.get(reference, reference) for reference, _ in answers])


def _with(answer: Mapping[str, Any], temperature: float, name: str) -> dict[str, Any]:
    chances = tempered(answer["probabilities"], temperature, together=name != "multi-label")
    return {**answer, "probabilities": chances}


def _kept(found: Calibration, folder: Path | None) -> Calibration:
    if folder is None:
        return replace(found, reason="the checkpoint is one file")
    path = folder / FILE
    try:
        write_whole(path, json.dumps(found.to_dict(), indent=1) + "\n")
    except OSError as error:
        return replace(found, reason=f"{folder} cannot be written: {error.strerror or error}")
    return replace(found, path=str(path))


def stored_temperature(folder: Path | None, digest: str) -> float:
    """Return the temperature that is kept beside a checkpoint.

    Raises:
        UsageError: there is none. CheckpointError: it is of other weights, or damaged.
    """
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        raise UsageError(
            "no temperature is stored beside this checkpoint", f"fit one with {opt('calibrate', ...)}, or give a number"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        value, owner = float(found["temperature"]), found["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", f"fit it again with {opt('calibrate', ...)}") from None
    if not LEAST <= value <= MOST:
        raise CheckpointError(f"{path} has the temperature {value}", f"fit it again with {opt('calibrate', ...)}")
    if owner != digest:
        raise CheckpointError(f"{path} is of other weights than these", f"fit it again with {opt('calibrate', ...)}")
    return value
