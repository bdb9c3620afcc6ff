"""The folder of a run: what was asked for, of which data, where; and whether a run that goes on is still the same."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

import plainformer
from plainformer.checkpoint.run_folders import is_series
from plainformer.config.building import as_data, flat, read_config
from plainformer.config.parallel import ParallelConfig, processes
from plainformer.config.resolved import resolved, resolved_yaml
from plainformer.config.training import TrainConfig
from plainformer.errors import PlainformerError, TrainingError, UsageError, opt, plural
from plainformer.inputs.files import make_folder
from plainformer.replacing import write_whole
from plainformer.train.checkpoint import as_json

CONFIG, DATA, ENVIRONMENT = "config.yaml", "data.json", "environment.json"
# Options that decide neither what is learnt nor what is written down: where, on what, and how much is kept.
MAY_CHANGE = (
    *("folder", "data.cache", "device", "threads", "checkpoints.every", "checkpoints.keep"),
    *("batches.micro", "model.checkpointing", "compile"),  # the same sums, in another order
    *(f"parallel.{f.name}" for f in fields(ParallelConfig)),
    "folds.vote",
)
_SHOWN = 12  # differences in a message


class RunFolder:
    """Reads and writes the files that describe a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Write what a new run is, over what an earlier one left that came to no checkpoint.

        Raises:
            UsageError: the folder holds something else.
        """
        make_folder(self.path)
        own = (DATA, ENVIRONMENT)  # all that a run has which was ended while it wrote these
        others = [one.name for one in self.path.iterdir() if not one.name.startswith(".") and one.name not in own]
        if others and not (self.path / CONFIG).is_file():
            what = (
                f"{opt('folder', str(self.path))} is not empty, and not the folder of a run: it has {sorted(others)[0]}"
            )
            raise UsageError(what, "give a new folder")
        if is_series(self.path):
            what = f"{opt('folder', str(self.path))} has a run for each of several folds"
            raise UsageError(what, f"give a new folder, or {opt('folds', ...)} to go on with them")
        self._write(DATA, as_json(data))
        self._write(ENVIRONMENT, as_json({**environment(config), "resumed": []}))
        self._write(CONFIG, resolved_yaml(config))  # last: a folder with it has the others

    def check(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Refuse to go on with another configuration or other data than the run began with; each difference is named."""
        before = flat(as_data(resolved(read_config(self.path / CONFIG))))
        found = [
            line for line in differences(before, flat(as_data(config))) if line.partition(":")[0] not in MAY_CHANGE
        ]
        if found:
            raise self._other("its options are others", found)
        found = differences(flat(self._read(DATA)), flat(json.loads(as_json(data))))
        if found:
            raise self._other("its data is not the same", found)

    def _other(self, what: str, found: list[str]) -> UsageError:
        listed = "".join(f"\n    {line}" for line in found[:_SHOWN])
        more = f"\n    and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return UsageError(
            f"the run in {self.path} cannot go on: {what} (before → now):{listed}{more}",
            f"take back the change, or give {opt('folder')} a new folder",
        )

    def go_on(self, config: TrainConfig, step: int) -> list[str]:
        """Write down that the run goes on here; return what differs from where it was, by which the bits may differ."""
        written = self._read(ENVIRONMENT)
        resumed = written.pop("resumed", [])
        now = environment(config)
        last = dict(written)
        for earlier in resumed:
            last.update(earlier["changed"])
        changed = {key: now.get(key) for key in sorted({*now, *last}) if now.get(key) != last.get(key)}
        if changed:
            resumed.append({"step": step, "changed": changed, "bit_for_bit": False})
            self._write(ENVIRONMENT, as_json({**written, "resumed": resumed}))
        divided = last.pop("layout", None), now.pop("layout", None)
        found = differences(flat(last), flat(now))
        if divided[0] != divided[1]:
            found.append(f"now {_division(divided[1])} instead of {_division(divided[0])}")
        return found

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
            resumed = found.get("resumed", []) if isinstance(found, dict) else None
            if not isinstance(resumed, list) or not all(isinstance(one["changed"], dict) for one in resumed):
                raise ValueError("it is not what this library writes")
            return dict(found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{self.path / name} cannot be read: {error}", "a run folder needs it: give a new folder"
            ) from None

    def _write(self, name: str, text: str) -> None:
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            raise cannot_write(self.path, error) from None


def cannot_write(path: Path, error: OSError) -> PlainformerError:
    """Return the error of a folder in which a file cannot be written."""
    return TrainingError(
        f"{path} cannot be written to: {error.strerror or error}",
        "see that there is space and permission, then give the same command again",
    )


def environment(config: TrainConfig) -> dict[str, Any]:
    """Return what decides the last bits of a result, besides the configuration and the data."""
    found: dict[str, Any] = {
        "plainformer": plainformer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "system": sys.platform,
        "device": config.device,
        "micro": config.batches.micro,
        "compile": config.compile,
    }
    layout, devices = config.parallel.layout(processes()), config.parallel.on(config.device)
    if layout.world * len(devices) > 1:
        found["layout"] = {**asdict(layout), "devices": len(devices)}
    if config.device == "cpu":
        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()  # type: ignore[no-untyped-call]
        return {**found, "threads": torch.get_num_threads()}
    return {**found, "gpu": torch.cuda.get_device_name(config.device), "cuda": torch.version.cuda}


def _division(layout: Mapping[str, Any] | None) -> str:
    """Return a layout of `environment` in words: "4 processes (tp 2, zero 3)"; None is one process."""
    if layout is None:
        return "1 process"
    count, devices = layout["dp"] * layout["tp"] * layout["pp"], layout["devices"]
    usual = {"tp": 1, "pp": 1, "zero": 0}
    said = [f"{name} {layout[name]}" for name, value in usual.items() if layout[name] != value]
    if layout["pp"] > 1:
        said.append(layout["schedule"])
    said += [plural(devices, "device")] if devices > 1 else []
    return plural(count, "process", "processes") + (f" ({', '.join(said)})" if said else "")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return "optimizer.learning_rate: 5e-05 → 0.0001" for every value that is not the same."""
    names = [*before, *(name for name in now if name not in before)]

    def said(values: Mapping[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "nothing"

    other = [name for name in names if (name in before) != (name in now) or before.get(name) != now.get(name)]
    return [f"{name}: {said(before, name)} → {said(now, name)}" for name in other]
