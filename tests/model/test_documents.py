"""Packed rows: a document among others has the states that it has alone, whatever the others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plainformer.errors import InputError, UsageError
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model import inputs as inputs_module
from plainformer.model.documents import Documents, documents_of
from plainformer.model.transformer import Transformer
from tests.support.cases import decoders, encoder_decoders, vision_and_speech
from tests.support.cases.stacks import CASES
from tests.support.close import close
from tests.support.parity import PAD, VOCABULARY, Case, build, load_ours, make_inputs

LENGTHS = ((3, 9, 9, 1, 2), (14, 4, 5))  # of the documents of two rows; the second has one column of padding


def documents(case: Case, seed: int = 0) -> list[list[dict[str, Tensor]]]:
    """Each row's documents, as inputs of a model."""
    return [
        [make_inputs(case, 1, length, seed=seed + 10 * row + place) for place, length in enumerate(lengths)]
        for row, lengths in enumerate(LENGTHS)
    ]


def packed(rows: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Rows of documents as one batch, padded on the right."""
    longest = max(sum(each["input_ids"].size(1) for each in row) for row in rows)

    def padded(parts: list[Tensor], filler: int) -> Tensor:
        joined = torch.cat(parts, dim=1)
        return torch.nn.functional.pad(joined, (0, longest - joined.size(1)), value=filler)

    batch = {
        name: torch.cat([padded([each[name] for each in row], PAD if name == "input_ids" else 0) for row in rows])
        for name in rows[0][0]
    }
    # Any numbers will do that differ between neighbours.
    ids = [[torch.full_like(each["input_ids"], 7 * (place % 3)) for place, each in enumerate(row)] for row in rows]
    return {**batch, "document_ids": torch.cat([padded(row, -1) for row in ids])}


def pieces(x: Tensor) -> list[list[Tensor]]:
    """(B, T, ...) → each row's documents, (1, length, ...)."""
    return [list(row[None, : sum(lengths)].split(lengths, dim=1)) for row, lengths in zip(x, LENGTHS, strict=True)]


def answer(model: Transformer, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """Logits; the states of a model without a head, whose pooler would read the row's first position."""
    if model.config.head.out_size == 0:
        return model.states(**inputs).last_hidden_state
    logits = model(**inputs, **options).logits
    assert logits is not None
    return logits


def by_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, whose document lengths nobody asks for."""
    monkeypatch.setattr(
        inputs_module, "documents_of", lambda ids: Documents(*list(vars(documents_of(ids)).values())[:3], runs=None)
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_a_packed_document_is_itself(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = load_ours(build(case), tmp_path), documents(case)
    together, single = packed(rows), [[answer(model, each) for each in row] for row in rows]
    for how in ("runs", "mask"):
        if how == "mask":
            by_mask(monkeypatch)
        for found, expected in zip(pieces(answer(model, together)), single, strict=True):
            for place, (mine, alone) in enumerate(zip(found, expected, strict=True)):
                close(mine, alone, f"document {place} by {how}")


def test_all_families_and_kinds_of_positions_are_among_them() -> None:
    names = {case.name for case in CASES}
    families = {
        "llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3", "olmo2",
        "bert", "roberta", "albert", "electra", "distilbert", "mpnet", "modernbert", "camembert",
    }  # fmt: skip
    missing = {name for name in families if not any(each.startswith(name) for each in names)}
    assert not missing and any("deberta" in name for name in names) and any("t5" in name for name in names), names
    assert {"llama-dynamic", "phi3-long", "llama-yarn"} <= names


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_another_document_changes_no_bit(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = load_ours(build(case), tmp_path), documents(case)
    changed = [list(row) for row in rows]
    changed[0][1] = make_inputs(case, 1, LENGTHS[0][1], seed=99)
    assert not torch.equal(changed[0][1]["input_ids"], rows[0][1]["input_ids"])
    for how in ("runs", "mask"):
        if how == "mask":
            by_mask(monkeypatch)
        before, after = (pieces(answer(model, packed(each))) for each in (rows, changed))
        for row, lengths in enumerate(LENGTHS):
            for place in range(len(lengths)):
                same = torch.equal(before[row][place], after[row][place])
                assert same != ((row, place) == (0, 1)), f"row {row}, document {place} by {how}"


GRADIENTS = [
    case
    for case in CASES
    if case.name in ("gemma2", "modernbert", "llama-dynamic", "gpt2") or "deberta-v2" in case.name
]


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_packed_gradients_are_those_of_documents_alone(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = load_ours(build(case), tmp_path).double().requires_grad_(), documents(case)
    parameters = list(model.parameters())

    def loss(x: Tensor, number: int) -> Tensor:
        weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(number), dtype=x.dtype)
        return (x * weights).sum()

    def total(parts: list[list[Tensor]]) -> Tensor:
        flat = [part for row in parts for part in row]
        return torch.stack([loss(part, number) for number, part in enumerate(flat)]).sum()

    expected = torch.autograd.grad(
        total([[answer(model, each) for each in row] for row in rows]), parameters, allow_unused=True
    )
    for how in ("runs", "mask"):
        if how == "mask":
            by_mask(monkeypatch)
        found = torch.autograd.grad(total(pieces(answer(model, packed(rows)))), parameters, allow_unused=True)
        for (name, _), mine, theirs in zip(model.named_parameters(), found, expected, strict=True):
            assert (mine is None) == (theirs is None), name
            if mine is not None and theirs is not None:
                close(mine, theirs, f"{name} by {how}")


@torch.no_grad()
def test_attentions_and_hidden_states_of_packed_rows(tmp_path: Path) -> None:
    """Probabilities are (T, T) over the row: nothing outside a document's own square."""
    case = next(case for case in CASES if case.name == "modernbert")
    model, rows = load_ours(build(case), tmp_path), documents(case)
    output = model(**packed(rows), output_hidden_states=True, output_attentions=True)
    for place, at in ((1, slice(3, 12)), (4, slice(22, 24))):
        alone = model(**rows[0][place], output_hidden_states=True, output_attentions=True)
        for mine, theirs in zip(output.hidden_states, alone.hidden_states, strict=True):
            close(mine[:1, at], theirs)
        for mine, theirs in zip(output.attentions, alone.attentions, strict=True):
            close(mine[:1, :, at, at], theirs)
            close(mine[0, :, at].sum(-1), torch.ones(4, at.stop - at.start))


@torch.no_grad()
def test_embeds_and_head_masks_go_along(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "llama")
    model, rows = load_ours(build(case), tmp_path), documents(case)
    batch = packed(rows)
    expected = answer(model, batch)
    ids = batch.pop("input_ids")
    close(answer(model, {**batch, "inputs_embeds": model.embed_tokens(ids)}), expected)
    mask = torch.ones(3, 4)
    mask[1, 2] = 0
    masked = pieces(answer(model, {**batch, "input_ids": ids, "head_mask": mask}))
    close(masked[0][1], answer(model, {**rows[0][1], "head_mask": mask}))


@torch.no_grad()
def test_one_row_of_ids_is_for_all_rows(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "llama")
    model = load_ours(build(case), tmp_path)
    ids, documents = torch.randint(5, VOCABULARY, (3, 8)), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    same = answer(model, {"input_ids": ids, "document_ids": documents.expand(3, 8)})
    assert torch.equal(answer(model, {"input_ids": ids, "document_ids": documents}), same)


def test_where_documents_are() -> None:
    found = documents_of(torch.tensor([[4, 4, 0, 0, 0, 4], [2, 2, 2, 3, -1, -1]]))
    assert found.number_BT.tolist() == [[0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 2, 2]]
    assert found.positions_BT.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 0, 0, 0]]
    assert found.lengths_BT().tolist() == [[2, 2, 3, 3, 3, 1], [3, 3, 3, 1, 2, 2]]
    assert found.real_BT.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert found.runs == ((1, 2), (1, 3), (1, 1), (1, 3), (1, 1), (1, 2)) and found.longest == 3
    x = torch.arange(24).view(2, 6, 2)
    assert torch.equal(found.join(found.split(x)), x)
    assert documents_of(torch.zeros(5, 7, dtype=torch.long)).runs == ((5, 7),)


def load(name: str, cases: list[Case], folder: Path) -> tuple[Transformer, dict[str, Tensor]]:
    case = next(case for case in cases if case.name == name)
    return load_ours(build(case), folder), make_inputs(case)


def test_what_document_ids_cannot_go_with(tmp_path: Path) -> None:
    model, inputs = load("llama", decoders.LLAMA, tmp_path)
    ids = torch.zeros_like(inputs["input_ids"])
    for name in ("attention_mask", "position_ids"):
        with pytest.raises(UsageError, match=f"{name} and document_ids"):
            model(**inputs, document_ids=ids, **{name: ids + 1})
    with pytest.raises(UsageError, match="a cache holds one document"):
        model(**inputs, document_ids=ids, cache=KeyValueCache(model.config, 2))
    for wrong in (ids[:, 1:], ids.float(), ids[0]):
        with pytest.raises(InputError, match="document_ids of shape"):
            model(**inputs, document_ids=wrong)
    sequence, inputs = load("llama-sequence", decoders.LLAMA, tmp_path / "sequence")
    with pytest.raises(UsageError, match="head reads one vector for each row"):
        sequence(**inputs, document_ids=ids)
    close(sequence.states(**inputs, document_ids=ids).last_hidden_state, sequence.states(**inputs).last_hidden_state)


@pytest.mark.parametrize(
    ("cases", "name"),
    [
        (vision_and_speech.IMAGES, "vit"),
        (vision_and_speech.WAVES, "wav2vec2"),
        (vision_and_speech.MELS, "whisper"),
        (encoder_decoders.BART, "bart"),
    ],
    ids=["image", "wave", "mel", "encoder-decoder"],
)
def test_models_that_cannot_pack_say_so(cases: list[Case], name: str, tmp_path: Path) -> None:
    case = next(case for case in cases if case.name.startswith(name))
    model, inputs = load_ours(build(case), tmp_path), make_inputs(case)
    read = {name: value for name, value in inputs.items() if not name.startswith("decoder")}
    for call, given in ((model, inputs), (model.states, inputs), (model.encode, read)):
        with pytest.raises(UsageError, match="'document_ids' is not an input of this model"):
            call(**given, document_ids=torch.zeros(2, 9, dtype=torch.long))


def test_a_document_may_be_as_long_as_the_model_reads_and_a_row_longer(tmp_path: Path) -> None:
    model, _ = load("gpt2-inner", decoders.OTHERS, tmp_path)
    ids = torch.full((1, 96), 7)
    halves = torch.arange(2).repeat_interleave(48)[None]
    assert model(ids, document_ids=halves).logits.shape[:2] == (1, 96)
    with pytest.raises(InputError, match="an input of 96 tokens is longer than the 64 positions"):
        model(ids, document_ids=torch.zeros_like(ids))
    padding = torch.full_like(ids, -1)
    padding[:, :20] = 0
    model(ids, document_ids=padding)  # however much of it there is


@pytest.mark.parametrize("name", ["gemma2", "mistral", "bert", "modernbert"])
def test_padding_and_documents_under_autocast(name: str, tmp_path: Path) -> None:
    """A mask in fp32 whose lowest number is -inf in bf16: a row that sees nothing must not become NaN."""
    case = next(case for case in CASES if case.name == name)
    model, rows = load_ours(build(case), tmp_path).train().requires_grad_(), documents(case)
    batch = packed(rows)
    mask = torch.ones_like(batch["input_ids"])
    mask[0, :4] = 0
    masked = {**{key: value for key, value in batch.items() if key != "document_ids"}, "attention_mask": mask}
    for inputs in (batch, masked):
        with torch.autocast("cpu", torch.bfloat16):
            answer(model, inputs).float().sum().backward()
        assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)
