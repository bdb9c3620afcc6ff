"""A step of training, phase by phase: what is alive on one rank of a layout.

    load        the weights, and the largest tensor while it is converted
    forward     activations, layer by layer
    loss        the scores of a chunk of labels, and the gradients that are made with them
    backward    each layer's gradients, while what it kept goes
    sync        what ranks send one another of their gradients
    clip, step  gradients, the optimizer's states and what it computes with
    save        the largest tensor, gathered

The three in the middle are run on a tape (`activations.py`); of several micro-batches the second, which finds gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import plainformer.plan.heads as heads
from plainformer.config import HeadConfig, ModelConfig, StackConfig, WaveFrontend
from plainformer.config.local import Local, shared
from plainformer.config.parts import MelFrontend
from plainformer.plan.activations import RECEIVED, Learning, Run, Share
from plainformer.plan.frontends import INPUTS, Sizes
from plainformer.plan.heads import LossSizes
from plainformer.plan.layers import MASKS as OF_MASKS
from plainformer.plan.operations import Adapters
from plainformer.plan.result import (
    ACTIVATIONS,
    AVERAGE,
    BUFFERS,
    CONVERSION,
    GATHERED,
    GRADIENTS,
    LOGITS,
    MASKS,
    OPTIMIZER,
    WEIGHTS,
    WORKSPACE,
    Item,
    Phase,
)
from plainformer.plan.states import OWN_HEADS, adapter_shapes, shard_bytes, states
from plainformer.plan.stored import StoredFile
from plainformer.plan.tape import GRADIENTS as OF_GRADIENTS
from plainformer.plan.tape import TEMPORARY
from plainformer.plan.weights import Loading, weights
from plainformer.plan.workload import Workload

SAMPLES = 16_000  # a second of sound
BUCKET = 25 << 20  # bytes of gradients that travel together (`parallel/data.py`)
AHEAD = 2  # such messages with new weights at a time
MASKED_SHARE = 0.15  # of a text's tokens that a masked model learns
LETTERS = 15  # a second of speech, of which CTC keeps a number for each frame
TARGETS = ("attention", "cross")  # what has adapters unless others are named
NAMES = {OF_GRADIENTS: GRADIENTS, OF_MASKS: MASKS, heads.LOGITS: LOGITS, TEMPORARY: WORKSPACE, INPUTS: ACTIVATIONS}


def training_phases(
    here: Local, workload: Workload, *, on_gpu: bool = False, stored: str | StoredFile | None = None
) -> tuple[Phase, ...]:
    """Return the phases of a step on one rank, in their order.

    Args:
        here: what the rank holds. on_gpu: whether the device is one, where some kernels keep other things.
        stored: as the weights are in their file.
    """
    return Training(here, workload, on_gpu, stored).phases()


@dataclass
class Training:
    """A step on one rank."""

    here: Local
    workload: Workload
    on_gpu: bool = False
    stored: str | StoredFile | None = None

    def __post_init__(self) -> None:
        layout, place = self.here.layout, self.here.place
        self.zero, self.dp = (layout.zero, layout.dp) if layout.dp > 1 else (0, 1)
        self.width = 2 if self.workload.precision == "pure-bf16" else 4
        how = learning(self.here.config, self.workload, self.on_gpu)
        apart = how.adapters is not None and any(".layers." in target for target in how.adapters.targets)
        self.run = Run(self._config(), how, self._share(), whole=apart)
        self.shapes = {name: part.local_shape for name, part in self.here.parts.items()}
        self.learnt = {name: shape for name, shape in self.shapes.items() if self.run.is_trained(name)}
        if self.run.how.adapters is not None:
            adapters = self.run.how.adapters
            found = adapter_shapes(self.here.model, adapters.rank, adapters.targets)
            self.learnt.update({name: shape for name, shape in found.items() if self.here.holds(name)})
        self.states = states(
            self.learnt,
            optimizer=self.workload.optimizer,
            number=self.width,
            average=self.workload.average,
            zero=self.zero,
            dp=self.dp,
            index=place.dp,
        )

    def _config(self) -> ModelConfig:
        # Each rank has all words' scores.
        config = replace(self.here.model, tied=self.here.tied, head=self.here.config.head)
        return config if self.workload.dropout is None else dropping(config, self.workload.dropout)

    def _share(self) -> Share:
        here, names = self.here, tuple(self.here.layers)
        return Share(
            tuple(here.layers.items()),
            here.layout.tp,
            here.model.head.out_size,
            tuple(name for name in names if here.begins(name)),
            tuple(name for name in names if here.ends(name)),
            here.is_last,
        )

    # ---- the phases ------------------------------------------------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        """Return all of them."""
        base, gradients = self._base(), Item(GRADIENTS, self.states.gradients)
        largest = max((math.prod(part.shape) for part in self.here.parts.values()), default=0) * self.width
        alone = self.here.layout.world == 1
        gathered = () if alone else (Item(BUFFERS, largest, "the largest tensor, gathered"),)
        load = Phase("load", (base[0], self._converted(largest)))
        return (
            load,
            *(Phase(name, (*base, *items)) for name, items in self._computed().items()),
            *self._synced(base, gradients),
            Phase("clip", (*base, gradients)),
            Phase("step", (*base, gradients, *self._step_items())),
            Phase("save", (*base, gradients, *gathered)),
        )

    def _converted(self, largest: int) -> Item:
        """Return what reading a file needs besides the weights: of blocks, the numbers that they become first."""
        if not isinstance(self.stored, StoredFile):
            return Item(CONVERSION, largest, "the largest tensor")
        found = weights(self.here.config, Loading(stored=self.stored, mapped=False, copied=True), self.here)
        return Item(CONVERSION, found.peak - found.own, "the largest tensor, unpacked")

    def _base(self) -> tuple[Item, ...]:
        """Return what is there all the time."""
        shards = sum(shard_bytes(shape, self.width, self.zero, self.dp) for shape in self.shapes.values())
        added = sum(math.prod(shape) * 4 for name, shape in self.learnt.items() if name not in self.shapes)
        items = [Item(WEIGHTS, shards + added), Item(OPTIMIZER, self.states.optimizer)]
        if self.states.average:
            items.append(Item(AVERAGE, self.states.average))
        return tuple(items)

    def _computed(self) -> dict[str, list[Item]]:
        """Return what is alive at the peaks of forward pass, loss and backward pass."""
        layout, passes = self.here.layout, self.workload.accumulate
        share = self.dp if self.zero >= 2 else 1  # after each backward pass, not only the last of a step
        run = self.run
        (found, kept), *more = micro_batches(run.config, run.how, run.share, run.whole, share, min(passes, 2))
        if passes == 1:
            return {phase: self._items(phase, parts, kept, 0) for phase, parts in found.items()}
        later, kept = more[0]
        if layout.pp == 1:
            return {phase: self._items(phase, parts, kept, 0) for phase, parts in later.items()}
        ahead = layout.pp - 1 - self.here.place.pp
        if layout.schedule == "1f1b" and ahead + 1 < passes:
            return {phase: self._items(phase, parts, kept, ahead) for phase, parts in later.items()}
        # All go forward before the first comes back, and finds no gradients; the second finds them, and one less is kept.
        made = {phase: self._items(phase, parts, kept, passes - 1) for phase, parts in found.items()}
        second = self._items("backward", later.get("backward", {}), kept, passes - 2)
        made["backward"] = max(made.get("backward", []), second, key=lambda items: sum(item.bytes for item in items))
        return made

    def _items(self, phase: str, parts: Mapping[str, int], kept: Mapping[str, int], others: int) -> list[Item]:
        """Return a phase's parts, with what is kept of other micro-batches, and what goes from rank to rank."""
        items = [Item(NAMES.get(part, ACTIVATIONS), size, part) for part, size in parts.items()]
        if others > 0:
            said = f"of {others} more micro-batches"
            items += [
                Item(NAMES.get(part, ACTIVATIONS), others * size, f"{part}, {said}") for part, size in kept.items()
            ]
        if kept.get(RECEIVED) and (phase == "backward" or self.here.layout.schedule == "1f1b"):
            items.append(Item(BUFFERS, 2 * kept[RECEIVED], "gradients on their way to the stage before"))
        return [*items, *self._gathered(phase, parts.get(OF_GRADIENTS, 0))]

    def _gathered(self, phase: str, gradients: int) -> list[Item]:
        """Return what data-parallel ranks have whole for a while."""
        if self.dp == 1:
            return []
        if self.zero < 2:
            # A bucket has its memory from the first of its gradients on.
            empty = min(-gradients % BUCKET, self.states.gradients - gradients) if phase == "backward" else 0
            return [Item(BUFFERS, empty, "what is still empty of a bucket of gradients")] if empty > 0 else []
        units = self._units()
        layer, rest = max((size for name, size in units.items() if name), default=0), units.get("", 0)
        whole = sum(units.values()) if self.zero == 2 else rest + 2 * layer
        items = [Item(GATHERED, whole, "all" if self.zero == 2 else "two layers, and what is outside layers")]
        if phase == "backward":
            items.append(Item(BUFFERS, 2 * layer, "a layer's gradients, and what is sent of them"))
        return items

    def _units(self) -> dict[str, int]:
        """Return the bytes of each layer's weights; of all that is in no layer under ""."""
        found: dict[str, int] = {}
        for name, shape in self.shapes.items():
            places = name.split(".")
            unit = ".".join(places[:3]) if places[1] == "layers" else ""
            found[unit] = found.get(unit, 0) + math.prod(shape) * self.width
        return found

    def _synced(self, base: tuple[Item, ...], gradients: Item) -> tuple[Phase, ...]:
        """Return the phase in which stages add up the gradients of what several of them have, after the backward pass."""
        common = shared(self.here.config, self.here.layout)
        sizes = [math.prod(shape) * self.width for name, shape in self.learnt.items() if self._kept(name) in common]
        if not sizes:
            return ()
        return (Phase("sync", (*base, gradients, Item(BUFFERS, sum(sizes), "gradients that stages share"))),)

    def _kept(self, name: str) -> str:
        part = self.here.parts.get(name)
        return name if part is None else part.name

    def _step_items(self) -> list[Item]:
        items = [Item(WORKSPACE, self.states.temporary, "of the optimizer")] if self.states.temporary else []
        if self.dp > 1 and self.zero == 1:
            sizes = [math.prod(shape) * self.width for shape in self.learnt.values()]
            sent = min(sum(sizes), AHEAD * max(BUCKET, *sizes))
            items.append(Item(BUFFERS, sent, "new weights, for the others"))
        return items


Ran = tuple[dict[str, dict[str, int]], dict[str, int]]  # what `Run.micro_batch` returns


@lru_cache(maxsize=128)  # ranks that differ in what they keep alone do the same, and so do ZeRO's stages
def micro_batches(
    config: ModelConfig, how: Learning, share: Share, whole: bool, gradient_share: int, count: int
) -> tuple[Ran, ...]:
    """Return what micro-batches take, one after the other; `gradient_share`: ranks that share out gradients."""
    run = Run(config, how, share, whole)
    run.ops.gradient_share = gradient_share
    return tuple(run.micro_batch() for _ in range(count))


# ---- what is learnt from ---------------------------------------------------------------------------------------------


def learning(config: ModelConfig, workload: Workload, on_gpu: bool = False) -> Learning:
    """Return a micro-batch of a workload."""
    both = config.encoder is not None and config.decoder is not None
    inputs = sizes_of(config.input_stack, workload, workload.length)
    targets = sizes_of(config.main_stack, workload, workload.target_length) if both else None
    adapters = None
    if workload.trainable == "lora":
        named = workload.lora_targets
        adapters = Adapters(TARGETS if named is None else tuple(named.split(",")), workload.lora_rank)
    own_head = workload.trainable == "head" or (workload.trainable == "lora" and config.head.kind in OWN_HEADS)
    return Learning(
        inputs,
        targets,
        loss_of(config.head, workload, targets or inputs, config.main_stack),
        autocast=workload.precision == "bf16",
        width=2 if workload.precision == "pure-bf16" else 4,
        recompute_every=workload.recomputed_every,
        ffn_chunk=workload.ffn_chunk,
        trained=("head.*",) if own_head else (),
        adapters=adapters,
        on_gpu=on_gpu,
    )


def sizes_of(stack: StackConfig, workload: Workload, length: int) -> Sizes:
    """Return the sizes of what a stack reads."""
    frontend, text = stack.frontend, stack.frontend.kind in ("tokens", "wave")
    return Sizes(
        workload.batch,
        length,
        padded=workload.has_padding and text,
        pixels=workload.pixels,
        samples=round(workload.seconds * SAMPLES) if isinstance(frontend, WaveFrontend) else 0,
        frames=2 * frontend.max_positions if isinstance(frontend, MelFrontend) else 0,
    )


def loss_of(head: HeadConfig, workload: Workload, sizes: Sizes, stack: StackConfig) -> LossSizes | None:
    """Return what is minimised, by the head's kind; None for a model without a head, of which no training is known."""
    n = sizes.rows * sizes.positions(stack)
    kinds = {"span": "span", "choice": "choice", "ctc": "ctc", "token": "token"}
    if head.kind in ("causal_lm", "seq2seq_lm", "masked_lm"):
        labels = max(1, round(n * MASKED_SHARE)) if head.kind == "masked_lm" else n
        return LossSizes("words", labels, chunk=workload.loss_chunk)
    if not head.out_size:
        return None
    letters = max(1, round(workload.seconds * LETTERS))
    labels = {"token": n, "ctc": sizes.rows * letters}.get(head.kind, 0)
    return LossSizes(
        kinds.get(head.kind, "labels"), labels, choices=1, form=head.problem or "single_label", most_letters=letters
    )


def dropping(config: ModelConfig, p: float) -> ModelConfig:
    """Return a model that drops with one probability (`model/dropout.py: set_dropout`)."""
    stacks = {
        name: None if stack is None else replace(stack, dropout=stack.dropout.everywhere(p))
        for name, stack in (("encoder", config.encoder), ("decoder", config.decoder))
    }
    rates: Mapping[str, float] = {
        name: p if getattr(config.head, name) else 0.0 for name in ("dropout", "dense_dropout")
    }
    return replace(config, head=replace(config.head, **rates), **stacks)  # type: ignore[arg-type]
