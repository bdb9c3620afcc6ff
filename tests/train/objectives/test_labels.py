"""Objectives with labels: their losses are the reference's, a batch is the sum of its rows, labels are where they belong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import plainformer as pf
from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.train.objectives import objective_class
from plainformer.train.objectives.base import Dropped, SpeechInputs
from plainformer.train.objectives.collate import NONE
from plainformer.train.objectives.ctc import edits
from plainformer.train.objectives.words import filler_of
from tests.support import models
from tests.support.media import clip
from tests.support.training import batch_of, check_batching, examples_of, fresh, train_config

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran"]
SENTENCES = [" ".join(WORDS[: 2 + number % 6]) for number in range(8)]


def made(folder: Path, name: str, *, processor: Any = None, config: Any = None, **sections: Any) -> tuple[Any, Any]:
    """An objective with the model of a checkpoint, which may be trained."""
    kind = objective_class(name)
    model = fresh(pf.load_model(str(folder), head=kind.head, prepare=False))
    tokenizer = processor or pf.load_tokenizer(str(folder))
    return model, kind(train_config(name, **sections), model.config, tokenizer)


def mean_loss(model: Any, objective: Any, examples: Any) -> float:
    """The loss that a step without dropout has."""
    model.eval()
    batch = batch_of(objective, examples)
    return float(objective.loss(model, batch).total.detach() / batch.count)


def theirs(model: Any, **inputs: Any) -> float:
    with torch.no_grad():
        return float(model.eval()(**inputs).loss)


# ---- one answer for each example


def sentences(folder: Path, labels: list[Any], **changes: Any) -> tuple[Any, Any, Any, Any]:
    reference = models.bert(folder, "BertForSequenceClassification", num_labels=3, **changes)
    model, objective = made(folder, "text-classification")
    rows = [{"text": text, "label": label} for text, label in zip(SENTENCES, labels, strict=True)]
    return reference, model, objective, examples_of(objective, rows)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", [0, 1, 2, "LABEL_1", 0, 2, "2", 1.0]),
        ("multi_label_classification", [[0], [1, 2], [], ["LABEL_0", "LABEL_2"], "1,2", [0, 1, 2], "", [1]]),
        ("regression", [[0.5, -1, 2]] * 4 + [[1, 2, 3], [0, 0, 0], [-1.5, 0.25, 9], [4, 5, 6]]),
    ],
)
def test_a_label_for_a_text(problem: str, labels: list[Any], tmp_path: Path) -> None:
    reference, model, objective, examples = sentences(tmp_path, labels, problem_type=problem)
    batch = batch_of(objective, examples)
    expected = theirs(reference, **batch.inputs, labels=batch.targets["labels"])
    assert mean_loss(model, objective, examples) == pytest.approx(expected, rel=1e-6)
    check_batching(model, objective, examples)


def test_accuracy_f1_and_error_are_counted_as_scikit_learn_counts(tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

    numbers = [[0], [1, 2], [2], [0, 2], [1, 2], [0, 1, 2], [1], [1]]
    cases: dict[str, list[Any]] = {
        "single_label_classification": [0, 1, 2, 1, 0, 2, 2, 1],
        "multi_label_classification": numbers,
        "regression": [[0.5 * n, -1, 2 + n] for n in range(8)],
    }
    for problem, labels in cases.items():
        folder = tmp_path / problem
        folder.mkdir()
        reference, model, objective, examples = sentences(folder, labels, problem_type=problem)
        batch = batch_of(objective, examples)
        logits = reference.eval()(**batch.inputs).logits.detach()
        found = objective.measured(objective.statistics(model.eval(), batch).sum(0))
        target = batch.targets["labels"].numpy()
        if problem.startswith("single"):
            assert found["accuracy"] == accuracy_score(target, logits.argmax(-1))
        elif problem.startswith("multi"):
            assert found["f1"] == pytest.approx(f1_score(target, logits.numpy() > 0, average="micro"))
        else:
            assert found["mean_absolute_error"] == pytest.approx(mean_absolute_error(target, logits.numpy()), rel=1e-6)
        assert found["loss"] == pytest.approx(
            theirs(reference, **batch.inputs, labels=batch.targets["labels"]), rel=1e-6
        )
        assert objective.metrics[0].name in found


def test_pairs_have_token_types(tmp_path: Path) -> None:
    models.bert(tmp_path, "BertForSequenceClassification", num_labels=2)
    _, objective = made(tmp_path, "text-classification")
    (example,) = examples_of(objective, [{"text": "the cat", "text_pair": "a dog", "label": 1}])
    row = objective.processor.encode("the cat", "a dog")
    assert example["input_ids"].tolist() == row.input_ids
    assert example["token_type_ids"].tolist() == row.token_type_ids
    assert objective.shown(example)[0] == ("[CLS]", "LABEL_1")


@pytest.mark.parametrize("how", ["cut", "drop"])
def test_long_texts(how: str, tmp_path: Path) -> None:
    models.bert(tmp_path, "BertForSequenceClassification", num_labels=2)
    _, objective = made(tmp_path, "text-classification", data=dict(max_length=8, too_long=how))
    long = {"text": " ".join(WORDS), "label": 0}
    if how == "drop":
        with pytest.raises(Dropped, match="longer than max_length"):
            objective.encode(long)
        return
    encoded = objective.encode(long)
    whole = objective.processor.encode(" ".join(WORDS))
    assert (
        encoded.examples[0]["input_ids"].tolist()
        == objective.processor.encode(long["text"], truncate=True, max_length=8).input_ids
    )
    assert encoded.cut == len(whole) - 8


def test_labels_that_cannot_be_learnt(tmp_path: Path) -> None:
    models.bert(tmp_path, "BertForSequenceClassification", num_labels=3)
    _, objective = made(tmp_path, "text-classification")
    for label in (None, ""):
        with pytest.raises(Dropped, match="no label"):
            objective.encode({"text": "a", "label": label})
    with pytest.raises(Dropped, match="no text"):
        objective.encode({"text": "", "label": 1})
    with pytest.raises(UsageError, match="no label 'LABEL_7'"):
        objective.encode({"text": "a", "label": "LABEL_7"})
    with pytest.raises(UsageError, match="a label is a list"):
        objective.encode({"text": "a", "label": [1, 2]})


def test_texts_and_pairs_may_be_mixed(tmp_path: Path) -> None:
    models.bert(tmp_path, "BertForSequenceClassification", num_labels=2)
    _, objective = made(tmp_path, "text-classification")
    rows = [{"text": "the cat", "label": 0}, {"text": "the cat", "text_pair": "a dog", "label": 1}]
    alone, pair = examples_of(objective, rows)
    assert alone.keys() == pair.keys()  # the store keeps examples that are alike
    assert "token_type_ids" not in batch_of(objective, [alone]).inputs
    assert batch_of(objective, [alone, pair]).inputs["token_type_ids"].sum(1).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("text-classification", "window", "the label of the whole text"),
        ("multiple-choice", "window", "the label of the whole text"),
        ("question-answering", "cut", "would lose answers"),
    ],
)
def test_long_texts_are_not_treated_otherwise_than_asked(name: str, how: str, why: str, tmp_path: Path) -> None:
    models.bert(tmp_path, "BertForSequenceClassification")
    tokenizer = pf.load_tokenizer(str(tmp_path))
    config = train_config(name, data=dict(too_long=how))
    with pytest.raises(UsageError, match=why):
        objective_class(name)(config, pf.load_model(str(tmp_path)).config, tokenizer)


def test_tokens_that_the_model_lacks(tmp_path: Path) -> None:
    """A pad token that only the tokenizer has is never looked up; another token of that kind is said at once."""
    models.bert(tmp_path, "BertForSequenceClassification", num_labels=3)
    tokenizer, size = pf.load_tokenizer(str(tmp_path)), 40
    _, objective = made(tmp_path, "text-classification")
    smaller = replace(objective.reading.frontend, vocab_size=size)
    objective.reading = replace(objective.reading, frontend=smaller)
    ids = tokenizer.encode(SENTENCES[0]).input_ids
    assert max(ids) >= size
    with pytest.raises(CheckpointError, match=f"has the id {max(ids)}, and the model {size} tokens"):
        objective.encode({"text": SENTENCES[0], "label": 0})
    config = SimpleNamespace(vocab_size=size, pad_id=None)
    assert filler_of(config, SimpleNamespace(pad_id=size, eos_id=3)) == 3  # type: ignore[arg-type]


def test_clips_have_labels_and_no_other_problem() -> None:
    kind = objective_class("audio-classification")
    found = kind.labels_of(train_config(kind.name), [{"label": "yes"}, {"label": "no"}])
    assert found.names == ("no", "yes") and found.problem is None  # a head of clips knows no other


def test_labels_are_found_in_rows() -> None:
    kind = objective_class("text-classification")
    rows = [{"label": label} for label in (10, 9, "2", None, "")]
    assert kind.labels_of(train_config(kind.name), rows).names == ("2", "9", "10")
    asked = train_config(kind.name, data=dict(labels=["no", "yes"]))
    assert kind.labels_of(asked, rows).names == ("no", "yes")
    tags = [{"tags": ["O", "B-PER"]}, {"tags": ["B-LOC", "O"]}]
    token = objective_class("token-classification")
    assert token.labels_of(train_config(token.name), tags).names == ("O", "B-LOC", "B-PER")
    assert objective_class("question-answering").labels_of(train_config("question-answering"), []) is None


# ---- choices


def test_multiple_choice(tmp_path: Path) -> None:
    reference = models.bert(tmp_path, "BertForMultipleChoice")
    model, objective = made(tmp_path, "multiple-choice")
    rows = [{"text": "the cat", "choices": ["sat", "ran", "on"], "label": n % 3} for n in range(8)]
    examples = examples_of(objective, rows)
    row = {name: x.view(8, 3, -1) for name, x in batch_of(objective, examples).inputs.items()}
    expected = theirs(reference, **row, labels=torch.tensor([n % 3 for n in range(8)]))
    assert mean_loss(model, objective, examples) == pytest.approx(expected, rel=1e-6)
    uneven = [
        {**one, "choices": one["choices"][: 2 + n % 2] + ["the mat and the dog"] * (n % 3), "label": n % 2}
        for n, one in enumerate(rows)
    ]
    check_batching(model, objective, examples_of(objective, uneven))
    smoothed = made(tmp_path, "multiple-choice", loss=dict(label_smoothing=0.1))[1]
    batch = batch_of(objective, examples)
    expected = torch.nn.functional.cross_entropy(
        objective.scores(model.eval(), batch), batch.targets["labels"], label_smoothing=0.1
    )
    assert mean_loss(model, smoothed, examples) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_the_right_choice_has_a_number_a_letter_or_its_text(tmp_path: Path) -> None:
    models.bert(tmp_path, "BertForMultipleChoice")
    _, objective = made(tmp_path, "multiple-choice")
    for label in (1, "1", "B", "b", "ran"):
        (example,) = examples_of(objective, [{"text": "the cat", "choices": ["sat", "ran"], "label": label}])
        assert example["label"].tolist() == [1]
    with pytest.raises(UsageError, match="none of 2 choices"):
        objective.encode({"text": "the cat", "choices": ["sat", "ran"], "label": "c"})
    with pytest.raises(Dropped, match="fewer than two"):
        objective.encode({"text": "the cat", "choices": ["sat"], "label": 0})


# ---- words

TAGS = ["O", "B-PER", "I-PER", "O", "B-LOC", "O", "I-PER", "O", "O", "O"]


def tagged(folder: Path, **sections: Any) -> tuple[Any, Any, Any]:
    labels = dict(enumerate(sorted(set(TAGS))))
    reference = models.bert(
        folder, "BertForTokenClassification", id2label=labels, label2id={tag: n for n, tag in labels.items()}
    )
    return (reference, *made(folder, "token-classification", **sections))


def test_a_tag_for_each_word(tmp_path: Path) -> None:
    reference, model, objective = tagged(tmp_path)
    rows = [{"tokens": WORDS[: 3 + n % 7], "tags": TAGS[: 3 + n % 7]} for n in range(8)]
    examples = examples_of(objective, rows)
    batch = batch_of(objective, examples)
    labels = torch.full(batch.inputs["input_ids"].shape, -100)
    for row, example in zip(labels, examples, strict=True):
        known = torch.from_numpy(example["labels"])
        row[: len(known)] = torch.where(known == NONE, -100, known)
    expected = theirs(reference, **batch.inputs, labels=labels)
    assert mean_loss(model, objective, examples) == pytest.approx(expected, rel=1e-6)
    check_batching(model, objective, examples)


def test_the_first_token_of_a_word_has_its_tag(tmp_path: Path) -> None:
    _, _, objective = tagged(tmp_path)
    words, tags = ["catdog", "!?", "  ", "mat"], ["B-PER", "O", "I-PER", "B-LOC"]
    (example,) = examples_of(objective, [{"tokens": words, "tags": tags}])
    assert [said for _, said in objective.shown(example) if said] == ["B-PER", "O", "B-LOC"]
    row = objective.processor.encode("catdog !? mat")
    starts = {row.offsets[place][0] for place in np.flatnonzero(example["labels"] != NONE)}
    assert starts == {0, 7, 10}


def test_words_of_a_byte_level_tokenizer_begin_after_their_space() -> None:
    from tests.support.tokenizers import byte_level

    kind = objective_class("token-classification")
    sizes = dict(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=60000)
    names = {"architectures": ["RobertaForTokenClassification"], "id2label": {"0": "O", "1": "B-X"}}
    base = pf.config_from_dict({"model_type": "roberta", **sizes, **names})
    objective = kind(train_config(kind.name), base, byte_level())
    (example,) = examples_of(objective, [{"tokens": ["Hello", "wörld", "again"], "tags": ["O", "B-X", "O"]}])
    row = objective.processor.encode("Hello wörld again")
    firsts = [row.offsets[place] for place in np.flatnonzero(example["labels"] != NONE)]
    text = "Hello wörld again"
    assert [text[start:end].strip()[0] for start, end in firsts] == ["H", "w", "a"]
    assert example["labels"][example["labels"] != NONE].tolist() == [0, 1, 0]


def test_each_word_of_a_long_sentence_is_learnt_once(tmp_path: Path) -> None:
    _, _, objective = tagged(tmp_path, data=dict(max_length=8, too_long="window", stride=3))
    encoded = objective.encode({"tokens": WORDS, "tags": TAGS})
    assert len(encoded.examples) > 1 and encoded.cut == 0
    learnt = [said for example in encoded.examples for _, said in objective.shown(example) if said]
    assert sorted(learnt) == sorted(TAGS)
    assert max(len(example["input_ids"]) for example in encoded.examples) <= 8
    _, _, cutting = tagged(tmp_path, data=dict(max_length=8))
    short = cutting.encode({"tokens": WORDS, "tags": TAGS})
    assert short.cut > 0 and len(short.examples[0]["labels"]) == len(short.examples[0]["input_ids"]) == 8
    assert [said for _, said in cutting.shown(short.examples[0]) if said] == TAGS[:6]


def test_entities_are_counted_as_seqeval_counts_them(tmp_path: Path) -> None:
    from seqeval.metrics import f1_score

    _, model, objective = tagged(tmp_path)
    examples = examples_of(objective, [{"tokens": WORDS[: 3 + n % 7], "tags": TAGS[: 3 + n % 7]} for n in range(20)])
    batch = batch_of(objective, examples)
    guesses = objective.scores(model.eval(), batch).argmax(-1)
    counts = batch.targets["per_row"].tolist()
    found, true = (
        [[objective.labels[i] for i in row] for row in x.split(counts)] for x in (guesses, batch.targets["labels"])
    )
    measured = objective.measured(objective.statistics(model, batch).sum(0))
    assert measured["f1"] == pytest.approx(f1_score(true, found))
    assert measured["accuracy"] == pytest.approx(float((guesses == batch.targets["labels"]).double().mean()))


def test_sentences_that_are_not_tagged_right(tmp_path: Path) -> None:
    _, _, objective = tagged(tmp_path)
    with pytest.raises(InputError, match="2 words and 1 tag"):
        objective.encode({"tokens": ["a", "b"], "tags": ["O"]})
    with pytest.raises(UsageError, match="no label 'B-ORG'"):
        objective.encode({"tokens": ["the"], "tags": ["B-ORG"]})
    with pytest.raises(UsageError, match="holds a str, not a list"):
        objective.encode({"tokens": "the cat", "tags": ["O", "O"]})
    with pytest.raises(Dropped, match="no words"):
        objective.encode({"tokens": [" "], "tags": ["O"]})


# ---- answers


def test_an_answer_in_a_context(tmp_path: Path) -> None:
    reference = models.bert(tmp_path, "BertForQuestionAnswering")
    model, objective = made(tmp_path, "question-answering")
    context = " ".join(WORDS)
    rows = [
        {"question": "the", "context": context, "answers": {"text": [word], "answer_start": [context.index(word)]}}
        for word in ("cat", "sat", "mat", "dog", "ran", "and", "the mat", "on")
    ]
    examples = examples_of(objective, rows)
    for row, example in zip(rows, examples, strict=True):
        marked = [token for token, said in objective.shown(example) if said == "answer"]
        assert "".join(marked).replace("##", "") == row["answers"]["text"][0].replace(" ", "")
    batch = batch_of(objective, examples)
    starts, ends = batch.targets["spans"].T
    expected = theirs(reference, **batch.inputs, start_positions=starts, end_positions=ends)
    assert mean_loss(model, objective, examples) == pytest.approx(expected, rel=1e-6)
    mixed = examples_of(objective, [{**row, "context": context[: 30 + 2 * n]} for n, row in enumerate(rows[:2] * 4)])
    check_batching(model, objective, mixed)


def test_windows_without_the_answer_point_at_the_first_token(tmp_path: Path) -> None:
    models.bert(tmp_path, "BertForQuestionAnswering")
    _, objective = made(tmp_path, "question-answering", data=dict(max_length=9, stride=2, too_long="window"))
    context = " ".join(WORDS)
    answer = [{"text": "dog", "answer_start": context.index("dog")}]
    encoded = objective.encode({"question": "the", "context": context, "answers": answer})
    assert len(encoded.examples) > 2
    spans = [tuple(example["span"].tolist()) for example in encoded.examples]
    assert (0, 0) in spans and any(last > 0 for _, last in spans)
    none = objective.encode({"question": "the", "context": context, "answers": []})
    assert {tuple(example["span"].tolist()) for example in none.examples} == {(0, 0)}
    for wrong in ({"text": "dog", "answer_start": 0}, {"text": "horse"}):
        with pytest.raises(Dropped, match="answer not in its context"):
            objective.encode({"question": "the", "context": context, "answers": [wrong]})


# ---- images and clips


def test_images(tmp_path: Path) -> None:
    sizes = dict(models.TINY, image_size=32, patch_size=8, num_labels=3)
    reference = models.save_model(tmp_path, "ViTForImageClassification", transformers.ViTConfig(**sizes))
    models.save_image(tmp_path)
    processor = pf.load(str(tmp_path)).processor
    model, objective = made(tmp_path, "image-classification", processor=processor)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (20 + n, 18, 3), dtype=np.uint8) for n in range(8)]
    examples = examples_of(objective, [{"image": image, "label": n % 3} for n, image in enumerate(images)])
    batch = batch_of(objective, examples)
    assert torch.equal(batch.inputs["pixel_values"], processor(images))
    expected = theirs(reference, **batch.inputs, labels=batch.targets["labels"])
    assert mean_loss(model, objective, examples) == pytest.approx(expected, rel=1e-6)
    check_batching(model, objective, examples)
    assert objective.length(examples[0]) * 8 == batch.tokens


@pytest.mark.parametrize("masked", [False, True])
def test_clips(masked: bool, tmp_path: Path) -> None:
    changes = models.STABLE if masked else {}
    reference = models.wav2vec2(tmp_path, "Wav2Vec2ForSequenceClassification", masked=masked, **changes)
    model, objective = made(tmp_path, "audio-classification", processor=pf.load(str(tmp_path)).processor)
    equal = examples_of(objective, [{"audio": clip(3000, n), "label": n % 3} for n in range(8)])
    batch = batch_of(objective, equal)
    expected = theirs(reference, **batch.inputs, labels=batch.targets["labels"])
    assert mean_loss(model, objective, equal) == pytest.approx(expected, rel=1e-5)
    lengths = (3000, 2000, 3000, 2500, 2000, 2600, 3000, 2500)
    check_batching(
        model,
        objective,
        examples_of(objective, [{"audio": clip(size, n), "label": n % 3} for n, size in enumerate(lengths)]),
    )


def test_spectrograms_are_kept_without_their_silence(tmp_path: Path) -> None:
    models.whisper(tmp_path, model="WhisperForAudioClassification")
    processor = pf.load(str(tmp_path)).processor
    model, objective = made(tmp_path, "audio-classification", processor=processor)
    clips = [clip(1600 + 1000 * n, n) for n in range(8)]
    examples = examples_of(objective, [{"audio": one, "label": n % 3} for n, one in enumerate(clips)])
    assert objective.hearing.size(examples[0]) < processor.window_frames / 2
    assert torch.equal(batch_of(objective, examples).inputs["input_features"], processor(clips).input_features)
    check_batching(model, objective, examples)


# ---- speech


def hearing(folder: Path, name: str, masked: bool = False, **sections: Any) -> tuple[Any, Any]:
    task = pf.load(str(folder))
    return made(folder, name, processor=SpeechInputs(task.processor, task.tokenizer), **sections)


@pytest.mark.parametrize("masked", [False, True])
def test_ctc_is_the_reference_loss(masked: bool, tmp_path: Path) -> None:
    changes = models.STABLE if masked else {}
    reference = models.wav2vec2(
        tmp_path, "Wav2Vec2ForCTC", masked=masked, ctc_loss_reduction="sum", pad_token_id=0, **changes
    )
    model, objective = hearing(tmp_path, "ctc")
    texts = ["THE RAT", "heat", "Lo' Hi", "TOE", "SHE", "A", "DO IT", "EEL"]
    rows = [{"audio": clip(4000, n), "text": text} for n, text in enumerate(texts)]
    examples = examples_of(objective, rows)
    assert [objective.shown(one)[0][1] for one in examples] == [text.upper() for text in texts]
    width = max(len(one["labels"]) for one in examples)
    labels = torch.tensor([[*one["labels"], *[-100] * (width - len(one["labels"]))] for one in examples])
    batch = batch_of(objective, examples)
    expected = theirs(reference, **batch.inputs, labels=labels) / batch.count
    assert mean_loss(model, objective, examples) == pytest.approx(expected, rel=1e-5)
    uneven = [{**row, "audio": clip(4000 - 300 * (n % 3), n)} for n, row in enumerate(rows)]
    check_batching(model, objective, examples_of(objective, uneven))


def test_ctc_sums_over_all_alignments(tmp_path: Path) -> None:
    """Brute force: every path of frames that spells the text."""
    from itertools import groupby, product

    models.wav2vec2(tmp_path, "Wav2Vec2ForCTC")
    _, objective = hearing(tmp_path, "ctc")
    logs = torch.randn(5, 18, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for text in ([5], [5, 6], [5, 5], [6, 5, 6]):
        total = 0.0
        letters = sorted({objective.blank, *text})
        for path in product(letters, repeat=5):
            if [label for label, _ in groupby(path) if label != objective.blank] == text:
                total += float(sum(logs[t, label] for t, label in enumerate(path)).exp())
        frames = [([0], logs[None])]
        samples = next(n for n in range(400, 9000) if objective.length({"input_values": np.zeros(n)}) == 5)
        batch = objective.collate([[{"input_values": np.zeros(samples, np.float32), "labels": np.array(text)}]], [])
        assert float(objective._losses(frames, batch)[0]) == pytest.approx(-np.log(total), rel=1e-5)


def test_clips_that_cannot_be_aligned_are_dropped(tmp_path: Path) -> None:
    models.wav2vec2(tmp_path, "Wav2Vec2ForCTC")
    _, objective = hearing(tmp_path, "ctc")
    frames = objective.length(objective.hearing.arrays(clip(1000)))
    with pytest.raises(Dropped, match="too short for its text"):
        objective.encode({"audio": clip(1000), "text": "E" * frames})
    assert objective.encode({"audio": clip(1000), "text": "ET" * (frames // 2)}).examples
    for text, why in (("Zürich", "character that the vocabulary lacks"), (" ", "no text")):
        with pytest.raises(Dropped, match=why):
            objective.encode({"audio": clip(4000), "text": text})


def test_error_rates_are_those_of_the_text(tmp_path: Path) -> None:
    models.wav2vec2(tmp_path, "Wav2Vec2ForCTC")
    model, objective = hearing(tmp_path, "ctc")
    texts = ["THE RAT", "HEAT AND", "HE"]
    examples = examples_of(objective, [{"audio": clip(4000, n), "text": text} for n, text in enumerate(texts)])
    heard = [one.text for one in pf.load(str(tmp_path))([clip(4000, n) for n in range(3)])]
    found = objective.measured(objective.statistics(model.eval(), batch_of(objective, examples)).sum(0))
    words = sum(edits(one.split(), text.split()) for one, text in zip(heard, texts, strict=True))
    assert found["wer"] == words / 5
    assert found["cer"] >= 0 and objective.metrics[0].name == "wer"
    assert [edits("kitten", "sitting"), edits("", "abc"), edits("abc", "abc"), edits("ab", "ba")] == [3, 3, 0, 2]


def test_speech_to_text(tmp_path: Path) -> None:
    reference = models.whisper(tmp_path)
    model, objective = hearing(tmp_path, "speech-to-text", data=dict(target_language="de"))
    texts = ["the cat", "a", "on the mat", "dog", "ran and ran", "sat", "cat", "it"]
    rows = [{"audio": clip(4000 + 500 * n, n), "text": text} for n, text in enumerate(texts)]
    examples = examples_of(objective, rows)
    first = [objective.processor.id_to_token(i) for i in examples[0]["target_ids"][:3].tolist()]
    assert first == ["<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    assert all(example["target_ids"][-1] == objective.processor.eos_id for example in examples)
    batch = batch_of(objective, examples)
    labels = torch.full(batch.inputs["decoder_input_ids"].shape, -100)
    for row, example in zip(labels, examples, strict=True):
        row[: len(example["target_ids"])] = torch.from_numpy(example["target_ids"])
    expected = theirs(reference, input_features=batch.inputs["input_features"], labels=labels)
    assert mean_loss(model, objective, examples) == pytest.approx(expected, rel=1e-5)
    check_batching(model, objective, examples)
    said = objective.shown(examples[0])
    assert said[0][0].startswith("clip of") and said[1] == ("<|startoftranscript|>", "<|de|>")
    with pytest.raises(Dropped, match="clip longer"):
        objective.encode({"audio": clip(20000), "text": "a"})
    with pytest.raises(Dropped, match="text longer"):
        objective.encode({"audio": clip(4000), "text": "the cat " * 40})
    with pytest.raises(UsageError, match="unknown to this model"):
        hearing(tmp_path, "speech-to-text", data=dict(target_language="xx"))
