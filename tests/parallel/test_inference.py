"""Every task on several processes: what all ranks answer is what one process answers; and what a user types."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plainformer
from plainformer.cli.main import run_app
from plainformer.errors import InputError, PlainformerError, UsageError
from plainformer.parallel.inference import answered_in_turn, ranks_for
from plainformer.parallel.sync import Ranks
from tests.support.battery import same
from tests.support.battery_cases import BATTERY, TEXTS
from tests.support.cli import Cli
from tests.support.models import save
from tests.support.ranks import run_ranks
from tests.support.torchrun import kill, launched, wait_for

EVEN = {"intermediate_size": 36, "encoder_ffn_dim": 36, "decoder_ffn_dim": 36}  # what a family does not have is ignored
LAYOUTS = {"tensor": {"tp": 2}, "pipeline": {"pp": 2}}


def _answers(rank: int, folders: dict[str, str]) -> dict[str, Any]:
    """What a rank answers, by layout and task."""
    found: dict[str, Any] = {}
    for kind, layout in LAYOUTS.items():
        for name, (_, _, items, _, options) in BATTERY.items():
            task = plainformer.load(folders[name], task=name, **layout)
            try:
                found[f"{kind} {name}"] = list(task(items, **options))
            except PlainformerError as error:
                found[f"{kind} {name}"] = error
        writer = plainformer.load(folders["text-generation"], **layout)
        found[f"{kind} chance"] = writer(TEXTS, max_new_tokens=12, do_sample=True)
        found[f"{kind} callback"] = writer(TEXTS[0], max_new_tokens=12, stop_when=_stops(rank))
        writer.model.agreed = _late(rank, writer.model.agreed)
        found[f"{kind} time"] = writer(TEXTS[0], max_new_tokens=12, max_time=1e-6)
    return found


def _stops(rank: int) -> Callable[[list[int]], bool]:
    """A callback that ends a text at its third token on rank 0, and never on another."""
    return lambda new: rank == 0 and len(new) > 2


def _late(rank: int, agreed: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A rank whose clock is wrong."""
    return lambda value: agreed(value if rank == 0 else not value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny checkpoint for each task. Heads, layers and units are even."""
    made = tmp_path_factory.mktemp("tasks")
    return {name: str(save(kind, made / name, **EVEN, **changes)) for name, (kind, changes, *_) in BATTERY.items()}


def test_every_task(folders: dict[str, str]) -> None:
    ranks = run_ranks(_answers, 2, folders, timeout=300)
    for name, (_, _, items, _, options) in BATTERY.items():
        expected = list(plainformer.load(folders[name], task=name, backend="plain")(items, **options))
        for kind in LAYOUTS:
            for found in (rank[f"{kind} {name}"] for rank in ranks):
                assert not isinstance(found, PlainformerError), f"{kind} {name}: {found}"
                same(found, expected, f"{kind} {name}")
    for kind in LAYOUTS:
        for what in ("chance", "callback", "time"):
            same(ranks[0][f"{kind} {what}"], ranks[1][f"{kind} {what}"], f"{kind} {what}")
        assert ranks[1][f"{kind} callback"].stop_reason == "callback"
        assert ranks[1][f"{kind} time"].stop_reason == "time"


def test_options_that_cannot_be(folders: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="there is 1 process"):
        plainformer.load(folders["text-generation"], tp=2)
    with pytest.raises(UsageError, match=r"tp.* with .*purpose"):
        plainformer.load_model(folders["text-generation"], tp=2, purpose="train")


def _rows(rank: int) -> list[Any]:
    mesh = ranks_for(1, 1, "cpu")
    seen: list[int] = []

    def answer(inputs: Any) -> Any:
        for place, value in enumerate(inputs):
            seen.append(value)
            if value == 41:
                raise InputError(f"\x04{place}\x05 is bad", "leave it out")
            yield value * value

    counted = answered_in_turn(mesh, range(40), answer, 3)
    found: list[Any] = [list(counted), len(seen), Ranks(mesh).alone(lambda: rank)]
    part: list[Any] = []
    with pytest.raises(InputError) as raised:
        part.extend(answered_in_turn(mesh, iter(range(60)), answer, 3))
    return [*found, raised.value.place, list(answered_in_turn(mesh, [], answer, 3))]


def test_copies_share_the_rows() -> None:
    for squares, own, first, place, none in run_ranks(_rows, 2):
        assert squares == [number * number for number in range(40)] and own == 20
        assert first == 0 and place == 41 and none == []


def _typed(rank: int, arguments: list[str]) -> tuple[int, str]:
    """What a rank prints of a command line."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return run_app(arguments), printed.getvalue()


def test_as_a_user_types_it(folders: dict[str, str], tmp_path: Path) -> None:
    """By copies that share the rows, and, with torchrun's own processes, by two that share the heads."""
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n" for text in TEXTS * 9))
    task = plainformer.load(folders["text-classification"])
    expected = [answer.label for answer in task(TEXTS * 9)]
    arguments = ["run", folders["text-classification"], str(lines), "--json"]
    (code, printed), silent = run_ranks(_typed, 2, arguments)
    assert code == 0 and silent == (0, "")
    with launched(tmp_path, ["--standalone", "--nproc-per-node", "2"], [*arguments, "--tp", "2"]) as torchrun:
        assert torchrun.wait() == 0, torchrun.said
    for said in (printed, torchrun.said):
        rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert [row["label"] for row in rows] == expected


def test_what_cannot_be_is_said_once(folders: dict[str, str], tmp_path: Path) -> None:
    arguments = ["run", folders["text-generation"], "hello", "--tp", "3"]
    with launched(tmp_path, ["--standalone", "--nproc-per-node", "2"], arguments) as torchrun:
        assert torchrun.wait() != 0
        errors = [line for line in torchrun.said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "there are 2 processes" in errors[0], torchrun.said


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_the_first_process_dies(folders: dict[str, str], tmp_path: Path) -> None:
    """What the others then say is ours, not gloo's."""
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n" for text in TEXTS * 20_000))
    arguments = ["run", folders["text-classification"], str(lines), "--json", "--batch-size", "8"]
    with launched(tmp_path, ["--standalone", "--nproc-per-node", "2"], arguments) as torchrun:
        wait_for(lambda: '"label"' in torchrun.said, "an answer", torchrun)
        kill(torchrun.workers()[0])
        assert torchrun.wait() == 1
        errors = [line for line in torchrun.said.splitlines() if line.startswith(("error:", "  → "))]
    assert errors[0] == "error: another process of this run has ended" and "begins anew" in errors[1], torchrun.said


def test_what_one_process_does_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = cli("tasks")
    assert answer.code == 2 and "tasks runs in one process" in answer.err
