"""How a model and its work are divided among processes: data, tensor and pipeline parallel. Torch-free.

    dp   data parallel: each group has the whole model and its own rows. `zero` says what its members share out:
         0 nothing (DDP), 1 optimizer states, 2 gradients too, 3 parameters too (ZeRO, Rajbhandari et al. 2020)
    tp   tensor parallel: heads, feed-forward units and vocabulary rows of each layer (Megatron, Shoeybi et al. 2019)
    pp   pipeline parallel: layers (GPipe, Huang et al. 2019; 1F1B, Narayanan et al. 2021)

Neighbouring ranks are a tensor-parallel group, which talks most; pipeline stages are farthest apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from plainformer.config.values import check_choice, check_whole
from plainformer.errors import UsageError, opt, plural

if TYPE_CHECKING:
    from plainformer.config.model import ModelConfig, StackConfig


class Place(NamedTuple):
    """Where a rank is along each axis."""

    pp: int
    dp: int
    tp: int


class Problem(NamedTuple):
    """Why a layout cannot work, and what would."""

    what: str
    fix: str


@dataclass(frozen=True)
class Layout:
    """A division among `dp * tp * pp` processes; by default there is one.

    Attributes:
        dp, tp, pp: how many parts along each axis.
        zero: what data-parallel ranks share out, 0 to 3.
        schedule: order of a pipeline's micro-batches: "1f1b" or "gpipe".
    """

    dp: int = 1
    zero: Literal[0, 1, 2, 3] = 0
    tp: int = 1
    pp: int = 1
    schedule: Literal["1f1b", "gpipe"] = "1f1b"

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "pp"):
            check_whole(name, getattr(self, name))
        check_whole("zero", self.zero, 0, 3, fix="give 0, 1, 2 or 3")
        check_choice("schedule", self.schedule, ("1f1b", "gpipe"))

    @property
    def world(self) -> int:
        """Return the number of processes."""
        return self.dp * self.tp * self.pp

    def place(self, rank: int) -> Place:
        """Return where a rank is: rank = (pp * DP + dp) * TP + tp."""
        return Place(rank // (self.dp * self.tp), rank // self.tp % self.dp, rank % self.tp)

    def rank(self, place: Place) -> int:
        """Return the rank that is at a place."""
        return (place.pp * self.dp + place.dp) * self.tp + place.tp

    def problems(self, config: ModelConfig) -> list[Problem]:
        """Return why this layout cannot work for a model; [] if it can."""
        found: list[Problem] = []
        for name, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
            if stack is not None:
                found += _tensor_problems(name, stack, self.tp)
        words = config.vocab_size
        if words is not None and (self.tp - 1) * -(-words // self.tp) >= words:
            found.append(
                Problem(f"a vocabulary of {words} leaves ranks of {opt('tp', self.tp)} without a word", "give fewer")
            )
        return [*found, *_pipeline_problems(config, self.pp)]

    def check(self, config: ModelConfig) -> None:
        """Raise UsageError with the first problem."""
        for what, fix in self.problems(config):
            raise UsageError(what, fix)


def _tensor_problems(name: str, stack: StackConfig, tp: int) -> Iterator[Problem]:
    heads, kv_heads, units = stack.num_heads, stack.num_kv_heads, stack.ffn_size
    valid = [
        n for n in range(1, heads + 1) if not (heads % n or units % n) and (kv_heads % n == 0 or n % kv_heads == 0)
    ]
    if tp not in valid:
        why = f"feed-forward size {units}"
        if heads % tp:
            why = plural(heads, "attention head")
        elif kv_heads % tp and tp % kv_heads:
            why = plural(kv_heads, "key-value head")
        said = ", ".join(map(str, valid))
        yield Problem(f"{why} of the {name} cannot be divided by {opt('tp', tp)}", f"give {opt('tp')} one of {said}")


def _pipeline_problems(config: ModelConfig, pp: int) -> Iterator[Problem]:
    layers = sum(stack.num_layers for stack in (config.encoder, config.decoder) if stack is not None)
    if pp > layers:
        yield Problem(f"{plural(layers, 'layer')} cannot be {opt('pp', pp)} stages", f"give {opt('pp')} 1 to {layers}")
    if pp > 1 and config.head.mixed_states:
        what = f"the head mixes the outputs of all layers, which {opt('pp', pp)} puts on several ranks"
        yield Problem(what, f"leave {opt('pp')} out; {opt('tp')} and {opt('zero')} divide this model")
