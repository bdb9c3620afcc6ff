"""How one input becomes an answer, step by step: tokens (or patches, frames), shapes after every step, the answer.

Hooks on the model's own modules read the shapes while it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from plainformer.config import PatchFrontend, TokenFrontend, WaveFrontend
from plainformer.config.values import check_flag, check_text, check_whole, no_effect
from plainformer.errors import InputError, UsageError, a_type, opt
from plainformer.explanation.request import GENERATING, plain_answer
from plainformer.model.frontend import TokenEmbedding
from plainformer.tasks.base import Task, check_top_k, text_limit
from plainformer.tasks.writing.base import GeneratingTask

# Modules that are steps: the head, frontends and final norms, each layer and its parts.
_STEP = re.compile(r"head|(?!head\.)\w+\.(frontend|norm|layers\.\d+(\.(attention|cross|ffn))?)")
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
    """A step of the computation and the shape of its output."""

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
    """How one input becomes an answer. `next_tokens` for models that generate; `answer` (plain values) for all others."""

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
    given = paired(task, item, pair)
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
    next_tokens = _next_tokens(task, output.logits[0, -1], 5 if top_k is None else top_k) if generates else ()
    answer = None if generates else _answer(task, given, top_k, truncate)
    return Explanation(task.ref, task.name, pieces, tuple(steps), next_tokens, answer)


def reads_text(task: Task) -> bool:
    """Return whether the task's input is text, and not an image or a recording."""
    return isinstance(task.config.input_frontend, TokenFrontend)


def _check_arguments(task: Task, pair: str | None, chat: bool, top_k: int | None, truncate: bool) -> None:
    kind = task.config.head.kind
    check_flag("chat", chat)
    check_flag("truncate", truncate)
    if pair is not None:
        check_text("pair", pair)
    if top_k is not None:
        check_whole("top_k", top_k)
    for name, on in (("pair", pair is not None), ("chat", chat), ("truncate", truncate)):
        no_effect(on and not reads_text(task), name, "on images and audio")
    no_effect(chat and kind != "causal_lm", "chat", f"in {task.name}")
    idle = top_k is not None and kind not in GENERATING and "top_k" not in task.options()
    no_effect(idle, "top_k", f"in {task.name}")


def paired(task: Task, item: Any, pair: str | None) -> Any:
    """Return an input and its second text, if there is one, as the task takes them.

    Raises:
        UsageError: the task reads one text; or it reads two, and the second is missing.
    """
    kind = task.config.head.kind
    if pair is None and PAIRED.get(kind):
        raise UsageError(f"{task.name} reads two texts", f"give {PAIRED[kind]} as {opt('pair', ...)}")
    no_effect(pair is not None and kind not in PAIRED, "pair", f"in {task.name}, which reads one text")
    return item if pair is None else (item, [pair]) if kind == "choice" else (item, pair)


def _start_ids(task: Task) -> list[int]:
    """Return the ids that an encoder-decoder's output begins with: the start token, and what the task adds to it."""
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
    embedding = (task.model.encoder or task.model.main).frontend
    assert isinstance(embedding, TokenEmbedding)
    norms = embedding.embed(inputs["input_ids"])[0].float().norm(dim=-1).tolist()
    if task.config.head.kind == "choice":
        inputs = {name: value[:, None] for name, value in inputs.items()}  # one choice
    starts, ends = zip(*row.offsets, strict=True)
    columns = (row.tokens, row.input_ids, starts, ends, row.sequence_ids, row.special, norms)
    return inputs, tuple(map(Piece, count(), *columns))


def signal_inputs(task: Task, item: Any) -> dict[str, Tensor]:
    """Return the tensors that the task makes of an image or a recording."""
    encoded = task.encode([item], task.Options())
    if getattr(encoded, "whole", None) is not None:
        raise InputError("the recording is longer than one window of the model", "cut it: one window can be explained")
    tensors = encoded if isinstance(encoded, dict) else {}
    for name in ("pixel_values", "input_values", "input_features"):
        value = encoded if name == "pixel_values" and isinstance(encoded, Tensor) else getattr(encoded, name, None)
        if value is not None:
            tensors = {name: torch.as_tensor(value)}
    if not tensors:
        raise UsageError(f"{task.name} cannot be explained for {a_type(item)}", "give one image or recording")
    return {name: value.to(task.model.device) for name, value in tensors.items() if isinstance(value, Tensor)}


def _signal_pieces(task: Task, inputs: dict[str, Tensor]) -> tuple[Piece, ...]:
    """Return patches with their pixels, or frames with their times."""
    stack = task.model.encoder or task.model.main
    config = stack.config.frontend
    if isinstance(config, PatchFrontend):
        vectors = stack.frontend(inputs["pixel_values"])[0]
        rows, columns = (
            [f"{start}-{start + patch - 1}" for start in range(0, size // patch * patch, patch)]
            for size, patch in zip(inputs["pixel_values"].shape[-2:], config.patch_size, strict=True)
        )
        places = [f"rows {row}, columns {column}" for row in rows for column in columns]
    elif isinstance(config, WaveFrontend):
        vectors = stack.frontend(inputs["input_values"], None)[0][0]
        hop = math.prod(config.strides)
        places = [f"samples from {index * hop}" for index in range(len(vectors))]
    else:
        vectors = stack.frontend(inputs["input_features"])[0]
        places = [f"mel frames {2 * index} to {2 * index + 1}" for index in range(len(vectors))]
    norms = vectors.float().norm(dim=-1).tolist()
    fixed = len(norms) - len(places)
    named = [(f"class token {index}", "") for index in range(fixed)]
    named += [(f"{index}", place) for index, place in enumerate(places)]
    return tuple(
        Piece(index, name, None, None, None, None, index < fixed, norm, place)
        for index, ((name, place), norm) in enumerate(zip(named, norms, strict=True))
    )


def _next_tokens(task: Task, logits_V: Tensor, top_k: int) -> tuple[NextToken, ...]:
    best = logits_V.float().topk(check_top_k(top_k, len(logits_V)))
    ids = best.indices.tolist()
    tokens = [task.tokenizer.decode(task.tokenizer.known([token_id])) for token_id in ids]
    probabilities = logits_V.float().softmax(-1)[best.indices].tolist()
    return tuple(map(NextToken, tokens, ids, probabilities, best.values.tolist()))


def _answer(task: Task, given: Any, top_k: int | None, truncate: bool) -> Any:
    options = {"truncate": truncate or None, "top_k": top_k}
    return plain_answer(task(given, **{name: value for name, value in options.items() if value is not None}))


@contextmanager
def watch(model: nn.Module) -> Iterator[list[StepShape]]:
    """While open, append the name and the output's shape of every step that the model runs."""
    steps: list[StepShape] = []

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            steps.append(StepShape(name, tuple(first.shape)))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if _STEP.fullmatch(name) and not isinstance(module, nn.Identity):  # what a model lacks is an identity
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        yield steps
