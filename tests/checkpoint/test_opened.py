"""One opened checkpoint: a folder and a GGUF file answer the same questions, and nothing is read twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import plainformer
from plainformer.checkpoint import opened
from plainformer.checkpoint.opened import FolderCheckpoint, GgufCheckpoint, open_checkpoint
from plainformer.config.loading import LoadOptions
from plainformer.errors import CheckpointError, UsageError
from plainformer.loading import build_model
from tests.support.gguf_files import TOKENS, WIDTH, write_gguf

Folder = Callable[[str], Path]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose JSON or header is read."""
    seen: list[str] = []
    for name in ("read_json_object", "open_gguf_model"):
        read = getattr(opened, name)
        monkeypatch.setattr(opened, name, lambda path, read=read: (seen.append(Path(path).name), read(path))[1])
    return seen


def test_a_folder_and_a_file_answer_the_same_questions(tiny: Folder, tmp_path: Path) -> None:
    gguf_path = write_gguf(tmp_path / "m.gguf")
    for ref, kind, model_type in ((tiny("chat"), FolderCheckpoint, None), (gguf_path, GgufCheckpoint, "llama")):
        with open_checkpoint(ref) as checkpoint:
            assert type(checkpoint) is kind and checkpoint.ref == str(ref) and checkpoint.path == ref
            assert checkpoint.revision is None
            config = checkpoint.config()
            assert config.head.kind == "causal_lm" and checkpoint.config("none").head.kind == "none"
            assert config.source == checkpoint.raw_config and config.architecture == checkpoint.architecture
            assert checkpoint.model_type == model_type or model_type is None
            unknown = [name for name in checkpoint.tensors().names() if checkpoint.rows(config).find(name) is None]
            assert not unknown
            assert checkpoint.tokenizer().encode("ab").input_ids
            assert checkpoint.json("no such file.json") is None


def test_config_json_is_parsed_once(tiny: Folder, calls: list[str]) -> None:
    for task in (None, "text-generation", "abstractive-question-answering"):
        calls.clear()
        plainformer.load(tiny("chat"), task=task, backend="plain")
        assert calls.count("config.json") == 1


def test_a_header_is_walked_once(tmp_path: Path, calls: list[str]) -> None:
    task = plainformer.load(write_gguf(tmp_path / "m.gguf"), backend="plain")
    assert calls == ["m.gguf"]
    assert task.tokenizer.encode("ab").input_ids == [TOKENS.index("ab")]
    assert task("ab", max_new_tokens=2, eos_ids=()).new_tokens == 2


def test_a_closed_checkpoint_lets_go_of_its_files_and_opens_them_again(tmp_path: Path, calls: list[str]) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf"))
    assert not calls  # nothing is read before it is asked for
    weight = checkpoint.tensors().read("output_norm.weight")
    checkpoint.close()
    assert weight.shape == (WIDTH,) and weight.isfinite().all()
    assert checkpoint.tokenizer().vocab_size == len(TOKENS)
    assert calls == ["m.gguf"] * 2
    checkpoint.close()
    checkpoint.close()


def test_companions(tiny: Folder, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("chat"))
    assert checkpoint.json("config.json") == checkpoint.raw_config
    checkpoint.save_companions(tmp_path / "copy", ["tokenizer_config.json", "missing.json"])
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["tokenizer_config.json"]
    assert checkpoint.need_folder("preprocessor") == tiny("chat")
    single = open_checkpoint(write_gguf(tmp_path / "m.gguf"))
    assert single.folder is None and single.json("config.json") is None
    single.save_companions(tmp_path / "none", ["m.gguf"])
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="has no preprocessor: it is a single file"):
        single.need_folder("preprocessor")


def test_an_error_names_what_was_read(tiny: Folder, tmp_path: Path) -> None:
    raw = json.loads((tiny("chat") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": 5}))
    with pytest.raises(CheckpointError, match=r"^config\.json: architectures=5 is not a list"):
        _ = open_checkpoint(tmp_path).architecture
    with pytest.raises(CheckpointError, match=r"^config\.json: architectures=5 is not a list"):
        open_checkpoint(tmp_path).config()
    forged = open_checkpoint(write_gguf(tmp_path / "m.gguf", expert_count=8))
    with pytest.raises(CheckpointError, match=r"^GGUF metadata: expert_count=8 is not supported"):
        forged.config()


def test_a_model_may_be_filled_for_training(tiny: Folder) -> None:
    for purpose in ("infer", "train"):
        with open_checkpoint(tiny("text-classification")) as checkpoint:
            model = build_model(checkpoint, LoadOptions(purpose=purpose))
        trained = purpose == "train"
        assert {parameter.requires_grad for parameter in model.parameters()} == {trained} == {model.training}
