"""Sequence to sequence: labels by length, the decoder's input, languages, and the reference's loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from plainformer.errors import UsageError
from plainformer.families import CONVENTIONS
from plainformer.generation.search import generate
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.loading import load_model, load_tokenizer
from plainformer.train.objectives.base import Dropped
from plainformer.train.objectives.seq2seq import SequenceToSequence
from tests.support import models
from tests.support.close import close
from tests.support.languages import KINDS, language_folders
from tests.support.parity import load_ours
from tests.support.sentencepiece import write_two_sides
from tests.support.tokenizers import byte_level, unigram
from tests.support.training import batch_of, check_batching, examples_of, fresh, small_t5, step, train_config

ROWS = [
    {"source": source, "target": target}
    for source, target in [
        ("hello world", "hello"),
        ("the model", "a model of the world it is"),
        ("a", "train train train"),
        ("naïve café", "x"),
        ("to train a small language model", "small"),
        ("yes, no! really?", "it's"),
        ("word", "word"),
        ("lower caps", "three spaces and more of it"),
    ]
]


def seq2seq(config, tokenizer: Tokenizer, **sections) -> SequenceToSequence:
    return SequenceToSequence(train_config("seq2seq", **sections), config, tokenizer)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory):
    return small_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory):
    """A BART whose pad token is its end token."""
    end = byte_level().eos_id
    ids = dict(
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=end, forced_eos_token_id=None
    )
    config = transformers.BartConfig(
        **models.SEQ2SEQ, **ids, vocab_size=byte_level().vocab_size, max_position_embeddings=64, dropout=0.0
    )
    theirs = models.reference("BartForConditionalGeneration", config)
    return fresh(load_ours(theirs, tmp_path_factory.mktemp("bart"))).eval(), theirs


def test_what_is_read_and_written(t5) -> None:
    tokenizer = unigram()
    objective = seq2seq(t5[0].config, tokenizer, data=dict(prefix="summarize: "))
    batch = batch_of(objective, examples_of(objective, ROWS[:2]))
    assert batch.inputs["input_ids"][0].tolist()[: len(tokenizer.encode("summarize: hello world"))] == (
        tokenizer.encode("summarize: hello world").input_ids
    )
    targets = [tokenizer.encode(row["target"]).input_ids for row in ROWS[:2]]
    assert batch.targets["labels"].tolist() == [*targets[0], *targets[1]]
    assert targets[0][-1] == tokenizer.eos_id
    decoder = batch.inputs["decoder_input_ids"]
    assert decoder[1].tolist() == [0, *targets[1][:-1]]
    assert decoder[0].tolist()[: len(targets[0])] == [0, *targets[0][:-1]] and decoder.min() >= 0
    assert decoder[0, len(targets[0]) + 1 :].eq(tokenizer.pad_id).all()


def test_loss_is_the_references(t5, bart) -> None:
    for (ours, theirs), tokenizer in ((t5, unigram()), (bart, byte_level())):
        objective = seq2seq(ours.config, tokenizer)
        examples = examples_of(objective, ROWS)
        batch = batch_of(objective, examples)
        labels = torch.full_like(batch.inputs["decoder_input_ids"], -100)
        for row, example in zip(labels, examples, strict=True):
            row[: len(example["target_ids"])] = torch.from_numpy(example["target_ids"])
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        expected = theirs(**inputs, labels=labels).loss
        close(objective.loss(ours, batch).total / batch.count, expected, "loss", rel=1e-6)
        alone = [objective.loss(ours, batch_of(objective, [one])).total for one in examples]
        close(objective.loss(ours, batch).per_row, torch.stack(alone), "each row by itself", rel=1e-6)


def test_any_batching_gives_one_gradient(t5, bart) -> None:
    for (ours, _), tokenizer in ((t5, unigram()), (bart, byte_level())):
        objective = seq2seq(ours.config, tokenizer, loss=dict(label_smoothing=0.1))
        check_batching(ours, objective, examples_of(objective, ROWS))


def test_padding_that_is_the_end_token_still_learns_to_stop(bart, tmp_path) -> None:
    model = fresh(load_ours(bart[1], tmp_path))
    objective = seq2seq(model.config, byte_level())
    batch = batch_of(objective, examples_of(objective, ROWS[:2]))
    assert batch.targets["labels"].tolist().count(byte_level().eos_id) == 2
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = [step(model, objective, batch, optimizer) for _ in range(40)]
    assert losses[-1] < 0.3
    found = generate(model.eval(), batch.inputs["input_ids"][:1], max_new_tokens=20)
    assert found.token_ids[0] == tuple(examples_of(objective, ROWS[:1])[0]["target_ids"].tolist())


def test_long_ones(t5) -> None:
    config, tokenizer = t5[0].config, unigram()
    row = {"source": "the model " * 20, "target": "train a model " * 20}
    source, target = (len(tokenizer.encode(row[name], max_length=None)) for name in ("source", "target"))
    cut = seq2seq(config, tokenizer, data=dict(max_length=10, max_target_length=8))
    encoded = cut.encode(row)
    (example,) = encoded.examples
    assert len(example["input_ids"]) == 10 and len(example["target_ids"]) == 8
    assert encoded.cut == source - 10 + target - 8
    assert example["input_ids"][-1] == tokenizer.eos_id
    # A target that is cut does not end there: its end is not learned.
    batch = batch_of(cut, [example])
    assert batch.count == 7 and tokenizer.eos_id not in batch.targets["labels"]
    for name, data in (("max_length", dict(max_length=10)), ("max_target_length", dict(max_target_length=8))):
        with pytest.raises(Dropped, match=f"longer than {name}$"):
            seq2seq(config, tokenizer, data=dict(too_long="drop", **data)).encode(row)
    with pytest.raises(UsageError, match="each window of a source the whole target"):
        seq2seq(config, tokenizer, data=dict(too_long="window"))


def test_more_than_the_decoder_reads_is_refused(bart) -> None:
    with pytest.raises(UsageError, match=r"data\.max_target_length=65 is more than this model's limit of 64"):
        seq2seq(bart[0].config, byte_level(), data=dict(max_target_length=65))


def test_rows_without_either(t5) -> None:
    objective = seq2seq(t5[0].config, unigram())
    for row, why in (({"source": "a"}, "no target"), ({"target": "a", "source": ""}, "no source")):
        with pytest.raises(Dropped, match=why):
            objective.encode(row)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    return language_folders(tmp_path_factory.mktemp("languages"))


@pytest.mark.parametrize("kind", KINDS)
def test_languages_are_marked_as_the_reference_does(kind: str, folders) -> None:
    """Sources, labels, the decoder's input and the loss of multilingual models."""
    tokenizer_class, model_class, (_, source, target) = KINDS[kind]
    model = load_model(folders[kind], backend="plain")
    theirs = getattr(transformers, tokenizer_class).from_pretrained(folders[kind])
    theirs.src_lang, theirs.tgt_lang = source, target
    data = dict(source_language=source, target_language=target)
    objective = seq2seq(model.config, load_tokenizer(folders[kind]), data=data)
    rows = [{"source": "hello world", "target": "the model"}, {"source": "a", "target": "the model of the word"}]
    examples = examples_of(objective, rows)
    for row, example in zip(rows, examples, strict=True):
        expected = theirs(row["source"], text_target=row["target"])
        assert example["input_ids"].tolist() == expected["input_ids"]
        assert example["target_ids"].tolist() == expected["labels"]
    batch = batch_of(objective, examples)
    labels = torch.full_like(batch.inputs["decoder_input_ids"], -100)
    for line, example in zip(labels, examples, strict=True):
        line[: len(example["target_ids"])] = torch.from_numpy(example["target_ids"])
    reference = getattr(transformers, f"{model_class}ForConditionalGeneration").from_pretrained(folders[kind]).eval()
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    close(objective.loss(model, batch).total / batch.count, reference(**inputs, labels=labels).loss, "loss", rel=1e-6)


def test_a_language_must_be_known(t5, folders) -> None:
    with pytest.raises(UsageError, match="no languages"):
        seq2seq(t5[0].config, unigram(), data=dict(target_language="fr"))
    model, tokenizer = load_model(folders["m2m"], backend="plain"), load_tokenizer(folders["m2m"])
    with pytest.raises(UsageError, match=r"data\.target_language='xx' is not a language"):
        seq2seq(model.config, tokenizer, data=dict(target_language="xx"))
    with pytest.raises(UsageError, match="nothing names the one of the targets"):
        seq2seq(model.config, tokenizer)


def test_targets_may_have_their_own_vocabulary(tmp_path) -> None:
    """Marian's two sides: sources by the one, targets by the other."""
    source, target = write_two_sides(tmp_path, separate_vocabs=True)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = Tokenizer.from_folder(tmp_path, {"model_type": "marian"}, CONVENTIONS)
    config = models.make("bart", vocab_size=400, decoder_start_token_id=0, pad_token_id=1).config
    objective = seq2seq(config, tokenizer)
    (example,) = objective.encode({"source": "hello world", "target": "hello world"}).examples
    inverse = {i: piece for piece, i in target.items()}
    assert [inverse[i] for i in example["target_ids"].tolist()][-1] == "</s>"
    assert example["target_ids"].tolist() != example["input_ids"].tolist()
    assert objective.shown(example)[-1][1] == "</s>"
    assert set(source) != set(target)


def test_length_counts_both_sides(t5) -> None:
    objective = seq2seq(t5[0].config, unigram())
    (example,) = objective.encode(ROWS[0]).examples
    assert objective.length(example) == len(example["input_ids"]) + len(example["target_ids"])
    assert batch_of(objective, [example]).tokens == objective.length(example)
    assert np.issubdtype(example["input_ids"].dtype, np.integer)
