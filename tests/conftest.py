"""Fixtures for all tests."""

from __future__ import annotations

import io
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import Answer, Cli

os.environ.setdefault("PLAINFORMER_KERNELS", "wait")  # not the way without them, until they are compiled


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name → folder of the tiny checkpoint of that name (CHECKPOINTS in tests/support/models.py), written when first asked for."""
    from tests.support.models import save

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp("tiny") / name)
        return made[name]

    return folder


@pytest.fixture(autouse=True, scope="session")
def no_pictures() -> Iterator[None]:
    """Curves and TensorBoard's files take longer than most of the runs here: without them, but where `pictures` is used."""
    from plainformer.train import record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "_drawing", (record.draw_plots, record._board), raising=False)
        patch.setattr(record, "draw_plots", lambda folder: [])
        patch.setattr(record, "_board", lambda folder, step: None)
        yield


@pytest.fixture(scope="module")
def pictures() -> Iterator[None]:
    """Runs draw their curves, as usual."""
    from plainformer.train import record

    with pytest.MonkeyPatch.context() as patch:
        for name, function in zip(("draw_plots", "_board"), record.__dict__["_drawing"], strict=True):
            patch.setattr(record, name, function)
        yield


@pytest.fixture(autouse=True)
def width_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """readline, which pytest imports, sets COLUMNS for the processes that come after it, and so for each of xdist's."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def own_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Looks at test sets are written into a ledger of each test, never into that of whoever runs the tests."""
    state = tmp_path_factory.getbasetemp() / "state" / uuid.uuid4().hex
    monkeypatch.setenv("PLAINFORMER_STATE", str(state))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run a command line here, in an empty folder, without network; `stdin` is what it reads."""
    from plainformer.cli.main import run_app

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PLAINFORMER_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, stdin: bytes | None = None) -> Answer:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run_app([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert "this is a defect" not in captured.err, captured.err
        return Answer(code, captured.out, captured.err)

    return call


# Tests that compare numbers closely, and are quick: a file, and what must be in the test's name (nothing: all of it).
EXACT = {
    "parity/test_encoders.py": ("[bert", "[albert", "[deberta-v3", "[modernbert"),
    "parity/test_decoders.py": ("[llama", "[gpt2", "[gemma2", "[mistral"),
    "parity/test_encoder_decoders.py": ("[bart", "[t5", "[marian"),
    "parity/test_vision_and_speech.py": ("[vit", "[wav2vec2", "[whisper"),
    "generation/modes/test_beam.py": (),
    "generation/modes/test_contrastive.py": (),
    "model/test_block.py": (),
    "model/test_linear.py": (),
    "model/test_stack.py": (),
    "model/fast/test_step.py": ("test_a_step_is_the_layer",),
    "train/test_golden_curves.py": (),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `exact` what `make check-levels` runs again with other instructions."""
    here = Path(__file__).parent
    for item in items:
        parts = EXACT.get(item.path.relative_to(here).as_posix()) if item.path.is_relative_to(here) else None
        if parts is not None and (not parts or any(part in item.name for part in parts)):
            item.add_marker(pytest.mark.exact)
