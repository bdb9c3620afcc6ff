"""`plainformer plan`: what it prints, refuses and writes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from plainformer.planning import plan
from tests.support.cli import ENVIRONMENT, PROGRAM, Cli, done, refused
from tests.support.configs import tiny as tiny_config
from tests.support.gguf_files import write_gguf

Tiny = Callable[[str], Path]


def folder(path: Path, model_type: str = "llama", architecture: str = "LlamaForCausalLM") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(tiny_config(model_type, architecture)))
    return path


def test_a_table_for_people_and_json_for_programs(cli: Cli, tmp_path: Path) -> None:
    path = folder(tmp_path / "model")  # there are no weights
    shown = done(cli("plan", path, "--memory", "1GB", "--batch", "2"))
    want = plan(path, memory="1GB", batch=2)
    assert shown.lines[0].startswith(
        f"model: {want.parameters:,} parameters, inference, fp32, 2 rows of 512 + 512 tokens"
    )
    names = [line.split("  ")[0] for line in shown.lines]
    for name in (
        "weights",
        "key-value cache",
        "in all",
        "peak",
        "phases",
        "compare with",
        "fits",
        "rule of thumb",
        "assumed",
    ):
        assert name in names
    assert "MB" in shown.lines[1] and "MiB" in shown.lines[1]
    (found,) = done(cli("plan", path, "--memory", "1GB", "--batch", "2", "--json")).json()
    assert found == want.to_dict() and found["fits"] is True and found["peak"] == want.peak


def test_every_kind_of_reference(cli: Cli, tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    (by_file,) = done(cli("plan", path / "config.json", "--json")).json()
    (by_folder,) = done(cli("plan", path, "--json")).json()
    assert by_file == by_folder
    (bundled,) = done(cli("plan", "albert-smiles", "--json")).json()
    assert bundled["name"] == "albert-smiles" and bundled["parameters"] == 735567
    gguf = write_gguf(tmp_path / "tiny.gguf")
    (read,) = done(cli("plan", gguf, "--json")).json()
    assert read["name"] == "tiny" and {"F32"} == read["file"]["types"].keys()
    shown = done(cli("plan", gguf))
    at = next(place for place, line in enumerate(shown.lines) if line.startswith("type in the file"))
    size = f"{gguf.stat().st_size / 1e6:.3f}"
    assert (
        shown.lines[at].split("  ")[-1].strip() == "as" and size in shown.lines[at + 4] and "F32" in shown.lines[at + 2]
    )
    (shaped,) = done(cli("plan", "--params", "7B", "--layers", "16", "--json")).json()
    assert "nearest to 7B; with layers 16" in shaped["notes"][0] and 3.4e9 < shaped["parameters"] < 3.6e9
    (wide,) = done(
        cli("plan", "--params", "7B", "--width", "2048", "--heads", "16", "--kv-heads", "4", "--json")
    ).json()
    assert wide["parameters"] < 2.5e9


def test_a_run(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    run = {
        "objective": "causal-lm",
        "folder": str(tmp_path / "run"),
        "model": {"ref": str(folder(tmp_path / "model")), "checkpointing": "all"},
        "data": {"train": {"path": "nothing.txt"}, "max_length": 48},
        "batches": {"size": 12, "micro": 4},
        "precision": "bf16",
        "device": "cuda",
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    (found,) = done(cli("plan", file, "--json")).json()
    asked = found["workload"]
    assert (asked["purpose"], asked["batch"], asked["accumulate"], asked["length"]) == ("training", 4, 3, 48)
    assert (asked["precision"], asked["checkpointing"]) == ("bf16", "all")
    (other,) = done(cli("plan", file, "--length", "96", "--precision", "fp32", "--json")).json()
    assert other["workload"]["length"] == 96 and other["peak"] > found["peak"]


def test_devices(cli: Cli) -> None:
    shown = done(
        cli("plan", "--params", "7B", "--for", "training", "--devices", "8", "--zero", "3", "--device", "h100")
    )
    assert "8 devices: 8 data-parallel, ZeRO-3" in shown.lines[1] and "CUDA context and kernels" in shown.out
    assert "NCCL, data-parallel group" in shown.out and "at most" in shown.out and "fits" in shown.out
    (found,) = done(cli("plan", "--params", "7B", "--pp", "2", "--json")).json()
    assert [one["ranks"] for one in found["devices"]] == [[0], [1]]
    shown = done(cli("plan", "--params", "7B", "--pp", "2"))
    assert "rank 0, GB" in shown.out and "rank 1, GB" in shown.out


def test_layout_problems_come_before_anything_else(cli: Cli) -> None:
    refused(cli("plan", "--params", "135M", "--tp", "2"), "9 attention heads of the decoder", "--tp 2", "1, 3")
    refused(cli("plan", "--params", "135M", "--pp", "40"), "30 layers", "--pp")


def test_errors_name_flags(cli: Cli, tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    refused(cli("plan"), "no model", "--params")
    refused(cli("plan", path, "--params", "7B"), "both a model and --params")
    refused(cli("plan", path, "--layers", "3"), "--layers 3", "--params")
    refused(cli("plan", "--params", "7X"), "--params '7X' is not a number")
    refused(cli("plan", path, "--device", "H10"), "did you mean 'H100'")
    refused(cli("plan", path, "--device", "A100"), "A100 40GB")
    refused(cli("plan", path, "--memory", "24"), "--memory '24' is not a size", "24GB")
    refused(cli("plan", path, "--device", "H100", "--memory", "24GB"), "--memory has no effect with --device")
    refused(cli("plan", path, "--optimizer", "sgd"), "--optimizer 'sgd' has no effect on inference", "--for 'training'")
    refused(cli("plan", path, "--for", "training", "--prompt", "9"), "--prompt 9 has no effect on training")
    refused(cli("plan", path, "--for", "learning"), "--for 'learning' is unknown")
    refused(cli("plan", path, "--batch", "0"), "--batch 0 is not a whole number")
    refused(cli("plan", path, "--batch", "2.5"), "2.5")
    refused(cli("plan", path, "--fit", "batch"), "--fit", "--memory")
    refused(cli("plan", path, "--fit", "everything"), "everything")
    refused(cli("plan", path, "--padded", "maybe"), "--padded 'maybe'", "yes")
    refused(cli("plan", path, "--zero", "3"), "--zero has no effect on one data-parallel rank")
    refused(cli("plan", path, "--plot", "out.pdf"), "--plot 'out.pdf' is not a PNG file")
    refused(cli("plan", path, "--plot", "no/where/out.png"), "cannot be written")
    refused(cli("plan", tmp_path / "nothing"), "there is no such file", code=1)
    refused(cli("plan", path, "--task", "fill-mask"), "llama")
    refused(cli("plan", "--params", "135M", "--task", "text-generation"), "--task has no effect with --params")
    refused(cli("plan", path, "--tp", "3"), "--tp", "one of 1")


def test_fits(cli: Cli) -> None:
    asked = ("plan", "--params", "135M", "--memory", "1GB")
    shown = done(cli(*asked, "--fit", "batch"))
    most = next(line for line in shown.lines if line.startswith("fit batch"))
    assert "rows at a time" in most and "GB there, in " in shown.lines[-1]
    (found,) = done(cli(*asked, "--fit", "context", "--json")).json()
    assert found["fitted"]["fit"] == "context" and found["fitted"]["rejected"]["fits"] is False
    shown = done(cli("plan", "--params", "135M", "--memory", "8GB", "--dtype", "bf16", "--fit", "model"))
    assert "the largest published models that fit" in shown.out and "8.00 GB there, in" in shown.out
    shown = done(
        cli("plan", "--params", "1B", "--for", "training", "--device", "RTX 3060", "--devices", "4", "--fit", "layout")
    )
    at = next(place for place, line in enumerate(shown.lines) if line.startswith("devices   tp"))
    assert [line.split()[0] for line in shown.lines[at + 2 : at + 5]] == ["2", "4", "4"]
    assert "does not fit    the next cheaper one, 1 device: 22.20 GB needed, 12.48 GB there, in backward" in shown.out


def test_a_picture(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.png", "two.png"):
        shown = done(cli("plan", "--params", "7B", "--for", "training", "--device", "H100", "--plot", tmp_path / name))
    assert shown.lines[-1] == f"picture: {tmp_path / 'two.png'}"
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two and one.startswith(b"\x89PNG")


def test_measured(cli: Cli, tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    shown = done(cli("plan", path, "--for", "training", "--length", "64", "--measure"))
    assert any(line.split()[:1] == ["backward"] for line in shown.lines) and "random weights" in shown.out
    (found,) = done(cli("plan", path, "--for", "training", "--length", "64", "--measure", "--json")).json()
    assert abs(found["measured"]["difference"]) < 0.05
    refused(cli("plan", path, "--tp", "2", "--measure"), "--measure runs one process")
    refused(cli("plan", "--params", "405B", "--measure"), "--measure would take", "are available")


def test_it_stops_where_its_reader_stops(tmp_path: Path) -> None:
    piped = " ".join(["plan", "--params", "7B"])
    command = f"{PROGRAM[0]} -c '{PROGRAM[2]}' {piped} | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert ended.stderr == "" and ended.stdout.count("\n") == 1


def test_narrow_terminals_and_help(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = done(cli("plan", "--params", "7B", "--device", "H100"))
    assert max(map(len, shown.lines)) <= 60
    help = done(cli("plan", "--help")).out
    assert "--for" in help and "--kv-heads" in help and "Example: plainformer plan" in help and "--no-" not in help
    assert "--zero" in done(cli("completion", "bash")).out


def test_a_dry_run_plans_what_the_run_says_of_processes(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "the cat sat " * 40}) + "\n" for _ in range(8)))
    run = {
        "objective": "causal-lm", "folder": "run", "model": {"ref": str(tiny("text-generation"))},
        "data": {"train": {"path": "rows.jsonl"}}, "batches": {"size": 4, "micro": 2, "row_length": 16},
        "length": {"steps": 2},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    found = {}
    for name, options in {"one": [], "two": ["--parallel.tp", "2"]}.items():
        (dry,) = done(cli("train", path, "--dry-run", "--json", *options)).json()
        path.write_text(yaml.safe_dump(run | ({"parallel": {"tp": 2}} if options else {})))
        (planned,) = done(cli("plan", path, "--json")).json()
        assert dry["step"]["peak"] == planned["peak"] and dry["step"]["phase"] == planned["phase"]
        found[name] = planned["peak"]
    assert found["two"] < found["one"]
