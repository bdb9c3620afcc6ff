"""What holds of a run whatever it learns: that it repeats and goes on to the byte, and who reads what it leaves.

Each objective makes one short run, with dropout, micro-batches of unequal size and rows of unequal length.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import plainformer as pf
from plainformer.config.building import read_config
from plainformer.config.training import OBJECTIVES, TrainConfig
from plainformer.loading import load_model
from plainformer.model.transformer import Transformer
from plainformer.train.feeder import VALIDATION, collated, moved
from plainformer.train.objectives import objective_class
from plainformer.train.objectives.base import Batch
from plainformer.train.objectives.distil import Distilled
from plainformer.train.plan import evaluation_batches
from plainformer.train.record import read_lines
from plainformer.training import Event, Prepared, prepare, train
from plainformer.training.models import made_model
from plainformer.training.teacher import taught
from tests.support.close import close
from tests.support.learning import config_of, rows_of
from tests.support.runs import results
from tests.support.scratch import RUNS
from tests.support.training import check_batching
from tests.support.vocabularies import save_json

STEPS, STOPPED, EVERY = 4, 3, 2
Tiny = Callable[[str], Path]

# Other ways to learn: an objective, and what its configuration says; {chat} and the like are tiny checkpoints.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "adapters": ("causal-lm", {"model": {"ref": "text-generation", "lora": {"rank": 4, "dropout": 0.1}}}),
    "merged adapters": ("causal-lm", {"model": {"ref": "text-generation", "lora": {"rank": 4, "merge": True}}}),
    "classifier with adapters": ("text-classification", {"model": {"ref": "fill-mask", "lora": {"rank": 4}}}),
    "head alone": ("text-classification", {"model": {"ref": "fill-mask", "train": "head"}}),
    "teacher": ("causal-lm", {"model": {"ref": "text-generation"}, "loss": {"teacher": "chat"}}),
    "average": ("masked-lm", {"model": {"ref": "fill-mask"}, "optimizer": {"ema": 0.8}}),
    "robust, trimmed, noisy and sparse": (
        "text-classification",
        {
            "model": {"ref": "fill-mask"},
            "loss": {"kind": "gce", "trim": 0.3, "trim_after": 0.2},
            "augment": {"embedding_noise": 5.0},
            "optimizer": {"l1": 1.0, "ema": 0.8},
        },
    ),
    "sparse adapters on noisy packed rows": (
        "causal-lm",
        {
            "model": {"ref": "text-generation", "lora": {"rank": 4}},
            "loss": {"kind": "focal"},
            "augment": {"embedding_noise": 5.0},
            "optimizer": {"l1": 1.0},
        },
    ),
}


@dataclass(frozen=True)
class Done:
    """A run that nothing interrupted: what it is called here, and its configuration."""

    name: str
    config: TrainConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.folder)


def configured(name: str, folder: Path, tiny: Tiny) -> TrainConfig:
    objective, changes = WAYS.get(name, (name, {}))
    if name in WAYS:
        model = {**changes["model"], "ref": str(tiny(changes["model"]["ref"]))}
        loss = {key: str(tiny(value)) if key == "teacher" else value for key, value in changes.get("loss", {}).items()}
        changes = {**changes, "model": model, "loss": loss}
    else:
        fragment, save, own = RUNS[name]
        save(folder / "inputs")
        save_json(folder / "inputs", "config.json", fragment)
        changes = {**own, "model": {"config": fragment, "tokenizer": str(folder / "inputs")}}
    return config_of(
        folder,
        objective,
        rows_of(folder, objective),
        **{
            **changes,
            "data": {**changes.get("data", {}), "split": {"validation": 0.25}, "duplicates": "allow"},
            "batches": {"size": 7, **changes.get("batches", {}), "micro": 4},
            "length": {"steps": STEPS},
            "evaluate": {"every": EVERY, "batch_size": 5},
            "checkpoints": {"every": 1},
        },
    )


@pytest.fixture(scope="module", params=[*OBJECTIVES, *WAYS])
def run(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Done:
    name = request.param
    config = configured(name, tmp_path_factory.mktemp("every"), tiny)
    result = train(config)
    assert result.ended == "done" and result.step == STEPS
    return Done(name, config)


# ------------------------------------------------------------------------------------------------------- to the byte


def test_the_resolved_configuration_repeats_it_although_it_was_stopped(run: Done, tmp_path: Path) -> None:
    config = replace(read_config(run.folder / "config.yaml"), folder=str(tmp_path / "run"))
    events: list[Event] = []
    stopped = train(
        config,
        on_event=events.append,
        stop=lambda: any(event.kind == "learnt" and event.values["step"] == STOPPED for event in events),
    )
    assert stopped.ended == "stopped" and stopped.step == STOPPED
    assert train(config).ended == "done"
    assert results(tmp_path / "run") == results(run.folder)


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_any_batching_gives_one_gradient(run: Done) -> None:
    """8, 4 + 4, 5 + 3 and others: 1e-6, in double precision; of adapters and frozen models what they train."""
    prepared = prepare(run.config)
    model, _ = made_model(prepared.config, prepared.start, objective_class(run.config.objective), None)
    objective = taught(prepared.objective, model.config)
    if isinstance(objective, Distilled):
        objective.teacher.double()
    check_batching(model, objective, [prepared.examples[number] for number in range(8)])


def test_its_evaluation_does_not_depend_on_batches(run: Done) -> None:
    """What the run wrote in batches of 5 is what its model gives in others."""
    lines = read_lines(run.folder / "metrics.jsonl")
    written = next(line["validation"] for line in reversed(lines) if "validation" in line)
    prepared = prepare(run.config)
    model = load_model(run.folder / "last", head=objective_class(run.config.objective).head, purpose="train").eval()
    for size in (1, 3, 64):
        found = measured(prepared, model, size)
        for name, value in found.items():
            assert value == pytest.approx(written[name], rel=1e-6, abs=1e-9), (name, size)


@torch.no_grad()
def measured(prepared: Prepared, model: Transformer, size: int) -> dict[str, float]:
    objective = taught(prepared.objective, model.config)
    assert prepared.validation is not None
    batches = [
        collated(objective, prepared.validation, rows, prepared.config.seed, VALIDATION)
        for rows in evaluation_batches(prepared.validation.lengths, size, prepared.plan.row_length)
    ]
    sums = np.concatenate([objective.statistics(model, batch) for batch in batches])
    return objective.measured(sums.sum(0, dtype=np.float64))


# ---------------------------------------------------------------------------------------------- who reads what it leaves

READERS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "causal_lm": transformers.AutoModelForCausalLM,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "token": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
    "choice": transformers.AutoModelForMultipleChoice,
    "ctc": transformers.AutoModelForCTC,
    "image": transformers.AutoModelForImageClassification,
    "audio": transformers.AutoModelForAudioClassification,
    "seq2seq_lm": transformers.AutoModelForSeq2SeqLM,
}


def reference_of(run: Done, folder: Path) -> Any:
    """The reference's model of a folder; an adapter's through PEFT."""
    head = objective_class(run.config.objective).head
    kind = transformers.AutoModelForSpeechSeq2Seq if run.name == "speech-to-text" else READERS[head]
    if not (folder / "adapter_config.json").exists():
        model, said = kind.from_pretrained(folder, output_loading_info=True)
        assert said["missing_keys"] <= {"wav2vec2.masked_spec_embed"}, said  # only SpecAugment reads it
        assert not said["unexpected_keys"] and not said["mismatched_keys"], said
        return model.eval()
    peft = pytest.importorskip("peft")
    config = transformers.AutoConfig.from_pretrained(folder)  # the run's, with its labels
    base = kind.from_pretrained(str(run.config.model.ref), config=config)
    return peft.PeftModel.from_pretrained(base, folder).eval()


def scores(output: Any) -> torch.Tensor:
    """Logits, of spans both kinds."""
    if getattr(output, "start_logits", None) is not None:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    found: torch.Tensor = output.logits
    return found


@pytest.mark.parametrize("which", ["best", "last"])
@torch.no_grad()
def test_both_libraries_read_it(run: Done, which: str) -> None:
    folder, prepared = run.folder / which, prepare(run.config)
    task = pf.load(folder)
    assert task.model.config.head.kind == prepared.objective.head
    batch = collated(prepared.objective, prepared.examples, evaluation_batches([1], 1)[0], 0, VALIDATION)
    inputs = {name: value for name, value in batch.inputs.items() if name != "document_ids"}
    theirs = reference_of(run, folder)
    close(task.model(**inputs).logits.float(), scores(theirs(**inputs)), "logits", rel=2e-5)


def test_best_is_the_checkpoint_of_the_best_evaluation(run: Done) -> None:
    metric, best = prepare(run.config).metric, None
    for line in read_lines(run.folder / "metrics.jsonl"):
        if line.get("validation") and line["step"]:
            value = line["validation"][metric.name] * (1 if metric.better == "higher" else -1)
            best = (value, line["step"]) if best is None or value > best[0] else best
    assert best is not None and json.loads((run.folder / "best.json").read_text())["step"] == best[1]
    kept = "model.safetensors"
    if run.config.model.lora is not None and not run.config.model.lora.merge:
        kept = "adapter_model.safetensors"
    assert [path.name for path in (run.folder / "best").glob("*model.safetensors")] == [kept]
    if best[1] == STEPS:
        one, other = (load_file(run.folder / place / kept) for place in ("best", "last"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ------------------------------------------------------------------------------------------------------- no waiting


def test_its_loss_reads_no_value_of_a_tensor(run: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, whose tensors have no values, each look at one is an error: on a GPU it would be a wait."""
    prepared = prepare(run.config)
    model = load_model(run.folder / "last", head=prepared.objective.head, purpose="train")
    objective = taught(prepared.objective, model.config)
    away = model.to("meta")
    if isinstance(objective, Distilled):
        objective.teacher.to("meta")
    # Torch's own operation has no form for this device; on a GPU it copies the lengths, which are on the CPU.
    monkeypatch.setattr(torch.nn.functional, "ctc_loss", lambda logs, *given, **options: logs.sum((0, 2)))
    for rows in prepared.plan.step(0).micro:
        batch = collated(objective, prepared.examples, rows, 0, 0)
        there: Batch = moved(batch, lambda tensor: tensor.to("meta"))
        objective.loss(away, there).total.backward()
    assert any(parameter.grad is not None for parameter in away.parameters())
