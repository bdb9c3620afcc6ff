"""Record how an older reference release answers questions, and how SQuAD's scripts score answers.

The question-answering pipeline, and `run_squad`'s arithmetic, left transformers with release 5. Run this at the
repository's root in an environment of its own, and commit what it writes:

    python -m venv /tmp/old && /tmp/old/bin/pip install 'transformers==4.57.*' torch numpy safetensors
    /tmp/old/bin/python -m tests.support.record_old_question_answering evaluate-v1.1.py

The argument is the official script for SQuAD 1.1 (https://rajpurkar.github.io/SQuAD-explorer/); the one for 2.0 is
`squad_evaluate` of that release. The models are tiny and random; `save_folder` makes the same ones again in any release.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support import ROOT
from tests.support.record_old_generation import fill

HERE = ROOT / "tests"
PIPELINE, SQUAD = HERE / "tasks/vectors/qa_pipeline.json", HERE / "tasks/vectors/qa_squad.json"
METRICS = HERE / "evaluate/vectors/squad.json"
LIMIT = 64  # tokens

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
WORDS = ["the", "cat", "sat", "on", "mat", "dog", "paris", "is", "in", "of", "france", "who", "where", "city", "##ing"]
CJK = "東京は日本の首都です猫"
WORDPIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS, *CJK]
SIZES: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, attn_implementation="eager"
)
DISTILLED: dict[str, Any] = dict(dim=32, n_layers=2, n_heads=4, hidden_dim=37, attn_implementation="eager")
# name → (config class, model class, tokenizer, settings)
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForQuestionAnswering", "wordpiece", dict(SIZES, max_position_embeddings=LIMIT)),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForQuestionAnswering",
        "wordpiece",
        dict(DISTILLED, max_position_embeddings=LIMIT),
    ),
    "roberta": (
        "RobertaConfig",
        "RobertaForQuestionAnswering",
        "bytes",
        dict(SIZES, max_position_embeddings=LIMIT + 2, type_vocab_size=1, pad_token_id=1),
    ),
    "xlm-roberta": (
        "XLMRobertaConfig",
        "XLMRobertaForQuestionAnswering",
        "unigram",
        dict(SIZES, max_position_embeddings=LIMIT + 2, type_vocab_size=1, pad_token_id=1),
    ),
}

SHORT = [
    ("who sat?", "the cat sat on the mat, the dog is in paris"),
    ("where is the city of paris?", "Paris is in France."),
    ("where is the dog sitting in this city?", "in paris"),
    ("which letters?", "mats, cats & dogs -- 12,345 of them; Sitting in the CITY. The city? the City!"),
]
LONG = [
    ("where is it?", " ".join(f"the cat number {i} sat on the mat in city {i % 7}, of france." for i in range(12))),
    ("who?", "cats and dogs sat. " * 20 + "paris is the city of france, is it not? " * 5),
]
UNICODE = [
    ("où?", "Le café — d\u2019été — coûte 3\u202f€, «\u00a0ça va\u00a0»; e\u0301te\u0301 🐱🐶 the cat 👨‍👩‍👧 sat."),
    ("who?", "first line\r\nsecond line\r\n\r\n\tthe cat\u3000sat  on   the mat"),
    ("чей?", "кошка the cat сидит в городе париж; هذا قط في المدينة; γάτα"),
]
UNSPACED = [("where?", "東京は日本の首都です。 猫 the cat 日本の猫です")]
CASES: list[tuple[list[tuple[str, str]], dict[str, Any]]] = [
    (SHORT + LONG + UNICODE, {}),
    (SHORT + LONG + UNICODE, {"align_to_words": False}),
    (SHORT + LONG + UNICODE, {"top_k": 3}),
    (SHORT + LONG + UNICODE + UNSPACED, {"top_k": 3, "align_to_words": False}),
    (SHORT + UNICODE, {"top_k": 4, "handle_impossible_answer": True}),
    (SHORT + LONG + UNICODE, {"handle_impossible_answer": True}),
    (SHORT + LONG, {"top_k": 5, "max_answer_len": 1}),
    (LONG + UNICODE, {"top_k": 5, "max_answer_len": 30, "handle_impossible_answer": True, "align_to_words": False}),
    (LONG + UNICODE, {"top_k": 6, "max_seq_len": 40, "doc_stride": 8}),
    (LONG + UNICODE, {"top_k": 6, "max_seq_len": 40, "doc_stride": 18, "max_answer_len": 4, "align_to_words": False}),
    (LONG, {"top_k": 2, "max_seq_len": 48, "doc_stride": 0, "handle_impossible_answer": True}),
    ([(question, LONG[0][1]) for question in ("who?", "where is the cat?", "in which city is it?")], {"top_k": 2}),
]
SQUAD_CASES: list[dict[str, Any]] = [
    {"with_null": False, "max_answer_length": 30, "window": 64, "doc_stride": 32},
    {"with_null": True, "max_answer_length": 30, "window": 64, "doc_stride": 20},
    {"with_null": True, "max_answer_length": 4, "window": 40, "doc_stride": 11, "threshold": -2.0},
    {"with_null": True, "max_answer_length": 10, "window": 48, "doc_stride": 30, "threshold": 3.5},
]


def make_tokenizer(kind: str) -> tuple[Any, dict[str, str]]:
    """The tokenizer, and its special tokens by role."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDPIECE)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        )
        backend.decoder = decoders.WordPiece()
        roles = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        backend.add_special_tokens([AddedToken(token, special=True) for token in WORDPIECE[:5]])
        return backend, {**roles, "mask_token": "[MASK]"}
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "bytes":
        merges = [
            ("t", "h"),
            ("th", "e"),
            ("c", "a"),
            ("ca", "t"),
            ("Ġ", "the"),
            ("i", "n"),
            ("Ġ", "s"),
            ("a", "t"),
            ("r", "is"),
        ]
        merges = [*merges[:-1], ("i", "s"), merges[-1]]
        tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
        backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        pieces = ["▁", "▁the", "▁cat", "▁sat", "▁is", "▁in", "is", "▁paris", "日本", "首都"]
        pieces += [*LETTERS, *LETTERS[:26].upper(), *CJK, "é", "а", "и"]
        scores = [(token, 0.0) for token in special] + [
            (piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces)
        ]
        backend = Tokenizer(models.Unigram(scores, unk_id=3))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        backend.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
        )
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    roles = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return backend, {**roles, "unk_token": "<unk>"}


def save_folder(name: str, seed: int, folder: Path) -> tuple[Any, Any]:
    """A model with its tokenizer, saved as a checkpoint; the reference's objects for both."""
    import transformers

    config_class, model_class, kind, settings = MODELS[name]
    backend, roles = make_tokenizer(kind)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if name == "bert" else [])]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=LIMIT, model_input_names=names, **roles
    )
    config = getattr(transformers, config_class)(vocab_size=backend.get_vocab_size(), **settings)
    model = getattr(transformers, model_class)(config)
    fill(model, seed)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind == "wordpiece":
        (folder / "vocab.txt").write_text("\n".join(WORDPIECE) + "\n", encoding="utf-8")
    return model, tokenizer


# ---- the pipeline -----------------------------------------------------------------------------------------------------


def record_pipeline() -> list[dict[str, Any]]:
    """Every case on every model: (question, context) pairs, options, and answers as [start, end, score]."""
    from transformers import pipeline

    found = []
    for seed, name in enumerate(MODELS):
        with tempfile.TemporaryDirectory() as folder:
            model, tokenizer = save_folder(name, seed, Path(folder))
            # The pipeline reads such options as are false from neither None nor 0: it has a default for both.
            ask = pipeline("question-answering", model=model, tokenizer=tokenizer, device="cpu")
            for items, options in CASES:
                answers = []
                for question, context in items:
                    got = ask(question=question, context=context, **options)
                    got = got if isinstance(got, list) else [got]
                    assert all(a["answer"] == context[a["start"] : a["end"]] for a in got)
                    answers.append([[a["start"], a["end"], round(a["score"], 8)] for a in got])
                found.append({"model": name, "seed": seed, "items": items, "options": options, "answers": answers})
    return found


# ---- run_squad --------------------------------------------------------------------------------------------------------


def whole_word_items(seed: int) -> list[tuple[str, str]]:
    """Questions and contexts of words that are one token each: the scripts rebuild a span that begins inside a word by
    rules of their own."""
    random = np.random.Generator(np.random.PCG64([seed, 5]))
    contexts = []
    for count in (2, 9, 30, 60, 90, 150):
        words = random.choice(WORDS[:-1], count).tolist()
        ends = random.choice(["", "", "", "", ",", ".", "!"], count).tolist()
        contexts.append(
            " ".join(
                (word.title() if random.random() < 0.2 else word) + end for word, end in zip(words, ends, strict=True)
            )
        )
    questions = [
        "who sat?",
        "where is the city of paris?",
        "who?",
        "where is the cat in paris?",
        "who is in france?",
        "who?",
    ]
    return list(zip(questions, contexts, strict=True))


def squad_features(tokenizer: Any, items: list[tuple[str, str]], window: int, doc_stride: int) -> tuple[Any, Any]:
    """run_squad's examples and features, without padding: only the tests' models see the same lengths that way."""
    from transformers.data.processors import squad

    squad.squad_convert_example_to_features_init(tokenizer)
    examples, features = [], []
    for number, (question, context) in enumerate(items):
        examples.append(squad.SquadExample(f"q{number}", question, context, None, None, "", [], False))
        for feature in squad.squad_convert_example_to_features(
            examples[-1], window, doc_stride, 64, "do_not_pad", is_training=False
        ):
            feature.example_index, feature.unique_id = number, len(features)
            features.append(feature)
    return examples, features


def record_squad() -> list[dict[str, Any]]:
    """Answers, n-best lists ([text, probability]) and null odds of run_squad's arithmetic; `stride` is the overlap."""
    from transformers import BertTokenizer
    from transformers.data.metrics.squad_metrics import compute_predictions_logits
    from transformers.data.processors.squad import SquadResult

    found = []
    for number, case in enumerate(SQUAD_CASES):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model, _ = save_folder("bert", number, folder)
            tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=LIMIT)
            items = whole_word_items(number)
            examples, features = squad_features(tokenizer, items, case["window"], case["doc_stride"])
            results = []
            for feature in features:
                rows = {
                    k: torch.tensor([getattr(feature, k)]) for k in ("input_ids", "attention_mask", "token_type_ids")
                }
                with torch.no_grad():
                    out = model(**rows)
                results.append(SquadResult(feature.unique_id, out.start_logits[0].tolist(), out.end_logits[0].tolist()))
            nbest, odds = folder / "nbest.json", folder / "odds.json"
            predictions = compute_predictions_logits(
                *(examples, features, results, 20, case["max_answer_length"], True, None, str(nbest), str(odds)),
                *(False, case["with_null"], case.get("threshold", 0.0), tokenizer),
            )
            lists = json.loads(nbest.read_text())
            every = json.loads(odds.read_text()) if case["with_null"] else {}
            for i, (question, context) in enumerate(items):
                asked = len(tokenizer.tokenize(question))
                entry = {**case, "seed": number, "question": question, "context": context}
                entry["stride"] = case["window"] - asked - 3 - case["doc_stride"]
                entry["answer"], entry["null_odds"] = predictions[f"q{i}"], every.get(f"q{i}")
                entry["nbest"] = [[e["text"], round(e["probability"], 8)] for e in lists[f"q{i}"]]
                found.append(entry)
    return found


# ---- scores -----------------------------------------------------------------------------------------------------------

PIECES = [
    "the",
    "The",
    "a",
    "an",
    "cat",
    "Cat",
    "cats",
    "dog",
    "12",
    "3.5",
    "é",
    "e\u0301",
    "ÉTÉ",
    "東京",
    "İ",
    "ß",
    "—",
    ",",
    "!",
]
PIECES += ["the-cat", "a.b", "\u00a0", "\t", "«", "the_", "''", "St.", "theory", "$5", "…", "🐱"]


def random_text(random: np.random.Generator, most: int) -> str:
    words = random.choice(PIECES, random.integers(0, most + 1)).tolist()
    return str(random.choice([" ", " ", "  ", "\n"])).join(words)


def record_metrics(official: Any) -> dict[str, Any]:
    """Random data sets with what the official scripts make of them, and the normal form of random texts."""
    from transformers.data.metrics.squad_metrics import normalize_answer, squad_evaluate
    from transformers.data.processors.squad import SquadExample

    random = np.random.Generator(np.random.PCG64(7))
    old, new = [], []
    for size in (1, 2, 5, 20, 60, 60):
        golds = {f"q{i}": [random_text(random, 3) for _ in range(random.integers(0, 4))] for i in range(size)}
        predictions = {}
        for name, gold in golds.items():
            copied = str(random.choice(gold)) if gold and random.random() < 0.6 else random_text(random, 3)
            predictions[name] = "" if random.random() < 0.2 else copied
        scores = {name: round(float(random.normal(0, 3)), 1 if size < 60 else 6) for name in golds}
        threshold = float(random.choice([-1.0, 0.0, 1.0, 2.5]))
        examples = [
            SquadExample(n, "", "", None, None, "", [{"text": t} for t in gold], not gold) for n, gold in golds.items()
        ]
        plain = squad_evaluate(examples, predictions)
        scored = squad_evaluate(examples, predictions, scores, threshold)
        case = {"references": golds, "predictions": predictions, "scores": scores, "threshold": threshold}
        new.append({**case, "plain": plain, "scored": scored})
        answered = {name: gold for name, gold in golds.items() if gold} or {"q0": ["cat"]}
        questions = [{"id": n, "answers": [{"text": text} for text in gold]} for n, gold in answered.items()]
        given = {name: predictions[name] for name in answered}
        result = official.evaluate([{"paragraphs": [{"qas": questions}]}], given)
        old.append({"references": answered, "predictions": given, "result": result})
    texts = [random_text(random, 6) for _ in range(60)]
    return {"normalized": [[text, normalize_answer(text)] for text in texts], "1.1": old, "2.0": new}


def main(script: str) -> None:
    spec = importlib.util.spec_from_file_location("official", script)
    assert spec is not None and spec.loader is not None
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    for path, found in ((PIPELINE, record_pipeline()), (SQUAD, record_squad()), (METRICS, record_metrics(official))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(found, ensure_ascii=True, separators=(",", ":")).replace('{"model', '\n{"model') + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1])
