"""A run from its configuration to its folder: what is in it, how it stops, what it refuses."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer
from plainformer.config.building import as_config, read_config
from plainformer.config.training import TrainConfig
from plainformer.errors import InputError, TrainingError, UsageError
from plainformer.replacing import facts
from plainformer.train import loop
from plainformer.train.checkpoint import MANIFEST, Files, as_json
from plainformer.train.record import read_lines
from plainformer.training import Event, TrainResult, prepare, train
from tests.support.close import close
from tests.support.runs import results, run_config, run_data, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, TrainResult]:
    """A run that nothing interrupts."""
    config = run_config(tmp_path_factory.mktemp("whole"), "causal-lm", tiny("text-generation"))
    return config, train(config)


@pytest.fixture
def config(whole: tuple[TrainConfig, TrainResult], tmp_path: Path) -> TrainConfig:
    """The same run in another place, not begun."""
    return replace(whole[0], folder=str(tmp_path / "run"))


def is_whole(folder: Path, whole: tuple[TrainConfig, TrainResult]) -> bool:
    """Whether a run has the bytes of the one that nothing interrupted."""
    expected, found = results(whole[1].folder), results(folder)
    return len(expected) > 15 and found == expected


def run_until(config: TrainConfig, step: int) -> tuple[TrainResult, list[Event]]:
    """Train up to a step; what happened."""
    events: list[Event] = []

    def stop() -> bool:
        return any(event.kind == "learnt" and event.values["step"] >= step for event in events)

    return train(config, on_event=events.append, stop=stop), events


def said(events: list[Event]) -> str:
    return " ".join(event.values["text"] for event in events if event.kind == "said")


def test_a_run_leaves_a_model_that_both_libraries_read(whole: tuple[TrainConfig, TrainResult]) -> None:
    result = whole[1]
    assert result.ended == "done" and result.step == result.total_steps == 28
    assert result.best is not None and result.best["metric"] == "loss"
    lines = read_lines(result.folder / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    values = {line["step"]: line["validation"]["loss"] for line in lines if "validation" in line}
    assert list(values) == [0, 7, 14, 21, 28]
    assert losses[-1] < 0.8 * losses[0]
    assert result.best["value"] == min(values[step] for step in values if step)
    assert json.loads((result.folder / "best.json").read_text())["step"] == result.best["step"]
    ours = plainformer.load_model(result.folder / "best", backend="plain")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(result.folder / "best").eval()
    ids = torch.randint(4, 200, (2, 9))
    with torch.no_grad():
        close(ours(ids).logits, theirs(ids).logits, "logits")
    assert plainformer.load(result.folder / "last")("the cat").text
    assert {"config.yaml", "data.json", "environment.json", "timing.jsonl", "plan.json"} <= {
        path.name for path in result.folder.iterdir()
    }


def test_the_resolved_configuration_repeats_the_run(whole: tuple[TrainConfig, TrainResult], tmp_path: Path) -> None:
    written = read_config(whole[1].folder / "config.yaml")
    assert is_whole(train(replace(written, folder=str(tmp_path / "run"))).folder, whole)


@pytest.mark.parametrize("step", [3, 6, 21])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    config: TrainConfig, whole: tuple[TrainConfig, TrainResult], step: int
) -> None:
    """Step 21 is one after which there is an evaluation: it is made when the run goes on."""
    stopped, _ = run_until(config, step)
    assert stopped.ended == "stopped" and stopped.step == step
    ended, events = run_until(config, 1000)
    assert ended.ended == "done" and events[0].values["step"] == step and not said(events)
    assert is_whole(ended.folder, whole)


OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "new head": ("text-classification", "embedding", {"optimizer": {"layer_decay": 0.9}}),
    "adapters": ("text-classification", "embedding", {"lora": {"rank": 2, "dropout": 0.1}}),
    "head alone": ("text-classification", "embedding", {"train": "head"}),
    "two stacks": ("seq2seq", "text2text", {"checkpointing": "all"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_runs_go_on_to_the_same_bytes(tiny: Tiny, tmp_path: Path, name: str) -> None:
    objective, model, changes = OTHERS[name]
    known = {key: changes[key] for key in ("optimizer",) if key in changes}
    asked = {key: value for key, value in changes.items() if key not in known}
    data = run_data(tmp_path, objective, tiny(model), **known, length={"steps": 12})
    data["model"] = {**data["model"], **asked}
    config = as_config(data)
    first = train(config)
    again = replace(config, folder=str(tmp_path / "again" / "run"))
    stopped, _ = run_until(again, 6)
    assert stopped.step == 6
    assert results(train(again).folder) == results(first.folder)
    assert len(results(first.folder)) > 12


def test_an_interrupted_evaluation_is_made_when_the_run_goes_on(
    config: TrainConfig, whole: tuple[TrainConfig, TrainResult]
) -> None:
    calls: list[int] = []

    def stop() -> (
        bool
    ):  # 1 before step 1, 3 batches of validation and 3 of the probe, 1 after each of 7 steps, then within
        calls.append(1)
        return len(calls) == 1 + 6 + 7 + 2

    stopped = train(config, stop=stop)
    assert stopped.ended == "stopped" and stopped.step == 7
    assert not any(line["step"] == 7 for line in read_lines(stopped.folder / "metrics.jsonl"))
    assert is_whole(train(config).folder, whole)


def test_ctrl_c_finishes_the_step_and_saves(config: TrainConfig) -> None:
    before = signal.getsignal(signal.SIGINT)

    def listen(event: Event) -> None:
        if event.kind == "learnt" and event.values["step"] == 6:
            os.kill(os.getpid(), signal.SIGINT)

    result = train(config, on_event=listen)
    assert result.ended == "stopped" and result.step == 6
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_is_done_does_nothing_more(whole: tuple[TrainConfig, TrainResult]) -> None:
    config, first = whole
    before = results(first.folder)
    events: list[Event] = []
    assert train(config, on_event=events.append) == first
    assert [event.kind for event in events] == ["ended"]
    assert results(first.folder) == before


def test_early_stopping_counts_evaluations_without_a_better_one(tiny: Tiny, tmp_path: Path) -> None:
    """With a rate of nearly zero nothing gets better, but by rounding."""
    evaluate = {"every": 2, "patience": 3, "metric": "token_accuracy"}
    config = run_config(
        tmp_path, "causal-lm", tiny("text-generation"), optimizer={"learning_rate": 1e-12}, evaluate=evaluate
    )
    result = train(config)
    assert result.ended == "early" and result.step == 8
    assert result.best is not None and result.best["step"] == 2  # of equal ones the first, and never one before step 1
    assert train(config).ended == "early"


# ---------------------------------------------------------------------------------------------------- what is refused


def test_a_changed_configuration_is_refused_with_what_differs(config: TrainConfig) -> None:
    run_until(config, 6)
    changed = replace(config, seed=1, optimizer=replace(config.optimizer, learning_rate=2e-3))
    with pytest.raises(UsageError) as refused:
        train(changed)
    assert "optimizer.learning_rate: 0.001 → 0.002" in str(refused.value)
    assert "seed: 0 → 1" in str(refused.value)
    with pytest.raises(UsageError, match=r"length\.steps: 28 → 40"):
        train(replace(config, length=replace(config.length, steps=40)))
    assert train(config).ended == "done"


def test_changed_data_is_refused_with_what_differs(config: TrainConfig) -> None:
    run_until(config, 6)
    path = Path(config.data.train.path)
    rows = path.read_text()
    path.write_text(rows + '{"text": "the cat"}\n')
    with pytest.raises(UsageError, match=r"data is not the same.*(\n.*)*sides.train.examples: 61 → 62"):
        train(config)
    path.write_text(rows)
    assert train(config).ended == "done"


def test_another_machine_is_said_and_written_down(config: TrainConfig) -> None:
    run_until(config, 6)
    path = Path(config.folder) / "environment.json"
    written = json.loads(path.read_text())
    path.write_text(as_json({**written, "threads": 77}))
    _, events = run_until(config, 9)
    assert "no longer bit for bit" in said(events) and "threads: 77 → " in said(events)
    resumed = json.loads(path.read_text())["resumed"]
    assert resumed == [{"step": 6, "changed": {"threads": torch.get_num_threads()}, "bit_for_bit": False}]
    smaller = replace(config, batches=replace(config.batches, micro=2))
    _, events = run_until(smaller, 12)
    assert "micro: 4 → 2" in said(events) and "threads" not in said(events)
    _, events = run_until(smaller, 15)
    assert not said(events)  # it is said once
    two = {"dp": 1, "zero": 0, "tp": 2, "pp": 1, "schedule": "1f1b", "devices": 1}
    path.write_text(as_json({**json.loads(path.read_text()), "resumed": [{"step": 15, "changed": {"layout": two}}]}))
    _, events = run_until(smaller, 18)
    assert "; now 1 process instead of 2 processes (tp 2)" in said(events)


def test_a_folder_of_something_else_is_left_alone(config: TrainConfig) -> None:
    folder = Path(config.folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        train(config)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_run_that_was_ended_while_its_folder_began_can_begin_again(config: TrainConfig) -> None:
    """config.yaml comes last: without it there may be the two files before it."""
    folder = Path(config.folder)
    folder.mkdir(parents=True)
    for name in ("data.json", "environment.json"):
        (folder / name).write_text("{}")
    assert train(config).ended == "done"


def test_two_runs_do_not_share_a_folder(config: TrainConfig) -> None:
    refused: list[str] = []

    def again(event: Event) -> None:
        if event.kind == "started":
            with pytest.raises(UsageError, match="another process trains in folder=") as caught:
                train(config)
            refused.append(caught.value.what)

    assert train(config, on_event=again, stop=lambda: True).ended == "stopped"
    assert refused and config.folder in refused[0]
    assert train(config, stop=lambda: True).ended == "stopped"  # the folder is free again


def test_a_damaged_checkpoint_is_passed_over(config: TrainConfig, whole: tuple[TrainConfig, TrainResult]) -> None:
    run_until(config, 9)
    last = Path(config.folder) / "checkpoints/step-00000009/model.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    ended, events = run_until(config, 1000)
    assert "step-00000009 is passed over: model.safetensors has 1,000 bytes" in said(events)
    started = next(event for event in events if event.kind == "started")
    assert started.values["step"] == 8
    assert is_whole(ended.folder, whole)


@pytest.mark.parametrize("content", [b"\xff{", b"[]", b"5", b"", None], ids=str)
def test_a_damaged_file_of_a_run_is_made_again_or_named(
    config: TrainConfig, whole: tuple[TrainConfig, TrainResult], content: bytes | None
) -> None:
    """What a checkpoint says anew is written anew; what only the file tells is named. None: a folder is in its place."""
    run_until(config, 6)
    folder = Path(config.folder)

    def damage(path: Path) -> None:
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)

    for name in ("data.json", "environment.json"):
        kept = (folder / name).read_bytes()
        damage(folder / name)
        with pytest.raises(TrainingError, match=f"{name} cannot be read"):
            train(config)
        (folder / name).rmdir() if content is None else None
        (folder / name).write_bytes(kept)
    (folder / "environment.json").write_text('{"resumed": [5]}')
    with pytest.raises(TrainingError, match=r"environment\.json cannot be read"):
        train(config)
    (folder / "environment.json").write_bytes(kept)
    for name in ("last.json", "plan.json"):
        damage(folder / name)
    manifest = max(folder.glob("checkpoints/step-*")) / MANIFEST
    if content is not None:  # the checkpoint before is gone on from
        damage(manifest)
    ended, events = run_until(config, 1000)
    assert is_whole(ended.folder, whole)
    assert content is None or f"is passed over: {MANIFEST}" in said(events)


def test_a_run_in_a_thread_and_in_a_fork(config: TrainConfig, whole: tuple[TrainConfig, TrainResult]) -> None:
    """Signals can be caught in the main thread alone; a child has the parent's libraries, and none of its threads."""
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=train, args=(config,))
    thread.start()
    thread.join(120)
    assert is_whole(Path(config.folder), whole) and signal.getsignal(signal.SIGINT) is before
    again = replace(config, folder=str(Path(config.folder).parent / "fork" / "run"))
    child = os.fork()
    if child == 0:
        try:
            train(again)
        except BaseException:
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + 60
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.05)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended and os.waitstatus_to_exitcode(status) == 0
    assert is_whole(Path(again.folder), whole)


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    optimizer = {"learning_rate": 1e30, "max_grad_norm": None}
    config = run_config(
        tmp_path, "causal-lm", tiny("text-generation"), optimizer=optimizer, checkpoints={"every": 1}, log_every=1
    )
    with pytest.raises(TrainingError) as stopped:
        train(config)
    assert "is not finite" in str(stopped.value) and stopped.value.exit_code == 1
    folder = Path(config.folder)
    about = json.loads((folder / "stopped.json").read_text())
    step, lines = about["step"], read_lines(folder / "metrics.jsonl")
    prepared = prepare(config)
    planned = {piece.example for rows in prepared.plan.step(step - 1).micro for row in rows for piece in row}
    assert about["examples"] == sorted(planned)
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    last = json.loads((folder / "last.json").read_text())["step"]
    assert last == step - 1
    model = plainformer.load_model(folder / "last", prepare=False)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with pytest.raises(TrainingError, match=f"step {step}:"):  # and again the same
        train(config)


@pytest.mark.parametrize("trim", [0.0, 0.4])
def test_a_step_that_runs_again_without_repeatable_kernels_counts_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trim: float
) -> None:
    """On a GPU, an operation that has no deterministic implementation is known when it is met: in the backward pass."""
    options = {"loss": {"trim": trim, "trim_after": 0.0}, "length": {"steps": 9}} if trim else {"length": {"steps": 9}}
    data = run_data(tmp_path, "text-classification", tiny("embedding"), **options)
    plain = train(as_config(data)).folder
    score, backward = loop.score, torch.Tensor.backward
    scored: list[tuple[int, int]] = []

    def scoring(run: Any, step: Any, micro: int, batch: Any) -> Any:
        scored.append((step.step, micro))
        return score(run, step, micro, batch)

    def failing(self: torch.Tensor, *more: Any, **options: Any) -> None:
        backward(self, *more, **options)
        if scored[-1] == (2, 1) and scored.count((2, 1)) == (2 if trim else 1):  # trimming scores twice
            raise RuntimeError("x does not have a deterministic implementation, but you asked for it. More.")

    monkeypatch.setattr(loop, "score", scoring)
    monkeypatch.setattr(torch.Tensor, "backward", failing)
    again = train(as_config({**data, "folder": str(tmp_path / "again" / "run")})).folder
    assert scored.count((2, 1)) == 2 * scored.count((1, 1)) > 0
    assert results(again) == results(plain)
    assert json.loads((again / "examples.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("operation", ["write_tensors", "call", "sync"])
def test_a_full_disk_stops_the_run_which_goes_on_later(
    config: TrainConfig, whole: tuple[TrainConfig, TrainResult], monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    done = getattr(Files, operation)

    def full(self: Files, *given: Any) -> None:
        if any("step-00000012" in str(part) for part in given):
            raise OSError(errno.ENOSPC, "No space left on device")
        done(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Files, operation, full)
        with pytest.raises(TrainingError, match=r"disk is full.*step-00000008 is the last good one"):
            train(config)
    assert is_whole(train(config).folder, whole)


def test_rows_that_nothing_can_be_learnt_from(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": ""}, {"text": ""}])
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), data={"train": {"path": str(rows)}})
    with pytest.raises(InputError, match="no row of train can be learnt from"):
        train(config)


# ------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm"])
def test_evaluation_does_not_depend_on_its_batches(tiny: Tiny, tmp_path: Path, objective: str) -> None:
    model = tiny({"causal-lm": "text-generation", "masked-lm": "fill-mask"}[objective])
    found = []
    for size in (1, 3, 13):
        config = run_config(tmp_path, objective, model, length={"steps": 1}, evaluate={"batch_size": size})
        train(replace(config, folder=str(tmp_path / f"run-{size}")))
        lines = read_lines(tmp_path / f"run-{size}/metrics.jsonl")
        found.append(next(line["validation"] for line in lines if "validation" in line))
    for other in found[1:]:
        for name, value in found[0].items():
            assert abs(other[name] - value) <= 1e-6 * abs(value), name


def test_micro_batches_give_the_same_weights(tiny: Tiny, tmp_path: Path) -> None:
    """Rows of unequal length, without dropout: 8, 4 + 4, 5 + 3, and the last step's 5 as it comes."""
    states = []
    for micro in (8, 4, 5):
        config = run_config(
            tmp_path,
            "causal-lm",
            tiny("text-generation"),
            batches={"size": 8, "micro": micro, "packed": False},
            length={"steps": None, "epochs": 1},
            optimizer={"eps": 1e-3},  # or the sign of a gradient of nothing but rounding would be a whole step
        )
        model = replace(config.model, dropout=0.0)
        result = train(replace(config, model=model, folder=str(tmp_path / f"run-{micro}")))
        states.append(plainformer.load_model(result.folder / "last", prepare=False).state_dict())
    for state in states[1:]:
        for name, tensor in state.items():
            close(tensor, states[0][name], name, rel=1e-5)


def test_an_average_of_the_weights_is_what_is_saved(tiny: Tiny, tmp_path: Path) -> None:
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), optimizer={"ema": 0.5}, length={"steps": 4})
    folder = train(config).folder / "last"
    from safetensors.torch import load_file

    own, average = (load_file(folder / f"training/{name}.safetensors") for name in ("weights", "ema"))
    saved = dict(plainformer.load_model(folder, prepare=False).named_parameters())
    assert own.keys() == average.keys()
    for name, tensor in average.items():
        assert torch.equal(tensor, saved[name]), name
    assert any(not torch.equal(own[name], average[name]) for name in own)


def test_going_on_at_step_a_million_takes_no_time(tiny: Tiny, tmp_path: Path) -> None:
    """The data position is the step: nothing is skipped, and nothing is replayed."""
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), length={"steps": 2_000_000}, log_every=1)
    config = replace(config, evaluate=replace(config.evaluate, every=1_999_999))
    run_until(config, 2)
    folder = Path(config.folder) / "checkpoints/step-00000002"
    state = json.loads((folder / "training/state.json").read_text())
    moved = folder.rename(folder.with_name("step-01000000"))
    (moved / "training/state.json").write_text(as_json({**state, "step": 1_000_000}))
    manifest = json.loads((moved / MANIFEST).read_text())
    manifest["training/state.json"] = facts(moved / "training/state.json")
    (moved / MANIFEST).write_text(as_json(manifest))
    begin = time.process_time()
    result, events = run_until(config, 1_000_001)
    assert time.process_time() - begin < 1
    assert events[0].values == {"step": 1_000_000, "total_steps": 2_000_000}
    assert result.step == 1_000_001
    line = read_lines(result.folder / "metrics.jsonl")[-1]
    assert line["step"] == 1_000_001


def test_a_model_from_scratch(tiny: Tiny, tmp_path: Path) -> None:
    fragment = {
        "model_type": "llama",
        **dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=260),
    }
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), length={"steps": 4})
    data = replace(config.model, ref=None, config=fragment, tokenizer=str(tiny("text-generation")))
    result = train(replace(config, model=data))
    assert plainformer.load(result.folder / "best")("the cat").text is not None
    again = train(replace(config, model=data, folder=str(tmp_path / "again")))
    assert results(again.folder)["last/model.safetensors"] == results(result.folder)["last/model.safetensors"]


def test_a_gpu_that_is_not_there_is_refused(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="device='cuda:99': torch sees"):
        train(replace(config, device="cuda:99"))


def test_values_that_no_run_can_have(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="names no folder"):
        replace(config, folder="")
    with pytest.raises(UsageError, match="threads=1000000"):  # torch would end the program
        replace(config, threads=1_000_000)
