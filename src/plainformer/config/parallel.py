"""What is asked of several processes or devices: the section `parallel` of a run. Torch-free.

Who starts the processes says how many there are: torchrun, by the variables WORLD_SIZE and RANK. The rest of them, after
tensor and pipeline parallel have taken theirs, is data parallel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plainformer.config.layout import Layout
from plainformer.config.options import Checked, number, one_of, option, whole
from plainformer.config.values import is_whole, no_effect
from plainformer.errors import UsageError, opt, plural

STARTED_BY = "torchrun --nproc-per-node {} -m plainformer train ..."
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def _check_devices(name: str, value: Any) -> None:
    if is_whole(value, 2):
        return
    given = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if len(given) < 2 or not all(_DEVICE.fullmatch(device) for device in given):
        what = f"{opt(name, value)} is neither a number of devices nor several of them"
        raise UsageError(what, f"give {opt(name, 2)} or more, or a list such as {opt(name, 'cuda:0,cuda:1')}")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Checked):
    """How the work is divided among processes, which torchrun starts, or among the devices of one."""

    tp: int = option(1, help="Processes that share each layer's heads, units and words (tensor).", check=whole(1))
    pp: int = option(1, help="Stages, each with some of the layers (pipeline).", check=whole(1))
    zero: int = option(
        0,
        help="What data-parallel processes share out: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too.",
        check=whole(0, 3),
    )
    schedule: str = option(
        "1f1b", help="Order of a pipeline's micro-batches: 1f1b, or gpipe.", check=one_of("1f1b", "gpipe")
    )
    timeout: float = option(
        600.0, help="Seconds that a process waits for the others before the run ends.", check=number("(0, inf)")
    )
    devices: int | str | None = option(
        None,
        help="Devices of one process that share the rows: a number, or a list such as cuda:0,cuda:1.",
        check=_check_devices,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        no_effect(self.schedule != "1f1b" and self.pp == 1, "schedule", f"without {opt('pp', 2)} or more")
        for name in ("tp", "pp", "zero"):
            if self.devices is not None and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                what = f"{opt('devices', self.devices)} is for one process, and {opt(name, getattr(self, name))} for several"
                raise UsageError(what, "give one of the two")

    def layout(self, processes: int | None) -> Layout:
        """Return the division among the processes that torchrun has started; None: it has not started this one.

        Raises:
            UsageError: they cannot be divided so; or an option has no effect.
        """
        self._check_processes(processes)
        return self.planned(processes)

    def planned(self, processes: int | None) -> Layout:
        """Return the same before they are started: None stands for the fewest that do."""
        taken, zero, schedule = self.tp * self.pp, self.zero, self.schedule
        dp = (processes or taken) // taken
        return Layout(dp=dp, zero=zero, tp=self.tp, pp=self.pp, schedule=schedule)  # type: ignore[arg-type]  # checked

    def _check_processes(self, processes: int | None) -> None:
        taken = self.tp * self.pp
        if processes is None:
            for name, given in (("zero", self.zero > 0), ("tp", self.tp > 1), ("pp", self.pp > 1)):
                if given:
                    what = f"{opt(f'parallel.{name}', getattr(self, name))} is for several processes, and this is one"
                    raise UsageError(what, f"start them with `{STARTED_BY.format(max(2, taken))}`")
            no_effect(self.timeout != 600 and self.devices is None, "parallel.timeout", "in one process")
            return
        if self.devices is not None and processes > 1:
            what = f"{opt('parallel.devices', self.devices)} is for one process, and torchrun started {processes}"
            raise UsageError(what, "leave it out: each process has a device of its own")
        if processes % taken:
            both = " · ".join(opt(f"parallel.{n}", getattr(self, n)) for n in ("tp", "pp") if getattr(self, n) > 1)
            valid = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
            what = f"{plural(processes, 'process', 'processes')} cannot be divided by {both}"
            raise UsageError(what, f"give a product that is one of {valid}, or start a multiple of {taken} processes")

    def on(self, device: str) -> list[str]:
        """Return the devices of one process that share its rows; `device`: what the run says, of which kind they are.

        Raises:
            UsageError: they are others than `device`.
        """
        if self.devices is None:
            return [device]
        if isinstance(self.devices, int):
            kind = device.partition(":")[0]
            return [kind if kind == "cpu" else f"{kind}:{index}" for index in range(self.devices)]
        given = [part.strip() for part in self.devices.split(",")]
        if any(one.partition(":")[0] != device.partition(":")[0] for one in given):
            what = f"{opt('parallel.devices', self.devices)} are not all of {opt('device', device)}"
            raise UsageError(what, f"give {opt('device', given[0].partition(':')[0])}, or other devices")
        return given


def processes(environment: Mapping[str, str] | None = None) -> int | None:
    """Return how many processes torchrun has started; None if it has not started this one."""
    found = (os.environ if environment is None else environment).get("WORLD_SIZE")
    return int(found) if found is not None and found.isdecimal() else None


def is_several() -> bool:
    """Return whether torchrun has started this process beside others."""
    return (processes() or 1) > 1


def is_first() -> bool:
    """Return whether this process is the one that speaks for all that torchrun has started."""
    return not is_several() or os.environ.get("RANK", "0") == "0"
