"""`load`: from a reference to something ready to call.

open → build → fill → prepare → task
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

import torch

from plainformer.checkpoint.opened import Checkpoint, open_checkpoint
from plainformer.checkpoint.run_folders import Series, series_of
from plainformer.checkpoint.weights import check_depth, keeps_blocks, load_weights
from plainformer.choosing import as_class, head_for, task_of
from plainformer.config import ModelConfig
from plainformer.config.loading import LoadArgs, LoadOptions
from plainformer.errors import UsageError, opt
from plainformer.model.block import set_ffn_chunk_size
from plainformer.model.fast.prepare import prepare_for_inference, usual_rows
from plainformer.model.fast.threads import settle
from plainformer.model.transformer import Transformer
from plainformer.tasks import (
    stated_task,
    task_class,
    task_info,
)
from plainformer.tasks.base import Task

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer
    from plainformer.parallel.mesh import Mesh
    from plainformer.tasks.answering.abstractive import AbstractiveQuestionAnswering
    from plainformer.tasks.answering.extractive import QuestionAnswering
    from plainformer.tasks.speech.audio_classification import AudioClassification
    from plainformer.tasks.speech.audio_embedding import AudioFeatureExtraction
    from plainformer.tasks.speech.ctc import CtcSpeechRecognition
    from plainformer.tasks.speech.whisper import SpeechRecognition
    from plainformer.tasks.text.classification import TextClassification
    from plainformer.tasks.text.embedding import FeatureExtraction
    from plainformer.tasks.text.fill_mask import FillMask
    from plainformer.tasks.text.multiple_choice import MultipleChoice
    from plainformer.tasks.text.ranking import TextRanking
    from plainformer.tasks.text.token_classification import TokenClassification
    from plainformer.tasks.text.zero_shot import ZeroShotClassification
    from plainformer.tasks.vision.classification import ImageClassification
    from plainformer.tasks.vision.embedding import ImageFeatureExtraction
    from plainformer.tasks.writing.text2text import Text2TextGeneration
    from plainformer.tasks.writing.text_generation import TextGeneration

Ref = str | os.PathLike[str]
T = TypeVar("T", bound=Task)
F = TypeVar("F", bound=Callable[..., Any])
MakeModel = Callable[[ModelConfig], Transformer]
Chosen = Callable[[type[Task], str, ModelConfig], None]  # a task's class, its name, its model's configuration
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


def _names_options(function: F) -> F:
    """Show the options by name where a signature is shown: help() and notebooks."""
    own = inspect.signature(function)
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    asked = inspect.signature(LoadOptions).parameters.values()
    function.__signature__ = own.replace(parameters=[*named, *asked])  # type: ignore[attr-defined]
    return function


@overload
def load(ref: Ref, *, task: Literal["text-generation", "chat"], **options: Unpack[LoadArgs]) -> TextGeneration: ...
@overload
def load(
    ref: Ref, *, task: Literal["text2text-generation", "summarization", "translation"], **options: Unpack[LoadArgs]
) -> Text2TextGeneration: ...
@overload
def load(ref: Ref, *, task: Literal["fill-mask"], **options: Unpack[LoadArgs]) -> FillMask: ...
@overload
def load(
    ref: Ref, *, task: Literal["text-classification", "sentiment-analysis"], **options: Unpack[LoadArgs]
) -> TextClassification: ...
@overload
def load(
    ref: Ref, *, task: Literal["token-classification", "ner"], **options: Unpack[LoadArgs]
) -> TokenClassification: ...
@overload
def load(ref: Ref, *, task: Literal["question-answering"], **options: Unpack[LoadArgs]) -> QuestionAnswering: ...
@overload
def load(ref: Ref, *, task: Literal["multiple-choice"], **options: Unpack[LoadArgs]) -> MultipleChoice: ...
@overload
def load(
    ref: Ref, *, task: Literal["feature-extraction", "sentence-embedding", "embedding"], **options: Unpack[LoadArgs]
) -> FeatureExtraction: ...
@overload
def load(
    ref: Ref, *, task: Literal["image-feature-extraction"], **options: Unpack[LoadArgs]
) -> ImageFeatureExtraction: ...
@overload
def load(ref: Ref, *, task: Literal["image-classification"], **options: Unpack[LoadArgs]) -> ImageClassification: ...
@overload
def load(
    ref: Ref, *, task: Literal["audio-feature-extraction"], **options: Unpack[LoadArgs]
) -> AudioFeatureExtraction: ...
@overload
def load(ref: Ref, *, task: Literal["audio-classification"], **options: Unpack[LoadArgs]) -> AudioClassification: ...
@overload
def load(
    ref: Ref, *, task: Literal["automatic-speech-recognition", "asr"], **options: Unpack[LoadArgs]
) -> SpeechRecognition | CtcSpeechRecognition: ...
@overload
def load(
    ref: Ref, *, task: Literal["zero-shot-classification", "zero-shot"], **options: Unpack[LoadArgs]
) -> ZeroShotClassification: ...
@overload
def load(ref: Ref, *, task: Literal["text-ranking", "reranking"], **options: Unpack[LoadArgs]) -> TextRanking: ...
@overload
def load(
    ref: Ref, *, task: Literal["abstractive-question-answering", "abstractive-qa"], **options: Unpack[LoadArgs]
) -> AbstractiveQuestionAnswering: ...
@overload
def load(ref: Ref, *, task: type[T], **options: Unpack[LoadArgs]) -> T: ...
@overload
def load(ref: Literal["all-minilm-l6-v2"], *, task: None = None, **options: Unpack[LoadArgs]) -> FeatureExtraction: ...
@overload
def load(
    ref: Literal["smollm2-135m-instruct"], *, task: None = None, **options: Unpack[LoadArgs]
) -> TextGeneration: ...
@overload
def load(ref: Literal["code-completion"], *, task: None = None, **options: Unpack[LoadArgs]) -> TextGeneration: ...
@overload
def load(ref: Literal["albert-smiles"], *, task: None = None, **options: Unpack[LoadArgs]) -> FillMask: ...
@overload
def load(ref: Ref, *, task: str | None = None, **options: Unpack[LoadArgs]) -> Task: ...
@_names_options
def load(ref: Ref, *, task: str | type[Task] | None = None, **options: Unpack[LoadArgs]) -> Task:
    """Return a checkpoint, ready to call for its task: `load("all-minilm-l6-v2")("a text")`.

    Args:
        ref: a local folder, a `.gguf` file, a bundled name (`plainformer models` lists them) or a Hub id. The folder of a
            run means its best model; that of a run for each fold means all of their models, which answer as one.
        task: one of `plainformer tasks`, or a task's class; None takes what the checkpoint's architecture implies.
        options: see `load_model`.
    Returns:
        a `Task` with `.model`, `.tokenizer` and `.config`; call it with one input or many.
    Raises:
        PlainformerError: with the value, the cause and the next step.
    """
    return load_chosen(ref, task, LoadOptions.of(options, "load"))


def load_chosen(
    ref: Ref, task: str | type[Task] | None, asked: LoadOptions, chosen: Chosen = lambda kind, name, config: None
) -> Task:
    """Do as `load`; `chosen` is told of the task before any weight is read: what it refuses is refused at once."""
    if asked.purpose == "train":
        raise UsageError(
            f"{opt('purpose', 'train')}: a task answers, and is not trained", "load_model gives the model to train"
        )
    if (series := series_of(ref)) is not None:
        return _load_series(series, os.fspath(ref), task, asked, chosen)
    if isinstance(asked.adapter, Mapping):
        return _with_adapters(ref, task, asked, asked.adapter, chosen)
    given = task_info(task) if task is not None else None
    with open_asked(ref, asked) as checkpoint:
        info = given or stated_task(checkpoint)
        head = head_for(checkpoint, info)
        config = checkpoint.config(head)
        info = task_of(checkpoint, config, info)
        made = task_class(info, config.head.kind)
        if isinstance(task, type):
            made = as_class(checkpoint, task, made)
        chosen(made, info.name, config)
        model = build_model(checkpoint, asked, head)
        tokenizer = checkpoint.tokenizer() if made.needs_tokenizer else None
        found = made(info.name, model, tokenizer, checkpoint)
        if isinstance(task, str):
            found.loaded_as(task)
        return found


def _load_series(series: Series, ref: str, task: str | type[Task] | None, asked: LoadOptions, chosen: Chosen) -> Task:
    """Return the models of all folds as one task."""
    from plainformer.tasks.ensemble import check_vote, ensemble

    if isinstance(asked.adapter, Mapping):
        what = f"{opt('adapter')} by names switches one model, and {ref} has {len(series.members)}"
        raise UsageError(what, "load one of the folds")

    def check(kind: type[Task], name: str, config: ModelConfig) -> None:
        check_vote(kind, name, config, series.vote)
        chosen(kind, name, config)

    members = [load_chosen(member, task, asked, check) for member in series.members]
    return ensemble(members, series.vote, ref)


def _with_adapters(
    ref: Ref, task: str | type[Task] | None, asked: LoadOptions, named: Mapping[str, Ref], chosen: Chosen
) -> Task:
    """Return a task with the first of the adapters that have names; `Task.use_adapter` takes another."""
    names = dict(named)

    def using(name: str | None) -> Task:
        found = load_chosen(ref, task, replace(asked, adapter=None if name is None else names[name]), chosen)
        found.adapters, found.adapter, found.switched = tuple(names), name, using
        return found

    return using(next(iter(names)))


@overload
def pipeline(task: Literal["text-generation", "chat"], ref: Ref, **options: Unpack[LoadArgs]) -> TextGeneration: ...
@overload
def pipeline(
    task: Literal["text2text-generation", "summarization", "translation"], ref: Ref, **options: Unpack[LoadArgs]
) -> Text2TextGeneration: ...
@overload
def pipeline(task: Literal["fill-mask"], ref: Ref, **options: Unpack[LoadArgs]) -> FillMask: ...
@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"], ref: Ref, **options: Unpack[LoadArgs]
) -> TextClassification: ...
@overload
def pipeline(
    task: Literal["token-classification", "ner"], ref: Ref, **options: Unpack[LoadArgs]
) -> TokenClassification: ...
@overload
def pipeline(task: Literal["question-answering"], ref: Ref, **options: Unpack[LoadArgs]) -> QuestionAnswering: ...
@overload
def pipeline(task: Literal["multiple-choice"], ref: Ref, **options: Unpack[LoadArgs]) -> MultipleChoice: ...
@overload
def pipeline(
    task: Literal["feature-extraction", "sentence-embedding", "embedding"], ref: Ref, **options: Unpack[LoadArgs]
) -> FeatureExtraction: ...
@overload
def pipeline(
    task: Literal["image-feature-extraction"], ref: Ref, **options: Unpack[LoadArgs]
) -> ImageFeatureExtraction: ...
@overload
def pipeline(task: Literal["image-classification"], ref: Ref, **options: Unpack[LoadArgs]) -> ImageClassification: ...
@overload
def pipeline(
    task: Literal["audio-feature-extraction"], ref: Ref, **options: Unpack[LoadArgs]
) -> AudioFeatureExtraction: ...
@overload
def pipeline(task: Literal["audio-classification"], ref: Ref, **options: Unpack[LoadArgs]) -> AudioClassification: ...
@overload
def pipeline(
    task: Literal["automatic-speech-recognition", "asr"], ref: Ref, **options: Unpack[LoadArgs]
) -> SpeechRecognition | CtcSpeechRecognition: ...
@overload
def pipeline(
    task: Literal["zero-shot-classification", "zero-shot"], ref: Ref, **options: Unpack[LoadArgs]
) -> ZeroShotClassification: ...
@overload
def pipeline(task: Literal["text-ranking", "reranking"], ref: Ref, **options: Unpack[LoadArgs]) -> TextRanking: ...
@overload
def pipeline(
    task: Literal["abstractive-question-answering", "abstractive-qa"], ref: Ref, **options: Unpack[LoadArgs]
) -> AbstractiveQuestionAnswering: ...
@overload
def pipeline(task: type[T], ref: Ref, **options: Unpack[LoadArgs]) -> T: ...
@overload
def pipeline(task: str, ref: Ref, **options: Unpack[LoadArgs]) -> Task: ...
@_names_options
def pipeline(task: str | type[Task], ref: Ref, **options: Unpack[LoadArgs]) -> Task:
    """Do as `load`, with the task first, for those who are used to that order."""
    return load(ref, task=task, **options)


@_names_options
def load_model(
    ref: Ref, *, head: str | None = None, make: MakeModel = Transformer, **options: Unpack[LoadArgs]
) -> Transformer:
    """Return the model of a reference, without tokenizer and task.

    Args:
        ref: a local folder, a `.gguf` file, a bundled name or a Hub id.
        head: the kind of head (`config.HEAD_KINDS`); None takes what the checkpoint's architecture says.
        make: makes the empty model of a configuration; `parallel.tensor.part_of` makes a rank's part of it.
        dtype: "fp32", "bf16", "fp16"; None is fp32 on a CPU and the checkpoint's own on a GPU.
        device: "cpu", "cuda", "cuda:1".
        backend: how linears compute on a CPU: "plain", "fused", "onednn", "compiled", or "auto": "compiled" for a decoder,
            otherwise what measures best for each shape; name one where the last bits must not differ between processes.
        quantize: "int8" rounds the weights of all linears to eight bits (fp32, CPU): a quarter of the memory, faster
            token by token. "int4" rounds them to four, 32 with a scale and a minimum (the scores of words to eight), and
            what they are multiplied by to eight: a sixth of the memory. The answers change a little, with "int4" more, and
            the model can no longer be saved or trained. "keep" leaves a GGUF's blocks as they lie in the file, and rounds
            what they are multiplied by to eight bits.
        threads: how many compute on a CPU, for the whole process and from here on. None: OMP_NUM_THREADS, else the cores that
            this process may use: those it is bound to, and no more than its control group's quota gives time for.
        ffn_chunk_size: positions that a feed-forward network runs at a time; 0 for all.
        allow_unused: load even if the file has tensors that the model does not use.
        family: the `model_type` to read config.json as, where it names none, or a class that is code of its own.
        purpose: "train" gives plain fp32 weights in memory of their own, with gradients, in training mode: the files may
            change or go. "infer" weights may lie in the files themselves.
        adapter: a LoRA adapter in PEFT's format (a folder or Hub id), or several: their products are added to the weights
            before anything else happens to them. An adapter's own reference, in place of `ref`, loads its base model
            with it; what `save` writes then is a plain, merged checkpoint. Adapters by name, {"law": ..., "poems": ...},
            are for `load`: its task answers with the first, until `task.use_adapter("poems")`.
        prepare: False keeps plain, separate weights.
        tp, pp: how many processes, which torchrun has started, share each layer, or have some of the layers each. All make the
            same calls and get the same answers.
        revision, token: of a Hub repository.
    Raises:
        HubError, CheckpointError, UsageError: see each message.
    """
    asked = LoadOptions.of(options, "load_model")
    with open_asked(ref, asked) as checkpoint:
        return build_model(checkpoint, asked, head, make)


def open_asked(ref: Ref, options: LoadOptions) -> Checkpoint:
    """Open a reference as the options say."""
    asked = options.adapter
    if isinstance(asked, Mapping):
        what = f"{opt('adapter', dict(asked))} names adapters to choose from, and a model has the weights of one choice"
        raise UsageError(what, "give load these names, or load_model one adapter, or a list of those that add up")
    adapters = [asked] if isinstance(asked, str | os.PathLike) else list(asked or ())
    return open_checkpoint(
        ref, revision=options.revision, token=options.token, family=options.family, adapters=adapters
    )


def load_tokenizer(
    ref: Ref, *, family: str | None = None, revision: str | None = None, token: str | None = None
) -> Tokenizer:
    """Return the tokenizer of a reference, without its model: no weights are downloaded.

    `family` is the `model_type` whose tokenizer the vocabulary files are of, where no file of the checkpoint says so.
    """
    asked = LoadOptions(family=family, revision=revision, token=token)
    with open_checkpoint(
        ref, revision=asked.revision, token=asked.token, part="tokenizer", family=asked.family
    ) as checkpoint:
        return checkpoint.tokenizer()


def build_model(
    checkpoint: Checkpoint, options: LoadOptions, head: str | None = None, make: MakeModel = Transformer
) -> Transformer:
    """Build a checkpoint's model, fill it with its weights, and prepare it for its purpose; see `load_model`.

    `make`: makes the empty model of a configuration, or a rank's part of it (`parallel.tensor.part_of`).
    """
    settle(options.threads)
    trains, mesh = options.purpose == "train", _mesh(options)
    device = as_device(options.device) if mesh is None else mesh.device
    dtype = torch.float32 if trains else as_dtype(options.dtype, device)
    config, source = checkpoint.config(head), checkpoint.tensors()
    check_depth(config, source)
    model = (make if mesh is None else _part_of(mesh))(config).eval()
    table, unused = checkpoint.rows(config), options.allow_unused
    load_weights(
        model, source, table, dtype=dtype, device=device, allow_unused=unused, trainable=trains,
        keep_blocks=keeps_blocks(options, source, dtype, device),
    )  # fmt: skip
    set_ffn_chunk_size(model, options.ffn_chunk_size)
    if trains:
        model.train()
    elif options.prepare:
        rows = usual_rows(config)
        backend = options.backend if options.quantize in (None, "keep") else options.quantize
        if backend == "auto" and rows > 1 and model.local is not None:
            backend = "fused"  # ranks that measure may choose differently, and then their last bits differ
        prepare_for_inference(model, backend, rows, source.release)
    if mesh is not None:
        from plainformer.parallel.inference import in_step

        in_step(model, mesh)
    return model


def _mesh(options: LoadOptions) -> Mesh | None:
    """Return the processes that share a model; None where it is asked for whole."""
    if options.tp == options.pp == 1:
        return None
    from plainformer.parallel.inference import ranks_for

    return ranks_for(options.tp, options.pp, options.device)


def _part_of(mesh: Mesh) -> MakeModel:
    from plainformer.parallel.tensor import part_of

    return part_of(mesh)


def as_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """Return a dtype by name. None: fp32 on a CPU, where half precision is slower; the checkpoint's own elsewhere."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise UsageError(f"{opt('dtype', dtype)} is not supported", "give fp32, bf16 or fp16")
    return found


def as_device(device: str | torch.device) -> torch.device:
    """Return a device that exists, or raise UsageError."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UsageError(f"{opt('device', str(device))} is unknown", "use 'cpu' or 'cuda'")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        fix = f"use {opt('device', 'cpu')}"
        raise UsageError(f"{opt('device', str(device))}: this machine has {count} CUDA devices", fix)
    return found
