"""Languages of NLLB, M2M100, mBART and mBART-50: transformers' own tokenizers and `generate` are the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer
from plainformer.errors import CheckpointError, UsageError
from tests.support import models as make
from tests.support.cli import Cli, done, refused
from tests.support.languages import FAIRSEQ, KINDS, language_folders
from tests.support.sentencepiece import train

TEXTS = ["hello world", "a small model of the word", "the sentence"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind with its tokenizer's published files: vocabulary files, or tokenizer.json."""
    return language_folders(tmp_path_factory.mktemp("languages"))


def oracle(folder: Path, kind: str) -> tuple[Any, Any]:
    tokenizer_class, model_class, _ = KINDS[kind]
    model = getattr(transformers, f"{model_class}ForConditionalGeneration").from_pretrained(folder).eval()
    return getattr(transformers, tokenizer_class).from_pretrained(folder), model


def id_of(tokenizer: Any, kind: str, code: str) -> int:
    found: int = tokenizer.get_lang_id(code) if kind == "m2m" else tokenizer.convert_tokens_to_ids(code)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_source_is_where_the_reference_puts_it(kind: str, folders: dict[str, Path]) -> None:
    ours, (reference, _) = plainformer.load_tokenizer(str(folders[kind])), oracle(folders[kind], kind)
    for code in KINDS[kind][2]:
        reference.src_lang = code
        for text in TEXTS:
            expected = reference(text)["input_ids"]
            row = ours.encode(text, src_lang=code)
            assert row.input_ids == expected
            assert [ours.token_to_id(token) for token in row.tokens] == expected
        batch = ours.encode_batch(TEXTS, src_lang=code)
        assert [row.input_ids for row in batch] == [reference(text)["input_ids"] for text in TEXTS]
    assert ours.encode(TEXTS[0]).input_ids == oracle(folders[kind], kind)[0](TEXTS[0])["input_ids"]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_translations_are_the_references(kind: str, beams: int, folders: dict[str, Path]) -> None:
    """The target is forced after the start token; mBART's, as its documentation says, is the start token."""
    task = make.load(folders[kind])
    reference, model = oracle(folders[kind], kind)
    source, target = KINDS[kind][2][1:]
    reference.src_lang = source
    place = "decoder_start_token_id" if kind == "mbart" else "forced_bos_token_id"
    for text in TEXTS:
        inputs = reference(text, return_tensors="pt")
        new = 8 if kind == "mbart" else 9
        expected = model.generate(
            **inputs, max_new_tokens=new, num_beams=beams, do_sample=False, **{place: id_of(reference, kind, target)}
        )[0].tolist()
        start = 1 if kind == "mbart" else 2
        result = task(text, src_lang=source, tgt_lang=target, max_new_tokens=8, num_beams=beams)
        assert result.text == task.tokenizer.decode(expected[start:], skip_special_tokens=True)
        assert result.stop_reason == ("eos" if expected[-1] == 2 else "length")
        streamed = task.stream(text, src_lang=source, tgt_lang=target, max_new_tokens=8, num_beams=beams)
        assert "".join(streamed) == result.text


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_languages_are_the_defaults(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders[kind].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text())
    _, source, target = KINDS[kind][2]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**stated, "src_lang": source, "tgt_lang": target}))
    task, bare = make.load(tmp_path), make.load(folders[kind])
    options = {"max_new_tokens": 6}
    assert task(TEXTS[0], **options) == bare(TEXTS[0], src_lang=source, tgt_lang=target, **options)
    reference = oracle(tmp_path, kind)[0]
    assert task.tokenizer.encode(TEXTS[0]).input_ids == reference(TEXTS[0])["input_ids"]

    plainformer.save(task, tmp_path / "saved")
    again = make.load(tmp_path / "saved")
    assert again(TEXTS, **options) == task(TEXTS, **options)
    assert again.tokenizer.languages == task.tokenizer.languages
    saved = oracle(tmp_path / "saved", kind)[0]
    assert saved(TEXTS[0])["input_ids"] == reference(TEXTS[0])["input_ids"]

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**stated, "src_lang": "klingon"}))
    with pytest.raises(CheckpointError, match="src_lang='klingon'"):
        make.load(tmp_path)


def test_older_places_of_the_source(folders: dict[str, Path], tmp_path: Path) -> None:
    """NLLB was published with the source after the end token, in its tokenizer.json and as `legacy_behaviour`."""
    for path in folders["nllb"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    parts = whole["post_processor"]["single"]
    whole["post_processor"]["single"] = [parts[1], parts[2], parts[0]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for legacy in (False, True):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**stated, "legacy_behaviour": legacy}))
        ours, reference = plainformer.load_tokenizer(str(tmp_path)), oracle(tmp_path, "nllb")[0]
        for code in ("eng_Latn", "fra_Latn"):
            reference.src_lang = code
            ids = ours.encode(TEXTS[0], src_lang=code).input_ids
            assert ids == reference(TEXTS[0])["input_ids"]
            assert ids[-1 if legacy else 0] == ours.token_to_id(code)


def test_codes(folders: dict[str, Path]) -> None:
    task = make.load(folders["m2m"])
    assert task("the", src_lang="__de__", max_new_tokens=2) == task("the", src_lang="de", max_new_tokens=2)
    with pytest.raises(UsageError, match=r"src_lang='dee' is not a language"):
        task("the", src_lang="dee")
    with pytest.raises(UsageError) as caught:
        make.load(folders["nllb"])("the", tgt_lang="de")
    assert "deu_Latn" in caught.value.fix
    with pytest.raises(UsageError, match="exclude each other"):
        task("the", tgt_lang="de", forced_bos_id=5)
    with pytest.raises(UsageError, match="tgt_lang has no effect with a decoder_prefix"):
        task("the", tgt_lang="de", decoder_prefix="__fr__")
    assert task("the", tgt_lang="fr", max_new_tokens=4) == task("the", decoder_prefix="__fr__", max_new_tokens=4)


def test_translation_by_the_tasks_name(folders: dict[str, Path]) -> None:
    plain, options = make.load(folders["m2m"]), {"max_new_tokens": 5}
    expected = plain("the word", src_lang="de", tgt_lang="fr", **options)
    named = make.load(folders["m2m"], task="translation_de_to_fr")
    assert named("the word", **options) == expected
    assert named("the word", tgt_lang="en", **options) == plain("the word", src_lang="de", tgt_lang="en", **options)
    asked = make.load(folders["m2m"], task="translation")
    assert asked("the word", src_lang="de", tgt_lang="fr", **options) == expected
    with pytest.raises(UsageError, match="nothing names the language to translate into"):
        asked("the word")
    with pytest.raises(UsageError, match="task='xx' is not a language"):
        make.load(folders["m2m"], task="translation_xx_to_fr")


def test_models_without_languages(tmp_path: Path) -> None:
    make.bart(tmp_path)
    task = make.load(tmp_path)
    for name in ("src_lang", "tgt_lang"):
        with pytest.raises(UsageError, match=f"{name}='de' has no effect on this model"):
            task("the cat", **{name: "de"})
    with pytest.raises(UsageError, match="names no such translation"):
        make.load(tmp_path, task="translation_en_to_de")


def test_on_the_command_line(folders: dict[str, Path], cli: Cli) -> None:
    task = make.load(folders["nllb"])
    flags = ["--src-lang", "deu_Latn", "--tgt-lang", "fra_Latn", "--max-new-tokens", "5", "--backend", "plain"]
    answer = done(cli("run", str(folders["nllb"]), "the word", *flags))
    expected = task("the word", src_lang="deu_Latn", tgt_lang="fra_Latn", max_new_tokens=5)
    assert answer.out.rstrip("\n") == expected.text
    refused(
        cli("run", str(folders["nllb"]), "the word", "--tgt-lang", "german"), "--tgt-lang 'german' is not a language"
    )


def test_abstractive_answers_take_them(folders: dict[str, Path]) -> None:
    task = make.load(folders["m2m"], task="abstractive-qa")
    answer = task(("the word", "a small model"), src_lang="de", tgt_lang="fr", max_new_tokens=4)
    written = make.load(folders["m2m"])(
        "question: the word context: a small model", src_lang="de", tgt_lang="fr", max_new_tokens=4
    )
    assert answer.text == written.text


# ---- prefixes of purposes ------------------------------------------------------------------------------------------

PURPOSES = {
    "summarization": {
        "prefix": "sum: ",
        "max_length": 7,
        "num_beams": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
    },
    "translation_en_to_de": {"prefix": "en de: ", "max_length": 6, "num_beams": 2},
    "translation_en_to_fr": {"prefix": "en fr: ", "max_length": 6, "num_beams": 2},
}


@pytest.fixture
def purposeful(tmp_path: Path) -> Path:
    make.t5(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "task_specific_params": PURPOSES}))
    return tmp_path


def test_a_purpose_brings_its_prefix_and_parameters(purposeful: Path) -> None:
    plain, text = make.load(purposeful), "the cat"
    assert plain(text) == make.load(purposeful, task="text2text-generation")(text)
    summary = make.load(purposeful, task="summarization")
    assert summary(text) == plain("sum: " + text) != plain(text)
    assert summary(text) == plain(text, prefix="sum: ") and summary(text, prefix="") == plain(text)
    stated = {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "max_length": 7}
    assert summary(text, defaults="checkpoint") == plain("sum: " + text, **stated)
    assert summary(text, defaults="checkpoint", num_beams=1) == plain("sum: " + text, max_length=7)
    german = make.load(purposeful, task="translation_en_to_de")
    assert german([text, "a"]) == plain(["en de: " + text, "en de: a"])
    assert german(text, src_lang="en", tgt_lang="fr") == plain("en fr: " + text)
    assert "".join(german.stream(text)) == german(text).text


def test_parameters_are_the_references(purposeful: Path) -> None:
    """As the pipelines of transformers 4: the prefix before the text, and the parameters for `generate`."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(purposeful).eval()
    task = make.load(purposeful, task="summarization")
    for text in ("the cat", "so it is"):
        ids = torch.tensor([task.tokenizer.encode("sum: " + text).input_ids])
        stated = {key: value for key, value in PURPOSES["summarization"].items() if key != "prefix"}
        expected = model.generate(ids, do_sample=False, **stated)[0].tolist()
        found = task(text, defaults="checkpoint").text
        assert found == task.tokenizer.decode([i for i in expected if i != 0], skip_special_tokens=True)


def test_translations_by_prefix(purposeful: Path, cli: Cli) -> None:
    plain = make.load(purposeful)
    assert plain("the cat", src_lang="en", tgt_lang="de") == plain("en de: the cat")
    with pytest.raises(UsageError, match="tgt_lang is missing") as caught:
        plain("the cat", src_lang="en")
    assert "en to de, en to fr" in caught.value.fix
    with pytest.raises(UsageError, match="src_lang='en' and tgt_lang='it' are not a translation"):
        plain("the cat", src_lang="en", tgt_lang="it")
    with pytest.raises(UsageError, match="translates by a prefix"):
        make.load(purposeful, task="translation")("the cat")
    with pytest.raises(UsageError, match="names no such translation") as caught:
        make.load(purposeful, task="translation_en_to_it")
    assert "translation_en_to_fr" in caught.value.fix
    answer = done(cli("run", str(purposeful), "the cat", "--task", "translation_en_to_de", "--backend", "plain"))
    assert answer.out.rstrip("\n") == plain("en de: the cat").text


@pytest.mark.parametrize("broken", [["x"], {"summarization": 3}, {"summarization": {"prefix": 3}}])
def test_damaged_purposes(purposeful: Path, broken: Any) -> None:
    config = json.loads((purposeful / "config.json").read_text())
    (purposeful / "config.json").write_text(json.dumps({**config, "task_specific_params": broken}))
    with pytest.raises(CheckpointError, match="task_specific_params"):
        make.load(purposeful)


def test_what_the_checkpoint_says_of_prefixes(purposeful: Path) -> None:
    from plainformer.explanation.one_pass import explain
    from plainformer.info import inspect_checkpoint

    found = inspect_checkpoint(purposeful)
    assert found.prefixes == {name: values["prefix"] for name, values in PURPOSES.items()}
    assert "summarization 'sum: '" in found.summary()["prefixes"]
    summary = make.load(purposeful, task="summarization")
    ids = [piece.token_id for piece in explain(summary, "the cat").pieces]
    assert ids == summary.tokenizer.encode("sum: the cat").input_ids
    given = [piece.token_id for piece in explain(summary, "the cat", prefix="other: ").pieces]
    assert given == summary.tokenizer.encode("other: the cat").input_ids


@pytest.mark.parametrize("kind", KINDS)
def test_explain_shows_what_the_task_reads_and_writes(kind: str, folders: dict[str, Path]) -> None:
    from plainformer.explanation.one_pass import explain

    task, (reference, _) = make.load(folders[kind]), oracle(folders[kind], kind)
    source, target = KINDS[kind][2][1:]
    reference.src_lang = source
    found = explain(task, TEXTS[0], src_lang=source, tgt_lang=target, decoder_prefix="the", lens=True)
    assert [piece.token_id for piece in found.pieces] == reference(TEXTS[0])["input_ids"]
    answer = task(TEXTS[0], src_lang=source, tgt_lang=target, decoder_prefix="the", max_new_tokens=1)
    assert found.next_tokens[0].token_id == answer.token_ids[-1]
    assert explain(task, TEXTS[0]).next_tokens != found.next_tokens
    with pytest.raises(UsageError, match="num_beams has no effect in one pass"):
        explain(task, TEXTS[0], num_beams=2)
    with pytest.raises(UsageError, match="has no option 'src_lan'\n  → did you mean 'src_lang'"):
        explain(task, TEXTS[0], src_lan="a")


@pytest.mark.parametrize("kind", ["nllb", "mbart", "mbart50"])
def test_bare_vocabularies_keep_their_languages(kind: str, tmp_path: Path) -> None:
    """Saved as a tokenizer.json whose class says nothing, so that transformers keeps its normalisation."""
    tokenizer_class, _, languages = KINDS[kind]
    train(tmp_path / "sentencepiece.bpe.model", model_type="bpe", **FAIRSEQ)
    stated: dict[str, Any] = {"tokenizer_class": tokenizer_class, "src_lang": languages[1], "tgt_lang": languages[2]}
    if kind == "nllb":
        stated |= {"additional_special_tokens": list(languages), "legacy_behaviour": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    (tmp_path / "config.json").write_text("{}")
    tokenizer = plainformer.load_tokenizer(str(tmp_path))
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text("{}")
    again = plainformer.load_tokenizer(str(tmp_path / "saved"))
    assert set(languages) <= set(tokenizer.languages.ids) and again.languages == tokenizer.languages
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        assert again.encode(text).input_ids == tokenizer.encode(text).input_ids == theirs(text)["input_ids"]
        other = again.encode(text, src_lang=languages[0]).input_ids
        assert other == tokenizer.encode(text, src_lang=languages[0]).input_ids != again.encode(text).input_ids


def test_marian_marks_the_text_with_its_target(tmp_path: Path) -> None:
    """As users of transformers write it: ">>fra<< text". Its decoder begins as it always does."""
    import sentencepiece

    path = train(tmp_path / "source.spm", **FAIRSEQ)
    (tmp_path / "target.spm").write_bytes(path.read_bytes())
    processor = sentencepiece.SentencePieceProcessor(str(path))
    words = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    listed = ["</s>", "<unk>", *words, ">>fra<<", ">>spa<<", ">>ron<<", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(listed)}))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
    pad = len(listed) - 1
    ids = dict(vocab_size=len(listed), pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0)
    sizes = {**make.SEQ2SEQ, **ids, "forced_eos_token_id": None}
    model = make.save_model(tmp_path, "MarianMTModel", transformers.MarianConfig(**sizes)).eval()
    reference = transformers.MarianTokenizer.from_pretrained(tmp_path)
    task = make.load(tmp_path)
    for given in ("fra", ">>fra<<"):
        for text in TEXTS:
            inputs = reference(f">>fra<< {text}", return_tensors="pt")
            found = task(text, tgt_lang=given, max_new_tokens=6)
            assert list(found.input_ids) == inputs["input_ids"][0].tolist()
            theirs = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, 1:].tolist()
            assert list(found.token_ids) == [token for token in theirs if token != 0]
    named = make.load(tmp_path, task="translation_en_to_spa")
    assert named(TEXTS[0], max_new_tokens=3) == task(TEXTS[0], tgt_lang="spa", max_new_tokens=3)
    assert named(TEXTS[0], tgt_lang="ron", max_new_tokens=3) == task(TEXTS[0], tgt_lang="ron", max_new_tokens=3)
    with pytest.raises(UsageError, match=r"tgt_lang='fr' is not a language of this model.*>>fra<<") as caught:
        task(TEXTS[0], tgt_lang="fr")
    assert "fra" in caught.value.fix
    with pytest.raises(UsageError, match="src_lang has no effect on this model"):
        task(TEXTS[0], tgt_lang="fra", src_lang="eng")
    with pytest.raises(UsageError, match="tgt_lang has no effect on a text that begins with '>>spa<<'"):
        task(">>spa<< the cat", tgt_lang="fra")
