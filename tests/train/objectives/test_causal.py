"""Causal language modelling: which tokens are labels, and the reference's loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from plainformer.config.training import OBJECTIVES
from plainformer.errors import CheckpointError, UsageError
from plainformer.generation.search import generate
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.train.objectives import objective_class
from plainformer.train.objectives.base import Dropped
from plainformer.train.objectives.causal import CausalLanguageModel
from plainformer.train.objectives.collate import label_targets, row_sums
from tests.support import models
from tests.support.close import close
from tests.support.parity import load_ours
from tests.support.tokenizers import byte_level, sentencepiece
from tests.support.training import batch_of, check_batching, examples_of, fresh, step, train_config

TEXTS = [
    "hello world",
    "the model",
    "a",
    "naïve café",
    "привет мир hello",
    "x",
    "to train a small language model",
    "end.",
]
ROWS = [{"text": text} for text in TEXTS]


def causal(model, tokenizer: Tokenizer, **sections) -> CausalLanguageModel:
    return CausalLanguageModel(train_config("causal-lm", **sections), model.config, tokenizer)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory):
    """A Llama of ours and the reference's, with the small SentencePiece vocabulary."""
    sizes = dict(models.TINY, num_key_value_heads=2, vocab_size=sentencepiece().vocab_size, max_position_embeddings=64)
    theirs = models.reference("LlamaForCausalLM", transformers.LlamaConfig(**sizes))
    return fresh(load_ours(theirs, tmp_path_factory.mktemp("llama"))), theirs


def test_the_table_names_it() -> None:
    assert objective_class("causal-lm") is CausalLanguageModel
    assert set(OBJECTIVES) >= {"causal-lm", "masked-lm"}


def test_beginning_once_and_end_always(llama) -> None:
    tokenizer = sentencepiece()
    objective = causal(llama[0], tokenizer)
    (example,) = objective.encode({"text": "hello"}).examples
    ids = example["input_ids"].tolist()
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    assert tokenizer.bos_id not in ids[1:] and tokenizer.eos_id not in ids[:-1]
    (again,) = objective.encode({"text": "<s>hello</s>"}).examples
    assert again["input_ids"].tolist().count(tokenizer.bos_id) == 1
    assert again["input_ids"].tolist().count(tokenizer.eos_id) == 1
    plain = causal(models.make("gpt2", vocab_size=700), byte_level())
    assert plain.encode({"text": "hello"}).examples[0]["input_ids"][-1] == byte_level().eos_id


def test_what_is_not_text(llama) -> None:
    objective = causal(llama[0], sentencepiece())
    for row in ({"text": ""}, {"text": None}, {}):
        with pytest.raises(Dropped, match="no text"):
            objective.encode(row)
    with pytest.raises(UsageError, match="'text' holds"):
        objective.encode({"text": 3})


def test_a_tokenizer_without_an_end_is_refused() -> None:
    nameless = Tokenizer(byte_level().backend)
    config = models.make("llama", eos_token_id=None).config
    with pytest.raises(CheckpointError, match="never stops"):
        CausalLanguageModel(train_config("causal-lm"), config, nameless)


@pytest.mark.parametrize("stride", [0, 3])
def test_windows_label_each_token_once(llama, stride: int) -> None:
    data = dict(max_length=8, too_long="window", stride=stride)
    objective = causal(llama[0], sentencepiece(), batches=dict(packed=False), data=data)
    text = " ".join(TEXTS)
    whole = causal(llama[0], sentencepiece()).encode({"text": text}).examples[0]["input_ids"]
    encoded = objective.encode({"text": text})
    assert encoded.cut == 0 and max(len(one["input_ids"]) for one in encoded.examples) <= 8
    batch = batch_of(objective, encoded.examples)
    assert batch.targets["labels"].tolist() == whole[1:].tolist()


def test_cut_and_drop_are_counted(llama) -> None:
    packed = causal(llama[0], sentencepiece(), data=dict(max_length=5))
    size = len(packed.encode(ROWS[6]).examples[0]["input_ids"])
    assert size > 5 and packed.encode(ROWS[6]).cut == 0  # the plan cuts
    cut = causal(llama[0], sentencepiece(), batches=dict(packed=False), data=dict(max_length=5, too_long="cut")).encode(
        ROWS[6]
    )
    assert len(cut.examples[0]["input_ids"]) == 5 and cut.cut == size - 5
    drop = causal(llama[0], sentencepiece(), batches=dict(packed=False), data=dict(max_length=5, too_long="drop"))
    with pytest.raises(Dropped, match="longer than max_length"):
        drop.encode(ROWS[6])


def test_more_than_the_model_reads_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.max_length=4000 is more than this model's limit"):
        causal(models.make("gpt2"), byte_level(), data=dict(max_length=4000))


def test_pieces_label_each_token_once(llama) -> None:
    objective = causal(llama[0], sentencepiece())
    (example,) = objective.encode(ROWS[4]).examples
    ids = example["input_ids"]
    pieces = [objective.part(example, 0, 4), objective.part(example, 4, 7), objective.part(example, 7, None)]
    batch = objective.collate([[piece] for piece in pieces], [np.random.default_rng(0)] * 3)
    assert batch.targets["labels"].tolist() == ids[1:].tolist() and batch.count == len(ids) - 1
    assert batch.tokens == len(ids)


def test_packed_rows_say_which_document_a_token_is_of(llama) -> None:
    objective = causal(llama[0], sentencepiece())
    first, second, third = examples_of(objective, ROWS[:3])
    batch = objective.collate([[first, second], [third]], [np.random.default_rng(0)] * 2)
    documents = batch.inputs["document_ids"].tolist()
    sizes = [len(one["input_ids"]) for one in (first, second, third)]
    assert documents[0] == [0] * sizes[0] + [1] * sizes[1]
    assert documents[1] == [0] * sizes[2] + [-1] * (sizes[0] + sizes[1] - sizes[2])
    # No label leads from one document into the next.
    expected = [one["input_ids"][1:].tolist() for one in (first, second, third)]
    assert batch.targets["labels"].tolist() == [token for one in expected for token in one]
    assert batch.targets["per_row"].tolist() == [sizes[0] + sizes[1] - 2, sizes[2] - 1]


def test_packed_texts_are_scored_as_if_alone(llama) -> None:
    ours, theirs = llama
    objective = causal(ours, sentencepiece())
    examples = examples_of(objective, ROWS)
    with torch.no_grad():
        ids = [torch.from_numpy(one["input_ids"])[None] for one in examples]
        sums = [(one.size(1) - 1) * theirs(input_ids=one, labels=one).loss for one in ids]
    packed = objective.collate([examples[:3], examples[3:7], examples[7:]], [np.random.default_rng(0)] * 3)
    expected = torch.stack([sum(sums[:3]), sum(sums[3:7]), sum(sums[7:])])
    close(objective.loss(ours, packed).per_row, expected, "rows", rel=1e-6)
    alone = objective.statistics(ours, batch_of(objective, examples))
    close(objective.statistics(ours, packed).sum(0), alone.sum(0), "evaluation", rel=1e-6)


def test_loss_is_the_references(llama) -> None:
    ours, theirs = llama
    objective = causal(ours, sentencepiece())
    rows = [example["input_ids"][:4] for example in examples_of(objective, ROWS) if len(example["input_ids"]) >= 4]
    ids = torch.from_numpy(np.stack(rows))
    examples = [{"input_ids": row, "next": row[:0], "seen": np.zeros(1, int)} for row in rows]
    batch = batch_of(objective, examples)
    mine = objective.loss(ours, batch).total / batch.count
    close(mine, theirs(input_ids=ids, labels=ids).loss, "loss", rel=1e-6)


def test_a_padded_batch_is_the_mean_over_real_tokens(llama) -> None:
    """The reference counts each text as its own here: with labels of its real tokens alone."""
    ours, theirs = llama
    objective = causal(ours, sentencepiece())
    examples = examples_of(objective, ROWS)
    rows = [torch.from_numpy(one["input_ids"])[None] for one in examples]
    with torch.no_grad():
        sums = [(ids.size(1) - 1) * float(theirs(input_ids=ids, labels=ids).loss) for ids in rows]
    batch = batch_of(objective, examples)
    loss = objective.loss(ours, batch)
    close(loss.total / batch.count, sum(sums) / batch.count, "loss", rel=1e-6)
    close(loss.per_row, sums, "rows", rel=1e-6)
    measured = objective.measured(objective.statistics(ours, batch).sum(0))
    close(measured["loss"], sum(sums) / batch.count, "evaluation", rel=1e-6)
    close(measured["perplexity"], np.exp(sum(sums) / batch.count), "perplexity", rel=1e-5)


def test_any_batching_gives_one_gradient(llama) -> None:
    objective = causal(llama[0], sentencepiece(), loss=dict(label_smoothing=0.1))
    check_batching(llama[0], objective, examples_of(objective, ROWS))


def test_smoothing_is_torchs_and_evaluation_has_none(llama) -> None:
    model = llama[0].eval()
    smooth = causal(model, sentencepiece(), loss=dict(label_smoothing=0.2))
    examples = examples_of(smooth, ROWS)
    batch = batch_of(smooth, examples)
    ids, labels = batch.inputs["input_ids"], batch.targets["labels"]
    logits = model(ids, batch.inputs["attention_mask"]).logits.flatten(0, 1)[batch.targets["places"]]
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2)
    close(smooth.loss(model, batch).total, expected, "smoothed", rel=1e-6)
    plain = causal(model, sentencepiece())
    close(smooth.statistics(model, batch), plain.statistics(model, batch), "evaluation")


def test_padding_that_is_the_end_token_still_learns_to_stop() -> None:
    """GPT-2's tokenizer has no pad token, and its end token serves as one: the end is a label all the same."""
    tokenizer = byte_level()
    model = fresh(models.make("gpt2", vocab_size=tokenizer.vocab_size, std=0.05))
    objective = causal(model, tokenizer)
    assert objective.filler == tokenizer.eos_id
    batch = batch_of(objective, examples_of(objective, [{"text": "ab"}, {"text": "cd cd cd cd"}]))
    assert batch.targets["labels"].tolist().count(tokenizer.eos_id) == 2
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = [step(model, objective, batch, optimizer) for _ in range(50)]
    assert losses[-1] < 0.5 * losses[0]
    start = torch.tensor([tokenizer.encode("ab").input_ids])
    (found,) = generate(model.eval(), start, max_new_tokens=30, eos_ids=[tokenizer.eos_id]).token_ids
    assert found[-1] == tokenizer.eos_id and len(found) < 30


def test_a_pad_token_that_the_model_lacks_is_never_read(llama) -> None:
    """Llama's models have none, and the one that people add to the tokenizer has no row of the embeddings."""
    made = byte_level.__wrapped__()
    size = made.vocab_size
    made.backend.add_special_tokens(["<pad>"])
    tokenizer = Tokenizer(made.backend, special_tokens={**made.special_tokens, "pad_token": "<pad>"})
    objective = causal(models.make("llama", vocab_size=size), tokenizer)
    batch = batch_of(objective, examples_of(objective, ROWS[:3]))
    assert tokenizer.pad_id == size and int(batch.inputs["input_ids"].max()) < size
    with pytest.raises(CheckpointError, match=f"'<pad>' has the id {size}, and the model {size} tokens"):
        objective.encode({"text": "a <pad> b"})


def test_shown_says_what_follows(llama) -> None:
    objective = causal(llama[0], sentencepiece())
    shown = objective.shown(objective.encode({"text": "hello"}).examples[0])
    assert shown[0][0] == "<s>" and shown[-1] == ("</s>", "")
    assert [label for _, label in shown[:-1]] == [token for token, _ in shown[1:]]


def test_rows_without_labels_sum_to_nothing() -> None:
    targets = label_targets([np.array([-1, -1]), np.array([4, -1, 5]), np.array([-1])])
    assert targets["places"].tolist() == [3, 5] and targets["per_row"].tolist() == [0, 2, 0]
    assert row_sums(torch.tensor([1.0, 2.0]), targets["per_row"]).tolist() == [0, 3, 0]
    assert row_sums(torch.tensor([]), torch.tensor([0, 0])).tolist() == [0, 0]
