"""The phases of an inference on one rank: load, prefill and decode; encode; or one forward pass. No torch.

The model is run on the tape of `activations.py`, as training is, but nothing is remembered for a gradient: a value is alive
as long as the model's own code refers to it. Keys and values go to a cache, whose bytes are `cache.py`'s.

Letters: B prompts, R rows, D hidden size, H heads, S positions in all, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from plainformer.config import Dropout, ModelConfig, StackConfig, WaveFrontend
from plainformer.config.local import Local
from plainformer.config.parts import MelFrontend
from plainformer.plan.activations import Learning, Run, Share
from plainformer.plan.blockwise import attend_by_blocks
from plainformer.plan.cache import SLACK, CacheBytes, CacheUse, cache_bytes
from plainformer.plan.devices import short
from plainformer.plan.frontends import INPUTS, Sizes
from plainformer.plan.heads import HeadRun
from plainformer.plan.layers import MASKS, Flow, Heads
from plainformer.plan.operations import Operations
from plainformer.plan.result import ACTIVATIONS, CACHE, CONVERSION, GROWTH, LOGITS, WEIGHTS, WORKSPACE, Item, Phase
from plainformer.plan.result import MASKS as MASKS_AND_ROTATIONS
from plainformer.plan.stored import StoredFile
from plainformer.plan.tape import Value
from plainformer.plan.weights import BLOCK, WIDTHS, Loaded, Loading, usual_backend, weights
from plainformer.plan.workload import Workload

RATE = 16_000  # samples a second of what waveform models were trained on
PIECE = 1 << 20  # rounded weights that are made wide at a time (`Int8Weight.PIECE`, `BlockWeight.PIECE`)
FEW = 64  # rows that are multiplied by blocks as they are (`BlockWeight.FEW`)
BLOCKS = ("int4", "keep")  # backends whose weights are blocks, and whose inputs are rounded
JOINED = "matrices of the same input joined"
ROUNDED = {
    "int8": "int8, embeddings and norms in fp32",
    "int4": "int4, scores of words in int8, embeddings and norms in fp32",
    "keep": "in the file's own blocks, norms in fp32",
}
HOW = {"plain": "as stored", "fused": JOINED, "compiled": JOINED, "onednn": "in oneDNN's layout"}
SEARCHED = 4  # logits of a step that beams and samples hold at once: before and after processing, sorted, probabilities


class Products(Operations):
    """Operations of a model that does not learn.

    Args:
        width: bytes of a weight. backend: of the linears, see `weights.py`: all but "plain" join those that read the same.
    """

    def __init__(self, same: dict[str, str], width: int = 4, backend: str = "plain", parts: int = 1) -> None:
        super().__init__(lambda name: False, same, width=width, parts=parts)
        self.keeping, self.backend = False, backend

    def linear(self, x: Value, name: str, inputs: int, outputs: int, bias: bool, leaves: bool = False) -> Value:
        """Return x Wᵀ + b; of rounded weights piece by piece, and the results of several pieces joined."""
        n = x.numbers // inputs
        if self.backend not in ("int8", *BLOCKS) or (self.backend in BLOCKS and n <= FEW):
            return super().linear(x, name, inputs, outputs, bias, leaves)
        x = self.copied(x)
        if self.backend in BLOCKS:
            return self._by_blocks(x, inputs, outputs)
        rows = min(max(PIECE // inputs, 1), outputs)
        pieces, wide = self.storage(n * outputs * 4 if rows < outputs else 0), self.storage(rows * inputs * 4)
        if rows < outputs:
            del wide
        y = self.operation(n * outputs, 4, ())
        del pieces
        return self.summed(y) if leaves else y

    def _by_blocks(self, x: Value, inputs: int, outputs: int) -> Value:
        """Return the product of an input that is rounded, 32 numbers of a row at a time, and of weights made wide."""
        n = x.numbers // inputs
        padded = n * -(-inputs // BLOCK) * BLOCK * 4
        taken = [self.storage(padded) for _ in range(3)]  # as blocks, divided by their scales, and rounded
        del taken
        narrow = self.storage(padded)
        pieces, wide = self.storage(n * outputs * 4), self.storage(min(PIECE // inputs, outputs) * inputs * 4)
        del wide
        y = self.operation(n * outputs, 4, ())
        del narrow, pieces
        return y

    def group(self, x: Value, name: str, inputs: int, sizes: dict[str, int], bias: bool) -> list[Value]:
        """Return views of one product of all."""
        if self.backend == "plain":
            return super().group(x, name, inputs, sizes, bias)
        joined, n = self.linear(x, name, inputs, sum(sizes.values()), bias), x.numbers // inputs
        return [Value(n * size, joined.width, joined.storage, None) for size in sizes.values()]


@dataclass(frozen=True)
class Reading:
    """How a cache takes a layer's keys and values.

    Attributes:
        kind: "full" or "int8". limits: for each layer, positions beyond which a window lets the oldest go; None: never.
        length: positions that are given.
    """

    kind: str
    limits: tuple[int | None, ...]
    length: int


class Forward(Run):
    """One forward pass on a tape.

    Attributes:
        backend: of the linears. reading: of the decoder's cache; None: there is none. on_cpu: where prompts go by blocks.
    """

    backend = "plain"
    reading: Reading | None = None
    on_cpu = True

    def __post_init__(self) -> None:
        self.config = without_dropout(self.config)
        self.ops = Products(dict(self.config.tied), self.how.width, self.backend, self.share.parts)

    def set_up(self, backend: str, reading: Reading | None = None, on_cpu: bool = True) -> Forward:
        """Choose a backend, a cache, and where it is."""
        self.backend, self.reading, self.on_cpu = backend, reading, on_cpu
        self.__post_init__()
        return self

    def prepare(self, flow: Flow, name: str) -> None:
        """Let a decoder's keys and values go to the cache, and its prompt by blocks."""
        flow.by_blocks = attend_by_blocks if self.on_cpu else None
        if self.reading is not None and name == "decoder":
            flow.kept = self._keep

    def _keep(self, heads: Heads, layer: int) -> None:
        """Put in place of keys and values what attention reads of the cache, whose own bytes are counted elsewhere."""
        reading, ops = self.reading, self.ops
        assert reading is not None
        limit = reading.limits[layer] if layer >= 0 else None
        slides = limit is not None and reading.length > limit
        if reading.kind == "int8" and layer >= 0:
            self._round(heads.k)
        if slides or (reading.kind == "int8" and layer >= 0):
            k, more = ops.new(heads.k.numbers, heads.k.width), reading.kind == "int8"
            wide = ops.new(heads.v.numbers if more else 0, 4)  # bytes times scales: the bytes are made wide for it
            heads.k, heads.v = k, ops.new(heads.v.numbers, heads.v.width)
            del k, wide
        else:
            heads.k, heads.v = (Value(x.numbers, x.width, None, None) for x in (heads.k, heads.v))
        heads.by_head = True

    def _round(self, x: Value) -> None:
        """Take and give back what rounding to eight bits needs: the quotient, rounded, and as bytes."""
        taken = [self.ops.new(x.numbers, 4), self.ops.new(x.numbers, 4), self.ops.new(x.numbers, 1)]
        del taken

    def encoded(self) -> tuple[dict[str, int], tuple[Value, Value | None]]:
        """Return the most bytes at once, by part, of a pass through the encoder, and its output."""
        assert self.config.encoder is not None
        memory = self._memory(self.config.encoder)
        found = self._finished()
        self.ops.meter.restart()
        return found, memory

    def scored(self, keep: int, only: bool, memory: tuple[Value, Value | None] | None = None) -> dict[str, int]:
        """Return the most bytes at once, by part, of a pass through the stack that the head reads.

        Args:
            keep: last positions that are scored, 0 for all. only: whether the last layer computes just one of each row.
            memory: the encoder's output.
        """
        config, name = self.config, "encoder" if self.config.decoder is None else "decoder"
        sizes = self.how.inputs if memory is None or self.how.targets is None else self.how.targets
        if not self.share.of(name, config.main_stack):
            return self._finished()
        x, real, states = self.stack(config.main_stack, name, sizes, only, memory)
        x = self._read(x, states)
        del states
        self._score(x, real, sizes, keep, only)
        return self._finished()

    def _score(self, x: Value, real: Value | None, sizes: Sizes, keep: int, only: bool) -> None:
        ops, head, D = self.ops, self.config.head, self.config.main_stack.hidden_size
        if not self.share.head or not (head.out_size or head.transform_size):
            return
        with ops.named(LOGITS):
            if keep and head.pick == "all" and not only:
                x = ops.part_of(x, sizes.rows * keep * D)
            HeadRun(ops, head, D, self.share.words)(x, sizes.rows, None if only else real)

    def _finished(self) -> dict[str, int]:
        text = self.config.input_frontend.kind == "tokens"  # whose ids are counted with those that follow
        return {part: size for part, size in self.ops.meter.finish().items() if part != INPUTS or not text}


def without_dropout(config: ModelConfig) -> ModelConfig:
    """Return a model as it is in use."""
    head = replace(config.head, dropout=0.0, dense_dropout=0.0)
    stacks = {
        name: replace(stack, dropout=Dropout())
        for name, stack in (("encoder", config.encoder), ("decoder", config.decoder))
        if stack is not None
    }
    return replace(config, head=head, **stacks)  # type: ignore[arg-type]


# ---- phases -------------------------------------------------------------------------------------------------------


def inference_phases(
    here: Local,
    workload: Workload,
    *,
    on_gpu: bool = False,
    backend: str | None = None,
    stored: str | StoredFile | None = None,
) -> tuple[Phase, ...]:
    """Return what one rank holds in each phase of an inference.

    Args:
        backend: of the linears; None: the one that loading chooses. stored: as the weights are in their file.
    """
    loading = loading_of(here.config, workload, stored, on_gpu=on_gpu, backend=backend)
    return _Plan(here, workload, loading).phases()


def loading_of(
    config: ModelConfig,
    workload: Workload,
    stored: str | StoredFile | None = None,
    *,
    on_gpu: bool = False,
    backend: str | None = None,
) -> Loading:
    """Return how `load` gets the weights that are asked for; `backend` as for `inference_phases`."""
    if workload.training:
        return Loading(stored=stored, mapped=False, copied=True)
    usual = workload.quantized or usual_backend(config, workload.number, cpu=not on_gpu)
    return Loading(dtype=workload.number, backend=backend or usual, mapped=not on_gpu, stored=stored)


class _Plan:
    """One rank's inference."""

    def __init__(self, here: Local, workload: Workload, loading: Loading) -> None:
        self.here, self.workload = here, workload
        self.backend, self.number = loading.backend, WIDTHS[loading.dtype or "fp32"]
        # Rows that differ in length run without their padding, see `Stack._packing`.
        self.on_cpu = loading.mapped
        self.packs = loading.mapped and workload.cache != "int8" and here.layout.pp == 1
        self.loaded: Loaded = weights(here.config, loading, here)
        self.weights = Item(WEIGHTS, self.loaded.bytes, self._note())
        # Each rank has all words' scores.
        self.config = replace(here.model, head=here.config.head)
        layout = here.layout
        self.share = Share(
            tuple(here.layers.items()),
            layout.tp,
            here.model.head.out_size,
            tuple(name for name in here.layers if here.begins(name)),
            tuple(name for name in here.layers if here.ends(name)),
            here.is_last,
        )

    def _note(self) -> str:
        kind = ROUNDED.get(self.backend) or f"{self.workload.number}, {HOW[self.backend]}"
        return f"{kind}; {short(self.loaded.mapped)} are pages of the file" if self.loaded.mapped else kind

    def phases(self) -> tuple[Phase, ...]:
        load = Phase("load", (self.weights, Item(CONVERSION, max(self.loaded.peak - self.loaded.own, 0))))
        if self.config.decoder is None or not self._generates():
            return load, self._phase("forward", self._forward())
        return (load, *self._generation())

    def _generates(self) -> bool:
        head, stack = self.config.head, self.config.main_stack
        return stack.direction == "causal" and head.kind in ("causal_lm", "seq2seq_lm")

    def _phase(self, name: str, parts: Mapping[str, int], *more: Item) -> Phase:
        """Return a phase: weights, what the tape had, and more."""
        logits, masks = parts.get(LOGITS, 0), parts.get(MASKS, 0)
        rest = sum(parts.values()) - logits - masks
        items = (Item(ACTIVATIONS, rest), Item(LOGITS, logits), Item(MASKS_AND_ROTATIONS, masks))
        return Phase(name, (self.weights, *more, *items))

    def _pass(self, inputs: Sizes, targets: Sizes | None = None, reading: Reading | None = None) -> Forward:
        how = Learning(inputs, targets, width=self.number, ffn_chunk=self.workload.ffn_chunk)
        return Forward(self.config, how, self.share).set_up(self.backend, reading, self.on_cpu)

    def _sizes(self, rows: int, length: int, padded: bool) -> Sizes:
        w, frontend = self.workload, self.config.input_frontend
        samples = round(w.seconds * RATE) if isinstance(frontend, WaveFrontend) else 0
        frames = 2 * frontend.max_positions if isinstance(frontend, MelFrontend) else 0
        padded = padded and frontend.kind in ("tokens", "wave")
        packed = padded and self.packs
        return Sizes(rows, length, padded, packed=packed, pixels=w.pixels, samples=samples, frames=frames)

    def _forward(self) -> dict[str, int]:
        """Return the parts of one pass of a model that does not generate."""
        w, config = self.workload, self.config
        sizes = self._sizes(w.batch, w.prompt, w.has_padding)
        if config.encoder is not None and config.decoder is not None:
            run = self._pass(sizes, Sizes(w.batch, w.prompt, w.has_padding))
            encoder, memory = run.encoded()
            decoder = run.scored(0, False, memory)
            return max(encoder, decoder, key=lambda parts: sum(parts.values()))
        return self._pass(sizes).scored(0, self._one(sizes))

    def _one(self, sizes: Sizes) -> bool:
        """Whether the last layer computes one position of each row alone (`Stack._can_leave_out`)."""
        head, stack = self.config.head, self.config.main_stack
        if head.mixed_states or head.out_size == 0 or sizes.positions(stack) == 1 or not self.share.head:
            return False
        if stack.disentangled is not None and stack.disentangled.conv_kernel and stack.num_layers == 1:
            return False
        if self._generates():
            return True
        return stack.direction != "causal" if head.pick == "first" else head.pick == "last" and not sizes.padded

    # ---- generation ------------------------------------------------------------------------------------------------

    def _generation(self) -> tuple[Phase, ...]:
        w, decoder = self.workload, self.config.decoder
        assert decoder is not None
        after_encoder = self.config.encoder is not None
        prompt = self._sizes(w.batch, w.prompt, w.has_padding)
        start = 1 if after_encoder else w.prompt
        encoder = prompt.positions(self.config.input_stack) if after_encoder else 0
        use = CacheUse(
            prompts=w.batch, prompt=start, new=w.new, copies=w.copies, kind=w.cache, number=self.number, encoder=encoder
        )
        cache = cache_bytes(decoder, use, self.here.layers["decoder"])
        reading = Reading(w.cache, tuple(_limit(window) for window in decoder.windows), start)
        phases = []
        if after_encoder:
            run = self._pass(prompt, Sizes(w.batch, start), reading)
            parts, memory = run.encoded()
            phases.append(self._phase("encode", parts))
            parts = run.scored(1, False, memory)
        else:
            parts = self._pass(prompt, None, reading).scored(1, self._one(prompt))
        phases.append(self._phase("prefill", parts, Item(CACHE, cache.prefilled), self._tokens(w.batch)))
        return (*phases, self._decode(decoder, cache, encoder)) if w.new > 1 else tuple(phases)

    def _tokens(self, rows: int) -> Item:
        """The ids of all rows, and which of them are real."""
        w = self.workload
        columns = (1 if self.config.encoder is not None else w.prompt) + w.new
        return Item(
            WORKSPACE, rows * columns * (9 if w.has_padding and self.config.encoder is None else 8), "token ids"
        )

    def _decode(self, decoder: StackConfig, cache: CacheBytes, encoder: int) -> Phase:
        """One step for each row: its activations are small; the cache, and what attention reads of it, are not."""
        w, R = self.workload, self.workload.rows
        alone = replace(self.config, encoder=None, decoder=replace(decoder, cross_attention=False))
        few = "fused" if self.backend in ROUNDED else self.backend
        run = Forward(alone, Learning(Sizes(R, 1), width=self.number), self.share).set_up(few)
        parts = run.scored(1, False)
        seen = (1 if encoder else w.prompt) + w.new
        masked = w.has_padding and not encoder
        biased = decoder.num_heads if decoder.relative_bias is not None else 1 if masked else 0
        rows = R if masked else 1
        parts[MASKS] = parts.get(MASKS, 0) + rows * seen * biased * self.number
        scores = 2 * R * decoder.num_heads * seen * self.number if w.copies > 1 or decoder.score_softcap else 0
        read = cache.read + scores if w.cache == "int8" else max(cache.read, scores)  # a window that moves sees less
        logits = R * self.config.head.out_size * self.number * (1 if w.copies == 1 else SEARCHED)
        memory = w.batch * encoder * decoder.hidden_size * self.number
        parts[LOGITS] = parts.get(LOGITS, 0) + (logits if self.share.head else 0)
        reorder = cache.reorder - sum(parts.values())  # beams change places between two steps
        more = (
            Item(CACHE, cache.full),
            Item(GROWTH, max(cache.growth, read, reorder), "an old buffer, or what attention reads"),
            Item(WORKSPACE, memory, "the encoder's output"),
            self._tokens(R),
        )
        return self._phase("decode", parts, *more)


def _limit(window: int | None) -> int | None:
    return None if window is None else 2 * (window - 1 + SLACK)
