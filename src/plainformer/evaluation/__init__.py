"""`evaluate`: a checkpoint's answers to rows, scored. It sees all parts of the library, as `training` does.

data (rows → columns → which they are) → kept already? → the task's own encode → predict → decode → scorer → a kept evaluation
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from plainformer.config.loading import LoadOptions
from plainformer.config.training import SourceConfig
from plainformer.config.values import no_effect
from plainformer.errors import PlainformerError, UsageError, opt
from plainformer.evaluate.kept import Kept
from plainformer.evaluate.ledger import Ledger, Looks, now
from plainformer.evaluation.examine import Examined, Request, examined
from plainformer.evaluation.report import Evaluation, report_of
from plainformer.evaluation.runs import write_cards
from plainformer.evaluation.temperature import Calibration
from plainformer.evaluation.temperature import calibrate as fit
from plainformer.inputs.files import make_folder
from plainformer.parallel.inference import ranks_for
from plainformer.parallel.mesh import Mesh

__all__ = ["Calibration", "Evaluation", "evaluate"]
_LOADS = {f.name for f in fields(LoadOptions)}
_SOURCE = {f.name for f in fields(SourceConfig)} - {"path"}
PLOTS = "plots"


def evaluate(
    ref: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    side: str | None = None,
    test: bool = False,
    look_again: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    unit: str | None = None,
    output: str | os.PathLike[str] | None = None,
    again: bool = False,
    calibrate: str | os.PathLike[str] | None = None,
    temperature: float | str | None = None,
    metric: Mapping[str, Any] | None = None,
    plots: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Evaluation:
    """Return the metrics of a checkpoint's answers to rows, with intervals. What was answered before is read, not run again.

    Args:
        ref: as `load` takes it, or the folder of a run: its best model, or its last where none is best.
        data: rows in any format that training reads; None: those of a side of the run, with its columns, labels and lengths.
        side: "validation" (the default), "test" or "train" of a run.
        test: the rows are a test set: the look is written into the user's ledger, and another one with another model or other
            options is refused, unless `look_again` gives a reason, which every report then shows.
        columns: the task's name of a column → the data's: a name, or a number. unit: a column whose equal values are one
            unit of intervals (speaker), or a part of it, "file:folder"; default: the paragraph of questions, else each row.
        output: folder that keeps it; default: the run's, else the user's cache. again: run even what is kept.
        calibrate: rows to fit a temperature on, which is kept beside the checkpoint; "validation" of a run.
        temperature: a number, or "stored": divides a classifier's logits. Of a task that writes, its sampling temperature.
        metric: settings of the scores: {"normalize": "words"} of transcripts; main, tokenize, word_order, stem of texts.
        plots: draw pictures, and a page of answers with the wrong ones on top, into the evaluation's folder.
        on_progress: is told how many of how many rows are answered.
        mesh: of processes that share the work: all call this alike, copies of the model take rows in turn, and the first writes
            and keeps; all return the same. None: this process is alone.
        options: of the data (format, name, split, header, limit), of `load` (task, adapter, dtype ...), of the task.
    Raises:
        UsageError: data, columns or options that cannot be; a second look at a test set.
    """
    parted = _parted(options)
    request = Request(
        ref=os.fspath(ref),
        data=_text(data),
        side=side,
        columns=dict(columns or {}),
        unit=unit,
        output=None if output is None else _folder(output),
        again=again,
        temperature=temperature,
        metric=dict(metric or {}),
        test=test,
        reason=_reason(look_again),
        progress=on_progress or (lambda done, total: None),
        mesh=mesh or _sharing(parted["load"]),
        **parted,
    )
    return _evaluated(request, None if calibrate is None else os.fspath(calibrate), plots)


def _evaluated(request: Request, calibrate: str | None, plots: bool) -> Evaluation:
    """Evaluate as asked; `calibrate`: rows to fit a temperature on before."""
    fitted = None
    if calibrate is not None:
        fitted, request = _calibrated(request, calibrate)
    found = replace(_measured(request), calibration=fitted)
    if plots:
        request.ranks.alone(lambda: draw(Kept(found.folder)))
    return found


def _sharing(load: Mapping[str, Any]) -> Mesh | None:
    """Return the processes that share one model, if loading is to divide it."""
    asked = LoadOptions.of(load, "load")
    return ranks_for(asked.tp, asked.pp, asked.device) if asked.tp * asked.pp > 1 else None


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _folder(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise UsageError(f"{opt('output', text)} is not the name of a folder", "give a folder")
    return Path(text)


def _parted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by whom they are for: the source, loading, the task."""
    found: dict[str, dict[str, Any]] = {"source": {}, "load": {}, "options": {}}
    for name, value in options.items():
        kind = "source" if name in _SOURCE else "load" if name in _LOADS else "options"
        found[kind][name] = value
    task = found["options"].pop("task", None)
    return {**found, "task": task}


def draw(kept: Kept) -> Path:
    """Draw pictures of an evaluation, and a page of its answers, into its folder; return where they are.

    Raises:
        MissingDependencyError: matplotlib. PlainformerError: a file cannot be written.
    """
    from plainformer.evaluate.examples import to_html
    from plainformer.evaluate.plots import draw_evaluation

    folder = make_folder(kept.folder / PLOTS)
    draw_evaluation(kept, folder)
    path = folder / "answers.html"
    try:
        path.write_text(to_html(kept), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise PlainformerError(what, f"give {opt('output')} another folder") from None
    return folder


def _reason(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise UsageError(f"{opt('look_again', text)} says nothing", "say why the test set has to be looked at again")
    return text


def _measured(request: Request) -> Evaluation:
    """Evaluate, and write down a look at a test set before anybody sees its metrics."""
    ledger = Ledger()
    found = examined(request, ledger)
    no_effect(
        request.reason is not None and not found.is_test, "look_again", "on rows that are not known as a test set"
    )
    return request.ranks.alone(lambda: _reported(found, ledger, request.reason))


def _reported(found: Examined, ledger: Ledger, reason: str | None) -> Evaluation:
    kept, looks = found.kept, Looks()
    if found.is_test:
        metrics = {name: value["value"] for name, value in kept.info["metrics"].items() if "/" not in name}
        looks = ledger.add(replace(found.look, metrics=metrics, time=now()), reason)
        if found.run is not None:
            write_cards(found.run, looks)
    return report_of(kept, looks, read=found.read)


def _calibrated(request: Request, data: str) -> tuple[Calibration, Request]:
    """Fit the temperature on other rows; return it, and what is evaluated then: those rows where nothing else is said."""
    if data == "test" or (request.is_run and data == "train"):
        raise UsageError(f"{opt('calibrate', data)}: a temperature is fitted on validation rows", "give those")
    side = data if request.is_run and data == "validation" else None
    own = replace(
        request, data=None if side else data, side=side, test=False, reason=None, temperature=None, output=None
    )
    ledger = Ledger()
    found = examined(own, ledger)
    if found.is_test:
        what = f"{opt('calibrate', data)}: these rows are a test set, which was looked at"
        raise UsageError(what, "a temperature is fitted on validation rows")
    fitted = request.ranks.alone(lambda: fit(found.kept, found.beside))
    if request.data is None and request.side is None and not request.is_run:
        request = replace(request, data=data)
    return fitted, request


def kept_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """Return the report of an evaluation that is kept in a folder."""
    kept = Kept(folder)
    looks = Ledger().looks(kept.info["data"]["identity"]) if kept.info["data"].get("test") else Looks()
    return report_of(kept, looks, read=True)
