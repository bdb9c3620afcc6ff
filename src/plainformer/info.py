"""What a checkpoint is, read from its configuration and the headers of its weight files: nothing large is loaded."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.opened import Checkpoint, open_checkpoint
from plainformer.checkpoint.run_folders import series_of
from plainformer.checkpoint.weights import check_depth, check_weights
from plainformer.config import ModelConfig, StackConfig, TokenFrontend
from plainformer.config.loading import LoadOptions
from plainformer.config.model import in_millions
from plainformer.errors import CheckpointError, PlainformerError, Spelling, UsageError, in_python, plural
from plainformer.model.transformer import Transformer
from plainformer.plan.inference import loading_of
from plainformer.plan.weights import weights
from plainformer.plan.workload import QUANTIZED, Workload
from plainformer.planning.checkpoints import stored_file
from plainformer.tasks import default_task, head_for_task, stated_task, task_class
from plainformer.tasks.lengths import least, text_limit
from plainformer.tasks.text.sentence_files import read_sentence_files
from plainformer.tasks.writing.purposes import read_purposes

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint's facts. Counts are of numbers, tied ones counted once; shapes are of our parameters.

    `prefixes`: what a text begins with where the checkpoint is loaded for a purpose (`task="summarization"`).
    `members`: where several models of this kind answer together by `vote`, the folders of all; the facts are of the first.
    `quantized`: bytes of its weights in memory, as `load(quantize=...)` rounds or keeps them; none where it does not load.
    `problem` is what `load` raises for it (weights that do not fit, no tokenizer, no task), None where it loads.
    """

    ref: str
    family: str
    architecture: str
    kind: str
    task: str
    parameters: int
    parameters_by_part: dict[str, int]
    stacks: dict[str, dict[str, Any]]
    vocabulary: int | None
    max_positions: int | None
    trained_positions: int | None
    longest_text: int | None
    weights: dict[str, str]
    stored_dtypes: dict[str, int]
    unused_tensors: tuple[str, ...]
    tokenizer: dict[str, Any] | None
    labels: tuple[str, ...]
    prefixes: dict[str, str]
    tied: tuple[tuple[str, str], ...]
    shapes: dict[str, tuple[int, ...]]
    quantized: dict[str, int]
    problem: PlainformerError | None = None
    members: tuple[str, ...] = ()
    vote: str | None = None

    def __repr__(self) -> str:
        return f"CheckpointInfo({self.ref!r}, {self.family}, {self.kind}, {self.task}, {in_millions(self.parameters)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "problem": None if self.problem is None else str(self.problem)}

    def summary(self, spelling: Spelling = in_python) -> dict[str, str]:
        """Return the facts that fit a line each; `spelling` is how options are written."""
        lines = {
            "family": f"{self.family} ({self.architecture or 'no architecture named'}), {self.kind}",
            "task": self.task,
            "parameters": f"{self.parameters:,} ({self.parameters * 4 / 1e6:,.1f} MB in fp32)",
            "weights": _line(self.weights),
            "stored dtypes": ", ".join(f"{name} x {count}" for name, count in self.stored_dtypes.items()),
            "max positions": str(self.max_positions) if self.max_positions is not None else "no hard limit",
        }
        if self.max_positions is None and self.trained_positions is not None:
            lines["max positions"] += f"; trained on {self.trained_positions}"
        if self.longest_text is not None:
            lines["longest text"] = f"{self.longest_text} tokens"
        if self.quantized:
            sizes = (f"{name} {size / 1e6:,.1f} MB" for name, size in self.quantized.items())
            lines["quantize"] = f"{', '.join(sizes)} of weights in memory"
        if self.members:
            folders = f"{self.members[0]} to {self.members[-1]}"
            lines["ensemble"] = f"{len(self.members)} models such as this ({folders}), vote: {self.vote}"
        lines |= {name: _line(stack) for name, stack in self.stacks.items()}
        if self.tokenizer is not None:
            lines["tokenizer"] = _line(self.tokenizer)
        if self.labels:
            lines["labels"] = ", ".join(self.labels[:12]) + (", ..." if len(self.labels) > 12 else "")
        if self.prefixes:
            lines["prefixes"] = ", ".join(f"{purpose} {prefix!r}" for purpose, prefix in self.prefixes.items())
        if self.tied:
            lines["tied"] = ", ".join(f"{a} = {b}" for a, b in self.tied)
        if self.unused_tensors:
            lines["not used"] = f"{plural(len(self.unused_tensors), 'tensor')}: " + ", ".join(self.unused_tensors[:6])
        if self.problem is not None:
            lines["not loadable"] = self.problem.message(spelling)
        return lines


def inspect_checkpoint(
    ref: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    family: str | None = None,
) -> CheckpointInfo:
    """Return a reference's facts.

    Raises:
        HubError, CheckpointError: as `load`, where there is no configuration or no weight file that can be read. What
            else `load` would raise is the `problem`.
    """
    asked = LoadOptions(revision=revision, token=token, family=family)
    if (series := series_of(ref)) is not None:
        found = inspect_checkpoint(series.members[0], revision=revision, token=token, family=family)
        members = tuple(member.name for member in series.members)
        return replace(found, ref=os.fspath(ref), members=members, vote=series.vote)
    with open_checkpoint(ref, revision=asked.revision, token=asked.token, family=asked.family) as checkpoint:
        stated = stated_task(checkpoint)
        head = head_for_task(stated.name, ()) if stated is not None else None
        config, source = checkpoint.config(head), checkpoint.tensors()
        check_depth(config, source)
        table, model = checkpoint.rows(config), Transformer(config)
        tokenizer = _tokenizer(checkpoint)
        stacks = {"encoder": config.encoder, "decoder": config.decoder}
        problem = _problem(checkpoint, model, tokenizer)
        return CheckpointInfo(
            ref=checkpoint.ref,
            family=config.family,
            architecture=config.architecture,
            kind=config.kind,
            task=_task(config),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            parameters_by_part=count_by_part(model),
            stacks={name: describe_stack(stack) for name, stack in stacks.items() if stack is not None},
            vocabulary=config.vocab_size,
            max_positions=config.main_stack.max_positions,
            trained_positions=config.trained_positions,
            longest_text=_longest_text(checkpoint, config, tokenizer),
            weights=source.describe(),
            stored_dtypes=dict(Counter(map(source.stored, source.names()))),
            unused_tensors=tuple(
                name for name in source.names() if (row := table.find(name)) is None or row[0].kind == "ignore"
            ),
            tokenizer=None if isinstance(tokenizer, CheckpointError) else _describe_tokenizer(tokenizer),
            labels=config.labels,
            prefixes={name: one.prefix for name, one in read_purposes(config.source).items() if one.prefix},
            tied=config.tied,
            shapes={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
            quantized=_quantized(checkpoint, model),
            problem=problem,
        )


def _line(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in facts.items())


def _plain(value: Any) -> str:
    """Return a fact as a line: yes and no, roles with their tokens."""
    if isinstance(value, dict):
        return " ".join(f"{name}={token}" for name, token in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | CheckpointError:
    """Return the tokenizer, or why there is none."""
    try:
        return checkpoint.tokenizer()
    except CheckpointError as error:
        return error


def _problem(
    checkpoint: Checkpoint, model: Transformer, tokenizer: Tokenizer | CheckpointError
) -> PlainformerError | None:
    """Return what `load` would raise."""
    try:
        kind = task_class(default_task(model.config), model.config.head.kind)
        check_weights(model, checkpoint.tensors(), checkpoint.rows(model.config))
    except PlainformerError as error:
        return error
    return tokenizer if kind.needs_tokenizer and isinstance(tokenizer, CheckpointError) else None


def _quantized(checkpoint: Checkpoint, model: Transformer) -> dict[str, int]:
    """Return the bytes of the weights for each `quantize` that `load` takes for them; none where they do not fit."""
    config = model.config
    try:
        check_weights(model, checkpoint.tensors(), checkpoint.rows(config))
    except CheckpointError:
        return {}
    file = stored_file(checkpoint, config) if checkpoint.folder is None else None
    stays = file is not None and any(tensor.can_stay for tensor in file.tensors)
    asked = [Workload(quantize=kind) for kind in QUANTIZED if kind != "keep" or stays]
    return {str(one.quantize): weights(config, loading_of(config, one, file or "float32")).bytes for one in asked}


def _task(config: ModelConfig) -> str:
    """Return the task that the checkpoint does; "none" for models without one."""
    try:
        return default_task(config).name
    except UsageError:
        return "none"


def count_by_part(model: Transformer) -> dict[str, int]:
    """Return how many parameters are in embeddings, attention, feed-forward, norms and head; tied ones count once."""
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        stack = name.split(".")[0]
        part = (
            "head" if stack == "head"
            else f"{stack} frontend" if ".frontend." in name
            else f"{stack} feed-forward" if ".ffn." in name
            else f"{stack} attention" if ".attention." in name or ".cross." in name
            else f"{stack} norms and positions"
        )  # fmt: skip
        parts[part] += parameter.numel()
    return dict(parts)


# What images and sounds bring along; Whisper's table of sinusoids is stored, and read like a learned one.
_FRONTEND_POSITIONS = {"patches": "learned", "wave": "convolution", "mel": "table"}


def describe_stack(stack: StackConfig) -> dict[str, Any]:
    """Return the shape of a stack in a few words."""
    position = "rope" if any(stack.rope) else "relative" if stack.relative_bias or stack.disentangled else "none"
    frontend = stack.frontend
    own = frontend.positions if isinstance(frontend, TokenFrontend) else _FRONTEND_POSITIONS[frontend.kind]
    position = own if own != "none" else position
    windows = sorted({window for window in stack.windows if window is not None})
    described = {
        "layers": stack.num_layers,
        "width": stack.hidden_size,
        "heads": stack.num_heads,
        "kv_heads": stack.num_kv_heads,
        "head_dim": stack.head_dim,
        "ffn": f"{stack.ffn_size} {stack.ffn} {stack.activation}",
        "norm": f"{stack.norm.kind} {stack.norm_place}",
        "reads": stack.frontend.kind,
        "positions": position,
    }
    return {**described, "windows": windows} if windows else described


def _longest_text(checkpoint: Checkpoint, config: ModelConfig, tokenizer: Tokenizer | CheckpointError) -> int | None:
    """Return the longest text that the checkpoint's task reads; None where nothing limits it, or it reads no text."""
    if isinstance(tokenizer, CheckpointError) or not isinstance(config.input_frontend, TokenFrontend):
        return None
    made_for = read_sentence_files(checkpoint).max_tokens if _task(config) == "feature-extraction" else None
    return least(made_for, text_limit(config, tokenizer.max_length))


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    special = {
        name: tokenizer.special_tokens[f"{name}_token"]
        for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        if getattr(tokenizer, f"{name}_id") is not None
    }
    languages = {"languages": len(tokenizer.languages.ids)} if tokenizer.languages else {}
    return {
        **languages,
        "size": tokenizer.vocab_size,
        "stated length": tokenizer.max_length,
        "padding": tokenizer.padding_side,
        "chat template": tokenizer.has_chat_template,
        "special": special,
    }
