"""What a plan says, measured here: the real step of training, or a prompt and a few tokens.

On a CPU the allocator's own events are summed up, which is exact and repeats to the byte; on a GPU it is
`torch.cuda.max_memory_allocated`. Weights are random: what is measured are sizes.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from plainformer.checkpoint.filling import Filling
from plainformer.checkpoint.low_rank import add_adapters, matrices
from plainformer.config.learning import OptimizerConfig
from plainformer.config.model import HeadConfig, StackConfig
from plainformer.config.parts import MelFrontend, PatchFrontend, WaveFrontend
from plainformer.config.training import LoraConfig
from plainformer.errors import UsageError, opt
from plainformer.families import table_for
from plainformer.generation.prompt import make_prompt
from plainformer.generation.sessions.session import Session
from plainformer.loading import as_device
from plainformer.model.block import set_ffn_chunk_size
from plainformer.model.dropout import set_dropout
from plainformer.model.fast.blocks import Blocks
from plainformer.model.fast.packed import ROUNDED
from plainformer.model.fast.prepare import prepare_for_inference, usual_rows
from plainformer.model.recompute import set_checkpointing
from plainformer.model.transformer import Transformer
from plainformer.plan.devices import short
from plainformer.plan.lengths import SAMPLES, lengths
from plainformer.plan.operations import Adapters
from plainformer.plan.planned import Plan
from plainformer.plan.stored import StoredFile, stored_bytes
from plainformer.plan.training import LETTERS, MASKED_SHARE
from plainformer.plan.workload import Workload
from plainformer.train.losses import binary_losses, label_losses, squared_losses, word_losses
from plainformer.train.optimizer import Average, clip_gradients, make_optimizer, trained

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST = 0.8  # of the memory that is there: more is not tried
WORDS = ("causal_lm", "seq2seq_lm", "masked_lm")
FEW = 16  # tokens that are written


@dataclass
class Measured:
    """Bytes by phase, as predicted and as they were.

    Attributes:
        predicted, found: by phase, in order; a phase that one of the two does not tell apart is in one only.
        notes: how it was measured.
    """

    predicted: dict[str, int]
    found: dict[str, int]
    notes: list[str] = field(default_factory=list)

    @property
    def difference(self) -> float:
        """Return how far the predicted peak is from the measured one, as a share of that."""
        return max(self.predicted.values()) / max(self.found.values()) - 1

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield a line for each phase, and one for the peak."""
        for name in dict.fromkeys([*self.found, *self.predicted]):
            said, seen = self.predicted.get(name), self.found.get(name)
            off = "" if said is None or not seen else f"{said / seen - 1:+.2%}"
            yield name, "" if said is None else short(said), "" if seen is None else short(seen), off
        yield "peak", short(max(self.predicted.values())), short(max(self.found.values())), f"{self.difference:+.2%}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "predicted": self.predicted,
            "measured": self.found,
            "difference": self.difference,
            "notes": self.notes,
        }


class Ledger:
    """What is allocated while something runs: the most, phase by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within, note the most that is allocated under this name."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            torch.cuda.synchronize(self.device)
            self.found[name] = max(self.found.get(name, 0), torch.cuda.max_memory_allocated(self.device))
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes lines to stderr
        before = self.now
        activity = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
            yield
        most, end = _most(profile)
        self.found[name] = max(self.found.get(name, 0), before + most)
        self.now = before + end

    now = 0  # bytes that are allocated, on a CPU


def _most(profile: Any) -> tuple[int, int]:
    """Return the most that was allocated at a time, and what was left, of a profile's events."""
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    most = total = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most, total


def measure(plan: Plan, device: str = "cpu") -> Measured:
    """Run what a plan is for on this machine, and return its bytes beside the plan's.

    Raises:
        UsageError: it is for several devices, for another program, or for more memory than there is.
    """
    where = as_device(device)
    check(plan, where)
    notes = []
    if not plan.workload.training and plan.config.decoder is not None and plan.workload.new > FEW:
        plan = plan.with_workload(new=FEW)
        notes.append(f"the answer has {FEW} tokens here, in both columns")
    ledger = Ledger(where)
    gc.collect()
    gc.disable()  # what was there before must not be freed meanwhile
    try:
        with torch.random.fork_rng(devices=[] if where.type == "cpu" else None):
            torch.manual_seed(0)
            (_train if plan.workload.training else _infer)(plan, ledger)
    finally:
        gc.enable()
    predicted = {phase.name: phase.bytes for phase in plan.worst.phases if phase.name in ledger.found}
    if not predicted:
        predicted = {plan.phase: plan.peak}
    how = "the allocator's events" if where.type == "cpu" else "torch.cuda.max_memory_allocated"
    return Measured(predicted, ledger.found, [f"measured by {how} on {device}, with random weights", *notes])


def check(plan: Plan, device: torch.device) -> None:
    """Refuse what cannot be run here."""
    if plan.layout.world > 1:
        what = f"{opt('measure')} runs one process, and the plan is for {plan.layout.world}"
        raise UsageError(what, "leave the layout out, or measure without it")
    asked, head = plan.workload, plan.config.head
    if asked.training and asked.trainable == "head" and head.kind in WORDS and plan.config.tied:
        what = f"{opt('measure')} cannot run {opt('trainable', 'head')}: this head is the table of the words, which is not trained"
        raise UsageError(what, f"give {opt('trainable', 'all')} or {opt('trainable', 'lora')}")
    if device.type == "cpu":
        from plainformer.plan.machine import available_memory

        room = available_memory()
    else:
        room = torch.cuda.mem_get_info(device)[0]
    if plan.peak > MOST * room:
        what = f"{opt('measure')} would take {short(plan.peak)}, and {short(room)} are available"
        raise UsageError(what, f"plan for less, or leave {opt('measure')} out")


def _model(plan: Plan, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Return the model with small random weights."""
    model = Transformer(plan.config).to_empty(device=device).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    return model


def _keep_blocks(model: Transformer, plan: Plan) -> None:
    """Let what stays in its file's blocks lie in such blocks, of zeros."""
    assert isinstance(plan.stored, StoredFile)
    filling, shapes = Filling(model, torch.float32, "cpu", Tensor.to), model.sizes()
    for tensor in (tensor for tensor in plan.stored.tensors if tensor.can_stay):
        for name in tensor.ours:
            rows, size = shapes[name]
            stored_OW = torch.zeros(rows, stored_bytes(tensor.kind, (1, size)), dtype=torch.uint8)
            filling.keep(name, Blocks(tensor.kind, stored_OW, size))
    filling.pack_kept()


def _inputs(stack: StackConfig, plan: Plan, length: int, device: torch.device) -> dict[str, Tensor]:
    """Return random inputs of a stack; with padding, the last row is one position shorter."""
    asked, frontend, rows = plan.workload, stack.frontend, plan.workload.batch
    if isinstance(frontend, PatchFrontend):
        height, width = asked.pixels or frontend.image_size
        return {"pixel_values": torch.rand(rows, frontend.channels, height, width, device=device)}
    if isinstance(frontend, MelFrontend):
        return {"input_features": torch.rand(rows, frontend.mels, 2 * frontend.max_positions, device=device)}
    if isinstance(frontend, WaveFrontend):
        samples = round(asked.seconds * SAMPLES)
        made = {"input_values": torch.rand(rows, samples, device=device)}
    else:
        least = 1 if frontend.pad_id == 0 else 0  # a padding id may have no vector
        made = {"input_ids": torch.randint(least, frontend.vocab_size, (rows, length), device=device)}
    if asked.has_padding:
        mask = torch.ones(rows, next(iter(made.values())).size(1), dtype=torch.int64, device=device)
        mask[-1, -1] = 0
        made["attention_mask"] = mask
    return made


def _infer(plan: Plan, ledger: Ledger) -> None:
    asked, config, at = plan.workload, plan.config, lengths(plan.config, plan.workload)
    names = [phase.name for phase in plan.worst.phases if phase.name != "load"]
    with ledger.phase("weights"):
        model = _model(plan, ledger.device, _DTYPES[asked.number]).eval()
        set_ffn_chunk_size(model, asked.ffn_chunk)
        if asked.quantized == "keep":
            _keep_blocks(model, plan)
        rounds = asked.quantized if asked.quantized in ROUNDED else "auto"
        prepare_for_inference(model, rounds, usual_rows(config))
        inputs = _inputs(config.input_stack, plan, at.encoder or at.decoder, ledger.device)
    with torch.inference_mode():
        if config.decoder is None or config.head.kind not in ("causal_lm", "seq2seq_lm"):
            with ledger.phase(names[0]):
                model(**inputs, only_logits=config.head.kind != "none")
            ledger.found.pop("weights")
            return
        _generate(model, plan, inputs, names, ledger)
    ledger.found.pop("weights")


def _generate(model: Transformer, plan: Plan, inputs: dict[str, Tensor], names: list[str], ledger: Ledger) -> None:
    """Run the prompt, and a few tokens."""
    asked = plan.workload
    ids, mask, encoded = inputs.pop("input_ids", None), inputs.pop("attention_mask", None), None
    if plan.config.encoder is not None:
        with ledger.phase("encode" if "encode" in names else names[0]):
            encoded = model.encode(ids, mask, **inputs)
            ids = mask = None
    with ledger.phase("prefill"):
        prompt = make_prompt(model, ids, mask, None, encoded, {})
        session = Session(model, prompt, copies=asked.copies, budget=asked.new, cache_kind=asked.cache)
        tokens_R = session.prefill().argmax(-1)
    with ledger.phase("decode"):
        for _ in range(max(asked.new - 1, 0)):
            tokens_R = session.decode_step(tokens_R).argmax(-1)


def _train(plan: Plan, ledger: Ledger) -> None:
    """Take two steps: only the second has the optimizer's states from its beginning."""
    asked, at = plan.workload, lengths(plan.config, plan.workload)
    with ledger.phase("weights"):
        model = _learner(plan, ledger.device)
        optimizer = _optimizer(model, asked)
        average = Average(model, 0.9) if asked.average else None
        inputs = _inputs(plan.config.input_stack, plan, at.encoder or at.decoder, ledger.device)
        if plan.config.kind == "encoder-decoder":
            decoder = plan.config.decoder
            assert decoder is not None
            made = _inputs(decoder, plan, at.decoder, ledger.device)
            inputs |= {f"decoder_{name}": value for name, value in made.items()}
    for step in range(2):
        if step:
            ledger.found.clear()
        with ledger.phase("forward"):
            optimizer.zero_grad(set_to_none=True)
        for _ in range(asked.accumulate):
            with ledger.phase("forward"):
                low = torch.autocast(ledger.device.type, torch.bfloat16) if asked.precision == "bf16" else nullcontext()
                with low:
                    loss = _loss(model, plan, inputs)
            with ledger.phase("backward"):
                loss.backward()
                del loss
        with ledger.phase("step"):
            clip_gradients(optimizer, 1.0)  # type: ignore[arg-type]
            optimizer.step()
            if average is not None:
                average.update(step + 1)


def _learner(plan: Plan, device: torch.device) -> Transformer:
    """Return the model with what is trained of it, as `train` makes it."""
    asked = plan.workload
    model = _model(plan, device, torch.bfloat16 if asked.precision == "pure-bf16" else torch.float32).train()
    set_ffn_chunk_size(model, asked.ffn_chunk)
    set_checkpointing(model, "none" if not asked.recomputed_every else asked.recomputed_every)
    if asked.dropout is not None:
        set_dropout(model, asked.dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not _fixed(plan, name) and (asked.trainable != "head" or name.startswith("head.")))
    if asked.trainable == "lora":
        table, names = table_for(plan.config), None
        if asked.lora_targets is not None:  # by our names, of which the checkpoint's matrices are made
            meant = Adapters(tuple(asked.lora_targets.split(",")), asked.lora_rank)
            names = [matrix.theirs for matrix in matrices(model, table) if any(map(meant.has, matrix.ours))]
        add_adapters(model, table, LoraConfig(rank=asked.lora_rank, targets=names))
    return model


def _optimizer(model: Transformer, asked: Workload) -> Optimizer:
    """Return the optimizer: `train`'s own, or torch's of that name."""
    if asked.optimizer == "adamw":
        return make_optimizer(model, OptimizerConfig(), 1e-5)
    learnt = list(trained(model).values())
    if asked.optimizer == "adafactor":
        return torch.optim.Adafactor(learnt, 1e-5, foreach=False)
    return torch.optim.SGD(learnt, 1e-5, momentum=0.9 if asked.optimizer == "sgd-momentum" else 0.0, foreach=False)


def _fixed(plan: Plan, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in plan.config.fixed)


def _loss(model: Transformer, plan: Plan, inputs: dict[str, Tensor]) -> Tensor:
    """Return the sum of the losses of random labels, as the objectives of such a head have them."""
    head, asked = plan.config.head, plan.workload
    if head.kind in WORDS:
        states = model.states(**inputs)  # type: ignore[arg-type]
        x = states.last_hidden_state
        states_ND = x[states.real_BT.bool()] if states.real_BT is not None else x.flatten(0, 1)
        if head.kind == "masked_lm":
            states_ND = states_ND[torch.arange(max(1, round(len(states_ND) * MASKED_SHARE)), device=x.device)]
        labels_N = torch.randint(0, head.out_size, (len(states_ND),), device=x.device)
        return word_losses(model, states_ND, labels_N, chunk=asked.loss_chunk).sum()
    if head.kind == "none":
        return model.states(**inputs).last_hidden_state.float().square().sum()  # type: ignore[arg-type]
    logits = model(**inputs, only_logits=True).logits
    return _text_loss(plan, logits) if head.kind == "ctc" else _label_loss(head, logits)


def _text_loss(plan: Plan, logits_BTV: Tensor) -> Tensor:
    """Return the loss of texts of which no frame is known, as long as those of the plan."""
    rows, frames, words = logits_BTV.shape
    letters = max(1, min(round(plan.workload.seconds * LETTERS), frames // 2))
    texts = torch.randint(1, words, (rows * letters,), device=logits_BTV.device)
    lengths = torch.full((rows,), frames), torch.full((rows,), letters)
    logs = logits_BTV.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(logs, texts, *lengths, reduction="none", zero_infinity=True).sum()


def _label_loss(head: HeadConfig, logits: Tensor) -> Tensor:
    flat_NC = logits.flatten(0, -2)
    if head.problem == "regression":
        return squared_losses(flat_NC, torch.rand_like(flat_NC)).sum()
    if head.problem == "multi_label":
        return binary_losses(flat_NC, torch.ones_like(flat_NC)).sum()
    if head.kind == "span":
        places = torch.zeros(logits.size(0), dtype=torch.int64, device=logits.device)
        return label_losses(logits[..., 0], places).sum() + label_losses(logits[..., 1], places).sum()
    labels_N = torch.zeros(len(flat_NC), dtype=torch.int64, device=logits.device)
    return label_losses(flat_NC, labels_N).sum()
