"""The model of a run and what turns raw input into its tensors: read at the start, saved with every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from plainformer.checkpoint import rows
from plainformer.checkpoint.hub import Part
from plainformer.checkpoint.low_rank import add_adapters, save_adapters
from plainformer.checkpoint.opened import AdaptedCheckpoint, Checkpoint, GgufCheckpoint, open_checkpoint
from plainformer.checkpoint.rows import WeightTable
from plainformer.checkpoint.small_files import pick_small_files
from plainformer.config import MelFrontend, ModelConfig, PatchFrontend, TokenFrontend
from plainformer.config.layout import Layout
from plainformer.config.scaling import TARGETS, Scaling
from plainformer.config.training import StartConfig, TrainConfig
from plainformer.errors import UsageError, opt
from plainformer.families import table_for
from plainformer.families.by_hand import with_tokens
from plainformer.inputs.audio.processors import MelProcessor, WaveProcessor
from plainformer.inputs.files import read_preprocessor
from plainformer.inputs.image import ImageProcessor
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.loading import load_model
from plainformer.model.dropout import set_dropout
from plainformer.model.frontend import WaveEmbedding
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.parallel.apply import parallelize
from plainformer.parallel.data import Gradients
from plainformer.parallel.gather import Share, Team, local_of
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.pipeline import connect
from plainformer.parallel.tensor import part_of
from plainformer.saving import save_config, save_model, save_together
from plainformer.starting import config_of_fragment, config_with_head, with_head
from plainformer.train.checkpoint import Written
from plainformer.train.objectives.base import Labels, Objective, SpeechInputs
from plainformer.train.optimizer import trained
from plainformer.train.specaugment import hidden_spans

# Files beside weights and tokenizer that go with a model.
COMPANIONS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
PREPROCESSOR = "preprocessor_config.json"
IMAGE_PROCESSORS = {"vit": "ViTImageProcessor", "deit": "DeiTImageProcessor"}
# What loses nothing of our tensors on the way out and back.
_EXACT = (
    *(rows.Op, rows.Transpose, rows.Split, rows.TransposeSplit, rows.SplitHeads),
    *(rows.DropRows, rows.Reshape, rows.Unpermute),
)


@dataclass
class Start:
    """What a run begins with, before any weight is read.

    Attributes:
        config: of the model, with the head and the labels that the objective asks for.
        labels: those of the rows; None where the head has none, or keeps its own.
        processor: a tokenizer, a processor of images or audio, or both of speech.
        files: those that decide what the processor does, by name; {} where it is saved to find out.
        companions: the content of files that are saved with the model.
        asked: the section of the configuration that says what is trained.
    """

    asked: StartConfig
    config: ModelConfig
    labels: Labels | None
    processor: Any
    files: Mapping[str, Path]
    companions: Mapping[str, bytes]

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer, None for images, and for sound that is classified."""
        found = self.processor.tokenizer if isinstance(self.processor, SpeechInputs) else self.processor
        return found if isinstance(found, Tokenizer) else None

    def stated(self, config: ModelConfig) -> ModelConfig:
        """Return a model's configuration with the units of its answers, which `scale.targets` asked for."""
        scaling = self.config.head.scaling
        return config if scaling is None or scaling == config.head.scaling else with_targets(config, scaling)

    def save(self, model: Transformer, folder: Path, team: Team | None = None) -> Written:
        """Write a folder that this library and transformers load; of adapters alone, one that PEFT loads.

        All processes of a `team` call it; each returns the files of its own that are done.
        """
        lora, written = self.asked.lora, None
        if lora is not None and not lora.merge:
            save_adapters(model, table_for(model.config), folder, lora, self.asked.ref or "", team)
        elif team is not None:
            written = save_together(model, folder, team)
        else:
            save_model(model, folder)
            self._save_beside(folder)
            return None
        if team is None or team.is_first:
            save_config(model, folder)
            self._save_beside(folder)
        return written

    def _save_beside(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save(folder)
        for name, content in self.companions.items():
            (folder / name).write_bytes(content)


def with_targets(config: ModelConfig, scaling: Scaling) -> ModelConfig:
    """Return a model's configuration that states in which units a regression answers."""
    source = {**config.source, TARGETS: scaling.to_dict()}
    return replace(config, head=replace(config.head, scaling=scaling), source=source)


def start_of(config: TrainConfig, kind: type[Objective], labels: Labels | None) -> Start:
    """Read configuration and processor of what is to be trained; the head is of the objective's kind, with its labels."""
    ref = config.model.ref or config.model.tokenizer
    names, problem = (None, None) if labels is None else (labels.names, labels.problem)
    if ref is None and kind.reads in ("image", "audio"):
        assert config.model.config is not None
        model = config_of_fragment(config.model.config, kind.head, labels=names, problem=problem)
        media = _media(None, model)
        return Start(config.model, model, labels, media, {}, {PREPROCESSOR: as_json(described(media, model))})
    if ref is None:
        what = "a model from scratch needs a tokenizer"
        raise UsageError(what, f"give {opt('model.tokenizer', ...)}: a checkpoint's, or a trained one's folder")
    part: Part = "model" if config.model.ref is not None else "tokenizer"
    with open_checkpoint(ref, revision=config.model.revision, part=part) as checkpoint:
        _check_base(checkpoint, config.model)
        if config.model.config is not None:
            fragment = _with_tokenizer(config.model.config, checkpoint, kind)
            model = config_of_fragment(fragment, kind.head, labels=names, problem=problem)
        else:
            model, before = config_with_head(checkpoint, kind.head, names, problem)
            if labels is not None and before is not None and _are_known(labels, config, kind, before):
                labels, (model, _) = None, config_with_head(checkpoint, kind.head)
        processor = _processor(checkpoint, model, kind)
        found = pick_small_files(_names(checkpoint)) if checkpoint.folder is not None else []
        files = {name: checkpoint.path / name for name in found if name != "config.json"}
        companions = {name: path.read_bytes() for name, path in files.items() if name in COMPANIONS}
        if isinstance(processor, SpeechInputs) and not {PREPROCESSOR, "processor_config.json"} & companions.keys():
            companions[PREPROCESSOR] = as_json(described(processor.audio, model))
    return Start(config.model, model, labels, processor, files, companions)


def _check_base(checkpoint: Checkpoint, asked: StartConfig) -> None:
    """Refuse to train adapters of which nothing could be loaded: a base model is the folder of a whole model."""
    if asked.lora is None or asked.lora.merge or asked.ref is None:
        return
    if isinstance(checkpoint, AdaptedCheckpoint | GgufCheckpoint):
        kind = "an adapter itself" if isinstance(checkpoint, AdaptedCheckpoint) else "a GGUF file"
        what = f"adapters cannot be saved for {asked.ref}, which is {kind}: they would have no base model"
        fix = (
            f"give {opt('model.lora.merge', True)}, or its whole model: plainformer.save(plainformer.load(REF), FOLDER)"
        )
        raise UsageError(what, fix)


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return the content of a small file of a checkpoint."""
    return (json.dumps(content, indent=2) + "\n").encode()


def _are_known(labels: Labels, config: TrainConfig, kind: type[Objective], before: ModelConfig) -> bool:
    """Return whether the checkpoint's own head tells the rows' labels apart already, by their names or as numbers."""
    if config.data.labels or before.head.kind != kind.head:
        return False
    count, usual = len(before.labels), "single_label"
    same = (labels.problem or usual) == (before.head.problem or usual)
    return same and all(n in before.labels or (n.isdecimal() and int(n) < count) for n in labels.names)


def _names(checkpoint: Checkpoint) -> list[str]:
    return [path.relative_to(checkpoint.path).as_posix() for path in checkpoint.path.rglob("*") if path.is_file()]


def _with_tokenizer(fragment: Mapping[str, Any], checkpoint: Checkpoint, kind: type[Objective]) -> Mapping[str, Any]:
    """Return a fragment of config.json with the size of the tokenizer's vocabulary and its special tokens."""
    if kind.head in ("image", "audio"):
        return fragment
    tokenizer = checkpoint.tokenizer()
    return with_tokens(fragment, tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)


def _processor(checkpoint: Checkpoint, model: ModelConfig, kind: type[Objective]) -> Any:
    """Return what turns raw input into the model's tensors."""
    frontend = model.input_frontend
    if isinstance(frontend, TokenFrontend):
        return checkpoint.tokenizer()
    section = "image_processor" if isinstance(frontend, PatchFrontend) else "feature_extractor"
    media = _media(read_preprocessor(checkpoint.need_folder("preprocessor"), section), model)
    return SpeechInputs(media, checkpoint.tokenizer()) if kind.reads == "speech" else media


def _media(settings: Mapping[str, Any] | None, model: ModelConfig) -> ImageProcessor | MelProcessor | WaveProcessor:
    """Return the processor of images or audio that settings describe; None: the usual one of the model's family."""
    if isinstance(model.input_frontend, PatchFrontend):
        return ImageProcessor.from_settings(settings, model.source, model.image_defaults)
    kind = MelProcessor if isinstance(model.input_frontend, MelFrontend) else WaveProcessor
    return kind.from_settings(settings, model.source)


def described(media: ImageProcessor | MelProcessor | WaveProcessor, model: ModelConfig) -> dict[str, Any]:
    """Return what `preprocessor_config.json` says of a processor."""
    if isinstance(media, ImageProcessor):
        return {"image_processor_type": IMAGE_PROCESSORS[model.source["model_type"]], **media.to_dict()}
    return media.to_dict()


def made_model(
    config: TrainConfig, start: Start, kind: type[Objective], saved: Path | None
) -> tuple[Transformer, tuple[str, ...]]:
    """Return the model of a run in training mode, as it was saved or as it begins, and the parameters that are new."""
    return divided_model(config, start, kind, saved, Mesh(Layout(), 0, torch.device(config.device)))[:2]


def divided_model(
    config: TrainConfig, start: Start, kind: type[Objective], saved: Path | None, mesh: Mesh
) -> tuple[Transformer, tuple[str, ...], Gradients]:
    """Return the same of several processes: this one's part of the model, and what brings their gradients together."""
    asked, make = config.model, part_of(mesh)
    new: tuple[str, ...] = ()
    if saved is not None and asked.lora is None:
        model = load_model(saved, head=kind.head, make=make, purpose="train")  # a rank reads its own rows
    elif asked.ref is not None:
        names, problem = (None, None) if start.labels is None else (start.labels.names, start.labels.problem)
        revision = asked.revision
        made = with_head(
            asked.ref, kind.head, labels=names, problem=problem, seed=config.seed, make=make, revision=revision
        )
        model, new = made.model, made.initialised
    else:
        model = initialise(make(start.config), seed=config.seed).train()
    model.configure(start.stated(model.config))
    if asked.train == "head" and (model.local is None or model.local.is_last):
        _check_head(model)
    if model.local is not None:
        connect(model, mesh)
    if asked.lora is not None:
        add_adapters(model, table_for(model.config), asked.lora, seed=config.seed)
    if asked.train == "head":
        _freeze_backbone(model)
    _rest_unread(model, config)
    if mesh.layout.zero < 2 or mesh.dp is None:  # what is divided goes to its device layer by layer, as it is divided
        model.to(config.device)
    if asked.dropout is not None:
        set_dropout(model, asked.dropout)
    compiled = _compile if config.compile else None
    return model, new, parallelize(model, mesh, checkpointing=asked.checkpointing, compiled=compiled)


def _rest_unread(model: Transformer, config: TrainConfig) -> None:
    """Leave the vector of hidden frames as it is in runs that hide none."""
    frontend = None if model.encoder is None else model.encoder.frontend
    if isinstance(frontend, WaveEmbedding) and frontend.hidden is not None:
        hides = hidden_spans(config.augment, model.config)[0].share > 0
        frontend.hidden.requires_grad_(frontend.hidden.requires_grad and hides)


def _compile(model: Transformer) -> None:
    """Let each layer be compiled when it first runs: layers are versions of one function, told apart by their number."""
    import torch._dynamo as dynamo

    layers = [layer for stack in (model.encoder, model.decoder) if stack is not None for layer in stack.layers]
    limits: Any = dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(layers))
    for layer in layers:
        layer.compile()


def _heads_own(model: Transformer) -> list[str]:
    """Return the head's own parameters. A pipeline stage may hold a copy of a tied table, which does not count as the head's."""
    parts = {} if model.local is None else model.local.parts
    names = {name: parts[name].name if name in parts else name for name, _ in model.named_parameters()}
    return [name for name, p in model.named_parameters() if names[name].startswith("head.") and p.requires_grad]


def _check_head(model: Transformer) -> None:
    tied = dict(model.config.tied)
    if not any(name.startswith("head.") and name not in tied for name in model.sizes()):
        what = f"{opt('model.train', 'head')}: this head has no weights of its own, it shares those of the embeddings"
        raise UsageError(what, f"give {opt('model.train', 'all')}")


def _freeze_backbone(model: Transformer) -> None:
    names = _heads_own(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in names)


def saved_whole(model: Transformer) -> bool:
    """Return whether the folder that is saved has every bit of what is trained, so that a run can go on from it."""
    table: WeightTable = table_for(model.config)
    names = trained(model).keys()
    exact = set[str]()
    for row in table.rows:
        if row.kind == "map" and type(row.op) in _EXACT:
            exact.update(name for _, ours in row.instances(names) for name in ours)
    return names <= exact


def weights_of(model: Transformer) -> dict[str, torch.Tensor]:
    """Return what is trained, by our names."""
    return {name: p.detach() for name, p in trained(model).items()}


def fill(model: Transformer, tensors: Mapping[str, torch.Tensor], of: Mapping[str, Share] | None = None) -> None:
    """Put tensors that `weights_of` returned into a model; `of`: what it has of each parameter, None for all."""
    with torch.no_grad():
        for name, parameter in model.named_parameters() if tensors else ():
            whole = tensors.get(of[name].name if of else name)
            if whole is not None:
                local_of(parameter).copy_(of[name].of(whole) if of else whole)
