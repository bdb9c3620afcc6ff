"""Zero-shot classification against the reference's pipeline, ranking against its model's logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer
from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.tasks import tasks_of
from tests.support import models as make
from tests.support.close import close

TEXTS = ["the cat sat on the mat.", "paris", "is the dog good, or bad? who is in france!"]
LABELS = ["dog", "paris, france", "good", "the mat"]
ORDERS = {
    "usual": ("CONTRADICTION", "neutral", "entailment"),
    "reversed": ("Entailment", "neutral", "contradiction"),
    "middle": ("contradiction", "entailment", "neutral"),
    "two": ("entailment", "not_entailment"),
    "two_reversed": ("not_entailment", "entailment"),
}


def entailment_model(folder: Path, labels: tuple[str, ...], **changes: Any) -> Any:
    names = dict(enumerate(labels))
    return make.bert(
        folder,
        "BertForSequenceClassification",
        id2label=names,
        label2id={label: i for i, label in names.items()},
        **changes,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pairs")
    for name, labels in ORDERS.items():
        entailment_model(root / name, labels)
    make.bert(root / "ranker", "BertForSequenceClassification", num_labels=1)
    make.bert(root / "base", "BertModel")
    return {name: root / name for name in (*ORDERS, "ranker", "base")}


def zero_shot(folder: Path) -> Any:
    return make.load(folder, task="zero-shot-classification")


# ---- zero-shot classification -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_zero_shot_equals_the_reference(folders: dict[str, Path], order: str) -> None:
    task = zero_shot(folders[order])
    theirs = transformers.pipeline("zero-shot-classification", model=str(folders[order]), device="cpu")
    for labels in (LABELS, LABELS[:1]):
        for options in ({}, {"multi_label": True}, {"template": "{} is in it"}):
            renamed = {{"template": "hypothesis_template"}.get(name, name): v for name, v in options.items()}
            for text, result in zip(TEXTS, task(TEXTS, labels=labels, **options), strict=True):
                expected = theirs(text, labels, **renamed)
                assert [s.label for s in result.scores] == expected["labels"]
                close([s.score for s in result.scores], expected["scores"])
                assert (result.label, result.score) == (result.scores[0].label, result.scores[0].score)
                close([s.score for s in task(text, labels=labels, **options).scores], expected["scores"])
    single = task(TEXTS[0], labels=LABELS)
    close(sum(s.score for s in single.scores), 1)
    assert list(json.loads(json.dumps(single.to_dict()))) == ["label", "score", "scores"]


@torch.no_grad()
def test_a_named_contradiction_counts_wherever_it_stands(tmp_path: Path) -> None:
    """The reference would take the label in place 0, which is "neutral" here."""
    model = entailment_model(tmp_path, ("neutral", "contradiction", "entailment")).eval()
    tokenizer = make.reference_tokenizer(tmp_path)
    logits = model(**tokenizer("paris", "This example is good.", return_tensors="pt")).logits[0]
    expected = logits[[1, 2]].softmax(-1)[1]
    close(zero_shot(tmp_path)("paris", labels=["good"]).score, expected)


def test_the_entailment_label_may_be_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """Many checkpoints have LABEL_0 to LABEL_2; where entailment comes first, contradiction is the last."""
    for labels, name, like in (
        (("LABEL_0", "LABEL_1", "LABEL_2"), "LABEL_2", ("contradiction", "neutral", "entailment")),
        (("yes", "perhaps", "no"), "yes", ("entailment", "neutral", "no")),
    ):
        entailment_model(tmp_path, labels)
        task = zero_shot(tmp_path)
        with pytest.raises(UsageError, match=f"begins with 'entail': it has {', '.join(labels)}") as caught:
            task(TEXTS[0], labels=LABELS)
        assert "entailment_label=..." in caught.value.fix
        with pytest.raises(UsageError, match="entailment_label='LABEL' is not a label of this model"):
            task(TEXTS[0], labels=LABELS, entailment_label="LABEL")
        entailment_model(tmp_path, like)
        theirs = transformers.pipeline("zero-shot-classification", model=str(tmp_path), device="cpu")
        for multi in (False, True):
            found = task(TEXTS[0], labels=LABELS, entailment_label=name, multi_label=multi)
            expected = theirs(TEXTS[0], LABELS, multi_label=multi)
            assert [one.label for one in found.scores] == expected["labels"]
            close([one.score for one in found.scores], expected["scores"])
    other = zero_shot(folders["usual"])
    assert other(TEXTS[0], labels=LABELS, entailment_label="neutral") != other(TEXTS[0], labels=LABELS)


def test_zero_shot_is_offered_where_labels_may_be_of_entailment(tiny: Callable[[str], Path]) -> None:
    """To a user who asks a classifier for something else; three labels without names may be, three moods are not."""

    def offered(*labels: str) -> bool:
        return "zero-shot-classification" in tasks_of(replace(config, labels=labels))

    config = plainformer.load(str(tiny("text-classification"))).config
    assert offered("contradiction", "neutral", "entailment") and offered("LABEL_0", "LABEL_1", "LABEL_2")
    assert offered("entailment", "not_entailment")
    assert not offered("negative", "neutral", "positive") and not offered("LABEL_0", "LABEL_1")


def test_zero_shot_truncates_the_premise_alone(folders: dict[str, Path]) -> None:
    task = zero_shot(folders["usual"])
    theirs = transformers.pipeline("zero-shot-classification", model=str(folders["usual"]), device="cpu")
    theirs.tokenizer.model_max_length = 40
    long = "the cat sat on the mat. " * 12
    with pytest.raises(InputError, match=r"limit is 40\n  → pass truncate=True"):
        task(long, labels=LABELS)
    result, expected = task(long, labels=LABELS, truncate=True), theirs(long, LABELS)
    close([s.score for s in result.scores], expected["scores"])
    for row in task.encode([long], task.Options(labels=LABELS, truncate=True)).encodings:
        assert len(row) == 40 and row.sequence_ids.count(1) < 20
    with pytest.raises(InputError, match="may not be cut takes"):
        task(long, labels=["dog " * 40], truncate=True)
    short = task(TEXTS[0], labels=LABELS)
    assert task(TEXTS[0], labels=LABELS, truncate=True) == short


@pytest.mark.parametrize("change", ["attend-to-padding", "mask-head=0.1"])
def test_what_if_answers_for_pairs(folders: dict[str, Path], change: str) -> None:
    from plainformer.explanation import Request, what_if

    for task, request in (
        (zero_shot(folders["usual"]), Request(TEXTS[0], options={"labels": LABELS})),
        (make.load(folders["ranker"], task="text-ranking"), Request((QUERY, DOCUMENTS))),
    ):
        found = what_if(task, request, change)
        assert found.to_dict()["change"] == change
        # Padding is masked, whether it is attended to is seen; so is a head that is masked out.
        assert found.logit_change > 1e-5 and found.baseline.answer != found.changed.answer


def test_zero_shot_inputs(folders: dict[str, Path]) -> None:
    task = zero_shot(folders["usual"])
    assert [r.label for r in task(TEXTS, labels=LABELS)] == [r.label for r in task(iter(TEXTS), labels=LABELS)]
    assert task([], labels=LABELS) == []
    assert task(TEXTS[1], labels=("dog", "good")) == task(TEXTS[1], labels=["dog", "good"])
    for labels, message in (
        (None, "is None, not a list"),
        ("dog, good", "is a str, not a list"),
        ({"dog"}, "is a set, not a list"),
        ([], "empty list"),
        (["dog", 3], r"labels\[1\] is 3"),
        (["dog", " "], r"labels\[1\] is ' '"),
        (["dog", "good", "dog"], "'dog' twice"),
    ):
        with pytest.raises(UsageError, match=message):
            task(TEXTS[0], labels=labels)
    with pytest.raises(UsageError, match=r"zero-shot-classification needs labels\n  → give labels=..."):
        task(TEXTS[0])
    for template in ("no place", None, 3):
        with pytest.raises(UsageError, match="has no place for a label"):
            task(TEXTS[0], labels=LABELS, template=template)
    # The label replaces each {} of the template, and braces in a label are its own.
    rows = make.encoded(task, [TEXTS[0]], labels=["{}", "{0}"], template="{{}} of {}").encodings
    wanted = [task.tokenizer.encode(TEXTS[0], f"{{{label}}} of {label}").input_ids for label in ("{}", "{0}")]
    assert [row.input_ids for row in rows] == wanted
    with pytest.raises(UsageError, match="neither True nor False"):
        task(TEXTS[0], labels=LABELS, multi_label=1)
    for wrong in ("", "  \n", 3, None, ["a", None], ("a", ["b"]), {"text": "a"}, b"a"):
        with pytest.raises(InputError, match=r"empty|is not an input for zero-shot"):
            list(task(wrong, labels=LABELS))


def test_what_cannot_do_zero_shot(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no entailment label: it has LABEL_0"):
        zero_shot(folders["ranker"])
    with pytest.raises(UsageError, match="does 'feature-extraction'"):
        zero_shot(folders["base"])
    make.bert(tmp_path, "BertForMaskedLM")
    with pytest.raises(UsageError, match="does 'fill-mask'"):
        zero_shot(tmp_path)
    assert make.load(folders["usual"]).name == "text-classification"
    assert make.load(folders["usual"], task="zero-shot").name == "zero-shot-classification"


def test_saving_zero_shot(folders: dict[str, Path], tmp_path: Path) -> None:
    task = zero_shot(folders["middle"])
    plainformer.save(task, tmp_path)
    assert zero_shot(tmp_path)(TEXTS[0], labels=LABELS) == task(TEXTS[0], labels=LABELS)


# ---- ranking ------------------------------------------------------------------------------------------------------

QUERY = "where is paris?"
DOCUMENTS = ["the cat sat on the mat.", "paris is in france", "good", "", "the dog is bad, the cat is good"]


@torch.no_grad()
def logits_of(folder: Path, query: str, documents: list[str]) -> torch.Tensor:
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = make.reference_tokenizer(folder)
    # In a list, for the tokenizer takes a single empty pair for none.
    rows = [tokenizer([query], [document], return_tensors="pt") for document in documents]
    return torch.stack([model(**row).logits[0, 0] for row in rows])


def test_ranking_by_the_references_logits(folders: dict[str, Path]) -> None:
    task = make.load(folders["ranker"], task="text-ranking")
    logits = logits_of(folders["ranker"], QUERY, DOCUMENTS)
    order = logits.argsort(descending=True).tolist()
    for kind, expected in (("logits", logits), ("probabilities", logits.sigmoid())):
        ranking = task((QUERY, DOCUMENTS), scores=kind)
        assert [d.index for d in ranking.documents] == order
        assert [d.text for d in ranking.documents] == [DOCUMENTS[i] for i in order]
        close([d.score for d in ranking.documents], expected[order])
    assert task((QUERY, DOCUMENTS)) == task({"query": QUERY, "documents": DOCUMENTS}) == ranking
    assert ranking.query == QUERY and json.loads(json.dumps(ranking.to_dict()))["documents"][0]["index"] == order[0]
    assert [d.index for d in task((QUERY, DOCUMENTS), top_k=2).documents] == order[:2]
    assert len(task((QUERY, DOCUMENTS), top_k=99).documents) == len(DOCUMENTS)


def test_ranking_many_queries(folders: dict[str, Path]) -> None:
    task = make.load(folders["ranker"], task="reranking")
    assert task.name == "text-ranking"
    items = [(TEXTS[i % 3], DOCUMENTS[: 1 + i % 5] * (1 + i % 4)) for i in range(12)]
    for item, ranking in zip(items, task(items), strict=True):
        alone = task(item)
        assert sorted(d.index for d in ranking.documents) == list(range(len(item[1])))
        close([d.score for d in ranking.documents], [d.score for d in alone.documents])
    same = task((QUERY, ["cat"] * 40))
    assert [d.index for d in same.documents] == list(range(40))


def test_equal_documents_keep_their_order(folders: dict[str, Path]) -> None:
    """Though a batch of them would have other neighbours, other padding, and so other last bits."""
    task = make.load(folders["ranker"], task="text-ranking")
    words = ["the", "cat", "sat", "on", "mat", "paris", "is", "in", "france", "good", "dog", "bad"]
    documents = [" ".join(words[: 1 + i % 12]) for i in range(60)] + ["The Cat", "THE CAT", "the  cat"] * 3
    ranked = task((QUERY, documents)).documents
    scores: dict[str, set[float]] = {}
    for document in ranked:
        scores.setdefault(" ".join(document.text.lower().split()), set()).add(document.score)
    assert len(scores) == 12 and all(len(equal) == 1 for equal in scores.values())
    for one, other in pairwise(ranked):
        assert one.score > other.score or one.index < other.index
    close([d.score for d in ranked], [task((QUERY, [d.text])).documents[0].score for d in ranked])


def test_ranking_truncates_the_document_alone(folders: dict[str, Path]) -> None:
    task = make.load(folders["ranker"], task="text-ranking")
    long = "the cat sat on the mat. " * 12
    with pytest.raises(InputError, match="limit is 40"):
        task((QUERY, [long]))
    (row,) = task.encode([(QUERY, [long])], task.Options(truncate=True)).batch.encodings
    tokenizer = make.reference_tokenizer(folders["ranker"])
    assert row.input_ids == tokenizer(QUERY, long, truncation="only_second", max_length=40)["input_ids"]
    ranked = task((QUERY, [long, "cat"]), truncate=True).documents
    assert {d.index: d.text for d in ranked} == {0: long, 1: "cat"}
    close(ranked[[d.index for d in ranked].index(1)].score, task((QUERY, ["cat"])).documents[0].score)
    with pytest.raises(InputError, match="may not be cut takes"):
        task((long, ["cat"]), truncate=True)


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ({}, "probabilities"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "logits"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "probabilities"),
        ({"sentence_transformers": {"version": "6.2.0"}}, "probabilities"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "logits"),
    ],
)
def test_the_checkpoint_says_what_scores_are(tmp_path: Path, entries: dict[str, Any], kind: str) -> None:
    make.bert(tmp_path, "BertForSequenceClassification", num_labels=1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    task = make.load(tmp_path, task="text-ranking")
    assert task.scores == kind
    assert task((QUERY, DOCUMENTS)) == task((QUERY, DOCUMENTS), scores=kind)


def test_a_newer_file_says_what_scores_are(tmp_path: Path) -> None:
    make.bert(tmp_path / "it", "BertForSequenceClassification", num_labels=1)
    stated = {"activation_fn": "torch.nn.modules.linear.Identity", "model_type": "CrossEncoder"}
    (tmp_path / "it" / "config_sentence_transformers.json").write_text(json.dumps(stated))
    task = make.load(tmp_path / "it", task="text-ranking")
    assert task.scores == "logits"
    plainformer.save(task, tmp_path / "copy")
    assert make.load(tmp_path / "copy", task="text-ranking").scores == "logits"


def test_what_ranking_refuses(folders: dict[str, Path], tmp_path: Path) -> None:
    task = make.load(folders["ranker"], task="text-ranking")
    wrong: list[Any] = [
        "who?",
        3,
        None,
        (QUERY, []),
        (QUERY, "cat"),
        (QUERY, [3]),
        (QUERY, ["cat", None]),
        ("", ["cat"]),
        (" ", ["cat"]),
        {"query": QUERY},
        {"query": QUERY, "documents": "cat"},
        {"query": 3, "documents": ["cat"]},
        [QUERY],
        ("cat\ud800", ["cat"]),
        (QUERY, ["cat", "\udc00"]),
    ]
    for item in wrong:
        with pytest.raises(
            InputError, match=r"is not a query and documents|is not an input for|is empty|no documents|surrogate"
        ):
            list(task(item))
    with pytest.raises(UsageError, match="top_k=0"):
        task((QUERY, DOCUMENTS), top_k=0)
    with pytest.raises(UsageError, match="did you mean 'logits'"):
        task((QUERY, DOCUMENTS), scores="logit")
    with pytest.raises(UsageError, match="has the labels CONTRADICTION, neutral, entailment"):
        make.load(folders["usual"], task="text-ranking")
    make.bert(tmp_path, "BertForSequenceClassification", num_labels=1)
    path = tmp_path / "config.json"
    stated = {"sentence_transformers": {"activation_fn": "evil.Thing"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))
    with pytest.raises(CheckpointError, match=r"evil\.Thing"):
        make.load(tmp_path, task="text-ranking")
