"""The options of a plan besides what is asked of the model: on how many devices, on which, of what shape. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plainformer.config.layout import Layout
from plainformer.config.options import OptionSet, number, one_of, option, text, whole
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt
from plainformer.plan.devices import Device, find_device, of_size, parse_bytes

_DEVICES, _SHAPE = "Devices", "A model by its shape"


@dataclass(frozen=True, kw_only=True)
class LayoutOptions(OptionSet):
    """How the model and its work are divided; without any, one device has all."""

    tp: int = option(1, help="Tensor parallel: ranks that share each layer.", check=whole(1), group=_DEVICES)
    pp: int = option(1, help="Pipeline parallel: stages of layers.", check=whole(1), group=_DEVICES)
    dp: int | None = option(
        None,
        help="Data parallel: groups with rows of their own; default: what devices leave.",
        check=whole(1),
        group=_DEVICES,
    )
    zero: int = option(
        0,
        help="Data-parallel ranks share out 1 optimizer states, 2 gradients too, 3 weights too.",
        check=whole(0, 3),
        group=_DEVICES,
    )
    schedule: str = option(
        "1f1b", help="Order of a pipeline's micro-batches: 1f1b or gpipe.", check=one_of("1f1b", "gpipe"), group=_DEVICES
    )  # fmt: skip
    devices: int | None = option(
        None, help="Devices of a machine; default: as many as the layout needs.", check=whole(1), group=_DEVICES
    )
    nodes: int = option(1, help="Machines.", check=whole(1), group=_DEVICES)

    def __post_init__(self) -> None:
        super().__post_init__()
        no_effect("nodes" in self.given and self.devices is None, "nodes", f"without {opt('devices')}")
        no_effect("schedule" in self.given and self.pp == 1, "schedule", f"without {opt('pp')}")

    @property
    def count(self) -> int | None:
        """Return all devices that there are, None where nobody said."""
        return None if self.devices is None else self.devices * self.nodes

    def layout(self) -> Layout:
        """Return the division; `dp` is what the devices leave."""
        model, count = self.tp * self.pp, self.count
        dp = self.dp
        if dp is None:
            dp = 1 if count is None else count // model
            if count is not None and dp * model != count:
                what = f"{opt('tp', self.tp)} times {opt('pp', self.pp)} do not divide {count} devices"
                raise UsageError(what, f"choose them so that their product is one of {_divisors(count)}")
        elif count is not None and dp * model != count:
            what = f"{opt('dp', dp)} x {opt('tp', self.tp)} x {opt('pp', self.pp)} are {dp * model} ranks"
            raise UsageError(f"{what}, and there are {count} devices", f"leave {opt('dp')} out, or let them agree")
        zero: Any = self.zero
        no_effect(zero > 0 and dp == 1, "zero", f"on one data-parallel rank: give {opt('dp')} or {opt('devices')}")
        schedule: Any = self.schedule
        return Layout(dp=dp, zero=zero, tp=self.tp, pp=self.pp, schedule=schedule)


def _divisors(count: int) -> str:
    return ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)


def _share(name: str, value: Any) -> None:
    number("(0, 1]")(name, value)


@dataclass(frozen=True, kw_only=True)
class TargetOptions(OptionSet):
    """What the plan is made for, and how near to its peak it is taken to come."""

    device: str | None = option(
        None, help="Such as H100, 'A100 80GB' or 'this machine'; without one, nothing is said to fit.", check=text(), group=_DEVICES
    )  # fmt: skip
    memory: str | None = option(
        None, help="Memory of a device in place of a name: 24GB, 22GiB.", check=text(), group=_DEVICES
    )
    compute_share: float = option(
        0.45, help="Share of the device's peak rate that large products reach.", check=_share, group=_DEVICES
    )
    bandwidth_share: float = option(
        0.7, help="Share of its memory's bandwidth that a token's weights are read at.", check=_share, group=_DEVICES
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        no_effect(self.device is not None and self.memory is not None, "memory", f"with {opt('device')}")
        for name in ("compute_share", "bandwidth_share"):
            no_effect(name in self.given and self.device is None, name, f"without {opt('device')}")

    def target(self) -> Device | None:
        """Return the device; None where none is named."""
        if self.memory is not None:
            return of_size(parse_bytes("memory", self.memory))
        return None if self.device is None else find_device(self.device)


@dataclass(frozen=True, kw_only=True)
class ShapeOptions(OptionSet):
    """A decoder by its shape alone; what is not given is that of the nearest published model."""

    params: str | None = option(None, help="Parameters: 7B, 360M; no REF then.", check=text(), group=_SHAPE)
    layers: int | None = option(None, help="Layers.", check=whole(1), group=_SHAPE)
    width: int | None = option(None, help="Width of the hidden states.", check=whole(1), group=_SHAPE)
    heads: int | None = option(None, help="Attention heads.", check=whole(1), group=_SHAPE)
    kv_heads: int | None = option(None, help="Key-value heads.", check=whole(1), group=_SHAPE)
    ffn_size: int | None = option(None, help="Width of the feed-forward network.", check=whole(1), group=_SHAPE)
    vocabulary: int | None = option(None, help="Tokens of the vocabulary.", check=whole(1), group=_SHAPE)
