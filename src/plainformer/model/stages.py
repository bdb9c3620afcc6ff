"""A model that is cut into stages, each of them a process with some of the layers: what goes from one to the next.

In one stack it is the hidden states. Between an encoder and a decoder it is the encoder's output, `memory`, which then goes
along with the decoder's hidden states, because each of its layers reads it. Everything else - positions, masks, rotations -
each stage makes from the inputs, which all have.

Shapes: B batch, T positions of the stack that is cut, S positions of the encoder, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from plainformer.config.local import cuts
from plainformer.errors import UsageError, opt
from plainformer.model.inputs import StackInput, read, size_of
from plainformer.model.stack import Stack, StackOutput

if TYPE_CHECKING:
    from plainformer.model.transformer import Transformer


class Crossing(NamedTuple):
    """What goes from a stage to the next; None for what does not exist there, or is not needed any more.

    `x_BTD`: the output of a layer. `memory_BSD`: that of the encoder. In a crossing of sizes, each is (B, T, D).
    """

    x_BTD: Any = None
    memory_BSD: Any = None


class Pipe(Protocol):
    """How a stage reaches the others while `Transformer.forward` runs."""

    def through(
        self, stack: Stack, name: str, inputs: StackInput, *, shared: bool = True, **options: Any
    ) -> StackOutput:
        """Return the output of a whole stack, of which some layers may be here.

        Not `shared`: it is needed where the last of its layers is; elsewhere only its sizes mean something.
        """

    def from_first(self, name: str, make: Callable[[], Tensor], size: Sequence[int]) -> Tensor:
        """Return what `make` gives where a stack begins; of `size` elsewhere."""

    def from_last(self, make: Callable[[], Tensor], size: Callable[[], Sequence[int]]) -> Tensor:
        """Return what `make` gives on the last stage, which has the head; of `size` elsewhere."""


class Arrived:
    """The last stage's view of one micro-batch in training: what has arrived is the result of all that ran before."""

    def __init__(self, came: Crossing) -> None:
        self.came, self.ran = came, set[str]()

    def through(
        self, stack: Stack, name: str, inputs: StackInput, *, shared: bool = True, **options: Any
    ) -> StackOutput:
        """See `Pipe`."""
        if name in self.ran:
            what = "this objective runs the model more than once for a micro-batch, and a pipeline's stages run once"
            raise UsageError(what, f"leave {opt('parallel.pp')} out")
        self.ran.add(name)
        if not stack.held:
            return StackOutput(self.came.memory_BSD, read(stack.config, inputs, 0, stack.training).real_BT())
        output: StackOutput = stack(inputs, came=None if stack.begins else lambda _: self.came.x_BTD, **options)
        return output

    def from_first(self, name: str, make: Callable[[], Tensor], size: Sequence[int]) -> Tensor:
        """See `Pipe`."""
        raise UsageError("a pipeline's last stage does not embed tokens in training", f"leave {opt('parallel.pp')} out")

    def from_last(self, make: Callable[[], Tensor], size: Callable[[], Sequence[int]]) -> Tensor:
        """See `Pipe`."""
        return make()


def run_stage(model: Transformer, came: Crossing, inputs: Mapping[str, StackInput]) -> Crossing:
    """Run the layers that are here, of a stage that is not the last, on what has come; return what goes on."""
    encoder, decoder, memory = model.encoder, model.decoder, came.memory_BSD
    arrived = Arrived(came)
    if encoder is not None and encoder.held:
        output = arrived.through(encoder, "encoder", inputs["encoder"])
        if not encoder.ends:
            return Crossing(output.last_hidden_state)
        memory = output.last_hidden_state
    if decoder is None or not decoder.held:
        return Crossing(None, memory)
    encoded = None
    if encoder is not None:
        encoded = StackOutput(memory, read(encoder.config, inputs["encoder"], 0, model.training).real_BT())
    output = arrived.through(decoder, "decoder", inputs["decoder"], encoder_output=encoded)
    return Crossing(output.last_hidden_state, memory)


def crossings(model: Transformer, inputs: Mapping[str, StackInput]) -> list[Crossing]:
    """Return the sizes of what each stage but the last sends for these inputs, in the order of the stages."""
    assert model.local is not None
    stacks = {name: getattr(model, name).config for name in inputs}
    sizes = {name: (*size_of(stack, inputs[name]), stack.hidden_size) for name, stack in stacks.items()}
    if len(sizes) == 1:
        return [Crossing(*sizes.values())] * (model.local.layout.pp - 1)
    encoder, decoder, between = sizes["encoder"], sizes["decoder"], stacks["encoder"].num_layers
    return [
        Crossing(encoder) if cut < between else Crossing(None if cut == between else decoder, encoder)
        for cut in cuts(model.config, model.local.layout.pp)[1:-1]
    ]
