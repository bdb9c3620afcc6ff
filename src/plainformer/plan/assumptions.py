"""What a plan takes for granted, a sentence each: a figure without its assumptions is not one. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from plainformer.config.layout import Layout
from plainformer.config.model import ModelConfig
from plainformer.errors import opt, plural, spelt
from plainformer.plan.devices import Device, extras
from plainformer.plan.lengths import lengths, reads_text
from plainformer.plan.workload import Workload


def assumptions(config: ModelConfig, workload: Workload, layout: Layout, device: Device | None) -> tuple[str, ...]:
    """Return the sentences; options in them are written by `opt`."""
    on_gpu = device is not None and device.kind == "gpu"
    found = [
        *_of_lengths(config, workload),
        *_of_work(config, workload, on_gpu),
        *_of_devices(workload, layout, device),
    ]
    return tuple(found)


def _of_lengths(config: ModelConfig, workload: Workload) -> Iterator[str]:
    given, at = workload.explicit, lengths(config, workload)
    names: tuple[str, ...] = (
        ("length",) if workload.training else ("prompt", "new") if config.decoder is not None else ("prompt",)
    )
    if workload.training and config.kind == "encoder-decoder":
        names = (*names, "target_length")
    names = names if reads_text(config) else tuple(name for name in names if name in ("new", "target_length"))
    usual = [opt(name, getattr(workload, name)) for name in names if name not in given]
    if usual:
        how_long = f": how long a row can be, {opt('fit', 'context')} says" if reads_text(config) else ""
        yield f"{' and '.join(usual)} by default{how_long}"
    if not reads_text(config):
        kind = {"patches": "an image", "wave": f"{workload.seconds:g} s of sound", "mel": "30 s of sound"}
        yield f"{kind[config.input_frontend.kind]} is {plural(at.encoder, 'position')}"
    if workload.has_padding and reads_text(config):
        yield "rows differ in length, and a mask says where they end"
    limit = config.input_stack.max_positions
    longest = max(at.encoder, at.decoder + at.new) if config.decoder is None or config.encoder is None else at.encoder
    if reads_text(config) and limit is not None and longest > limit:
        yield f"the model has {limit:,} positions, fewer than the {longest:,} asked for: it could not run"
    elif config.trained_positions is not None and reads_text(config) and longest > config.trained_positions:
        yield f"the model was trained on {config.trained_positions:,} positions, fewer than the {longest:,} asked for"
    most, written = config.main_stack.max_positions, at.decoder + at.new
    if config.kind == "encoder-decoder" and most is not None and written > most:
        yield f"the decoder has {most:,} positions, fewer than the {written:,} asked for: it could not run"


def _of_work(config: ModelConfig, workload: Workload, on_gpu: bool) -> Iterator[str]:
    if not workload.training:
        if workload.dtype is None and workload.quantized is None:
            yield f"weights in fp32, as `load` gives them on a CPU; {opt('dtype', 'bf16')} halves them"
        if workload.quantized in ("int8", "int4"):
            yield f"{workload.quantized} rounds the matrices of linears, once all weights are there in fp32; others stay so"
        if workload.quantized == "keep":
            yield "blocks that are read as they are stay pages of the file; all other weights become fp32"
        return
    if workload.precision == "pure-bf16" or workload.optimizer != "adamw":
        yield "`train` has AdamW and fp32 weights: this is another program's step, counted by the same rules"
    if workload.trainable != "all":
        what = "adapters are" if workload.trainable == "lora" else "the head is"
        yield f"only {what} trained: the rest has neither gradients nor states"
    if config.input_frontend.kind in ("patches", "wave") and not on_gpu:
        yield "convolutions are computed by one thread: each further one of a processor has memory of its own for their gradient"
    if workload.ffn_chunk and not workload.recomputed_every:
        yield "chunks of a feed-forward network save nothing in training: autograd keeps what each of them made"


def _of_devices(workload: Workload, layout: Layout, device: Device | None) -> Iterator[str]:
    if layout.dp > 1:
        rows = layout.dp * workload.batch * (workload.accumulate if workload.training else 1)
        yield f"{opt('batch', workload.batch)} is a device's: {plural(layout.dp, 'data part')} make {plural(rows, 'row')} in all"
    if device is None:
        yield f"no device: {opt('device', 'H100')} or {opt('memory', '24GB')} says whether it fits, and how much more would"
    elif device.kind == "memory":
        yield "the memory given is taken to be there for tensors alone: a GPU's context and fragmentation are not in it"
    elif device.kind == "gpu":
        known = extras()
        yield f"what a GPU holds besides tensors are constants of {known.date}, not this card's: --measure finds them there"
    else:
        yield "weights of a safetensors file that are used as they are stored lie in the file itself, and the system can drop them"


def plain(sentences: tuple[str, ...]) -> list[str]:
    """Return sentences with their options as Python writes them."""
    return [spelt(one) for one in sentences]
