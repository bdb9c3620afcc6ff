"""What one micro-batch of training keeps and needs: the model's forward pass, its loss and the backward pass, in bytes.

The same model is run on a tape (`tape.py`) that has sizes in place of numbers. Layers of a stack that are alike are run
twice at its beginning and once at its end; those between add what the second did. The most that is alive is then that of
all of them: between the first and the last layer it changes by the same amount each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import plainformer.plan.heads as heads
from plainformer.config import ModelConfig, StackConfig
from plainformer.plan.frontends import Embedded, Kernel, Sizes, convolution, embed, masks, rotations
from plainformer.plan.heads import LOGITS, HeadRun, LossSizes
from plainformer.plan.layers import MASKS, NORMS, Block, Flow, Mask
from plainformer.plan.operations import Adapters, Operations
from plainformer.plan.tape import GRADIENTS, Slot, Storage, Tape, Value


@dataclass(frozen=True)
class Learning:
    """A micro-batch, and how it is learnt.

    Attributes:
        inputs, targets: sizes of what the encoder and the decoder read; of a single stack, `inputs`.
        loss: what is minimised; None: the hidden states alone are computed.
        autocast: whether products are computed in bf16. width: bytes of a weight.
        recompute_every: every n-th layer keeps its input alone; 0: none. ffn_chunk: positions at a time; 0: all.
        trained: patterns of the names of parameters that are learnt; (): all but the configuration's `fixed`.
        adapters: low-rank adapters, which then are all that is learnt, with the head if `trained` says so.
        attentions: whether probabilities are returned. on_gpu: torch keeps smaller dropout masks there.
    """

    inputs: Sizes
    targets: Sizes | None = None
    loss: LossSizes | None = None
    autocast: bool = False
    width: int = 4
    recompute_every: int = 0
    ffn_chunk: int = 0
    trained: tuple[str, ...] = ()
    adapters: Adapters | None = None
    attentions: bool = False
    on_gpu: bool = False


@dataclass(frozen=True)
class Share:
    """What one rank has of a model, whose stacks are then its own; its head is the whole model's.

    Attributes:
        layers: of each stack; None: all. parts: tensor-parallel ranks.
        words: rows of the head's vocabulary that are here, of which ranks can have some each; 0: all.
        begins: stacks whose frontend is here. ends: those whose final norm is here. head: whether the head is.
    """

    layers: tuple[tuple[str, range], ...] | None = None
    parts: int = 1
    words: int = 0
    begins: tuple[str, ...] = ("encoder", "decoder")
    ends: tuple[str, ...] = ("encoder", "decoder")
    head: bool = True

    def of(self, name: str, stack: StackConfig) -> range:
        """Return the layers of a stack that are here."""
        return range(stack.num_layers) if self.layers is None else dict(self.layers).get(name, range(0))


RECEIVED = "received"


class _Skipped:
    """Layers that are like one before: what they keep, and their parameters' gradients."""

    def __init__(self, name: str, entry: Slot, output: Slot, saved: list[Storage], gradients: int) -> None:
        self.name, self.entry, self.output, self.saved, self.gradients = name, entry, output, saved, gradients

    def run(self, tape: Tape) -> None:
        """Release what was kept; gradients stay."""
        self.entry.gradient, self.output.gradient, self.saved = self.output.gradient, None, []
        if self.gradients and self.name not in tape.gradients:
            slot = tape.gradients[self.name] = Slot(self.gradients, self.name)
            slot.kept = tape.storage(-(-self.gradients // tape.gradient_share), GRADIENTS)


@dataclass
class Run:
    """A model, or a rank's share of one, on a tape."""

    config: ModelConfig
    how: Learning
    share: Share = field(default_factory=Share)
    whole: bool = False  # whether every layer is run, alike or not

    def __post_init__(self) -> None:
        self.ops = Operations(
            self.is_trained,
            dict(self.config.tied),
            autocast=self.how.autocast,
            width=self.how.width,
            on_gpu=self.how.on_gpu,
            adapters=self.how.adapters,
            parts=self.share.parts,
        )

    def is_trained(self, name: str) -> bool:
        """Return whether a parameter is learnt."""
        if any(fnmatchcase(name, pattern) for pattern in self.config.fixed):
            return False
        if self.how.trained:
            return any(fnmatchcase(name, pattern) for pattern in self.how.trained)
        return self.how.adapters is None

    # ---- stacks ----------------------------------------------------------------------------------------------------

    def states(self, only: bool = False) -> tuple[Value, Value | None, Sizes]:
        """Return what the head reads, or the next stage; its mask, and the sizes of that stack."""
        encoder, decoder, how = self.config.encoder, self.config.decoder, self.how
        if encoder is None or decoder is None:
            stack, name = (decoder, "decoder") if decoder is not None else (encoder, "encoder")
            assert stack is not None
            x, real, states = self.stack(stack, name, how.inputs, only)
            return self._read(x, states), real, how.inputs
        memory, memory_real = self._memory(encoder)
        assert how.targets is not None
        if not self.share.of("decoder", decoder):
            return memory, memory_real, how.inputs
        x, real, states = self.stack(decoder, "decoder", how.targets, only, (memory, memory_real))
        return self._read(x, states), real, how.targets

    def _memory(self, encoder: StackConfig) -> tuple[Value, Value | None]:
        """Return the encoder's output, computed here or received."""
        sizes = self.how.inputs
        if self.share.of("encoder", encoder):
            x, real, _ = self.stack(encoder, "encoder", sizes, False)
            return x, real
        count = sizes.rows * sizes.positions(encoder)
        return self._received(count * encoder.hidden_size), self.ops.new(count, 1) if sizes.padded else None

    def _received(self, numbers: int) -> Value:
        """Return what another stage has sent, whose gradient it will get."""
        with self.ops.named(RECEIVED):
            value = self.ops.new(numbers, 4)
        return Value(numbers, 4, value.storage, Slot(value.size))

    def _read(self, x: Value, states: list[Value]) -> Value:
        if not self.config.head.mixed_states:
            return x
        return HeadRun(self.ops, self.config.head, self.config.main_stack.hidden_size).mix(states)

    def stack(
        self,
        stack: StackConfig,
        name: str,
        sizes: Sizes,
        only: bool,
        memory: tuple[Value, Value | None] | None = None,
    ) -> tuple[Value, Value | None, list[Value]]:
        """Return a stack's output, its mask, and all layers' outputs where the head mixes them."""
        ops, length = self.ops, sizes.positions(stack)
        embedded = self._embedded(stack, name, sizes)
        x = embedded.x
        flow = Flow(
            sizes.rows,
            length,
            masks(ops, stack, name, sizes, embedded),
            rotations(ops, stack, sizes, length, x.width),
            real=embedded.real,
            relative=self._relative(stack, name),
            attentions=self.how.attentions,
            chunk=self.how.ffn_chunk,
        )
        self.prepare(flow, name)
        if memory is not None:
            flow.memory, memory_real = memory
            flow.memory_length = self.how.inputs.positions(self.config.input_stack)
            if memory_real is not None:
                with ops.named(MASKS):
                    flow.memory_mask = Mask(ops.new(memory_real.numbers, x.width))
        real, embedded.x, begun = embedded.real, ops.new(0), [x]
        del x  # nobody but the first layer needs it, where nothing is learnt
        x, states = self._layers(begun, stack, name, flow, only)
        if name in self.share.ends:
            with ops.named(NORMS):
                x = ops.norm(x, f"{name}.norm", stack.hidden_size, stack.norm if stack.final_norm == "norm" else None)
                x = ops.drop(x, stack.dropout.final)
        return x, real, [*states[:-1], x]

    def prepare(self, flow: Flow, name: str) -> None:
        """Say what else goes along with the states of a stack; of training, nothing."""

    def _embedded(self, stack: StackConfig, name: str, sizes: Sizes) -> Embedded:
        if name in self.share.begins:
            return embed(self.ops, stack, name, sizes)
        count = sizes.rows * sizes.positions(stack)
        return Embedded(self._received(count * stack.hidden_size), self.ops.new(count, 1) if sizes.padded else None)

    def _relative(self, stack: StackConfig, name: str) -> Value | None:
        table = stack.disentangled
        if table is None:
            return None
        with self.ops.named(MASKS):
            weight = self.ops.weight(f"{name}.relative.weight", 2 * table.span * stack.hidden_size)
            return self.ops.norm(weight, f"{name}.relative.norm", stack.hidden_size, stack.norm if table.norm else None)

    def _layers(
        self, begun: list[Value], stack: StackConfig, name: str, flow: Flow, only: bool
    ) -> tuple[Value, list[Value]]:
        ops, layers, x = self.ops, self.share.of(name, stack), begun.pop()
        mixed = self.config.head.mixed_states > 0
        states, done = [x] if mixed else [], set()
        seen: dict[Any, Any] = {}  # kind of layer → how many were run, what the last one added, its gradients
        convolved = stack.disentangled is not None and stack.disentangled.conv_kernel > 0
        before = x if convolved else None
        for layer in layers:
            kind = (stack.rope[layer], stack.windows[layer], self._again(layer), layer == 0)
            last = layer == layers[-1] or layer == layers[0]
            if seen.get(kind, (0,))[0] >= 2 and not last and not mixed and not self.whole:
                fresh = stack.layer_ids[layer] not in done
                x = self._skip(f"{name} {layer}", x, seen[kind][1], seen[kind][2] if fresh else 0)
            else:
                live = dict(ops.meter.live)
                block = Block(ops, stack, layer, name)
                wanted = only and layer == stack.num_layers - 1
                x = self._block(block, x, flow, wanted)
                if layer == 0 and before is not None:
                    x, before = self._convolution(before, x, stack, name, flow), None
                more = {part: size - live.get(part, 0) for part, size in ops.meter.live.items()}
                seen[kind] = (seen.get(kind, (0,))[0] + 1, more, self._learnt(block.name))
            done.add(stack.layer_ids[layer])
            if mixed:
                states.append(x)
        return x, states

    def _again(self, layer: int) -> bool:
        return self.how.recompute_every > 0 and layer % self.how.recompute_every == 0

    def _learnt(self, prefix: str) -> int:
        """Return the bytes of the gradients of a layer."""
        known = self.ops.known.items()
        return sum(each.size for name, each in known if name.startswith(prefix + ".") and each.slot is not None)

    def _block(self, block: Block, x: Value, flow: Flow, wanted: bool) -> Value:
        def layer(x: Value) -> Value:
            flow.one = wanted
            return block(x, flow)

        return self.ops.again(x, layer) if self._again(block.layer) else layer(x)

    def _skip(self, name: str, x: Value, more: Mapping[str, int], gradients: int) -> Value:
        ops = self.ops
        saved = [ops.storage(size, part) for part, size in more.items() if size > 0]
        if x.slot is None:
            return x
        slot = Slot(x.size)
        ops.nodes.append(_Skipped(name, x.slot, slot, saved, gradients))  # type: ignore[arg-type]
        return Value(x.numbers, x.width, x.storage, slot, x.strided)

    def _convolution(self, before: Value, after: Value, stack: StackConfig, name: str, flow: Flow) -> Value:
        """Return the first layer's output with DeBERTa's convolution of its input."""
        ops, table, D = self.ops, stack.disentangled, stack.hidden_size
        assert table is not None
        each = (D // table.conv_groups) * table.conv_kernel
        columns = each * flow.length if table.conv_groups > 1 else 0
        kernel = Kernel(D * each, D, columns=columns, turned=True)
        local = convolution(ops, before, f"{name}.local.conv", kernel, before.numbers)
        local = ops.drop(local, stack.dropout.positions)
        if flow.real is None:
            return ops.norm(
                ops.add(after, ops.activation(local, table.conv_activation)), f"{name}.local.norm", D, stack.norm
            )
        real = ops.new(flow.real.numbers, local.width)
        local = ops.activation(ops.multiply(local, real), table.conv_activation)
        return ops.multiply(ops.norm(ops.add(after, local), f"{name}.local.norm", D, stack.norm), real)

    # ---- the whole micro-batch -------------------------------------------------------------------------------------

    def loss(self, mark: Callable[[str], None]) -> Value:
        """Return the losses, one for each label; `mark` is told when the forward pass is over."""
        ops, config, loss = self.ops, self.config, self.how.loss
        head = HeadRun(ops, config.head, config.main_stack.hidden_size, self.share.words)
        if loss is None or not self.share.head:
            return self.states()[0]
        by_place = loss.kind in ("words", "token")
        x, real, sizes = self.states(only=not by_place and self._one(loss))
        length = sizes.positions(config.main_stack)
        with ops.named(LOGITS):
            if by_place:
                x = ops.picked(x, loss.labels * config.main_stack.hidden_size, loss.labels * 8)
            mark("forward")
            if by_place:
                if loss.kind == "words":
                    return heads.word_losses(head, x, loss)
                return heads.cross_entropy(ops, head.score(x), loss.labels, config.head.out_size, loss)
            logits = head(x, sizes.rows, real)
            del x
            if loss.kind == "span":
                return heads.span_losses(ops, logits, sizes.rows, length, sizes.padded, loss)
            if loss.kind == "ctc":
                return heads.ctc_losses(ops, logits, sizes.rows, length, loss)
            if loss.kind == "choice":
                return heads.choice_losses(ops, logits, sizes.rows // loss.choices, loss)
            return heads.answer_losses(ops, logits, sizes.rows, loss)

    def micro_batch(self) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
        """Run a micro-batch; the gradients stay for the next.

        Returns:
            phase → part → bytes at its peak, and what is kept from the forward pass to the backward pass: part → bytes.
        """
        ops, found = self.ops, {}
        before = dict(ops.meter.live)
        ops.meter.restart()

        def mark(phase: str) -> None:
            found[phase] = ops.meter.finish()
            ops.meter.restart()

        result = self.loss(mark)
        mark("loss" if "forward" in found else "forward")
        ops.part_done()
        kept = {part: size - before.get(part, 0) for part, size in ops.meter.live.items()}
        if result.slot is not None:
            ops.meter.restart()
            ops.start_backward(result)
            ops.backward()
            mark("backward")
        ops.inputs.clear()
        return found, {part: size for part, size in kept.items() if size > 0}

    def _one(self, loss: LossSizes) -> bool:
        """Whether the last layer computes the one position that the head reads (`Stack._can_leave_out`)."""
        head, stack = self.config.head, self.config.main_stack
        sizes = self.how.targets or self.how.inputs
        if head.mixed_states or head.out_size == 0 or self.how.attentions or sizes.positions(stack) == 1:
            return False
        if loss.kind in ("span", "ctc") or (
            stack.disentangled is not None and stack.disentangled.conv_kernel and stack.num_layers == 1
        ):
            return False
        if head.pick == "first":
            return stack.direction != "causal"
        return head.pick == "last" and not sizes.padded


def saved_bytes(config: ModelConfig, how: Learning) -> list[int]:
    """Return the bytes of each tensor that autograd keeps of a micro-batch, parameters not counted."""
    run = Run(config, how, whole=True)
    result = run.loss(lambda phase: None)
    found = run.ops.saved()
    del result
    return found
