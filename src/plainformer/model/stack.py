"""A frontend and a stack of layers: inputs → hidden states. An encoder and a decoder are both one of these.

`begin` (embed the inputs, make masks and rotations) → `run_layers` → `end` (final norm, the cache's new length). The three
are separate so that a part of the layers can run alone, as a stage of a pipeline: it begins with the output of the layer
before, and makes everything else that goes along with it from the same inputs.

Shapes: B batch, T positions of this call, S positions in all (cached ones and T), D hidden size, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.errors import UsageError
from plainformer.model.block import make_block
from plainformer.model.blockwise import lowest
from plainformer.model.disentangled import LocalConvolution, RelativeTable
from plainformer.model.documents import Documents
from plainformer.model.dropout import drop, skips
from plainformer.model.flow import Attentions, Cache, Flow, Mask
from plainformer.model.frontend import TokenEmbedding, WaveEmbedding, make_frontend, may_look, require
from plainformer.model.heads import FIRST
from plainformer.model.inputs import Reading, StackInput, read
from plainformer.model.norm import make_norm
from plainformer.model.packing import Packing, packing_of
from plainformer.model.pausing import pause
from plainformer.model.position import BucketBias, Rotary, visible
from plainformer.model.recompute import recompute

Came = Callable[[Reading], Tensor]  # gives the output of the layer before the first that is here, (B, T, D)


@dataclass
class StackOutput:
    """`hidden_states`: the frontend's output and every layer's, the last after the final norm; L + 1 of (B, T, D).

    `kept`: by layer, a decoder's keys and values of this encoder output, (B, H, S, E), for who decodes it more than once: {}
    lets the first decoding fill it. None: each decoding computes its own.
    """

    last_hidden_state: Tensor
    real_BT: Tensor | None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None


def join_outputs(first: StackOutput, more: StackOutput) -> StackOutput:
    """Return one encoder output, `first` followed by `more`: a decoder then attends to an input that has grown.

    Each part has attended only to itself, as in streaming; pass `position_ids` to `encode` if the positions of the second
    part continue those of the first. Rows are joined, (B, S) and (B, S') → (B, S + S'); a part without a mask counts as
    all real. Attentions, which are within a part, are left out.
    """
    a, b = first.last_hidden_state, more.last_hidden_state
    if a.shape[::2] != b.shape[::2]:
        raise UsageError(
            f"encoder outputs of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be joined",
            "they need the same number of rows and the same hidden size",
        )
    real_BT = None
    if first.real_BT is not None or more.real_BT is not None:
        parts = ((first.real_BT, a), (more.real_BT, b))
        real_BT = torch.cat([x.new_ones(x.shape[:2], dtype=torch.bool) if r is None else r for r, x in parts], dim=1)
    states = None
    if first.hidden_states is not None and more.hidden_states is not None:
        pairs = zip(first.hidden_states, more.hidden_states, strict=True)
        states = tuple(torch.cat(pair, dim=1) for pair in pairs)
    return StackOutput(torch.cat((a, b), dim=1), real_BT, states)


class Stack(nn.Module):
    """frontend → layers → final norm.

    Args:
        config: of the whole stack: what inputs are checked against.
        share: sizes of what is here, where tensor-parallel ranks share a layer; None: the whole stack's.
        held: the layers that are here, where a pipeline has cut the stack; None: all. The others are identities, so that
            names stay; the frontend goes with the first layer, the final norm with the last.
    """

    def __init__(self, config: StackConfig, share: StackConfig | None = None, held: range | None = None) -> None:
        super().__init__()
        self.config, self.dropout = config, config.dropout
        self.held = range(config.num_layers) if held is None else held
        self.begins, self.ends = 0 in self.held, config.num_layers - 1 in self.held
        self.recompute_every = 0  # see `set_checkpointing`
        self.unwatching: frozenset[int] = (
            frozenset()
        )  # hooks by number that bring a layer's weights, and look at nothing
        self.own_heads = slice(None)  # which of all heads are here, where ranks share them
        self.causal = config.direction == "causal"
        sizes = config if share is None else share
        self.frontend = make_frontend(sizes) if self.begins else nn.Identity()
        here = {config.layer_ids[layer] for layer in self.held}
        self.layers = nn.ModuleList(
            make_block(sizes, index) if index in here else nn.Identity() for index in range(len(set(config.layer_ids)))
        )
        final = config.norm if config.final_norm == "norm" and self.ends else None
        self.norm = make_norm(config.hidden_size, final)
        ropes = list(dict.fromkeys(rope for rope in config.rope if rope is not None))
        self.rotaries = nn.ModuleList(Rotary(rope) for rope in ropes)
        self.rope_of_layer = [ropes.index(rope) if rope is not None else None for rope in config.rope]
        bias, table = config.relative_bias, config.disentangled
        self.bias = BucketBias(bias, sizes.num_heads, self.causal) if bias is not None and here else None
        self.relative = RelativeTable(table, config.hidden_size, config) if table is not None and here else None
        has_local = table is not None and table.conv_kernel > 0 and self.begins
        self.local = LocalConvolution(config) if has_local else None

    def forward(
        self,
        inputs: StackInput,
        *,
        cache: Cache | None = None,
        encoder_output: StackOutput | None = None,
        only: slice | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        came: Came | None = None,
    ) -> StackOutput:
        """Run all layers that are here; `only` and `came` as in `begin`.

        Of a part that is not the last, `last_hidden_state` is what goes on to the next, and `hidden_states` are the part's.
        """
        x_BTD, flow = self.begin(
            inputs,
            cache=cache,
            encoder_output=encoder_output,
            only=None if output_hidden_states else only,
            output_attentions=output_attentions,
            came=came,
        )
        states: list[Tensor] = []  # stays empty, and nothing else here keeps an earlier layer's output alive
        attentions: list[Attentions] = []
        flow.each = output_hidden_states or output_attentions
        if output_hidden_states and self.begins:
            states.append(flow.unpacked(x_BTD))
        outputs = self.run_layers(x_BTD, flow)
        for x_BTD, layer_attentions in outputs:
            if output_hidden_states:
                states.append(flow.unpacked(x_BTD))
            if output_attentions:
                attentions.append(layer_attentions)
        output = self.end(x_BTD, flow)
        if output_hidden_states:
            output.hidden_states = (*states[:-1], output.last_hidden_state)
        if output_attentions:
            output.attentions = tuple(each.own for each in attentions if each.own is not None)
        if output_attentions and self.config.cross_attention:
            output.cross_attentions = tuple(each.cross for each in attentions if each.cross is not None)
        return output

    def begin(
        self,
        inputs: StackInput,
        *,
        cache: Cache | None = None,
        encoder_output: StackOutput | None = None,
        only: slice | None = None,
        output_attentions: bool = False,
        came: Came | None = None,
    ) -> tuple[Tensor, Flow]:
        """Return the frontend's output, (B, T, D), and what goes along with it through the layers.

        `only`: the one position of the output that is wanted, `FIRST` or `LAST`; None for all. The last layer then leaves
        out the others where it can, that is, unless a row has padding there or a hook watches the layer. `came`: gives the
        output of the layer before, where the stack does not begin here.
        """
        past = cache.length if cache is not None else 0
        if came is None and not self.begins:
            raise UsageError("this is a part of a model, and nothing connects it to the others", "connect(model, mesh)")
        reading = read(self.config, inputs, past, self.training)
        x_BTD = self._embed(inputs, reading) if came is None else came(reading)
        size, positions_BT, real_BS, documents = reading
        packing = self._packing(reading, cache) if not output_attentions else None
        if documents is not None and (output_attentions or self.relative is not None):
            documents = replace(documents, runs=None)  # probabilities of all positions, or a bias made of all of them
        lengths_BT = documents.lengths_BT() if documents is not None else None
        if packing is not None:
            x_BTD, documents = packing.pack(x_BTD), packing.documents
            positions_BT = packing.pack(positions_BT.expand(size))
        rotations = [rotary(positions_BT, x_BTD.dtype, lengths_BT) for rotary in self.rotaries]
        flow = Flow(
            masks=self._masks(x_BTD, past, real_BS, documents),
            rotations=[None if index is None else rotations[index] for index in self.rope_of_layer],
            length=size[1],
            real_BS=real_BS,
            documents=documents,
            packing=packing,
            cache=cache,
            head_mask_LH=self._head_mask("head_mask", inputs.head_mask, x_BTD),
            cross_head_mask_LH=self._head_mask("cross_head_mask", inputs.cross_head_mask, x_BTD),
            relative=self.relative() if self.relative is not None else None,
            output_attentions=output_attentions,
        )
        if encoder_output is not None:
            flow.encoder_BSD, flow.encoder_kept = encoder_output.last_hidden_state, encoder_output.kept
            if encoder_output.real_BT is not None:
                flow.encoder_mask = Mask(_additive(encoder_output.real_BT[:, None, None], x_BTD.dtype))
        if only is not None and self._can_leave_out(only, flow):
            flow.only = (self.config.num_layers - 1, only)
        return x_BTD, flow

    def run_layers(
        self, x_BTD: Tensor, flow: Flow, first: int | None = None, last: int | None = None
    ) -> Iterator[tuple[Tensor, Attentions]]:
        """Yield the output, (B, T, D), and the attentions of each layer from `first` up to and without `last`.

        Of layers that run as one, which they do only where `flow.each` is not set, the last one's. None: from the first that
        is here, up to the last. Layers are pure functions of x, their number and the flow, except that they add to the cache.
        """
        layers, before_BTD = list(self.layers), x_BTD if self.local is not None else None
        for layer in self.between(first, last):
            index = self.config.layer_ids[layer]
            x_BTD, attentions = self._run(layers[index], x_BTD, layer, flow)
            if layer == 0 and self.local is not None:
                x_BTD, before_BTD = self.local(before_BTD, x_BTD, flow.real_BS, flow.documents), None
            yield x_BTD, attentions
            pause(within=True)

    def between(self, first: int | None, last: int | None) -> range:
        """Return the numbers of the layers from `first` up to and without `last`; None: of those that are here."""
        return range(self.held.start if first is None else first, self.held.stop if last is None else last)

    def end(self, x_BTD: Tensor, flow: Flow) -> StackOutput:
        """Return the last layer's output, after the final norm if it is the stack's, and count positions in the cache."""
        x_BTD = flow.unpacked(x_BTD)
        if flow.cache is not None:
            flow.cache.advance(flow.length)
        real_BT = flow.real_BS[:, -flow.length :] if flow.real_BS is not None else None
        if flow.only is not None and real_BT is not None:
            real_BT = real_BT[:, flow.only[1]]
        if self.ends:
            x_BTD = drop(self.norm(x_BTD), self.dropout.final, self.training)
        return StackOutput(x_BTD, real_BT)

    def _run(self, block: nn.Module, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Attentions]:
        """Run one layer; in training, leave it out at random, or run it once more for its gradient, if so set."""
        if skips(self.dropout.layer, self.training):
            return flow.residual(x_BTD, layer), Attentions()
        if self.training and self.recompute_every and layer % self.recompute_every == 0 and torch.is_grad_enabled():
            return recompute(block, x_BTD, layer, flow)
        output: tuple[Tensor, Attentions] = block(x_BTD, layer, flow)
        return output

    def _can_leave_out(self, only: slice, flow: Flow) -> bool:
        """Whether the last layer can run for one position alone: real in all rows, and nobody watches (hooks see all)."""
        several = flow.documents is not None and flow.packing is None
        if flow.length == 1 or flow.output_attentions or (self.causal and only == FIRST) or several:
            return False
        if not self.ends:
            return False
        if self.local is not None and self.config.num_layers == 1:  # the convolution after layer 0 reads all positions
            return False
        if flow.real_BS is not None:
            real_B1 = flow.real_BS[:, -flow.length :][:, only]
            if not may_look(real_B1, self.training) or not bool(real_B1.all()):
                return False
        return not self._is_watched(self.layers[self.config.layer_ids[-1]])

    def _is_watched(self, part: nn.Module) -> bool:
        """Whether a hook looks at what goes through a part of the stack."""
        hooks = (hook for module in part.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks))
        return not all(hook in self.unwatching for hook in hooks)

    def _packing(self, reading: Reading, cache: Cache | None) -> Packing | None:
        """Return how to leave the padding out; None where there is none, or where all of the batch has to be computed.

        In training the loss decides what is packed. A GPU would have to be waited for. What was cached is padded, and so is
        what stages of a pipeline send each other.
        """
        real_BS = reading.real_BS
        if real_BS is None or reading.documents is not None or self.training or torch.is_grad_enabled():
            return None
        if not (self.begins and self.ends) or self.relative is not None or self.config.cross_attention:
            return None
        if cache is not None and (cache.length or not cache.exact):
            return None
        if real_BS.device.type != "cpu" or bool(real_BS.all()):
            return None
        return None if self._is_watched(self) else packing_of(real_BS)

    def _embed(self, inputs: StackInput, reading: Reading) -> Tensor:
        if isinstance(self.frontend, TokenEmbedding):
            if inputs.input_ids is not None:
                embeds = self.frontend.embed(inputs.input_ids)
            else:
                assert inputs.inputs_embeds is not None
                embeds = inputs.inputs_embeds.to(self.frontend.tokens.dtype)
            x_BTD = self.frontend(embeds, reading.positions_BT, inputs.token_type_ids, reading.real_BT())
        elif isinstance(self.frontend, WaveEmbedding):
            hidden = inputs.hidden_frames, inputs.hidden_features
            x_BTD = self.frontend(inputs.input_values, reading.real_BT(), *hidden)
        else:
            given = inputs.pixel_values if inputs.pixel_values is not None else inputs.input_features
            x_BTD = self.frontend(given)
        return x_BTD

    def _masks(
        self, x_BTD: Tensor, past: int, real_BS: Tensor | None, documents: Documents | None = None
    ) -> list[Mask]:
        """Return each layer's mask; layers with the same window share one."""
        queries, keys, own_BTT = x_BTD.size(1), past + x_BTD.size(1), None
        if documents is not None and documents.runs is not None:
            queries, keys, real_BS = documents.longest, documents.longest, None
        elif documents is not None:  # padding sees padding, and nothing else does
            own_BTT, real_BS = documents.same_BTT(), None
        bias = self.bias(queries, keys) if self.bias is not None else None
        made: dict[int | None, Mask] = {}
        for window in set(self.config.windows):
            plain = real_BS is None and own_BTT is None and bias is None
            reach = window if self.causal else None
            back = self.causal and queries > 1 and plain and (window or keys) >= keys
            if back and queries == keys:
                made[window] = Mask(causal=True, looks_back=True, plain=True, window=reach)
                continue
            seen = visible(queries, keys, self.causal, window, x_BTD.device)
            if real_BS is not None:
                real = real_BS[:, None, None]
                seen = real if seen is None else seen & real
            if own_BTT is not None:
                own = own_BTT[:, None]
                seen = own if seen is None else seen & own
            added = _additive(seen, x_BTD.dtype, bias) if seen is not None else bias
            made[window] = Mask(added, looks_back=self.causal, plain=back, window=reach)
        return [made[window] for window in self.config.windows]

    def _head_mask(self, name: str, head_mask: Tensor | None, x_BTD: Tensor) -> Tensor | None:
        if head_mask is None:
            return None
        expected = (self.config.num_layers, self.config.num_heads)
        wanted = f"(layers, heads) = {expected}"
        require(tuple(head_mask.shape) == expected, name, head_mask, wanted, "1 keeps a head, 0 masks it out")
        return head_mask[:, self.own_heads].to(x_BTD)


def _additive(seen: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Return a mask to add to scores: 0 (or the bias) where a key is seen, the lowest finite number where not.

    Not -inf: a row that sees nothing (padding on the left) would become NaN and spread through the values. Nor what bf16
    rounds to it, which autocast may make of the mask.
    """
    base = bias if bias is not None else torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, base, lowest(dtype))
