"""How one input becomes an answer, step by step: tokens (or patches, frames), shapes after every step, the answer.

The shapes are seen by hooks on the model's own modules while it runs, so they are what really happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from plainformer.config import PatchFrontend, TokenFrontend, WaveFrontend
from plainformer.config.values import no_effect
from plainformer.errors import InputError, UsageError, opt
from plainformer.explanation.request import GENERATING
from plainformer.model.frontend import TokenEmbedding
from plainformer.tasks.base import Task, check_top_k, text_limit
from plainformer.tasks.writing.base import GeneratingTask

# Heads that read two texts, and what the second one is where it must be given.
PAIRED = {"sequence": "", "span": "the context of the question", "choice": "a choice"}


@dataclass(frozen=True)
class Piece:
    """A token, an image patch or an audio frame.

    `start`, `end`: characters of the text (of the pair's second text where `sequence` is 1), or None; `place` says
    where a patch or frame is; `norm` is the length of its vector as it enters the model: for tokens of the embedding.
    """

    index: int
    text: str
    token_id: int | None
    start: int | None
    end: int | None
    sequence: int | None
    special: bool
    norm: float
    place: str = ""


@dataclass(frozen=True)
class StepShape:
    """A step of the computation and the shape that came out of it."""

    step: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NextToken:
    """A candidate for the next token."""

    token: str
    token_id: int
    probability: float
    logit: float


@dataclass(frozen=True)
class Explanation:
    """All of it. `next_tokens` for models that generate; `answer` (plain values) for all others."""

    ref: str
    task: str
    pieces: tuple[Piece, ...]
    steps: tuple[StepShape, ...]
    next_tokens: tuple[NextToken, ...]
    answer: Any

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@torch.inference_mode()
def explain(
    task: Task,
    item: Any,
    *,
    pair: str | None = None,
    chat: bool = False,
    top_k: int | None = None,
    truncate: bool = False,
) -> Explanation:
    """Explain one input.

    Args:
        task: what `load` returned.
        item: a text; for images and audio what the task takes (a path, an array).
        pair: the second text, where the task reads two (the context of a question, say).
        chat: wrap the text as a user's message in the model's chat format.
        top_k: candidates for the next token, 5 if None; for other tasks their option of that name.
        truncate: cut an over-long text instead of refusing it.
    Raises:
        UsageError: an argument that has no effect here; otherwise as the task itself.
    """
    _check_arguments(task, pair, chat, top_k, truncate)
    inputs, pieces = _text(task, item, pair, chat, truncate) if reads_text(task) else (signal_inputs(task, item), ())
    if task.config.kind == "encoder-decoder" and (start := _start_ids(task)):
        inputs["decoder_input_ids"] = torch.tensor([start], device=task.model.device)
    with watch(task.model) as steps:
        output = task.model(**inputs)
    if output.logits is None:  # a base model's head scores nothing: it is a pooler
        steps = [replace(step, step="pooler") if step.step == "head" else step for step in steps]
    if not pieces:
        pieces = _signal_pieces(task, inputs)
    generates = task.config.head.kind in GENERATING
    return Explanation(
        task.ref,
        task.name,
        pieces,
        tuple(steps),
        _next_tokens(task, output.logits[0, -1], 5 if top_k is None else top_k) if generates else (),
        None if generates else _answer(task, item, pair, top_k, truncate),
    )


def reads_text(task: Task) -> bool:
    """Whether the task's input is text, and not an image or a recording."""
    return isinstance(task.config.input_frontend, TokenFrontend)


def _check_arguments(task: Task, pair: str | None, chat: bool, top_k: int | None, truncate: bool) -> None:
    kind = task.config.head.kind
    for name, on in (("pair", pair is not None), ("chat", chat), ("truncate", truncate)):
        no_effect(on and not reads_text(task), name, "on images and audio")
    no_effect(chat and kind != "causal_lm", "chat", f"in {task.name}")
    no_effect(pair is not None and kind not in PAIRED, "pair", f"in {task.name}, which reads one text")
    if pair is None and kind in PAIRED and PAIRED[kind]:
        raise UsageError(f"{task.name} reads two texts", f"give {PAIRED[kind]} as {opt('pair', ...)}")
    idle = top_k is not None and kind not in GENERATING and "top_k" not in task.options()
    no_effect(idle, "top_k", f"in {task.name}")


def _start_ids(task: Task) -> list[int]:
    """Return what an encoder-decoder's output begins with: where the task says more than the start token, all of it."""
    if isinstance(task, GeneratingTask):
        return task.start_ids()
    start_id = task.config.decoder_start_id
    return [] if start_id is None else [start_id]


def _text(
    task: Task, text: str, pair: str | None, chat: bool, truncate: bool
) -> tuple[dict[str, Tensor], tuple[Piece, ...]]:
    tokenizer = task.tokenizer
    if chat:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    limit = text_limit(task.config, tokenizer)
    row = tokenizer.encode(text, pair, add_special_tokens=not chat, truncate=truncate and task.cut, max_length=limit)
    if not row.input_ids:
        raise InputError("an empty text: there are no tokens to explain", "give at least one character")
    inputs = task.model_inputs(tokenizer.pad([row]))
    stack = task.model.encoder if task.model.encoder is not None else task.model.main
    assert isinstance(stack.frontend, TokenEmbedding)
    norms = stack.frontend.embed(inputs["input_ids"])[0].float().norm(dim=-1).tolist()
    if task.config.head.kind == "choice":
        inputs = {name: value[:, None] for name, value in inputs.items()}  # one choice
    pieces = tuple(
        Piece(index, token, token_id, span[0], span[1], sequence, special, norm)
        for index, (token, token_id, span, sequence, special, norm) in enumerate(
            zip(row.tokens, row.input_ids, row.offsets, row.sequence_ids, row.special, norms, strict=True)
        )
    )
    return inputs, pieces


def signal_inputs(task: Task, item: Any) -> dict[str, Tensor]:
    """Return the tensors of an image or a recording, through the task's own first step."""
    encoded = task.encode([item], task.Options())
    if getattr(encoded, "whole", None) is not None:
        raise InputError("the recording is longer than one window of the model", "cut it: one window can be explained")
    tensors = encoded if isinstance(encoded, dict) else {}
    for name in ("pixel_values", "input_values", "input_features"):
        value = encoded if name == "pixel_values" and isinstance(encoded, Tensor) else getattr(encoded, name, None)
        if value is not None:
            tensors = {name: torch.as_tensor(value)}
    if not tensors:
        raise UsageError(f"{task.name} cannot be explained for a {type(item).__name__}", "give one image or recording")
    return {name: value.to(task.model.device) for name, value in tensors.items() if isinstance(value, Tensor)}


def _signal_pieces(task: Task, inputs: dict[str, Tensor]) -> tuple[Piece, ...]:
    """Return patches with their pixels, or frames with their times."""
    stack = task.model.encoder if task.model.encoder is not None else task.model.main
    config = stack.config.frontend
    if isinstance(config, PatchFrontend):
        vectors = stack.frontend(inputs["pixel_values"])[0]
        places = _patch_places(config, inputs["pixel_values"].shape[-2:])
    elif isinstance(config, WaveFrontend):
        vectors = stack.frontend(inputs["input_values"], None)[0][0]
        hop = math.prod(config.strides)
        places = [f"samples from {index * hop}" for index in range(len(vectors))]
    else:
        vectors = stack.frontend(inputs["input_features"])[0]
        places = [f"mel frames {2 * index} to {2 * index + 1}" for index in range(len(vectors))]
    norms = vectors.float().norm(dim=-1).tolist()
    fixed = len(norms) - len(places)
    names = [f"class token {index}" for index in range(fixed)] + [f"{index}" for index in range(len(places))]
    return tuple(
        Piece(index, name, None, None, None, None, index < fixed, norm, place)
        for index, (name, norm, place) in enumerate(zip(names, norms, [""] * fixed + places, strict=True))
    )


def _patch_places(config: PatchFrontend, size: torch.Size) -> list[str]:
    high, wide = config.patch_size
    rows, columns = size[0] // high, size[1] // wide
    return [
        f"rows {r * high}-{(r + 1) * high - 1}, columns {c * wide}-{(c + 1) * wide - 1}"
        for r in range(rows)
        for c in range(columns)
    ]


def _next_tokens(task: Task, logits_V: Tensor, top_k: int) -> tuple[NextToken, ...]:
    top_k = check_top_k(top_k, len(logits_V))
    best = logits_V.float().topk(top_k)
    probabilities = logits_V.float().softmax(-1)[best.indices]
    return tuple(
        NextToken(task.tokenizer.decode(task.tokenizer.known([index])), index, probability, logit)
        for index, probability, logit in zip(
            best.indices.tolist(), probabilities.tolist(), best.values.tolist(), strict=True
        )
    )


def _answer(task: Task, item: Any, pair: str | None, top_k: int | None, truncate: bool) -> Any:
    given: Any = item if pair is None else (item, [pair]) if task.config.head.kind == "choice" else (item, pair)
    options: dict[str, Any] = {"truncate": True} if truncate else {}
    if top_k is not None:
        options["top_k"] = top_k
    result = task(given, **options)
    if isinstance(result, tuple | list):
        return [part.to_dict() for part in result]
    return result.to_dict()


@contextmanager
def watch(model: nn.Module) -> Iterator[list[StepShape]]:
    """While open, every step of the model that runs appends its name and the shape of what it gave."""
    steps: list[StepShape] = []
    handles = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                steps.append(StepShape(name, tuple(first.shape)))

        return hook

    for name, module in model.named_modules():
        if _is_step(name) and not isinstance(module, nn.Identity):  # what a model does not have is an identity
            handles.append(module.register_forward_hook(note(name)))
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def _is_step(name: str) -> bool:
    """Frontends, the parts of each layer, each layer, final norms, the head."""
    parts = name.split(".")
    if parts[0] == "head":
        return len(parts) == 1
    if len(parts) == 2:
        return parts[1] in ("frontend", "norm")
    if parts[1:2] == ["layers"]:
        return len(parts) == 3 or (len(parts) == 4 and parts[3] in ("attention", "cross", "ffn"))
    return False
