"""Where the reference's Trainer is wrong (5.23), by how much, and that a run of ours is right there.

What is right is computed by hand: the reference model's loss of one whole batch, or a sum over its logits. A Trainer that has
been mended fails here: then the case belongs to test_trainer_curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import plainformer as pf
from tests.support import models
from tests.support.learning import LABELS, config_of, learnt, rows_of
from tests.support.runs import WORDS
from tests.support.trainer import IGNORED, Inputs, batches_of, shifted, trained_by_reference
from tests.support.trainer_cases import CASES, Case, bert, labelled, named

PARTS = 4  # micro-batches of two rows each


# ---- accumulation


def _numbers() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [{"text": " ".join(draw.choice(WORDS, 5)), "label": float(draw.normal())} for _ in range(24)]


def _several() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    sets = [[name for name in LABELS if draw.random() < 0.5] for _ in range(24)]
    return [{"text": " ".join(draw.choice(WORDS, 5)), "label": found} for found in sets]


def _classifier(problem: str, names: tuple[str, ...]) -> Case:
    kind = problem.removesuffix("_classification")

    made = bert("BertForSequenceClassification", **named(names), problem_type=problem)
    return Case("text-classification", made, labelled, changes={"problem": kind})


ACCUMULATED = {
    "regression": (_classifier("regression", ("LABEL_0",)), _numbers(), PARTS),
    "multi-label": (_classifier("multi_label_classification", LABELS), _several(), PARTS),
    **{name: (CASES[name], None, PARTS) for name in ("text-classification", "masked-lm", "seq2seq", "ctc")},
    **{name: (CASES[name], None, 1) for name in ("image-classification", "question-answering", "instruction")},
}


@pytest.mark.parametrize("name", ACCUMULATED)
def test_accumulation_multiplies_their_gradient(name: str, tmp_path: Path) -> None:
    """A model whose forward takes `**kwargs` is not divided by the micro-batches, whether or not its loss heeds them.

    Theirs is right only where the loss does (Llama, ViT), and where labels have another name (the spans of question answering).
    """
    case, rows, times = ACCUMULATED[name]
    reference = case.model(tmp_path / "model", 0.0)
    data = rows_of(tmp_path, case.objective, even=True, rows=rows)
    model = {"ref": str(tmp_path / "model"), **case.changes}
    whole = {"size": 2 * PARTS, "by_length": False}
    config = config_of(tmp_path, case.objective, data, model=model, batches=whole, length={"steps": 1})
    ((batch,),) = batches_of(config)
    right = _norm(reference, case.inputs(batch))
    parts = config_of(tmp_path, case.objective, data, model=model, batches={**whole, "micro": 2}, length={"steps": 1})
    (line,) = learnt(parts)
    inputs = case.inputs(batch)
    pieces = zip(*(x.chunk(PARTS) for x in inputs.values()), strict=True)
    trainer = trained_by_reference(
        reference,
        [dict(zip(inputs, piece, strict=True)) for piece in pieces],
        config,
        tmp_path,
        max_steps=1,
        gradient_accumulation_steps=PARTS,
    )
    assert line["gradient_norm"] == pytest.approx(right, rel=1e-5)
    assert trainer.norms == [pytest.approx(times * right, rel=1e-4)]


def _norm(model: Any, inputs: Inputs) -> float:
    """The norm of the gradient of a batch's mean loss, computed in one go; the model is left without gradients."""
    model(**inputs).loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return float(norm)


# ---- what a token is worth


def _padded(texts: Sequence[Tensor]) -> Inputs:
    rows = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    values = {"input_ids": texts, "attention_mask": [torch.ones_like(text) for text in texts], "labels": texts}
    return {
        name: torch.nn.utils.rnn.pad_sequence(list(values[name]), batch_first=True, padding_value=filler)
        for name, filler in rows.items()
    }


def _token_mean(model: Any, texts: Sequence[Tensor]) -> float:
    """The mean over all tokens but each text's first, text by text."""
    with torch.no_grad():
        losses = [F.cross_entropy(model(text[None]).logits[0, :-1], text[1:], reduction="none") for text in texts]
    return float(torch.cat(losses).double().mean())


def test_their_evaluation_depends_on_the_size_of_its_batches(tmp_path: Path) -> None:
    """Theirs is a mean over rows of means over a batch's tokens: tokens of short texts count for more."""
    case = CASES["causal-lm"]
    reference = case.model(tmp_path / "model", 0.0)
    draw = np.random.default_rng(1)
    rows = [{"text": "".join(draw.choice(list("abcdefgh"), n))} for n in (2, 3, 40, 4, 2, 30, 3)]
    data = rows_of(tmp_path, "causal-lm", rows=rows)
    tokenizer = pf.load_tokenizer(str(tmp_path / "model"))
    texts = [torch.tensor([*tokenizer.encode(row["text"]).input_ids, tokenizer.eos_id]) for row in rows]
    right, ours, theirs = _token_mean(reference, texts), {}, {}
    for size in (1, 2, 4, 7):
        config = config_of(
            tmp_path / str(size),
            "causal-lm",
            data,
            model={"ref": str(tmp_path / "model")},
            batches={"packed": False},
            length={"steps": 1},
            evaluate={"batch_size": size},
            data={"validation": data, "duplicates": "allow"},
        )
        ours[size] = learnt(config)[0]["validation"]["loss"]  # before the first step
        theirs[size] = _evaluated(reference, texts, size, tmp_path)
    assert list(ours.values()) == pytest.approx([right] * 4, rel=1e-6)
    for size, found in theirs.items():
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        by_rows = sum(len(batch) * _token_mean(reference, batch) for batch in batches) / len(texts)
        assert found == pytest.approx(by_rows, rel=1e-5)
    assert theirs[7] == pytest.approx(right, rel=1e-5)  # all in one batch
    assert theirs[1] / right > 1.005 and theirs[2] / right > 1.02


def _evaluated(model: Any, texts: Sequence[Tensor], size: int, folder: Path) -> float:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "reference"),
        per_device_eval_batch_size=size,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    dataset: Any = [{"text": text} for text in texts]
    trainer = transformers.Trainer(model, arguments, data_collator=lambda rows: _padded([row["text"] for row in rows]))
    return float(trainer.evaluate(dataset)["eval_loss"])


def test_they_count_the_first_token_of_gpt2(tmp_path: Path) -> None:
    """It is never predicted; their loss and gradient are those of T - 1 tokens divided by T."""
    folder = tmp_path / "model"
    reference = models.gpt2(folder, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    data = rows_of(tmp_path, "causal-lm", even=True)
    config = config_of(
        tmp_path, "causal-lm", data, model={"ref": str(folder)}, batches={"packed": False}, length={"steps": 1}
    )
    ((batch,),) = batches_of(config)
    ids = batch.inputs["input_ids"]
    length = ids.size(1)
    assert "attention_mask" not in batch.inputs and batch.count == len(ids) * (length - 1)
    right = _token_mean(reference, list(ids))
    (line,) = learnt(config)
    assert line["loss"] == pytest.approx(right, rel=1e-6)
    # The collator of causal models labels every token, the first too.
    trainer = trained_by_reference(reference, [{"input_ids": ids, "labels": ids}], config, tmp_path)
    assert trainer.losses == [pytest.approx(right * (length - 1) / length, rel=1e-5)]
    assert shifted(batch)["labels"][:, 1:].equal(ids[:, 1:])


# ---- what is not there


def test_their_spans_may_be_in_the_padding(tmp_path: Path) -> None:
    """Their softmax over positions takes part of the probability for padding, ours does not: a loss has no batch."""
    from plainformer.train.objectives import objective_class
    from tests.support.training import batch_of, examples_of, train_config

    reference = models.bert(tmp_path, "BertForQuestionAnswering")
    kind = objective_class("question-answering")
    model = pf.load_model(str(tmp_path), head=kind.head, purpose="train").eval()
    objective = kind(train_config(kind.name), model.config, pf.load_tokenizer(str(tmp_path)))
    answer = {"text": ["cat"], "answer_start": [4]}
    rows = [{"question": "who", "context": "the cat sat" + more, "answers": answer} for more in ("", " on" * 20)]
    short, long = examples_of(objective, rows)

    def losses(*examples: Any) -> tuple[float, float]:
        batch = batch_of(objective, list(examples))
        first, last = batch.targets["spans"].unbind(1)
        with torch.no_grad():
            scores = reference(**batch.inputs)
        pairs = ((scores.start_logits, first), (scores.end_logits, last))
        theirs = sum(F.cross_entropy(logits[:1], place[:1]) for logits, place in pairs) / 2
        return float(objective.loss(model, batch).per_row[0]), float(theirs)

    (ours, right), (padded, theirs) = losses(short), losses(short, long)
    assert ours == pytest.approx(right, rel=1e-5) and padded == pytest.approx(right, rel=1e-5)
    assert theirs > right + 0.1
