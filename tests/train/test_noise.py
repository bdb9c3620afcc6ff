"""NEFTune: what is added to embeddings is the paper's, keyed by example, where the model reads, in training alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import plainformer as pf
from plainformer.train.feeder import collated
from plainformer.train.noise import noised, noisy
from plainformer.train.objectives import objective_class
from plainformer.train.objectives.base import Batch, Objective
from plainformer.train.plan import MicroBatch, Piece
from tests.support import models
from tests.support.close import close
from tests.support.training import examples_of, small_t5, train_config

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran"]
ROWS = [{"text": " ".join(WORDS[: 2 + number % 6]), "label": f"LABEL_{number % 3}"} for number in range(8)]
SCALE = 5.0


def rows_of(*examples: int) -> MicroBatch:
    return tuple((Piece(example),) for example in examples)


def classifier(folder: Path) -> tuple[Any, Any, Objective]:
    theirs = models.bert(folder, "BertForSequenceClassification", num_labels=3)
    model = pf.load_model(str(folder), head="sequence", prepare=False)
    kind = objective_class("text-classification")
    return theirs, model, kind(train_config("text-classification"), model.config, pf.load_tokenizer(str(folder)))


def test_noise_is_that_of_the_paper(tmp_path: Path) -> None:
    """uniform(-1, 1) · α / sqrt(T · W), T the row's own length, nothing on padding."""
    _, model, objective = classifier(tmp_path)
    examples = examples_of(objective, ROWS)
    batch = collated(objective, examples, rows_of(*range(8)), 0, 0, noise=SCALE)
    assert batch.noise is not None
    width = model.config.input_frontend.embedding_size
    assert batch.noise.shape == (*batch.inputs["input_ids"].shape, width)
    parts = []
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        assert not batch.noise[row, length:].any()
        parts.append((batch.noise[row, :length] * math.sqrt(length * width) / SCALE).flatten())
    drawn = torch.cat(parts)
    assert len(drawn) > 1000 and drawn.abs().max() <= 1 + 1e-6
    assert abs(float(drawn.mean())) < 4 / math.sqrt(3 * len(drawn))
    assert abs(float(drawn.var()) - 1 / 3) < 4 * math.sqrt(4 / 45 / len(drawn))


def test_it_depends_on_seed_epoch_and_example_alone(tmp_path: Path) -> None:
    _, _, objective = classifier(tmp_path)
    examples = examples_of(objective, ROWS)

    def of(*numbers: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
        found = collated(objective, examples, rows_of(*numbers), seed, epoch, noise=SCALE).noise
        assert found is not None
        return found

    size = len(examples[3]["input_ids"])
    assert torch.equal(of(5, 3)[1, :size], of(3)[0]) and torch.equal(of(3), of(3))
    assert not torch.equal(of(3), of(3, epoch=1)) and not torch.equal(of(3), of(3, seed=1))
    assert not torch.equal(of(3), of(4)[:, :size])
    assert collated(objective, examples, rows_of(3), 0, 0).noise is None


def test_a_model_with_noise_is_the_reference_with_noisy_embeddings(tmp_path: Path) -> None:
    theirs, model, objective = classifier(tmp_path)
    batch = collated(objective, examples_of(objective, ROWS), rows_of(*range(8)), 0, 0, noise=SCALE)
    embeds = theirs.get_input_embeddings()(batch.inputs["input_ids"]) + batch.noise
    mask = batch.inputs["attention_mask"]
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        with noised(model, batch.noise):
            found = model(**batch.inputs).logits
        close(found, theirs.eval()(inputs_embeds=embeds, attention_mask=mask).logits, rel=1e-5)
        assert not torch.allclose(found, plain)
        assert torch.equal(model(**batch.inputs).logits, plain)  # it ends with the block


def test_an_encoder_decoder_has_it_where_it_reads(tmp_path: Path) -> None:
    ours, theirs = small_t5(tmp_path)
    ids = torch.tensor([[5, 9, 7, 1]])
    noise = torch.full((1, 4, 32), 0.3)
    with torch.no_grad(), noised(ours, noise):
        found = ours(ids, decoder_input_ids=torch.tensor([[0, 6]])).logits
        embeds = theirs.get_input_embeddings()(ids) + noise
        close(found, theirs.eval()(inputs_embeds=embeds, decoder_input_ids=torch.tensor([[0, 6]])).logits, rel=1e-5)


def test_packed_documents_and_choices_have_their_own_lengths() -> None:
    """Each document of a packed row, each choice of an example, is a text of its own."""

    class Fake:
        model_config: Any = type("M", (), {"input_frontend": type("F", (), {"embedding_size": 64})})

        def __init__(self, texts: list[list[int]]) -> None:
            self.found = texts

        def texts(self, batch: Batch) -> list[list[int]]:
            return self.found

    def largest(noise: Any, row: int, places: slice) -> float:
        return float(noise[row, places].abs().max())

    packed = Batch(
        {"input_ids": torch.ones(1, 9).long(), "document_ids": torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, -1]])}, {}, 1, 8
    )
    noise: Any = noisy(Fake([[0]]), packed, [(0, 0, 0, 0)], SCALE).noise  # type: ignore[arg-type]
    for places, length in ((slice(0, 1), 1), (slice(1, 8), 7)):
        bound = SCALE / math.sqrt(length * 64)
        assert 0.9 * bound < largest(noise, 0, places) <= bound * (1 + 1e-6)
    assert not noise[0, 8].any()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    choices = Batch({"input_ids": mask[None], "attention_mask": mask[None]}, {}, 2, 6)
    noise = noisy(Fake([[0, 1], [2]]), choices, [(0, 0, 4, 0), (0, 0, 9, 0)], SCALE).noise  # type: ignore[arg-type]
    alone = noisy(Fake([[0]]), Batch({"input_ids": mask[None, 2:]}, {}, 1, 3), [(0, 0, 9, 0)], SCALE).noise  # type: ignore[arg-type]
    assert torch.equal(noise[2], alone[0])  # type: ignore[index]
    assert [int((row != 0).any(-1).sum()) for row in noise] == [2, 1, 3]
