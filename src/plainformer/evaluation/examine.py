"""From a request to a kept evaluation: the one that is there, or a new one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import plainformer
from plainformer.checkpoint.opened import AdaptedCheckpoint
from plainformer.checkpoint.run_folders import series_of
from plainformer.config import ModelConfig
from plainformer.config.loading import LoadOptions
from plainformer.config.options import specs
from plainformer.config.training import TrainConfig
from plainformer.config.values import no_effect
from plainformer.data.columns import LOOKED_AT
from plainformer.data.counts import Counts
from plainformer.errors import PlainformerError, UsageError, did_you_mean, opt
from plainformer.evaluate.base import Scorer, plain_values
from plainformer.evaluate.intervals import plain
from plainformer.evaluate.kept import Keeper, Kept, NoKeeper, is_kept
from plainformer.evaluate.ledger import LEVEL, Ledger, Look
from plainformer.evaluate.scorers import make_scorer
from plainformer.evaluation.exams import exam_class
from plainformer.evaluation.exams.base import Exam
from plainformer.evaluation.identity import checkpoint_digest, digest_of, plain_options
from plainformer.evaluation.learnt import learnt_from
from plainformer.evaluation.report import measured
from plainformer.evaluation.runs import RunRef, check_output, run_of
from plainformer.evaluation.source import Source, file_source, read_source
from plainformer.evaluation.stream import Stream, check_any
from plainformer.evaluation.temperature import LEAST, MOST, stored_temperature
from plainformer.loading import load_chosen, open_asked
from plainformer.parallel.inference import answered_in_turn
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.sync import Ranks
from plainformer.tasks import option_classes
from plainformer.tasks.base import Task


@dataclass(frozen=True)
class Request:
    """What is asked for; see `evaluation.evaluate`.

    Attributes:
        source: options of `SourceConfig`. metric: settings of the scorer. load, options: of loading and of the task.
        reason: to look at a test set again.
        mesh: of processes that answer together: all make the same calls, and the first writes; None: this one is alone.
    """

    ref: str
    data: str | None
    task: str | None
    side: str | None
    columns: Mapping[str, Any]
    unit: str | None
    source: Mapping[str, Any]
    output: Path | None
    again: bool
    temperature: float | str | None
    load: Mapping[str, Any]
    options: Mapping[str, Any]
    metric: Mapping[str, Any]
    test: bool
    reason: str | None
    progress: Callable[[int, int], object]
    mesh: Mesh | None = None

    @property
    def ranks(self) -> Ranks:
        """Return the processes that answer together."""
        return Ranks(self.mesh)

    @property
    def is_run(self) -> bool:
        """Return whether it is the folder of a run."""
        return run_of(self.ref) is not None


@dataclass(frozen=True)
class Examined:
    """A kept evaluation.

    Attributes:
        folder: where it is; of several processes, the first can read it. read: whether it was there.
        look: what the ledger is told, where `is_test`. run: that was evaluated.
        beside: the folder of the checkpoint, None where it is one file.
    """

    folder: Path
    read: bool
    is_test: bool
    look: Look
    run: RunRef | None
    beside: Path | None

    @property
    def kept(self) -> Kept:
        """Return what is kept."""
        return Kept(self.folder)


OF_THE_MODEL = ("labels",)  # settings of scores that are not for a caller


class _Known(Exception):
    """What was asked for is kept already: no weights need be read."""


@dataclass
class _Examination:
    """One evaluation on its way. `choose` is called when the checkpoint's task is known and its weights are not read."""

    request: Request
    ledger: Ledger
    run: RunRef | None
    digest: str
    beside: Path | None
    exam: type[Exam] = field(init=False)
    source: Source = field(init=False)
    options: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    task: str = ""
    key: str = ""
    config_digest: str = ""
    is_test: bool = False

    @property
    def config(self) -> TrainConfig | None:
        """Return the configuration of the run whose own rows are evaluated."""
        return self.run.config if self.run is not None and self.request.data is None else None

    def choose(self, kind: type[Task], name: str, config: ModelConfig) -> None:
        """Choose the exam, read which rows these are, and stop where the evaluation is kept.

        Raises:
            UsageError: options, columns or data that cannot be; a second look. _Known.
        """
        self.task = name
        self._rows(config)
        self._options(kind)
        self.source.survey(self.exam, whole=self.request.test or self.source.side == "test")
        seen = {key: value for key, value in self.exam.seen(self.source.seen).items() if key not in self.options}
        self.options |= seen
        content = {
            "version": plainformer.__version__,
            "checkpoint": self.digest,
            "task": name,
            "exam": self.exam.__name__,
            "load": plain_options(
                {k: v for k, v in self.request.load.items() if k in ("dtype", "quantize", "backend")}
            ),
            "options": plain_options(self.options),
            "temperature": self.temperature,
            "metric": dict(self.request.metric),
        }
        self.config_digest = digest_of(content)
        self.key = digest_of({**content, "data": self.source.digest()})
        self.is_test = self.request.ranks.alone(self._tests)
        if not self.request.again and self.request.ranks.alone(self._is_there):
            raise _Known

    def _rows(self, config: ModelConfig) -> None:
        request, run = self.request, self.run
        unused = {name: value for name, value in request.source.items() if value is not None and name != "limit"}
        if request.data is not None:
            no_effect(request.side is not None, "side", "with DATA")
            rows = read_source(request.data, request.columns, request.source)
            first = iter(rows)
            there = list(islice(first, LOOKED_AT))
            names = {name for row in there for name in row} | set(request.columns)
            self.exam = exam_class(self.task, names, None, config)
            self.source = file_source(self.exam, rows, chain(there, first), request.data, request.columns, request.unit)
            return
        assert run is not None
        for name in unused:
            no_effect(True, name, "on a run's own rows", "give DATA")
        no_effect(bool(request.columns), "columns", "on a run's own rows, which have the run's", "give DATA")
        if run.config.objective == "denoising":
            what = "a run of denoising has no targets of its own to be compared with"
            raise UsageError(what, "give DATA with sources and targets")
        side = request.side or "validation"
        self.exam = exam_class(self.task, (), run.config.objective, config)
        self.source = run.source(self.exam, run.side(side), side, request.unit, request.source.get("limit"))

    def _options(self, kind: type[Task]) -> None:
        request, asked = self.request, self.exam.options_class(kind)
        known = [f.name for f in fields(asked) if f.init]
        given = dict(request.options)
        if request.temperature is not None:
            if self.exam.calibrates:
                self.temperature = self._temperature(request.temperature)
            elif "temperature" in known:
                given["temperature"] = self._number(request.temperature)
            else:
                no_effect(True, "temperature", f"in an evaluation of {self.task}")
        for name in given:
            elsewhere = name not in known and any(name in specs(each) for each in option_classes())
            no_effect(elsewhere, name, f"in an evaluation of {self.task}")
        asked.of(given, f"an evaluation of {self.task}")
        self.options = {**self.exam.usual(self.config, known), **given}

    def _temperature(self, asked: float | str) -> float:
        if asked == "stored":
            return stored_temperature(self.beside, self.digest)
        value = self._number(asked)
        if not LEAST <= value <= MOST:
            what = f"{opt('temperature', asked)} is not between {LEAST:g} and {MOST:g}"
            raise UsageError(
                what, f"give a number above 0, or stored: the one that was fitted by {opt('calibrate', ...)}"
            )
        return value

    def _number(self, asked: float | str) -> float:
        try:
            return float(asked)
        except (TypeError, ValueError):
            what = f"{opt('temperature', asked)} is not a number"
            raise UsageError(
                what, f"give a number, or stored: the one that was fitted by {opt('calibrate', ...)}"
            ) from None

    def _tests(self) -> bool:
        """Return whether the rows are a test set, which then may be looked at."""
        source = self.source
        if self.request.test and source.side not in ("", "test"):
            what = f"{opt('test')}: the {source.side} rows of {self.request.ref} are not a test set: the run had them"
            raise UsageError(what, f"leave it out, or give {opt('side', 'test')}")
        known = self.ledger.looks(source.identity).all
        is_test = self.request.test or source.side == "test" or bool(known)
        if is_test:
            self.ledger.check(self.look, self.request.reason)
            self.ledger.probe()
        return is_test

    @cached_property
    def look(self) -> Look:
        """Return what the ledger is told, without metrics."""
        ref = str(self.run.folder.resolve()) if self.run is not None else self.request.ref
        return Look("", self.source.identity, self.source.name, ref, self.digest, self.config_digest, {})

    @property
    def folder(self) -> Path:
        """Return where the evaluation is kept."""
        if self.request.output is not None:
            return self.request.output
        if self.run is not None:
            name = self.source.side or Path(self.source.name).name.partition(".")[0] or "data"
            return self.run.kept(name, self.key)
        return default_folder() / self.key

    def _is_there(self) -> bool:
        if not is_kept(self.folder):
            check_output(self.folder, given=self.request.output is not None)
            return False
        found = Kept(self.folder)
        if found.info.get("key") == self.key:
            return True
        if self.request.output is not None:
            what = f"{opt('output', str(self.folder))} keeps another evaluation"
            raise UsageError(what, f"give another folder, or {opt('again')} to replace it")
        return False

    def examine(self, task: Task) -> None:
        """Answer the rows, and keep the answers: of several processes each answers some, and the first keeps all."""
        begin, ranks, mesh = time.monotonic(), self.request.ranks, self.request.mesh
        kind = self.exam.options_class(type(task))
        asked = {**self.options, "on_error": "skip"}
        options = task.make_options(asked) if kind is type(task).Options else kind.of(asked, task.name)
        exam = self.exam(task, options, self.temperature, self.config)
        scorer, source = self._scorer(exam), self.source
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.request.progress(done, source.number)

        def answers(values: Iterator[Any]) -> Iterator[Any]:
            if mesh is None:
                return exam.answers(values)
            return answered_in_turn(mesh, values, exam.answers, options.batch_size)

        with Keeper(self.folder, len(scorer.columns)) if ranks.is_first else NoKeeper() as keeper:
            counts = Stream(exam, source, self.options.get("on_error"), advance).run(keeper, scorer, answers)
            check_any(keeper.count, source, counts)
            ranks.alone(lambda: self._keep(keeper, exam, scorer, counts, begin))

    def _keep(self, keeper: Keeper, exam: Exam, scorer: Scorer, counts: Counts, begin: float) -> None:
        """Finish the kept evaluation: what was examined, how, and its metrics."""
        source = self.source
        units = keeper.units(own=source.unit.column is None)
        info = {
            "key": self.key,
            "plainformer": plainformer.__version__,
            "checkpoint": {"ref": self.request.ref, "digest": self.digest, "which": self.run and self.run.which},
            "data": {
                "name": source.name,
                "side": source.side,
                "identity": source.identity,
                "columns": dict(source.columns.names),
                "test": self.is_test,
            },
            "task": self.task,
            "scorer": {"name": scorer.name, "settings": dict(scorer.settings())},
            "options": plain_options(self.options),
            "config": self.config_digest,
            "temperature": self.temperature,
            "stated": exam.said(scorer),
            "notes": [*scorer.notes(), *self._names(scorer)],
            "learnt": learnt_from(self.request.ref, keeper.keys),
            "unit": {"name": source.unit.said, "count": int(units.max(initial=-1)) + 1},
            "counts": counts.to_dict(),
            "seconds": round(time.monotonic() - begin, 3),
        }
        found = plain_values(plain(measured(scorer, keeper.numbers(), units)))
        keeper.finish({**plain_values(info), "level": LEVEL, "metrics": found}, units)

    def _names(self, scorer: Scorer) -> list[str]:
        """Return how training named the metric by which it chose this model, where that is another name."""
        chosen = None if self.run is None else self.run.chosen_by
        here = scorer.in_training.get(chosen or "")
        return [f"training chose this model by {chosen}, whose counterpart here is {here}"] if here else []

    def _scorer(self, exam: Exam) -> Scorer:
        """Return the exam's scorer with the settings that the caller asks for."""
        made = exam.scorer()
        known = {name: value for name, value in made.settings().items() if name not in OF_THE_MODEL}
        for name in self.request.metric:
            if name not in known:
                what = f"{opt('metric')} has {name!r}, which the scores of {self.task} do not know"
                raise UsageError(what, did_you_mean(name, known) or "they have no settings")
        return make_scorer(made.name, **{**made.settings(), **self.request.metric}) if self.request.metric else made


def default_folder() -> Path:
    """Return the user's folder of evaluations: $XDG_CACHE_HOME/plainformer/evaluations, else below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "plainformer" / "evaluations"


def examined(request: Request, ledger: Ledger) -> Examined:
    """Return the kept evaluation of a request, made now if need be."""
    run = run_of(request.ref)
    ref = str(run.model) if run is not None else request.ref
    if request.data is None and run is None:
        fix = "give DATA, or the folder of a run, which has its own"
        raise UsageError(f"there is no data to evaluate on, and {request.ref} is not the folder of a run", fix)
    asked = LoadOptions.of(request.load, "load")
    digest, beside = request.ranks.alone(lambda: _which(ref, asked))
    own, read = _Examination(request, ledger, run, digest, beside), False
    try:
        own.examine(load_chosen(ref, request.task, asked, own.choose))
    except _Known:
        read = True
    except PlainformerError as error:
        raise error.respelt(_ours) from error.__cause__
    return Examined(own.folder, read, own.is_test, own.look, run, beside)


def _which(ref: str, asked: LoadOptions) -> tuple[str, Path | None]:
    """Return a hash of what a reference answers with, and the folder that goes with it; None of one file, or of folds."""
    if (series := series_of(ref)) is not None:
        members = [_which(str(member), asked)[0] for member in series.members]
        return digest_of({"members": members, "vote": series.vote}), None
    with open_asked(ref, asked) as checkpoint:
        found = checkpoint_digest(checkpoint)
        return found, checkpoint.adapters[-1].folder if isinstance(checkpoint, AdaptedCheckpoint) else checkpoint.folder


def _ours(name: str, value: str | None) -> str:
    """Return an option of a configuration's data as it is called here."""
    own = name.removeprefix("data.")
    return opt(own) if value is None else opt(own, _Said(value))


class _Said(str):
    """The text of a value that a message has quoted already."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
