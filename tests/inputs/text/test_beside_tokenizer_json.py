"""A tokenizer.json with other files beside it gives the ids of AutoTokenizer (transformers 5.23), or says what disagrees."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from plainformer.errors import CheckpointError
from plainformer.families import CONVENTIONS
from plainformer.inputs.text.tokenizer import Tokenizer
from tests.support.sentencepiece import TEXTS, train
from tests.support.tokenizers import WORDPIECE

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2}
SENTENCEPIECE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "T5Tokenizer": ("spiece.model", {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0}, {}),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model", FAIRSEQ, {}),
    "LlamaTokenizer": (
        "tokenizer.model",
        {**FAIRSEQ, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
        | {"remove_extra_whitespaces": False},
        {"add_bos_token": True},
    ),
    "AlbertTokenizer": (
        "spiece.model",
        {"unk_id": 1, "pad_id": 0, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
        {},
    ),
    "DebertaV2Tokenizer": (
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]"}
        | {"eos_piece": "[SEP]", "unk_piece": "[UNK]"},
        {},
    ),
    "NllbTokenizer": (
        "sentencepiece.bpe.model",
        {**FAIRSEQ, "model_type": "bpe"},
        {"additional_special_tokens": ["eng_Latn", "fra_Latn"]},
    ),
    "MBartTokenizer": ("sentencepiece.bpe.model", FAIRSEQ, {}),
    "MBart50Tokenizer": ("sentencepiece.bpe.model", FAIRSEQ, {}),
}
BYTE_LEVEL = {"RobertaTokenizer": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "GPT2Tokenizer": ["<|endoftext|>"]}
WORDS = [*WORDPIECE[:-1], "Hello"]
ADDED = ["Hello World zorp xzorpy <x> <extra>", "ÜBER über <img> [PAD2]", "日hello日", "<pad>a</s>", "zorp.<x> b"]
NEW = {"lstrip": False, "rstrip": False, "single_word": False}
SPECIAL = {"content": "<x>", **NEW, "normalized": False, "special": True}
WORD = {"content": "zorp", **NEW, "normalized": True, "special": False}


def _vocabulary(family: str, folder: Path) -> None:
    """Write the vocabulary files of a small tokenizer."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    from tests.support.sentencepiece import corpus

    folder.mkdir()
    config: dict[str, Any] = {"tokenizer_class": family}
    if family in SENTENCEPIECE:
        name, options, more = SENTENCEPIECE[family]
        train(folder / name, **options)
        config |= more
    elif family == "BertTokenizer":
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    else:
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=BYTE_LEVEL[family], initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(corpus()[:500], trainer)
        backend.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """A folder with a tokenizer.json for each family, as transformers saves it, and how many tokens it has."""
    import transformers

    made = {}
    root = tmp_path_factory.mktemp("beside")
    for family in (*SENTENCEPIECE, *BYTE_LEVEL, "BertTokenizer"):
        _vocabulary(family, root / family)
        saved = root / f"{family}-json"
        getattr(transformers, family).from_pretrained(root / family).save_pretrained(saved)
        made[family] = saved, len(transformers.AutoTokenizer.from_pretrained(saved))
    return made


def changed(source: Path, target: Path, config: dict[str, Any], files: dict[str, Any] | None = None) -> Path:
    """Copy a folder with other entries in tokenizer_config.json (None takes one out) and further files."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    path = target / "tokenizer_config.json"
    entries = {**json.loads(path.read_text(encoding="utf-8")), **config}
    path.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))
    for name, content in (files or {}).items():
        (target / name).write_text(json.dumps(content))
    return target


def read(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder, None, CONVENTIONS)


def same_as_the_reference(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    ours, reference = read(folder), AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, *ADDED, "</s>", "a</s>b"]:
        assert ours.encode(text).input_ids == reference(text)["input_ids"], repr(text)
    pair = reference("Hello world", "the <x>")["input_ids"]
    assert ours.encode("Hello world", "the <x>").input_ids == pair
    assert [getattr(ours, f"{role}_id") for role in ROLES] == [getattr(reference, f"{role}_token_id") for role in ROLES]
    return ours


TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "additional_special_tokens": ({"additional_special_tokens": ["<x>", "<extra>"], "extra_special_tokens": None}, {}),
    "extra_special_tokens": ({"extra_special_tokens": {"image_token": "<img>"}}, {}),
    "both lists": (
        {"extra_special_tokens": {"image_token": "<img>"}, "additional_special_tokens": ["<x>"]},
        {},
    ),
    "split_special_tokens": ({"split_special_tokens": True}, {}),
    "legacy": ({"legacy": True}, {}),
    "legacy false": ({"legacy": False}, {}),
    "a role of its own": ({"image_token": "<img>"}, {}),
    "a missing pad_token": ({"pad_token": "[PAD2]"}, {}),
    "a role in the map": (
        {"added_tokens_decoder": None},
        {"special_tokens_map.json": {"mask_token": {"content": "<x>", **NEW, "normalized": False, "lstrip": True}}},
    ),
    "add_bos_token": ({"add_bos_token": True, "add_eos_token": True}, {}),
    "add_bos_token false": ({"add_bos_token": False}, {}),
    "add_prefix_space": ({"add_prefix_space": True}, {}),
    "add_prefix_space false": ({"add_prefix_space": False}, {}),
    "do_lower_case": ({"do_lower_case": True}, {}),
    "do_lower_case false": ({"do_lower_case": False}, {}),
    "strip_accents": ({"strip_accents": False, "tokenize_chinese_chars": False}, {}),
    "a class that obeys nothing": (
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False, "add_prefix_space": False},
        {},
    ),
}


@pytest.mark.parametrize("family", [*SENTENCEPIECE, *BYTE_LEVEL, "BertTokenizer"])
@pytest.mark.parametrize("change", TOKENS)
def test_ids_and_roles_are_the_references(
    family: str, change: str, folders: dict[str, tuple[Path, int]], tmp_path: Path
) -> None:
    if family == "DebertaV2Tokenizer" and change == "add_prefix_space false":
        pytest.skip("DeBERTa's switch means something else in transformers: at the beginning alone")
    same_as_the_reference(changed(folders[family][0], tmp_path, *TOKENS[change]))


@pytest.mark.parametrize(
    "family", ["BertTokenizer", "RobertaTokenizer", "T5Tokenizer", "LlamaTokenizer", "AlbertTokenizer"]
)
def test_tokens_with_ids(family: str, folders: dict[str, tuple[Path, int]], tmp_path: Path) -> None:
    folder, size = folders[family]
    stated = json.loads((folder / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
    newer = {"added_tokens_decoder": {**stated, str(size): SPECIAL, str(size + 1): WORD}}
    ours = same_as_the_reference(changed(folder, tmp_path / "newer", newer))
    assert (ours.token_to_id("<x>"), ours.token_to_id("zorp")) == (size, size + 1)
    assert size in ours.special_ids and size + 1 not in ours.special_ids
    older = {"added_tokens.json": {"<x>": size, "zorp": size + 1}}
    same_as_the_reference(changed(folder, tmp_path / "older", {"added_tokens_decoder": None}, older))


@pytest.mark.parametrize(
    ("index", "message"), [(0, r"'<x>' the id 0, which is '\[PAD\]'"), (99, "next free one is 14")]
)
def test_ids_that_disagree_are_an_error(
    index: int, message: str, folders: dict[str, tuple[Path, int]], tmp_path: Path
) -> None:
    folder = changed(folders["BertTokenizer"][0], tmp_path, {}, {"added_tokens.json": {"<x>": index}})
    with pytest.raises(CheckpointError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("family", "language"), [("NllbTokenizer", "fra_Latn"), ("MBartTokenizer", "fr_XX"), ("MBart50Tokenizer", "fr_XX")]
)
def test_the_source_language_is_put_to_a_text(
    family: str, language: str, folders: dict[str, tuple[Path, int]], tmp_path: Path
) -> None:
    ours = same_as_the_reference(changed(folders[family][0], tmp_path / "a", {"src_lang": language}))
    assert ours.token_to_id(language) in ours.encode("hello").input_ids
    with pytest.raises(CheckpointError, match="src_lang='xx_XX' is not a language"):
        read(changed(folders[family][0], tmp_path / "b", {"src_lang": "xx_XX"}))
    if family == "NllbTokenizer":
        legacy = {"src_lang": language, "legacy_behaviour": True}
        assert same_as_the_reference(changed(folders[family][0], tmp_path / "c", legacy)).encode("a").input_ids[-1] == (
            ours.token_to_id(language)
        )


@pytest.mark.parametrize(
    ("family", "config", "said"),
    [
        ("LlamaTokenizer", {"add_bos_token": False}, "add_bos_token=false"),
        ("T5Tokenizer", {"add_prefix_space": False}, "add_prefix_space=false"),
        (
            "BertTokenizer",
            {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
            "do_lower_case=false",
        ),
        ("BertTokenizer", {"src_lang": "de"}, 'src_lang="de"'),
        ("T5Tokenizer", {"keep_accents": False}, "keep_accents=false"),
        ("T5Tokenizer", {"split_by_punct": True}, "split_by_punct=true"),
        ("BertTokenizer", {"cls_token": "hello"}, 'cls_token="hello" in tokenizer_config.json has no effect'),
        ("T5Tokenizer", {"eos_token": "<x>"}, "tokenizer.json puts '</s>' around a text"),
        ("BertTokenizer", {"pad_token": "[PAD2]"}, r"has id 14, and the model's vocabulary has 14 rows"),
    ],
)
def test_what_has_no_effect_is_said(
    family: str,
    config: dict[str, Any],
    said: str,
    folders: dict[str, tuple[Path, int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = changed(folders[family][0], tmp_path, config)
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.from_folder(folder, {"vocab_size": folders[family][1]}, CONVENTIONS)
    assert said in caplog.text
    if "pad_token" in config:
        assert tokenizer.pad_id is None and tokenizer.token_to_id("[PAD2]") == 14
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(folders[family][0])
    assert not caplog.records


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": '{"pad_token": "\\ud800"}'},
        {"tokenizer_config.json": '{"added_tokens_decoder": {"14": {"content": "x\\udc00"}}}'},
        {"added_tokens.json": '{"\\uD83D": 14}'},
        {"special_tokens_map.json": '{"additional_special_tokens": ["\\ud800"]}'},
        {"tokenizer_config.json": '{"chat_template": "\\ud800"}'},
        {"vocab.json": '{"\\ud800": 0}', "merges.txt": "", "tokenizer.json": "", "tokenizer_config.json": "{}"},
    ],
)
def test_half_a_surrogate_pair_is_an_error(
    files: dict[str, str], folders: dict[str, tuple[Path, int]], tmp_path: Path
) -> None:
    folder = changed(folders["BertTokenizer"][0], tmp_path, {})
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content or name == "merges.txt":
            (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match="half a surrogate pair"):
        read(folder)
    whole = changed(folders["BertTokenizer"][0], tmp_path / "whole", {"pad_token": "😀"})
    assert read(whole).pad_id == 14


def test_entries_of_other_types_are_errors(folders: dict[str, tuple[Path, int]], tmp_path: Path) -> None:
    source = folders["BertTokenizer"][0]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        for wrong in (3, 0.5, True, "<x>"):
            with pytest.raises(CheckpointError, match=f"{key} is .*, not a list"):
                read(changed(source, tmp_path, {"extra_special_tokens": None, key: wrong}))
    for wrong in (1 << 31, 10**20, -1):
        with pytest.raises(CheckpointError, match="the id of 'zz' is"):
            read(changed(source, tmp_path, {}, {"added_tokens.json": {"zz": wrong}}))
    for entry in ("²", "99999999999"):
        with pytest.raises(CheckpointError, match="has the id"):
            read(changed(source, tmp_path / entry, {"added_tokens_decoder": {entry: "zz"}}))


def test_a_length_below_one_is_none(folders: dict[str, tuple[Path, int]], tmp_path: Path) -> None:
    for stated in (0.5, 0, -1, 1e30):
        assert read(changed(folders["BertTokenizer"][0], tmp_path, {"model_max_length": stated})).max_length is None


OLD_LLAMA: dict[str, Any] = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
}


@pytest.mark.parametrize("model", ["llama", "mistral", "phi3", "smollm3", None])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", None])
@pytest.mark.parametrize("entries", [{"legacy": False}, {"add_prefix_space": False}])
@pytest.mark.parametrize("old", [True, False])
def test_which_models_heed_the_class_of_llama(
    model: str | None,
    kind: str | None,
    entries: dict[str, Any],
    old: bool,
    folders: dict[str, tuple[Path, int]],
    tmp_path: Path,
) -> None:
    """Mistral and Phi-3 were published with Llama's class, and take their tokenizer.json as it is."""
    from transformers import AutoTokenizer

    files: dict[str, Any] = (
        {"config.json": {"model_type": model, "bos_token_id": 1, "eos_token_id": 2}} if model else {}
    )
    folder = changed(folders["LlamaTokenizer"][0], tmp_path, {"tokenizer_class": kind, **entries}, files)
    if old:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **OLD_LLAMA}))
    ours, reference = read(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("hello world", "a</s>b", "a</s> b", " hello", "a\n b"):
        assert ours.encode(text).input_ids == reference(text)["input_ids"], text


def test_a_folder_with_nothing_but_a_tokenizer(folders: dict[str, tuple[Path, int]]) -> None:
    import plainformer as pf

    folder = folders["BertTokenizer"][0]
    assert not (folder / "config.json").exists()
    assert pf.load_tokenizer(folder).encode("hello").input_ids == [2, 5, 3]
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        pf.load(folder)


@pytest.mark.parametrize("legacy", [None, False])
def test_an_added_word_is_found_inside_a_word(legacy: bool | None, tmp_path: Path) -> None:
    """As in transformers, and as SentencePiece finds a piece that its user defined."""
    import sentencepiece
    import transformers

    name, options, config = SENTENCEPIECE["LlamaTokenizer"]
    train(tmp_path / "defined.model", **options, user_defined_symbols=["zorp"])
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "defined.model"))
    train(tmp_path / name, **options)
    size = sentencepiece.SentencePieceProcessor(str(tmp_path / name)).get_piece_size()
    entries = {**config, "tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {str(size): WORD}}
    if legacy is not None:
        entries["legacy"] = legacy
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(entries))
    ours, reference = read(tmp_path), transformers.LlamaTokenizer.from_pretrained(tmp_path)
    for text in ("hello zorp word", "xzorpy", "azorp b", "zorpzorp", "the (zorp)."):
        ids = ours.encode(text).input_ids
        assert ids == reference(text)["input_ids"] and size in ids, text
        if not text.startswith("zorp"):
            assert [ours.id_to_token(i) for i in ids[1:]] == processor.encode(text, out_type=str), text
