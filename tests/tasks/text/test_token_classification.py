"""Labels and entities, against the reference's pipeline, seqeval, and the properties that spans must have."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import seqeval.scheme
import tokenizers
import tokenizers.trainers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Tokenizer

from plainformer.config.tag_schemes import read_tags
from plainformer.errors import UsageError
from plainformer.inputs.text.words import words
from tests.support import models as make
from tests.support.close import close
from tests.support.vocabularies import BYTE_SPECIAL, WORDS

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LABELS = dict(enumerate(NAMES))
TEXTS = [
    "the cat sat on the mat.",
    "paris",
    "is the dog good, or bad? who is in france!",
    "don't say 3.14, goodmat parisfrance catsat!! who'dog",
    "  where \t is  \n the catcat ?",
]
SCRIPTS = "aé的東ร์ก😀👩‍👩‍👧 \t\r\n.,'-0٣ß\u0301\u200d\u00adअनु"


TOWNS = ["paris", "is", "a", "town", "berlin", "towns", "Été", "x"]


def save_byte_pairs(folder: Path) -> None:
    """A trained byte-level BPE whose tokens begin words with a blank, as RoBERTa's do."""
    backend = Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=290, special_tokens=BYTE_SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator([" ".join(TOWNS)] * 20, trainer)
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    make.save_bytes(folder)
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokens")
    make.bert(root / "bert", "BertForTokenClassification", id2label=LABELS)
    gpt2 = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=200, vocab_size=make.BYTE_VOCABULARY, id2label=LABELS
    )
    make.save_model(root / "gpt2", "GPT2ForTokenClassification", gpt2)
    make.save_bytes(root / "gpt2")
    roberta = transformers.RobertaConfig(
        **make.TINY, vocab_size=300, max_position_embeddings=80, pad_token_id=0, id2label=LABELS
    )
    make.save_model(root / "roberta", "RobertaForTokenClassification", roberta)
    save_byte_pairs(root / "roberta")
    mistral = transformers.MistralConfig(
        **{**make.TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
        vocab_size=make.BYTE_VOCABULARY,
        sliding_window=4,
        max_position_embeddings=4096,
        id2label=LABELS,
    )
    make.save_model(root / "mistral", "MistralForTokenClassification", mistral)
    make.save_bytes(root / "mistral")
    make.bert(
        root / "speech-parts", "BertForTokenClassification", id2label={0: "NOUN", 1: "VERB", 2: "PUNCT", 3: "DET"}
    )
    return {path.name: path for path in root.iterdir()}


def reference(folder: Path, name: str, how: str) -> Any:
    return transformers.pipeline(
        "token-classification",
        model=getattr(transformers, name).from_pretrained(folder).eval(),
        tokenizer=make.reference_tokenizer(folder),
        device="cpu",
        aggregation_strategy=how,
        ignore_labels=[] if how == "none" else ["O"],
    )


def compare(task: Any, theirs: Any, texts: list[str], how: str) -> int:
    """How many entities were equal."""
    count = 0
    for text, result in zip(texts, task(texts, aggregation=how), strict=True):
        expected = theirs(text) if text else []
        key = "entity" if how == "none" else "entity_group"
        assert [(e.label, e.start, e.end) for e in result] == [(e[key], e["start"], e["end"]) for e in expected]
        if result:
            close([e.score for e in result], [float(e["score"]) for e in expected])
        count += len(result)
    return count


@pytest.mark.parametrize("how", ["none", "simple", "first", "average", "max"])
def test_entities_are_the_references(folders: dict[str, Path], how: str) -> None:
    task = make.load(folders["bert"])
    theirs = reference(folders["bert"], "BertForTokenClassification", how)
    draw = random.Random(3)
    pieces = [*WORDS[:-1], "catdog", "don't", "q.e.d", "!", "goodparisx"]
    texts = [*TEXTS, *(" ".join(draw.choices(pieces, k=draw.randint(1, 6))) for _ in range(60))]
    assert compare(task, theirs, texts, how) > 60


@pytest.mark.parametrize("how", ["simple", "first", "average", "max"])
def test_entities_of_a_byte_level_tokenizer_are_the_references(folders: dict[str, Path], how: str) -> None:
    # Words between single blanks: elsewhere the reference takes all that blanks do not part for one word.
    task = make.load(folders["roberta"])
    theirs = reference(folders["roberta"], "RobertaForTokenClassification", how)
    draw = random.Random(5)
    texts = [" ".join(draw.choices(TOWNS, k=7)) for _ in range(60)]
    assert compare(task, theirs, texts, how) > 60


def test_the_default_follows_the_labels(folders: dict[str, Path]) -> None:
    entities = make.load(folders["bert"])
    assert entities(TEXTS) == entities(TEXTS, aggregation="first")
    parts = make.load(folders["speech-parts"])
    assert parts(TEXTS) == parts(TEXTS, aggregation="none")
    assert [t.text for t in parts("the cat.")] == ["the", "cat", "."]
    # A row of the same tag without prefix is one entity, as in the reference.
    compare(parts, reference(folders["speech-parts"], "BertForTokenClassification", "first"), TEXTS[:3], "first")


# ---- schemes --------------------------------------------------------------------------------------------------------

PREFIXES = {"IOB1": "IB", "IOB2": "IB", "IOBES": "IBES", "BILOU": "BILU"}


def tags(prefixes: str) -> st.SearchStrategy[list[str]]:
    each = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("X", "Y"))])
    return st.lists(each, max_size=12)


@pytest.mark.parametrize("name", ["IOB2", "IOBES", "BILOU"])
def test_strict_schemes_read_as_seqeval(name: str) -> None:
    @settings(max_examples=400, deadline=None)
    @given(tags(PREFIXES[name]))
    def check(row: list[str]) -> None:
        theirs = seqeval.scheme.Entities([row], getattr(seqeval.scheme, name)).entities[0]
        assert read_tags(row, name) == [(e.start, e.end, e.tag) for e in theirs]

    check()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["X", "Y", "O"]), st.integers(1, 3)), max_size=8))
def test_iob1_reads_what_seqeval_reads(parts: list[tuple[str, int]]) -> None:
    row: list[str] = []
    for kind, length in parts:
        if kind == "O":
            row += ["O"] * length
        else:
            split = bool(row) and row[-1].endswith(kind)
            row += [f"{'B' if split else 'I'}-{kind}", *[f"I-{kind}"] * (length - 1)]
    theirs = seqeval.scheme.Entities([row], seqeval.scheme.IOB1).entities[0]
    assert read_tags(row, "IOB1") == [(e.start, e.end, e.tag) for e in theirs]


@settings(max_examples=600, deadline=None)
@given(tags("IBES"))
def test_without_a_scheme_tags_read_as_in_conlleval(row: list[str]) -> None:
    assert read_tags(row) == [(first, last + 1, kind) for kind, first, last in get_entities(row)]


def test_bilou_reads_as_iobes_by_other_letters() -> None:
    assert read_tags(["B-X", "I-X", "L-X", "U-X", "O"]) == [(0, 3, "X"), (3, 4, "X")]


def test_a_scheme_that_is_not_the_checkpoints_is_an_error(folders: dict[str, Path]) -> None:
    task = make.load(folders["bert"])
    task("the cat", scheme="IOB2")
    with pytest.raises(UsageError, match=r"'BILOU' has no label 'B-PER'|has no label"):
        make.load(folders["speech-parts"])("the cat", scheme="BILOU", aggregation="first")
    with pytest.raises(UsageError, match="ends an entity as scheme='BILOU'"):
        task("the cat", scheme="BILOU")
    with pytest.raises(UsageError, match=r"did you mean 'IOB2'|IOB2"):
        task("the cat", scheme="IOB3")
    with pytest.raises(UsageError, match="no effect"):
        task("the cat", scheme="IOB2", aggregation="none")
    with pytest.raises(UsageError, match="'first'"):
        task("the cat", aggregation="firs")


# ---- long documents -------------------------------------------------------------------------------------------------


def test_windows_join_to_the_whole_answer(folders: dict[str, Path]) -> None:
    """Two layers that each see three tokens back: with 16 of overlap, every token counted sees all it can see."""
    task = make.load(folders["mistral"])
    text = " ".join(random.Random(1).choices(["paris", "is", "a", "town", "été", "berlin😀"], k=120))
    whole = task(text, aggregation="none")
    assert len(whole) > 500
    for window, stride in ((48, 16), (33, 15), (100, 12), (700, 699 // 2), (20, 14)):
        found = task(text, aggregation="none", window=window, stride=stride)
        assert [(t.label, t.start, t.end) for t in found] == [(t.label, t.start, t.end) for t in whole]
        close([t.score for t in found], [t.score for t in whole])
    entities = task(text, window=48, stride=16)
    assert [(e.label, e.start, e.end) for e in entities] == [(e.label, e.start, e.end) for e in task(text)]


def test_every_token_of_a_long_text_has_its_label(folders: dict[str, Path]) -> None:
    task = make.load(folders["bert"])  # 40 positions
    text = "the cat sat on the mat. " * 50
    tokens = task(text, aggregation="none")
    assert [t.text for t in tokens] == ["the", "cat", "sat", "on", "the", "mat", "."] * 50
    assert all(text[t.start : t.end] == t.text for t in tokens)
    mixed = task([text, "paris", text[:200]], aggregation="none")
    assert [len(row) for row in mixed] == [350, 1, len(task(text[:200], aggregation="none"))]
    for options in ({"window": 41}, {"window": 0}, {"window": 8, "stride": 6}, {"stride": 38}, {"stride": -1}):
        with pytest.raises(UsageError, match=r"window|stride"):
            task(text, **options)


# ---- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize("how", ["simple", "first", "average", "max"])
def test_spans_are_verbatim_in_any_script(folders: dict[str, Path], name: str, how: str) -> None:
    task = make.load(folders[name])
    entities: list[str] = []

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.sampled_from(SCRIPTS), max_size=40) | st.text(max_size=20))
    def check(text: str) -> None:
        if (name == "gpt2" and not text) or any("\ud800" <= c <= "\udfff" for c in text):
            return
        reached = 0
        for entity in task(text, aggregation=how):
            assert text[entity.start : entity.end] == entity.text == entity.text.strip() != ""
            assert reached <= entity.start < entity.end
            assert 0 < entity.score <= 1.0001
            reached = entity.end
            entities.append(entity.text)

    check()
    assert len(entities) > 20 and any(not text.isascii() for text in entities)


def test_words_of_scripts_without_blanks() -> None:
    def cut(text: str) -> list[str]:
        spans = [(i, i + 1) for i in range(len(text))]
        visible = [span for span in spans if not text[span[0]].isspace()]
        groups = words(text, visible, [0] * len(visible))
        return [text[visible[group[0]][0] : visible[group[-1]][1]] for group in groups]

    assert cut("東京タワーは") == ["東", "京", "タワー", "は"]
    assert cut("don't pay 3.14!") == ["don't", "pay", "3.14", "!"]
    assert cut("e\u0301te\u0301 naïve") == ["e\u0301te\u0301", "naïve"]
    assert cut("👩‍👩‍👧ok") == ["👩‍👩‍👧", "ok"]
    # Two tokens that share a character belong together, and so do the words that one token spans.
    assert words("😀a", [(0, 1), (0, 1), (1, 2)], [0, 0, 0]) == [[0, 1], [2]]
    assert words("ab cd", [(0, 4), (4, 5)], [0, 1]) == [[0, 1]]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 60), max_size=40), batch_size=st.integers(1, 9))
def test_order_is_kept_and_batches_change_nothing(
    folders: dict[str, Path], lengths: list[int], batch_size: int
) -> None:
    task = make.load(folders["bert"])
    texts = [" ".join(random.Random(n).choices(WORDS[:-1], k=n)) for n in lengths]
    together = task(texts, batch_size=batch_size)
    streamed = list(task(iter(texts), batch_size=batch_size))
    for found in (together, streamed):
        assert len(found) == len(texts)
        for text, result in zip(texts, found, strict=True):
            alone = task(text)
            assert [(e.label, e.start, e.end) for e in result] == [(e.label, e.start, e.end) for e in alone]
            close([e.score for e in result], [e.score for e in alone])


def test_a_stream_is_read_only_so_far_ahead(folders: dict[str, Path]) -> None:
    task = make.load(folders["bert"])
    read = 0

    def texts() -> Any:
        nonlocal read
        while True:
            read += 1
            yield "the cat"

    answers = task(texts(), batch_size=4)
    next(answers)
    assert read == 4
    for _ in range(1000):
        next(answers)
    assert read <= 1001 + 32 * 4
    read = 0
    answers = task(texts(), batch_size=1)
    for _ in range(20):
        next(answers)
    assert read == 20
    with pytest.raises(UsageError, match="batch_size=0"):
        task(["the cat"], batch_size=0)


@torch.inference_mode()
def test_long_inputs_share_batches(folders: dict[str, Path]) -> None:
    """What runs together is of like length: 64 texts of two lengths, in turn, make no padding at all."""
    task = make.load(folders["bert"])
    padding = []
    predict = task.predict

    def counted(encoded: Any, options: Any) -> Any:
        padding.append(int((encoded.batch.attention_mask == 0).sum()))
        return predict(encoded, options)

    task.predict = counted
    task(["the cat", "the cat sat on the mat"] * 32, batch_size=16)
    assert padding == [0, 0, 0, 0]
