"""Models of this library in lm-eval, against lm-eval's own backend on the same folder."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import plainformer.harness as harness  # noqa: E402
from plainformer.errors import UsageError  # noqa: E402
from tests.support.models import save  # noqa: E402
from tests.support.processes import modules_after  # noqa: E402
from tests.support.runs import WORDS  # noqa: E402

POSITIONS = 48


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def refused(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("text-generation", tmp_path_factory.mktemp("model") / "gpt2", n_positions=POSITIONS)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return get_model("hf")(pretrained=str(folder), batch_size=1, device="cpu", dtype="float32")


def ours(folder: Path, batch: int) -> harness.PlainformerLM:
    return harness.PlainformerLM(str(folder), batch_size=batch)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=number)  # type: ignore[arg-type]
        for number, one in enumerate(arguments)
    ]


def words(draw: random.Random, most: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


@pytest.mark.parametrize("batch", [1, 7])
def test_likelihoods_are_those_of_lm_evals_backend(folder: Path, theirs: Any, batch: int) -> None:
    draw = random.Random(0)
    asked = [(words(draw, 5), " " + words(draw, 2)) for _ in range(19)]
    asked += [("", "cat sat"), (words(draw, 5) + " ", "mat"), (" ".join(WORDS * 3), " cat")]  # the last one is cut
    found = ours(folder, batch).loglikelihood(requests("loglikelihood", asked))
    expected = theirs.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)


@pytest.mark.parametrize("batch", [1, 7])
def test_documents_are_scored_in_the_same_windows(folder: Path, theirs: Any, batch: int) -> None:
    draw = random.Random(1)
    asked = [(words(draw, most),) for most in (1, 5, 9, 40, 80, 13, 21, 60, 11)]
    found = ours(folder, batch).loglikelihood_rolling(requests("loglikelihood_rolling", asked))
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", asked), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch", [1, 7])
def test_answers_are_the_same(folder: Path, theirs: Any, batch: int) -> None:
    draw = random.Random(2)
    prompts = [words(draw, 5) for _ in range(11)] + [" ".join(WORDS * 3)]
    free = theirs.generate_until(requests("generate_until", [(p, {"until": [], "max_gen_toks": 12}) for p in prompts]))
    stops = [answer[3:5] for answer in free if len(answer) > 6][:2]
    asked = [(p, {"until": stops if i % 2 else [], "max_gen_toks": 12}) for i, p in enumerate(prompts)]
    found = ours(folder, batch).generate_until(requests("generate_until", asked))
    expected = theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert found == expected
    assert any(len(answer) < len(whole) for answer, whole in zip(found, free, strict=True))


def test_a_beginning_of_sequence_token_is_there_once(tmp_path: Path) -> None:
    """A tokenizer that puts it before every text: it conditions the first token, and is not scored."""
    folder = save("chat", tmp_path / "llama")
    model = ours(folder, 3)
    texts = ["cat sat on the mat", "dog"]
    assert model.tok_encode(texts[0])[:2] != [model.prefix_token_id] * 2
    found = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
    for text, value in zip(texts, found, strict=True):
        ids = [model.prefix_token_id, *model.tokenizer.encode(text, add_special_tokens=False).input_ids]
        with torch.no_grad():
            logits = model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        assert value == pytest.approx(sum(float(logits[i, one]) for i, one in enumerate(ids[1:])), rel=1e-5)


def test_a_task_of_a_local_file(folder: Path, tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = [
        {"question": words(draw, 5), "choices": [words(draw, 2), words(draw, 2)], "answer": i % 2} for i in range(9)
    ]
    data = tmp_path / "rows.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    results = [
        lm_eval.simple_evaluate(
            name,
            model_args=f"pretrained={folder}",
            batch_size=7,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            device="cpu",
        )["results"]["local"]
        for name in ("plainformer", "hf")
    ]
    for result in results:
        result.pop("name", None)
    assert results[0] == results[1]


def test_what_cannot_work_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a number of rows"):
        harness.PlainformerLM(str(folder), batch_size="many")
    assert harness.PlainformerLM(str(folder), batch_size="auto:4").batch_size == harness.BATCH_SIZE
    with pytest.raises(UsageError, match="48 positions"):
        harness.PlainformerLM(str(folder), max_length=49)
    encoder = save("fill-mask", tmp_path / "encoder")
    with pytest.raises(UsageError, match="predicts no next token"):
        harness.PlainformerLM(str(encoder))
    with pytest.raises(UsageError, match="no room for a prompt"):
        ours(folder, 1).generate_until(requests("generate_until", [("cat", {"max_gen_toks": 48})]))
    with pytest.raises(UsageError, match="continuation of"):
        ours(folder, 1).loglikelihood(requests("loglikelihood", [("cat", " " + " ".join(WORDS * 3))]))


def test_lm_eval_is_not_imported_with_the_library() -> None:
    assert "lm_eval" not in modules_after("import plainformer")
