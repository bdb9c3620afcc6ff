"""`plainformer train`: what it prints, refuses and leaves; that Ctrl-C saves, and the same command goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.cli.overrides import parse_overrides
from plainformer.cli.train import interruptible, read_run
from plainformer.errors import UsageError
from tests.support.cli import Cli, done, refused, terminal

Tiny = Callable[[str], Path]
CONFIG = """objective: causal-lm
folder: run
model: {{ref: {ref}}}
data:
  train: {{path: rows.jsonl}}
  validation: {{path: dev.jsonl}}
  max_length: 16
batches: {{size: 4, packed: false}}
length: {{steps: 6}}
evaluate: {{every: 3}}
log_every: 2
"""


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's YAML file, beside its data, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("rows", 20), ("dev", 3)):
        lines = [json.dumps({"text": f"the cat {name} sat " * (i % 3 + 1)}) for i in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, '{"text": ""}'][: rows + (name == "rows")]) + "\n")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(ref=tiny("text-generation")))
    return path


# ---- overrides


def test_overrides_are_pairs() -> None:
    words = ["--a.b", "1", "--c=x=y", "--seed", "-1", "--compile", "--batches.packed", "false", "--checkpoints.keep="]
    assert parse_overrides(words) == [
        ("a.b", "1"),
        ("c", "x=y"),
        ("seed", "-1"),
        ("compile", "true"),
        ("batches.packed", "false"),
        ("checkpoints.keep", ""),
    ]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["x"], "unexpected 'x'"),
        (["--seed", "1", "2"], "unexpected '2'"),
        (["-s"], "unexpected '-s'"),
        (["--seed"], "seed needs a value"),
        (["--optimizer.learning-rate", "--compile"], "optimizer.learning-rate needs a value"),
        (["--dryrun"], "there is no option dryrun"),
    ],
)
def test_words_that_are_no_overrides(words: list[str], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_overrides(words)
    assert caught.value.what == what


# ---- what is refused before anything is read


def test_mistakes_are_named(cli: Cli, config: Path) -> None:
    refused(cli("train"), "a CONFIG is missing")
    refused(cli("train", "--seed", "3", config), "a CONFIG is missing", "first")
    refused(cli("train", "none.yaml"), "'none.yaml' cannot be read", "check the path")
    refused(cli("train", config, "--optimizer.lrr", "1"), "no option --optimizer.lrr", "--optimizer.learning-rate?")
    refused(cli("train", config, "--optimizer.learning-rate", "-1"), "--optimizer.learning-rate -1 is not a number in")
    refused(cli("train", config, "--resumee"), "did you mean --resume?")
    refused(cli("train", config, "--resume"), "run has no run to go on with")
    refused(cli("train", config, "--resume", "--dry-run"), "--resume")
    refused(cli("train", config, "--seen", "run"), "--seen has no effect")
    refused(cli("train", config, "--seed="), "--seed is given without a value")
    refused(cli("train", config, "--checkpoints.keep", "0"), "--checkpoints.keep 0")
    refused(cli("train", config, "--folder", "rows.jsonl"), "a file has that name")
    config.write_text(config.read_text() + "epochs: 3\n")
    refused(cli("train", config), "unknown key 'epochs' (", "run.yaml line 12", "did you mean 'length.epochs'?")
    config.write_text(config.read_text().replace("epochs: 3", "seed: x"))
    refused(cli("train", config), "seed: 'x' is not a whole number", "run.yaml line 12")


# ---- a dry run


def test_a_dry_run_says_what_would_be_done(cli: Cli, config: Path) -> None:
    out = done(cli("train", config, "--dry-run", "--length.steps", 5, "--checkpoints.keep", 1)).out
    assert "\nlength:\n  steps: 5\n" in out and "epochs:" not in out and "learning_rate: 5e-05\n" in out
    facts = {line[:18].strip(): line[19:] for line in out.partition("\n\n")[2].splitlines()}
    assert facts["steps"].startswith("5, which is ")
    assert facts["train, left out"].startswith("1 dropped: ") and "rows.jsonl line 21" in facts["train, left out"]
    assert facts["parameters"] == "35,328, of which 35,328 are trained"
    assert (
        facts["disk"]
        == "425 kB for each checkpoint, up to 2 MB for 4 checkpoints; 528 B for the losses of each evaluation's examples"
    )
    assert facts["memory"].startswith("at most 1 MB, while scores and their loss are computed (loss): activations ")
    assert ", optimizer 283 kB, logits and loss 142 kB, weights 141 kB" in facts["memory"]
    assert "example 1   learns\n" in out and "example 2   learns\n" in out and "\nt           h\n" in out
    assert not Path("run").exists()


def test_a_dry_run_as_json(cli: Cli, config: Path) -> None:
    (found,) = done(cli("train", config, "--json", "--dry-run")).json()
    assert found["steps"] == 6 and found["evaluate_every"] == 3
    assert found["config"]["optimizer"]["learning_rate"] == 5e-5
    sides = found["data"]["sides"]
    assert sides["train"]["counts"]["rows"] == 21 and sides["validation"]["examples"] >= 3
    needs = found["needs"]
    assert needs["trained"] == needs["parameters"] == 35_328 and len(found["examples"]) == 2
    assert needs["memory"] == found["step"]["peak"] > 4 * needs["parameters"] * 3
    assert found["examples"][0][0] == ["t", "h"]


# ---- a run


def test_a_run_and_what_is_left_of_it(cli: Cli, config: Path) -> None:
    answer = cli("train", config)
    assert answer.code == 0
    assert answer.lines[0] == "done: step 6 of 6"
    assert answer.lines[1].split() == ["last", "model", "run/last"]
    assert "run/best (step " in answer.lines[2]
    said = answer.err.splitlines()
    assert [line.partition(":")[0] for line in said[:3]] == ["step 0", "step 3", "step 6"] or "step 6" in answer.err
    again = done(cli("train", config))
    assert again.lines[0] == "done already: step 6 of 6"
    done(cli("run", "run/last", "the cat", "--max-new-tokens", 2, "--backend", "plain"))
    refused(cli("train", config, "--seed", 1), "cannot go on", "seed: 0 → 1", "give --folder")
    other = cli("train", "run", "--folder", "other")  # its config.yaml repeats it
    assert other.code == 0
    assert Path("run/metrics.jsonl").read_bytes() == Path("other/metrics.jsonl").read_bytes()
    weights = "last/model.safetensors"
    assert (Path("run") / weights).read_bytes() == (Path("other") / weights).read_bytes()


def test_events_as_json(cli: Cli, config: Path) -> None:
    found = cli("train", config, "--json").json()
    kinds = [event["event"] for event in found]
    assert (
        kinds[0] == "started" and kinds[-1] == "ended" and kinds.count("learnt") == 3 and kinds.count("evaluated") == 3
    )
    assert found[-1]["ended"] == "done" and found[-1]["step"] == 6
    (seen,) = done(cli("train", "--seen", "run", "--json")).json()
    assert seen["step"] == 6 and sum(seen["seen"].values()) == seen["examples"]
    assert "After step 6 of 6" in done(cli("train", "--seen", "run")).out
    refused(cli("train", "--seen", "."), "it is not the folder of a training run")
    refused(cli("train", "--verdict", "nix"), "'nix' is not the folder of a run")
    Path("run/last.json").write_text("{")
    assert "last.json is damaged" in cli("train", "--seen", "run").err


# ---- a terminal


def test_ctrl_c_saves_and_the_same_command_goes_on(config: Path) -> None:
    arguments = ("train", config, "--length.steps", 100_000, "--evaluate.every", 100_000)
    with terminal(*arguments) as screen:
        screen.wait_for(b"tokens/s")
        screen.type(b"\x03")
        screen.wait_for(b"finishing this step, then saving; Ctrl-C again ends at once\r\n")
        assert screen.wait() == 130
    assert b"saved at step " in screen.seen and b"goes on from there" in screen.seen
    step = json.loads(Path("run/last.json").read_text())["step"]
    assert 0 < step < 100_000
    with terminal(*arguments, "--resume") as screen:
        screen.wait_for(f"going on from step {step:,} of 100,000".encode())
        screen.wait_for(b"tokens/s")
        screen.type(b"\x03\x03")
        assert screen.wait() == 130
    assert b"Traceback" not in screen.seen


def test_the_second_ctrl_c_ends_the_program(config: Path) -> None:
    """Here the first one comes before any step: there is nothing to save yet."""
    with terminal("train", config) as screen:
        screen.wait_for(b"preparing ...")
        screen.type(b"\x03")
        assert screen.wait() == 130
    assert b"interrupted" in screen.seen and not Path("run").exists()


def test_the_handler_is_taken_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_is_where_its_folder_is(config: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yaml").write_bytes(config.read_bytes())
    assert read_run(str(moved), ()).folder == str(moved)
    assert read_run(str(moved), ("--folder", "elsewhere")).folder == "elsewhere"
    assert read_run(str(config), ()).folder != str(moved)
