"""Greedy generation: a prompt alone gives the same tokens as in any batch; why rows end; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.generation.options import GenerationOptions
from plainformer.generation.search import generate, left_align, stream
from plainformer.loading import load_model
from tests.support import models as make
from tests.support.ids import pad, prompts
from tests.support.models import VOCABULARY

SMALL: dict[str, Any] = dict(**make.TINY, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """name → (reference, ours)."""
    root = tmp_path_factory.mktemp("models")
    llama = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64)
    made = {
        "gpt2": make.gpt2(root / "gpt2", vocab_size=VOCABULARY),
        "llama": make.save_model(root / "llama", "LlamaForCausalLM", llama),
        "bart": make.bart(root / "bart", vocab_size=VOCABULARY),
        "t5": make.t5(root / "t5", vocab_size=VOCABULARY),
    }
    return {name: (reference, load_model(root / name, backend="plain")) for name, reference in made.items()}


def theirs(reference: Any, row: Tensor, count: int, **inputs: Any) -> tuple[int, ...]:
    found = reference.generate(row, do_sample=False, num_beams=1, max_new_tokens=count, **inputs)[0]
    before = inputs.get("decoder_input_ids", row[:, :1] if reference.config.is_encoder_decoder else row)
    return tuple(found[before.size(1) :].tolist())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "t5"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 3])
def test_alone_and_in_a_batch(models: dict[str, Any], name: str, side: str, extra: int) -> None:
    reference, ours = models[name]
    rows = prompts((7, 2, 11))
    expected = [theirs(reference, row, 10) for row in rows]
    together = generate(ours, *pad(rows, side, extra), max_new_tokens=10)
    assert list(together.token_ids) == expected
    for row, ids in zip(rows, expected, strict=True):
        assert generate(ours, row, max_new_tokens=10).token_ids == (ids,)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_stop_reasons(models: dict[str, Any], name: str) -> None:
    """A row that ends is left alone while the others go on."""
    _, ours = models[name]
    rows = prompts((7, 2, 11))
    free = generate(ours, *pad(rows, "right"), max_new_tokens=10, eos_ids=())
    assert free.stop_reasons == ("length",) * 3 and all(len(ids) == 10 for ids in free.token_ids)
    end = free.token_ids[1][4]
    ended = generate(ours, *pad(rows, "right"), max_new_tokens=10, eos_ids=[end])
    for before, after, reason in zip(free.token_ids, ended.token_ids, ended.stop_reasons, strict=True):
        length = before.index(end) + 1 if end in before else 10
        assert after == before[:length]
        assert reason == ("eos" if end in before else "length")


def test_stream_equals_generate(models: dict[str, Any]) -> None:
    _, ours = models["gpt2"]
    ids, mask = pad(prompts((7, 2, 11)), "left")
    end = generate(ours, ids, mask, max_new_tokens=10, eos_ids=()).token_ids[1][4]
    whole = generate(ours, ids, mask, max_new_tokens=10, eos_ids=[end])
    steps = list(stream(ours, ids, mask, max_new_tokens=10, eos_ids=[end]))
    for row in range(3):
        assert tuple(tokens[row] for tokens, _ in steps if tokens[row] is not None) == whole.token_ids[row]
    assert tuple(steps[-1][1]) == whole.stop_reasons
    assert not any(torch.is_inference_mode_enabled() for _ in stream(ours, ids, mask, max_new_tokens=2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_position_limit(models: dict[str, Any], side: str) -> None:
    """A full table of positions ends an answer; a short prompt beside a long one keeps all of its room."""
    _, ours = models["gpt2"]  # 48 positions
    rows = prompts((44, 3, 20))
    together = generate(ours, *pad(rows, side), max_new_tokens=12, eos_ids=())
    assert [len(ids) for ids in together.token_ids] == [5, 12, 12]
    for row, ids in zip(rows, together.token_ids, strict=True):
        alone = generate(ours, row, max_new_tokens=12, eos_ids=())
        assert alone.token_ids == (ids,) and alone.stop_reasons == ("length",)
    full = generate(ours, prompts((48,))[0], max_new_tokens=9, eos_ids=())
    assert len(full.token_ids[0]) == 1
    with pytest.raises(InputError, match="49 tokens fills the 48 positions"):
        generate(ours, prompts((49,))[0])


def test_crowded_batches_stream_in_step(models: dict[str, Any]) -> None:
    _, ours = models["gpt2"]
    ids, mask = pad(prompts((46, 3)), "right")
    steps = list(stream(ours, ids, mask, max_new_tokens=8, eos_ids=()))
    assert len(steps) == 8
    assert [tokens[0] is not None for tokens, _ in steps] == [True] * 3 + [False] * 5
    assert steps[-1][1] == ["length", "length"]


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_forced_decoder_starts(models: dict[str, Any], name: str) -> None:
    reference, ours = models[name]
    start = torch.tensor([[reference.config.decoder_start_token_id, 9, 17]])
    rows = prompts((7, 2))
    found = generate(ours, *pad(rows, "right"), max_new_tokens=6, decoder_input_ids=start.expand(2, -1))
    assert list(found.token_ids) == [theirs(reference, row, 6, decoder_input_ids=start) for row in rows]
    memory = ours.encode(*pad(rows, "right"))
    again = generate(ours, encoder_output=memory, max_new_tokens=6, decoder_input_ids=start.expand(2, -1))
    assert again == found


def test_suppressed_tokens(models: dict[str, Any]) -> None:
    reference, ours = models["llama"]
    row = prompts((5,))[0]
    free = generate(ours, row, max_new_tokens=6).token_ids[0]
    never = generate(ours, row, max_new_tokens=6, suppress=[free[0], free[2]]).token_ids[0]
    assert never == theirs(reference, row, 6, suppress_tokens=[free[0], free[2]])
    first = generate(ours, row, max_new_tokens=6, suppress_first=[free[0]]).token_ids[0]
    assert first == theirs(reference, row, 6, begin_suppress_tokens=[free[0]])
    with pytest.raises(UsageError, match="outside the vocabulary"):
        generate(ours, row, suppress=[VOCABULARY])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress", [3, -1]),
        ("suppress_first", [-1]),
        ("forced_eos_id", [-1]),
        ("forced_eos_id", -1),
        ("forced_bos_id", -1),
        ("bad_words_ids", [[3], [4, -1]]),
        ("sequence_bias", {(3, -1): 2.0}),
        ("forced", {1: -1}),
    ],
)
def test_ids_are_checked_before_anything_runs(
    name: str, value: Any, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=name):
        GenerationOptions(**{name: value})
    above = json.loads(json.dumps(value).replace("-1", str(VOCABULARY))) if name != "sequence_bias" else None
    options = {name: above or {(3, VOCABULARY): 2.0}}
    options = {"forced": {1: VOCABULARY}} if name == "forced" else options
    for ours in (models["llama"][1], models["bart"][1]):
        monkeypatch.setattr(type(ours), "forward", None)  # the model must not be asked
        monkeypatch.setattr(type(ours), "encode", None)
        with pytest.raises(UsageError, match=rf"{name}: ids \[{VOCABULARY}\] are outside the vocabulary"):
            generate(ours, prompts((5,))[0], **options)


def test_what_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    gpt2, bart = models["gpt2"][1], models["bart"][1]
    row = prompts((4,))[0]
    for count in (0, -1, True, 2.5, "3"):
        with pytest.raises(UsageError, match="max_new_tokens"):
            generate(gpt2, row, max_new_tokens=count)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="input_ids alone"):
        generate(gpt2, row, decoder_input_ids=row)
    with pytest.raises(UsageError, match="input_ids alone"):
        generate(gpt2)
    with pytest.raises(UsageError, match="one row for each input"):
        generate(bart, row, decoder_input_ids=row.expand(2, -1))
    with pytest.raises(UsageError, match="exclude each other"):
        generate(bart, row, encoder_output=bart.encode(row))
    with pytest.raises(UsageError, match="does not fit"):
        generate(gpt2, row, torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(InputError, match="no real token"):
        generate(gpt2, row.expand(2, -1), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]))
    with pytest.raises(InputError, match="empty"):
        generate(gpt2, row[:, :0])
    for option in ({"eos_ids": 2}, {"eos_ids": "2"}, {"suppress": 2}, {"suppress": [1.5]}, {"suppress_first": "a"}):
        with pytest.raises(UsageError, match="not a list of token ids"):
            generate(gpt2, row, **option)
    with pytest.raises(UsageError, match="every token"):
        generate(gpt2, row, suppress=range(VOCABULARY))
    with pytest.raises(UsageError, match="not a tensor"):
        generate(gpt2, row.tolist())
    with pytest.raises(InputError, match=r"not \(B, T\)"):
        generate(gpt2, row[0])
    make.bert(tmp_path, "BertForMaskedLM")
    with pytest.raises(UsageError, match="'masked_lm' head"):
        generate(load_model(tmp_path, backend="plain"), row)


def test_left_align() -> None:
    ids = torch.tensor([[5, 6, 0, 0, 0], [0, 7, 8, 9, 0], [4, 0, 3, 0, 2]])
    mask = (ids > 0).long()
    moved, real = left_align(ids, mask)
    assert moved.tolist() == [[0, 5, 6], [7, 8, 9], [4, 3, 2]]
    assert real is not None and real.tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1]]
    doubled, real = left_align(ids, mask * 2.0)  # whatever is not 0 is real
    assert real is not None and torch.equal(doubled, moved) and real.max() == 1
    same, none = left_align(ids[1:2, 1:4], mask[1:2, 1:4])
    assert none is None and same.tolist() == [[7, 8, 9]]
    trimmed, none = left_align(ids[1:2], mask[1:2])
    assert none is None and trimmed.tolist() == [[7, 8, 9]]
