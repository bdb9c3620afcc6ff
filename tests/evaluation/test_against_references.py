"""Evaluations from end to end against what others make of the same rows.

The reference library loads the same checkpoint, reads the same rows with its own tokenizer, and decodes by the shortest code
that does it; the field's own packages score that. Nothing of ours is on that side.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
import torch
import transformers
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor

import plainformer as pf
from plainformer.evaluate.kept import Kept
from plainformer.evaluation import Evaluation
from tests.support import models
from tests.support.learning import LABELS
from tests.support.runs import texts, write_rows
from tests.support.trainer_cases import named
from tests.support.vocabularies import BYTE_VOCABULARY, save_image

N = 60
TEXTS = texts(N, seed=5)  # of 3 to 12 words, so that each fits and batches are padded
DRAW = random.Random(11)
TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def rows(folder: Path, found: Sequence[dict[str, Any]]) -> Path:
    return write_rows(folder / "rows.jsonl", found)


def answers_of(done: Evaluation) -> list[Any]:
    return [line["answer"] for line in Kept(done.folder).predictions()]


def balanced(model: Any, folder: Path, logits: Tensor) -> Any:
    """Give the head a bias by which no label is likelier than another on the whole: else one would be the answer to all."""
    model.classifier.bias.data -= logits.flatten(0, -2).mean(0)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def logits_alone(model: Any, folder: Path, inputs: Sequence[Any]) -> list[Tensor]:
    """The reference's logits of each text or pair, read alone: no padding."""
    tokenizer = models.reference_tokenizer(folder)
    found = []
    for text in inputs:
        pair = (text,) if isinstance(text, str) else text
        found.append(model(**tokenizer(*pair, return_tensors="pt")).logits[0])
    return found


# ---- labels of texts


@pytest.mark.parametrize("pairs", [False, True], ids=["text", "pair"])
def test_one_label(pairs: bool, tmp_path: Path) -> None:
    model = models.bert(tmp_path / "model", "BertForSequenceClassification", num_labels=3, **named(LABELS))
    inputs: list[Any] = list(zip(TEXTS, TEXTS[::-1], strict=True)) if pairs else TEXTS
    balanced(model, tmp_path / "model", torch.stack(logits_alone(model, tmp_path / "model", inputs)))
    right = [DRAW.choice(LABELS) for _ in TEXTS]
    found = [
        {"sentence1": one[0], "sentence2": one[1], "label": label} if pairs else {"text": one, "label": label}
        for one, label in zip(inputs, right, strict=True)
    ]
    done = pf.evaluate(tmp_path / "model", rows(tmp_path, found), batch_size=7)
    theirs = transformers.pipeline("text-classification", model=str(tmp_path / "model"), device="cpu", top_k=None)
    asked = [{"text": a, "text_pair": b} for a, b in inputs] if pairs else [{"text": a} for a in inputs]
    scores = [{each["label"]: each["score"] for each in theirs(one)} for one in asked]
    chances = np.array([[own[label] for label in LABELS] for own in scores])
    alone = torch.stack(logits_alone(model, tmp_path / "model", inputs)).softmax(-1).numpy()
    assert chances == pytest.approx(alone, abs=1e-5)
    check_labels(done, right, chances)


def check_labels(done: Evaluation, right: list[str], chances: np.ndarray[Any, Any]) -> None:
    """All metrics of one label, from the probabilities of the reference."""
    given = [LABELS[place] for place in chances.argmax(1)]
    answers = answers_of(done)
    assert [one["label"] for one in answers] == given and len(set(given)) > 1
    assert np.array([one["probabilities"] for one in answers]) == pytest.approx(chances, abs=2e-5)
    numbers = [LABELS.index(label) for label in right]
    several = np.eye(3)[numbers]
    options: dict[str, Any] = {"labels": LABELS, "zero_division": 0}
    want = {
        "accuracy": sk.accuracy_score(right, given),
        "f1_macro": sk.f1_score(right, given, average="macro", **options),
        "f1_weighted": sk.f1_score(right, given, average="weighted", **options),
        "precision_macro": sk.precision_score(right, given, average="macro", **options),
        "recall_macro": sk.recall_score(right, given, average="macro", **options),
        "mcc": sk.matthews_corrcoef(right, given),
    }
    for name, value in zip(LABELS, sk.f1_score(right, given, average=None, **options), strict=True):
        want[f"f1/{name}"] = value
    for name, value in want.items():
        assert done[name] == pytest.approx(value, rel=1e-12), name
    auc = sk.roc_auc_score(several, chances, average="macro", multi_class="ovr")
    assert done["roc_auc"] == pytest.approx(auc, rel=1e-9)
    assert done["nll"] == pytest.approx(sk.log_loss(numbers, chances, labels=[0, 1, 2]), rel=1e-4)
    assert done["brier"] == pytest.approx(((chances - several) ** 2).sum(1).mean(), rel=1e-4)


def test_several_labels(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_labels": 3, "problem_type": "multi_label_classification", **named(LABELS)}
    model = models.bert(tmp_path / "model", "BertForSequenceClassification", **options)
    balanced(model, tmp_path / "model", torch.stack(logits_alone(model, tmp_path / "model", TEXTS)))
    right = [[label for label in LABELS if DRAW.random() < 0.4] for _ in TEXTS]
    found = [{"text": text, "label": own} for text, own in zip(TEXTS, right, strict=True)]
    done = pf.evaluate(tmp_path / "model", rows(tmp_path, found), batch_size=7)
    chances = torch.stack(logits_alone(model, tmp_path / "model", TEXTS)).sigmoid().numpy()
    truth = np.array([[label in own for label in LABELS] for own in right])
    given = chances > 0.5
    assert 0 < given.mean() < 1 and any(not own for own in right)
    for average, nothing in (("micro", 0), ("macro", 0), ("samples", 1)):  # 1: nothing to find, and nothing found
        value = sk.f1_score(truth, given, average=average, zero_division=nothing)
        assert done[f"f1_{average}"] == pytest.approx(value, rel=1e-12), average
    assert done["subset_accuracy"] == pytest.approx(sk.accuracy_score(truth, given))
    assert done["hamming_loss"] == pytest.approx(sk.hamming_loss(truth, given))
    assert done["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, chances, average="macro"), rel=1e-9)


def test_numbers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    model = models.bert(tmp_path / "model", "BertForSequenceClassification", **options)
    right = np.array([DRAW.gauss(0, 2) for _ in TEXTS])
    found = [{"text": text, "label": own} for text, own in zip(TEXTS, right.tolist(), strict=True)]
    done = pf.evaluate(tmp_path / "model", rows(tmp_path, found), batch_size=7)
    given = torch.stack(logits_alone(model, tmp_path / "model", TEXTS))[:, 0].double().numpy()
    assert answers_of(done) == pytest.approx(given, abs=1e-5)
    assert done["pearson"] == pytest.approx(scipy.stats.pearsonr(right, given).statistic, abs=1e-5)
    assert done["spearman"] == pytest.approx(scipy.stats.spearmanr(right, given).statistic, abs=1e-9)
    assert done["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(right, given), rel=1e-5)
    assert done["rmse"] == pytest.approx(sk.root_mean_squared_error(right, given), rel=1e-5)
    assert done["r2"] == pytest.approx(sk.r2_score(right, given), rel=1e-4)


# ---- tags, spans


def test_tags(tmp_path: Path) -> None:
    import seqeval.metrics as seqeval
    from seqeval.scheme import IOB2

    model = models.bert(tmp_path / "model", "BertForTokenClassification", num_labels=5, **named(TAGS))
    balanced(model, tmp_path / "model", torch.cat(logits_alone(model, tmp_path / "model", TEXTS)))
    split = [
        [word + DRAW.choice(("", "s", "er")) for word in text.split()] for text in TEXTS
    ]  # words of several tokens
    truth = [[DRAW.choice(TAGS) for _ in words] for words in split]
    found = [{"tokens": words, "ner_tags": tags} for words, tags in zip(split, truth, strict=True)]
    done = pf.evaluate(tmp_path / "model", rows(tmp_path, found), batch_size=7)
    tokenizer, given = models.reference_tokenizer(tmp_path / "model"), []
    for words in split:
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = model(**encoded).logits[0].argmax(-1).tolist()
        places = encoded.word_ids()
        given.append([TAGS[best[places.index(number)]] for number in range(len(words))])
    assert [line["answer"] for line in Kept(done.folder).predictions()] == given
    for name, score in (("f1", seqeval.f1_score), ("precision", seqeval.precision_score)):
        assert done[name] == pytest.approx(score(truth, given))
        assert done[f"{name}_strict"] == pytest.approx(score(truth, given, mode="strict", scheme=IOB2))
    assert done["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, given))


def run_squad(start: np.ndarray[Any, Any], end: np.ndarray[Any, Any], own: list[bool], longest: int) -> Any:
    """The best span of tokens by the sum of logits, as run_squad finds it; and how much better no answer is."""
    best, where = -math.inf, (0, 0)
    for first in np.argsort(-start)[:20]:
        for last in np.argsort(-end)[:20]:
            if own[first] and own[last] and first <= last < first + longest and start[first] + end[last] > best:
                best, where = start[first] + end[last], (int(first), int(last))
    return where, start[0] + end[0] - best


def normal(text: str) -> list[str]:
    """SQuAD's words: lower case, without punctuation and articles."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def f1_of(given: str, right: str, version: str) -> float:
    mine, theirs = normal(given), normal(right)
    if version == "2.0" and not (mine and theirs):
        return float(mine == theirs)  # the script for 1.1 gives 0 where an answer is nothing but "the"
    common = sum(min(mine.count(word), theirs.count(word)) for word in set(mine))
    return 0.0 if not common else 2 * common / (len(mine) + len(theirs))


@pytest.mark.parametrize("without", [False, True], ids=["1.1", "2.0"])
def test_answers_to_questions(without: bool, tmp_path: Path) -> None:
    model = models.bert(tmp_path / "model", "BertForQuestionAnswering")
    pairs = [(f"where is the {text.split()[0]} ?", text) for text in TEXTS]
    spans = [DRAW.randrange(len(text.split())) for text in TEXTS]
    right = [
        [] if without and number % 3 == 0 else [" ".join(text.split()[span : span + 2]), text.split()[span]]
        for number, (text, span) in enumerate(zip(TEXTS, spans, strict=True))
    ]
    found = [
        {"question": q, "context": c, "answers": {"text": own, "answer_start": [c.find(one) for one in own]}}
        for (q, c), own in zip(pairs, right, strict=True)
    ]
    done = pf.evaluate(tmp_path / "model", rows(tmp_path, found), scoring="squad", max_answer_tokens=6, batch_size=7)
    tokenizer, given, odds = models.reference_tokenizer(tmp_path / "model"), [], []
    for question, context in pairs:
        encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        own = [part == 1 for part in encoded.sequence_ids()]
        with torch.no_grad():
            output = model(**encoded)
        where, null = run_squad(output.start_logits[0].numpy(), output.end_logits[0].numpy(), own, 6)
        odds.append(float(null))
        given.append(context[offsets[where[0]][0] : offsets[where[1]][1]])
    answers = answers_of(done)
    assert [one["text"] for one in answers] == given
    if without:
        assert [one["no_answer_score"] for one in answers] == pytest.approx(odds, abs=2e-5)
        given = ["" if null > 0 else text for null, text in zip(odds, given, strict=True)]
        assert 0 < given.count("") < N
    exact = [max(normal(text) == normal(one) for one in own or [""]) for text, own in zip(given, right, strict=True)]
    f1 = [
        max(f1_of(text, one, "2.0" if without else "1.1") for one in own or [""])
        for text, own in zip(given, right, strict=True)
    ]
    assert done["exact_match"] == pytest.approx(100 * np.mean(exact)) and done["f1"] == pytest.approx(100 * np.mean(f1))
    assert 0 < done["f1"] < 100


# ---- written texts, language


def test_written_texts(tmp_path: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    model = models.bart(tmp_path / "model")
    sources = [text[:40] for text in TEXTS[:12]]
    tokenizer = models.reference_tokenizer(tmp_path / "model")
    given = []
    for source in sources:
        encoded = tokenizer(source, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**encoded, num_beams=3, do_sample=False, max_new_tokens=14, early_stopping=False)
        given.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    # Targets that share words with what is written: else every score is 0.
    targets = [f"{text[: 4 + n]} the cat" if n % 3 else text for n, text in enumerate(given)]
    targets = [text if text.strip() else "the cat" for text in targets]
    found = [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]
    done = pf.evaluate(tmp_path / "model", rows(tmp_path, found), num_beams=3, max_new_tokens=14, batch_size=5)
    lines = list(Kept(done.folder).predictions())
    assert [line["answer"] for line in lines] == given
    right = [line["reference"] for line in lines]
    assert done["bleu"] == pytest.approx(BLEU().corpus_score(given, [right]).score)
    assert done["chrf"] == pytest.approx(CHRF().corpus_score(given, [right]).score)
    assert 1 < done["chrf"] < 100
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [rouge.score(target, text) for target, text in zip(right, given, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert done[name] == pytest.approx(np.mean([one[name].fmeasure for one in each])), name
    assert done["exact_match"] == pytest.approx(np.mean([a == b for a, b in zip(given, right, strict=True)]))


def test_perplexity_is_the_references_loss_of_each_document(tmp_path: Path) -> None:
    model = models.gpt2(tmp_path / "model")
    documents = [text[:47] for text in TEXTS] + ["é" * 20, "日本" * 7]
    done = pf.evaluate(tmp_path / "model", rows(tmp_path, [{"text": text} for text in documents]), batch_size=7)
    tokenizer = models.reference_tokenizer(tmp_path / "model")
    nats, tokens, size, own = 0.0, 0, 0, []
    for text in documents:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)  # the mean over all but the first token
        own.append(loss * (ids.shape[1] - 1))
        nats, tokens = nats + own[-1], tokens + ids.shape[1] - 1
        size += len(text.encode()) - len(text[0].encode())  # a character whose first byte nothing predicts is left out
    answers = answers_of(done)
    assert [one["nats"] for one in answers] == pytest.approx(own, rel=2e-5)
    assert done["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert done["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_nats_are_those_of_lm_eval(tmp_path: Path) -> None:
    """A tokenizer that begins each text with <s>, which lm-eval gives as prefix: both score every token of a document."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from tokenizers import Tokenizer, processors

    folder = tmp_path / "model"
    ids: dict[str, Any] = dict(vocab_size=BYTE_VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = transformers.LlamaConfig(**models.TINY, **ids, num_key_value_heads=2, max_position_embeddings=96)
    models.save_model(folder, "LlamaForCausalLM", config)
    models.save_bytes(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    done = pf.evaluate(folder, rows(tmp_path, [{"text": text} for text in TEXTS]), batch_size=7)
    theirs = get_model("hf")(
        pretrained=str(folder), batch_size=1, device="cpu", dtype="float32", add_bos_token=False, prefix_token_id=1
    )
    asked = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=number)  # type: ignore[arg-type]
        for number, text in enumerate(TEXTS)
    ]
    nats = [-value for value in theirs.loglikelihood_rolling(asked, disable_tqdm=True)]
    assert [one["nats"] for one in answers_of(done)] == pytest.approx(nats, rel=1e-4)
    size = sum(len(text.encode()) for text in TEXTS)
    assert done["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-5)
    assert sum(one["tokens"] for one in answers_of(done)) == size  # tokens are bytes


# ---- clips, images


def test_transcripts(tmp_path: Path) -> None:
    import soundfile

    model = models.wav2vec2(tmp_path / "model", "Wav2Vec2ForCTC")
    (tmp_path / "clips").mkdir()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    tokenizer = models.reference_tokenizer(tmp_path / "model")
    found, given = [], []
    for number in range(24):
        path = tmp_path / "clips" / f"{number}.wav"
        samples = np.random.default_rng(number).normal(0, 0.05 + 0.02 * number, 2400 + 170 * number)
        soundfile.write(path, samples, 16_000)
        heard, rate = soundfile.read(path, dtype="float32")
        with torch.no_grad():
            inputs = extractor(heard, sampling_rate=rate, return_tensors="pt")
            best = model(**inputs).logits[0].argmax(-1)
        given.append(tokenizer.decode(best))
        said = given[-1][: 3 + number % 5] + " THE" * (number % 2) or "A"
        found.append({"file": path.name, "text": said})
    write_rows(tmp_path / "clips" / "metadata.jsonl", found)
    done = pf.evaluate(tmp_path / "model", tmp_path / "clips", format="audio", batch_size=5)
    lines = list(Kept(done.folder).predictions())
    assert [line["answer"] for line in lines] == given
    right = [line["reference"] for line in lines]
    assert right == [row["text"] for row in found]
    assert done["wer"] == pytest.approx(jiwer.wer(right, given)) and done["cer"] == pytest.approx(
        jiwer.cer(right, given)
    )


def test_labels_of_images(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**models.TINY, **named(LABELS), image_size=32, patch_size=8)
    model = models.save_model(tmp_path / "model", "ViTForImageClassification", config)
    save_image(tmp_path / "model")
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "model")
    images = np.random.default_rng(3).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    images = (images * np.linspace(0.1, 1, N)[:, None, None, None]).astype(np.uint8)
    with torch.no_grad():
        pixels = processor(list(images), return_tensors="pt").pixel_values
        balanced(model, tmp_path / "model", model(pixel_values=pixels).logits)
    right = [DRAW.choice(LABELS) for _ in range(N)]
    np.savez(tmp_path / "rows.npz", image=images, label=np.array(right))
    done = pf.evaluate(tmp_path / "model", tmp_path / "rows.npz", batch_size=7)
    with torch.no_grad():
        chances = model(pixel_values=pixels).logits.softmax(-1).numpy()
    check_labels(done, right, chances)
