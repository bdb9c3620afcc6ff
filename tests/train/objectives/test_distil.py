"""Distillation: the formula written out, and teachers that cannot teach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from plainformer.errors import UsageError
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.loading import load_model, load_tokenizer
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.train.objectives.causal import CausalLanguageModel
from plainformer.train.objectives.classify import TextClassification
from plainformer.train.objectives.distil import Distilled, check_teacher
from plainformer.train.objectives.masked import MaskedLanguageModel
from tests.support import models
from tests.support.close import close
from tests.support.sentencepiece import corpus
from tests.support.tokenizers import byte_level, sentencepiece
from tests.support.training import batch_of, check_batching, examples_of, fresh, train_config

ROWS = [{"text": text} for text in corpus()[:8]]


def distilled(weight: float = 0.3, temperature: float = 2.0, **loss) -> tuple[Distilled, torch.nn.Module]:
    size = byte_level().vocab_size
    student = fresh(models.make("llama", vocab_size=size, std=0.1))
    teacher = models.make("llama", seed=1, vocab_size=size, hidden_size=16, num_attention_heads=2, std=0.1)
    section = dict(teacher="teacher", teacher_weight=weight, temperature=temperature, **loss)
    inner = CausalLanguageModel(train_config("causal-lm", loss=section), student.config, byte_level())
    return Distilled(inner, teacher), student


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("chunk", [None, 7])
def test_the_formula(weight: float, chunk: int | None) -> None:
    objective, student = distilled(weight, 3.0, chunk=chunk)
    batch = batch_of(objective, examples_of(objective, ROWS))
    chosen, labels = batch.targets["places"], batch.targets["labels"]
    p, q = (model(**batch.inputs).logits.flatten(0, 1)[chosen] for model in (objective.teacher, student))
    teacher = (p / 3).softmax(-1)
    far = (teacher * (teacher.log() - (q / 3).log_softmax(-1))).sum(-1) * 9
    expected = weight * far.sum() + (1 - weight) * F.cross_entropy(q, labels, reduction="sum")
    loss = objective.loss(student, batch)
    close(loss.total, expected, "loss", rel=1e-5)
    close(loss.per_row.sum(), expected, "rows", rel=1e-5)
    names, parameters = zip(*student.named_parameters(), strict=True)
    found = torch.autograd.grad(loss.total, parameters)
    for name, mine, theirs in zip(names, found, torch.autograd.grad(expected, parameters), strict=True):
        assert (mine - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max()), name
    assert all(not p.requires_grad for p in objective.teacher.parameters())


def test_classes_and_words_agree() -> None:
    objective, student = distilled()
    batch = batch_of(objective, examples_of(objective, ROWS))
    for one, other in zip(objective._words(student, batch), objective._classes(student, batch), strict=True):
        close(one, other)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    objective, student = distilled(weight=1.0)
    same = Distilled(objective.inner, models.make("llama", vocab_size=byte_level().vocab_size, std=0.1))
    batch = batch_of(same, examples_of(same, ROWS))
    assert abs(same.loss(student, batch).total.item()) < 1e-4


def test_any_batching_gives_one_gradient() -> None:
    objective, student = distilled()
    check_batching(student, objective, examples_of(objective, ROWS))


def test_evaluation_and_the_rest_are_the_objectives() -> None:
    objective, student = distilled()
    batch = batch_of(objective, examples_of(objective, ROWS))
    close(objective.statistics(student, batch), objective.inner.statistics(student, batch))
    assert objective.packs and objective.name == "causal-lm" and objective.metrics == objective.inner.metrics
    (example,) = objective.encode(ROWS[0]).examples
    assert objective.length(example) == len(example["input_ids"])
    assert objective.shown(example) == objective.inner.shown(example)


def test_teachers_that_cannot_teach() -> None:
    objective, student = distilled()
    mine, theirs = student.config, objective.teacher.config
    check_teacher(objective.inner, mine, theirs, byte_level())
    with pytest.raises(UsageError, match="has another vocabulary: token "):
        check_teacher(objective.inner, mine, theirs, sentencepiece())
    with pytest.raises(UsageError, match="has a seq2seq_lm head, and the student a causal_lm head"):
        check_teacher(objective.inner, mine, models.make("bart").config, byte_level())
    with pytest.raises(UsageError, match="reads 256 tokens, and the student 512"):
        config = train_config("causal-lm", loss=dict(teacher="t"), data=dict(max_length=512))
        check_teacher(CausalLanguageModel(config, mine, byte_level()), mine, models.make("gpt2").config, byte_level())
    made = byte_level.__wrapped__()
    made.backend.add_special_tokens(["<mask>"])
    masked = Tokenizer(made.backend, special_tokens={"mask_token": "<mask>"})
    wide = models.make("llama", vocab_size=600).config
    inner = MaskedLanguageModel(train_config("masked-lm", loss=dict(teacher="t")), wide, masked)
    inner.distils = False
    with pytest.raises(UsageError, match="'masked-lm' has no scores"):
        Distilled(inner, objective.teacher)


def test_classes_of_a_text(tmp_path) -> None:
    """A classifier learns from a teacher, too; only the student changes."""
    models.save("text-classification", tmp_path / "student")
    student = load_model(tmp_path / "student", purpose="train")
    teacher = initialise(Transformer(student.config), seed=5, std=0.5)
    section = dict(teacher="teacher", teacher_weight=0.4, temperature=1.5)
    tokenizer = load_tokenizer(tmp_path / "student")
    inner = TextClassification(train_config("text-classification", loss=section), student.config, tokenizer)
    objective = Distilled(inner, teacher)
    labels = student.config.labels
    rows = [{"text": "the cat " * (n + 1), "label": labels[n % len(labels)]} for n in range(8)]
    examples = examples_of(objective, rows)
    batch = batch_of(objective, examples)
    student.eval()
    p, q = (model(**batch.inputs).logits for model in (teacher, student))
    far = F.kl_div((q / 1.5).log_softmax(-1), (p / 1.5).softmax(-1), reduction="none").sum(-1) * 1.5**2
    expected = 0.4 * far + 0.6 * F.cross_entropy(q, batch.targets["labels"], reduction="none")
    close(objective.loss(student, batch).per_row, expected, "rows", rel=1e-5)
    check_batching(student, objective, examples)
    other = replace(student.config, labels=("a", "b", "c"))
    with pytest.raises(UsageError, match="tells the labels a, b, c apart, and the student negative, neutral, positive"):
        check_teacher(inner, student.config, other, tokenizer)


def test_padded_vocabularies_are_compared_where_both_have_tokens() -> None:
    objective, student = distilled(weight=1.0)
    wide = models.make("llama", seed=1, vocab_size=byte_level().vocab_size + 13, std=0.1)
    other = Distilled(objective.inner, wide)
    batch = batch_of(other, examples_of(other, ROWS))
    assert torch.isfinite(other.loss(student, batch).total)
    assert replace(wide.config).head.out_size == student.config.head.out_size + 13
