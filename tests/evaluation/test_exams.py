"""Every task's exam measures what the task answers: the metric is computed again from the task's own answers, by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plainformer as pf
from plainformer.errors import UsageError
from plainformer.evaluate.kept import Kept
from plainformer.evaluate.squad import evaluate_squad
from plainformer.evaluation import evaluate
from plainformer.generation.score import score_tokens
from tests.support.models import save
from tests.support.runs import texts, write_rows

Tiny = Callable[[str], Path]
TEXTS = texts(24)
LABELS = ("negative", "neutral", "positive")
CHOSEN = [random.Random(1).choice(LABELS) for _ in TEXTS]


def rows(tmp_path: Path, found: list[dict[str, Any]]) -> Path:
    return write_rows(tmp_path / "rows.jsonl", found)


def test_one_label_of_a_text_or_a_pair(tiny: Tiny, tmp_path: Path) -> None:
    task = pf.load(tiny("text-classification"))
    found = [{"sentence1": a, "sentence2": b, "label": c} for a, b, c in zip(TEXTS, TEXTS[::-1], CHOSEN, strict=True)]
    done = evaluate(task.ref, rows(tmp_path, found))
    answers = task([(row["sentence1"], row["sentence2"]) for row in found])
    assert done["accuracy"] == np.mean([one.label == row["label"] for one, row in zip(answers, found, strict=True)])
    lines = list(Kept(done.folder).predictions())
    assert [line["answer"]["label"] for line in lines] == [one.label for one in answers]
    assert lines[3]["place"] == "rows.jsonl line 4" and lines[3]["reference"] == CHOSEN[3]
    assert done.metrics["accuracy"].low is not None and done.n == 24


def test_labels_may_be_numbers_and_unknown_ones_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("text-classification")
    named = evaluate(model, rows(tmp_path, [{"text": t, "label": c} for t, c in zip(TEXTS, CHOSEN, strict=True)]))
    numbers = [{"text": t, "label": LABELS.index(c)} for t, c in zip(TEXTS, CHOSEN, strict=True)]
    assert evaluate(model, rows(tmp_path, numbers))["f1_macro"] == named["f1_macro"]
    with pytest.raises(UsageError, match=r"(?s)rows.jsonl line 1.*no label 'postive'.*'positive'"):
        evaluate(model, rows(tmp_path, [{"text": "a", "label": "postive"}]))


def test_several_labels_and_numbers(tmp_path: Path) -> None:
    several = save("text-classification", tmp_path / "several", problem_type="multi_label_classification")
    found = [{"text": t, "label": [c, "neutral"]} for t, c in zip(TEXTS, CHOSEN, strict=True)]
    done = evaluate(several, rows(tmp_path, found))
    right = given = true = 0
    for answer, row in zip(pf.load(several)(TEXTS), found, strict=True):
        own = {one.label for one in answer.scores if one.score > 0.5}
        right, given, true = right + len(own & {*row["label"]}), given + len(own), true + len({*row["label"]})
    assert done["f1_micro"] == pytest.approx(2 * right / (given + true))

    number = save("text-classification", tmp_path / "number", problem_type="regression", id2label={"0": "score"})
    numbers = [{"text": t, "label": float(len(t))} for t in TEXTS]
    done = evaluate(number, rows(tmp_path, numbers))
    answers = [one.score for one in pf.load(number)(TEXTS)]
    assert done["mean_absolute_error"] == pytest.approx(
        np.mean([abs(a - len(t)) for a, t in zip(answers, TEXTS, strict=True)]), rel=1e-6
    )


def test_tags_of_words_however_long_the_sentence(tiny: Tiny, tmp_path: Path) -> None:
    task = pf.load(tiny("token-classification"))
    labels, draw = task.config.labels, random.Random(2)
    sentences = [text.split() * (20 if number % 2 else 1) for number, text in enumerate(TEXTS)]
    tags = [[draw.choice(labels) for _ in words] for words in sentences]
    done = evaluate(
        task.ref, rows(tmp_path, [{"tokens": w, "ner_tags": t} for w, t in zip(sentences, tags, strict=True)])
    )
    assert max(map(len, sentences)) > 200 and done.n == 24 and done.unit == "sentence"
    right = count = 0
    for words, own in zip(sentences, tags, strict=True):
        found = {token.start: token.label for token in task(" ".join(words), aggregation="none")}
        place = 0
        for word, tag in zip(words, own, strict=True):
            right, count = right + (found[place] == tag), count + 1
            place += len(word) + 1
    assert done["accuracy"] == pytest.approx(right / count)


def squad_rows(without: bool) -> list[dict[str, Any]]:
    found = []
    for number, text in enumerate(TEXTS):
        context = f"{text} paris"
        answers = [] if without and number % 3 == 0 else [{"text": "paris", "answer_start": len(text) + 1}]
        found += [{"question": q, "context": context, "answers": answers} for q in ("who ?", "where is the cat ?")]
    return found


@pytest.mark.parametrize("without", [False, True])
def test_questions_as_the_official_script_scores_them(tiny: Tiny, tmp_path: Path, without: bool) -> None:
    task = pf.load(tiny("question-answering"))
    found = squad_rows(without)
    done = evaluate(task.ref, rows(tmp_path, found))
    answers = task([(row["question"], row["context"]) for row in found], no_answer=without)
    predictions = {str(number): one.text for number, one in enumerate(answers)}
    references = {str(number): [one["text"] for one in row["answers"]] for number, row in enumerate(found)}
    want = evaluate_squad(predictions, references, version="2.0" if without else "1.1")
    assert done["f1"] == pytest.approx(want.f1) and done["exact_match"] == pytest.approx(want.exact)
    assert ("best_f1" in done.metrics) == without
    assert done.unit == "paragraph" and done.units == 24 and done.n == 48


def test_choices(tiny: Tiny, tmp_path: Path) -> None:
    task = pf.load(tiny("multiple-choice"))
    found = [
        {"question": t, "choices": ["cat", "the dog", "mat"][: 2 + n % 2], "label": n % 2} for n, t in enumerate(TEXTS)
    ]
    done = evaluate(task.ref, rows(tmp_path, found))
    answers = task([(row["question"], row["choices"]) for row in found])
    assert done["accuracy"] == np.mean([one.index == row["label"] for one, row in zip(answers, found, strict=True)])


def test_written_texts_with_the_tasks_options(tiny: Tiny, tmp_path: Path) -> None:
    from sacrebleu.metrics import CHRF

    task = pf.load(tiny("text2text"))
    found = [{"document": t, "summary": t[:12]} for t in TEXTS[:8]]
    done = evaluate(task.ref, rows(tmp_path, found), num_beams=2, max_new_tokens=6)
    answers = [one.text for one in task([row["document"] for row in found], num_beams=2, max_new_tokens=6)]
    assert done["chrf"] == pytest.approx(CHRF().corpus_score(answers, [[row["summary"] for row in found]]).score)
    assert [line["answer"] for line in Kept(done.folder).predictions()] == answers


def test_answers_in_the_models_own_words(tiny: Tiny, tmp_path: Path) -> None:
    found = [{"question": "who", "context": t[:20], "answers": ["cat", "the dog"]} for t in TEXTS[:4]]
    options: dict[str, Any] = {"task": "abstractive-qa", "max_new_tokens": 3}
    done = evaluate(tiny("text2text"), rows(tmp_path, found), **options)
    assert done.task == "abstractive-question-answering" and done.n == 4 and "f1" in done.metrics


def test_the_answer_after_a_chats_last_message(tiny: Tiny, tmp_path: Path) -> None:
    task = pf.load(tiny("chat"))
    chats = [[{"role": "user", "content": t[:9]}] for t in TEXTS[:6]]
    right = [task(chat, max_new_tokens=3).text if n % 2 else "no" for n, chat in enumerate(chats)]
    found = [
        {"messages": [*chat, {"role": "assistant", "content": answer or "x"}]}
        for chat, answer in zip(chats, right, strict=True)
    ]
    done = evaluate(task.ref, rows(tmp_path, found), max_new_tokens=3)
    assert done.main == "exact_match" and done["exact_match"] == pytest.approx(0.5)
    again = [{"prompt": c[0]["content"], "response": a or "x"} for c, a in zip(chats, right, strict=True)]
    assert evaluate(task.ref, rows(tmp_path, again), max_new_tokens=3)["exact_match"] == pytest.approx(0.5)


def test_perplexity_of_documents_of_any_length(tiny: Tiny, tmp_path: Path) -> None:
    task = pf.load(tiny("text-generation"))
    documents = [text * (5 if number % 2 else 1) for number, text in enumerate(TEXTS)]
    done = evaluate(task.ref, rows(tmp_path, [{"text": text} for text in documents]))
    nats = tokens = size = 0.0
    window = task.config.main_stack.max_positions
    assert window is not None
    for text in documents:
        row = task.tokenizer.encode_batch([text], max_length=None)[0]
        ids = np.array([row.input_ids])
        scores = score_tokens(task.model, torch.tensor(ids), stride=window - window // 2, max_length=window)[0]
        nats, tokens = nats - scores.total, tokens + len(scores.ranks)
        size += len(text.encode()) - len(text[: row.offsets[0][1]].encode())
    assert done["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert done["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert max(len(text) for text in documents) > window and done.unit == "document"
    with pytest.raises(UsageError, match="stride"):
        evaluate(task.ref, rows(tmp_path, [{"text": "the cat"}]), window=8, stride=8)


def test_hidden_tokens(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("fill-mask")
    found = [{"text": text * (10 if number % 3 == 0 else 1)} for number, text in enumerate(TEXTS)]
    done = evaluate(model, rows(tmp_path, found))
    alone = evaluate(model, rows(tmp_path, found[::-1]), batch_size=1)
    assert done["loss"] == pytest.approx(alone["loss"], rel=1e-6) and done["accuracy"] == alone["accuracy"]
    assert "pseudo-perplexity" in done.stated and 1 < done["loss"] < 20


def test_a_labelled_text_without_training(tmp_path: Path) -> None:
    names: dict[str, Any] = {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}, "label2id": {}}
    model = save("text-classification", tmp_path / "nli", **names)
    found = [{"text": t, "label": "cat" if n % 2 else "dog"} for n, t in enumerate(TEXTS)]
    done = evaluate(model, rows(tmp_path, found), task="zero-shot", labels=["cat", "dog"])
    answers = pf.load(model, task="zero-shot")(TEXTS, labels=["cat", "dog"])
    assert done["accuracy"] == np.mean([one.label == row["label"] for one, row in zip(answers, found, strict=True)])
    with pytest.raises(UsageError, match="'cow' is none of those given"):
        evaluate(model, rows(tmp_path, [{"text": "a", "label": "cow"}]), task="zero-shot", labels=["cat", "dog"])


def test_images_of_which_one_cannot_be_read(tiny: Tiny, tmp_path: Path) -> None:
    from PIL import Image

    task = pf.load(tiny("image-classification"))
    files = []
    for number in range(8):
        folder = tmp_path / "images" / LABELS[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        files.append(folder / f"{number}.png")
    files[3].write_bytes(b"no picture")
    done = evaluate(task.ref, tmp_path / "images")
    kept = [path for path in files if path != files[3]]
    right = [task(path).label == path.parent.name for path in kept]
    assert done["accuracy"] == np.mean(right) and done.n == 7
    assert any("not an image" in line and "neutral/3.png" in line for line in done.lines())
    with pytest.raises(UsageError, match="not an image"):
        evaluate(task.ref, tmp_path / "images", on_error="stop")


def test_clips_and_transcripts(tiny: Tiny, tmp_path: Path) -> None:
    import jiwer
    import soundfile

    folder = tmp_path / "clips"
    folder.mkdir()
    files = [folder / f"{number}.wav" for number in range(5)]
    for number, path in enumerate(files):
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 3000 + 300 * number), 16000)
        path.with_suffix(".txt").write_text("Hello, world.")
    task = pf.load(tiny("speech"))
    heard = [one.text for one in task([str(path) for path in files])]
    done = evaluate(task.ref, folder)
    assert done["wer"] == pytest.approx(jiwer.wer(["Hello, world."] * 5, heard))
    assert "as they are written" in done.stated
    normal = evaluate(task.ref, folder, metric={"normalize": "words"})
    assert "without punctuation" in normal.stated and normal.folder != done.folder
    with pytest.raises(UsageError, match=r"'normalise'.*do not know"):
        evaluate(task.ref, folder, metric={"normalise": "words"})
    assert done.metrics["wer"].low is None and "too few" in "\n".join(done.lines())


def test_vectors_have_no_right_answer(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no right answers"):
        evaluate(tiny("embedding"), rows(tmp_path, [{"text": "a"}]))
