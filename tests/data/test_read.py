"""Each format gives the rows that a person would write down; what cannot be read says where and why."""

from __future__ import annotations

import csv
import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.config.training import FORMATS, SourceConfig
from plainformer.data.columns import Columns
from plainformer.data.read import READERS, Rows, read
from plainformer.data.survey import survey
from plainformer.errors import InputError, PlainformerError, UsageError
from tests.support.fuzz import Outcomes


def rows_of(path: Path | str, columns: dict[str, str | int] | None = None, **options: Any) -> Rows:
    return read(SourceConfig(path=str(path), **options), columns)


def listed(path: Path | str, columns: dict[str, str | int] | None = None, **options: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows_of(path, columns, **options)]


def written(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(FORMATS)


def test_text_paragraphs_lines(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.txt": "\ufeffone\r\ntwo\r\n\r\n \r\nthree\r\n"}) / "a.txt"
    assert listed(path) == [{"text": "one\ntwo\n\n \nthree\n", "file": "a.txt"}]
    rows = rows_of(path, format="paragraphs")
    assert [(row["text"], row.place) for row in rows] == [("one\ntwo", "a.txt line 1"), ("three", "a.txt line 5")]
    rows = rows_of(path, format="lines")
    assert [row["text"] for row in rows] == ["one", "two", "three"]
    assert rows.counts.rows == 3 and rows.counts.passed["blank line"].count == 2
    assert listed(path, format="lines", limit=1) == [{"text": "one", "file": "a.txt"}]


def test_a_folder_or_a_pattern_of_sources(tmp_path: Path) -> None:
    written(tmp_path, {"b/x.py": "x = 1\n", "a.py": "a = 1\n", "a.pyc": b"\xff", ".git/c.py": "no", "e.py": " \n"})
    rows = rows_of(tmp_path)
    assert rows.format == "text"
    assert [(row["file"], row.place) for row in rows] == [("a.py", "a.py"), ("b/x.py", "b/x.py")]
    assert {name: reason.places for name, reason in rows.counts.passed.items()} == {
        "file of another kind": ["a.pyc"],
        "empty file": ["e.py"],
    }
    assert [row["file"] for row in listed(tmp_path / "**" / "*.py")] == ["a.py", "b/x.py"]
    written(tmp_path, {"odd.weird": "text"})
    assert listed(tmp_path / "*.weird", format="text") == [{"text": "text", "file": "odd.weird"}]


def test_jsonl(tmp_path: Path) -> None:
    text = '{"text": "a\u2028b", "label": 1}\n\n"alone"\r\n{"t": {"en": "x"}}'
    written(tmp_path, {"a.jsonl": text, "b.jsonl.gz": gzip.compress(text.encode()), "c.json": text})
    expected = [{"text": "a\u2028b", "label": 1}, {"text": "alone"}, {"t": {"en": "x"}}]
    for name in ("a.jsonl", "b.jsonl.gz", "c.json"):
        rows = rows_of(tmp_path / name)
        assert [dict(row) for row in rows] == expected
        assert [row.place for row in rows] == [f"{name} line {n}" for n in (1, 3, 4)]


def test_a_list_of_objects(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.json": '[{"a": 1},\n {"a": 2}]'}) / "a.json"
    assert [(row["a"], row.place) for row in rows_of(path)] == [(1, "a.json item 1"), (2, "a.json item 2")]


def test_csv_and_its_header(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.csv": '\ufefftext,label\r\n"a, ""b""\nc",1\r\n\r\nd,2\r\n'}) / "a.csv"
    assert listed(path) == [{"text": 'a, "b"\nc', "label": "1"}, {"text": "d", "label": "2"}]
    assert rows_of(path).files == (path,)
    assert listed(path, header=False)[0] == {"0": "text", "1": "label"}
    assert listed(path, {"text": 0})[0] == {"0": "text", "1": "label"}
    assert listed(path, {"text": 0}, header=True)[0] == {"text": 'a, "b"\nc', "label": "1"}


def test_a_field_may_be_long(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.csv": "text\n" + "x" * 200_000}) / "a.csv"
    assert len(listed(path)[0]["text"]) == 200_000


def test_tsv_quotes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.tsv": '"so it begins\t0\nand ends"\t1\n'}) / "a.tsv"
    assert listed(path, header=False) == [{"0": '"so it begins', "1": "0"}, {"0": 'and ends"', "1": "1"}]


def test_conll_separators_are_any_white_space(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\n# id 1\nEU\tB-ORG\nnew york\tO\n\t\n#tag\tO\n \n\n\u00a0x\tB-PER"
    path = written(tmp_path, {"a.conll": text}) / "a.conll"
    rows = rows_of(path)
    assert [dict(row) for row in rows] == [
        {"tokens": ["EU", "new york"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#tag"], "tags": ["O"]},
        {"tokens": ["\u00a0x"], "tags": ["B-PER"]},
    ]
    assert [row.place for row in rows] == ["a.conll line 4", "a.conll line 7", "a.conll line 10"]
    assert {name: reason.count for name, reason in rows.counts.passed.items()} == {"-DOCSTART- line": 1, "comment": 1}


def test_conll_columns_between(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.conll": "EU NNP I-NP B-ORG\n# # O O\n"}) / "a.conll"
    assert listed(path) == [
        {"tokens": ["EU", "#"], "1": ["NNP", "#"], "2": ["I-NP", "O"], "tags": ["B-ORG", "O"]},
    ]


def test_a_language_before_every_token_is_taken_off(tmp_path: Path) -> None:
    written(tmp_path, {"a.conll": "en:The\tO\nen:EU\tB-ORG\n", "b.conll": "en:The\tO\nEU\tB-ORG\n"})
    assert listed(tmp_path / "a.conll")[0]["tokens"] == ["The", "EU"]
    assert listed(tmp_path / "b.conll")[0]["tokens"] == ["en:The", "EU"]


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "T",
            "paragraphs": [
                {
                    "context": "Ann went.",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
                        {"id": 2, "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def test_squad(tmp_path: Path) -> None:
    for indent in (None, 1):
        path = written(tmp_path, {"a.json": json.dumps(SQUAD, indent=indent)}) / "a.json"
        rows = rows_of(path)
        assert rows.format == "squad"
        first, second = rows
        answers = [{"text": "Ann", "answer_start": 0}]
        shared = {"context": "Ann went.", "title": "T"}
        assert first == {**shared, "id": "1", "question": "Who?", "answers": answers, "is_impossible": False}
        assert second == {**shared, "id": "2", "question": "Why?", "answers": [], "is_impossible": True}
        assert second.place == "a.json article 1 paragraph 1 question 2"


def test_clips_of_a_list_belong_to_the_digest(tmp_path: Path) -> None:
    """A list may be given alone: the clips that it names are what is learnt from, and decide which tokenised data is found."""
    listing = json.dumps({"audio": "clips/a.wav", "text": "a"})
    folder = written(tmp_path, {"clips/a.wav": b"RIFF", "transcripts.jsonl": listing})
    alone = rows_of(folder / "transcripts.jsonl", format="audio")
    before = alone.digest()
    assert alone.digest() == before and [path.name for path in alone.files] == ["transcripts.jsonl"]
    written(tmp_path, {"clips/a.wav": b"RIFX"})
    assert rows_of(folder / "transcripts.jsonl", format="audio").digest() != before


def test_clips_and_their_transcripts(tmp_path: Path) -> None:
    clips: dict[str, str | bytes] = {f"clips/{name}.wav": b"RIFF" for name in "abc"}
    listing = "\n".join(json.dumps({"audio": f"clips/{name}.wav", "text": name}) for name in "ba")
    rows = rows_of(written(tmp_path / "1", {**clips, "transcripts.jsonl": listing}))
    assert rows.format == "audio"
    assert [(Path(row["audio"]).name, row["text"]) for row in rows] == [("b.wav", "b"), ("a.wav", "a")]
    assert rows.counts.passed["clip that the list does not name"].places == ["c.wav"]
    beside = rows_of(written(tmp_path / "2", {**clips, "clips/a.txt": "Ann\n", "clips/b.txt": "Bob"}), format="audio")
    assert [row["text"] for row in beside] == ["Ann", "Bob"]
    assert beside.counts.passed["clip without a .txt beside it"].count == 1
    folders = rows_of(written(tmp_path / "3", {"yes/1.wav": b"", "no/1.wav": b""}))
    assert [row["label"] for row in folders] == ["no", "yes"]
    with pytest.raises(InputError, match="nothing says what its 3 clips are"):
        list(rows_of(written(tmp_path / "4", clips)))
    with pytest.raises(InputError, match=r"line 1 names 'clips/x.wav'"):
        list(rows_of(written(tmp_path / "5", {**clips, "metadata.jsonl": '{"file_name": "clips/x.wav"}'})))


def test_images_by_folder_and_by_list(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"cat/1.png": b"1", "dog/1.JPG": b"2"}
    assert [row["label"] for row in rows_of(written(tmp_path, files))] == ["cat", "dog"]
    written(tmp_path, {"labels.csv": "file,label,place\ndog/1.JPG,d,x\n"})
    (row,) = rows_of(tmp_path)
    assert (Path(row["image"]), row["label"], row["place"]) == (tmp_path / "dog/1.JPG", "d", "x")


def test_arrays(tmp_path: Path) -> None:
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([3, 1, 2]))
    rows = list(rows_of(tmp_path / "a.npz"))
    assert [row["labels"] for row in rows] == [3, 1, 2] and rows[1].place == "a.npz row 1"
    assert all(np.array_equal(row["images"], image) for row, image in zip(rows, images, strict=True))
    np.savez_compressed(tmp_path / "b.npz", x_train=images, y_train=[1, 2, 3], x_test=images[:1])
    assert [row["y"] for row in rows_of(tmp_path / "b.npz", split="train")] == [1, 2, 3]
    with pytest.raises(InputError, match="unequal length"):
        list(rows_of(tmp_path / "b.npz"))
    with pytest.raises(UsageError, match="split='dev' fits no array"):
        list(rows_of(tmp_path / "b.npz", split="dev"))
    np.savez(tmp_path / "c.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not of objects"):
        list(rows_of(tmp_path / "c.npz"))


def test_parquet_and_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    import huggingface_hub
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # it was read when the library was imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["no", "yes"]),
        tags=datasets.Sequence(datasets.ClassLabel(names=["O", "B"])),
    )
    values = {"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], []]}
    table = datasets.Dataset.from_dict(values, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    expected = [
        {"text": "a", "label": "yes", "tags": ["O", "B"]},
        {"text": "b", "label": None, "tags": []},
    ]
    assert listed(tmp_path / "a.parquet") == expected
    assert listed(tmp_path / "saved") == expected
    plain = pyarrow.table({"text": ["x"]})
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, plain.schema) as out:
        out.write_table(plain)
    assert listed(tmp_path / "file.arrow") == [{"text": "x"}]
    parquet.write_table(plain, tmp_path / "plain.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "plain.parquet").read_bytes()[:100])
    with pytest.raises(PlainformerError, match=r"cut.parquet cannot be read"):
        listed(tmp_path / "cut.parquet")
    with pytest.raises(UsageError, match="has splits"):
        listed("some/set", format="hub")
    with pytest.raises(PlainformerError, match="cannot be fetched"):
        listed("some/set", format="hub", split="train")


# Texts as files hold them: line ends inside are for CSV and JSON alone. Lone surrogates cannot be written as UTF-8.
CELL = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
LINE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r\t"), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_is_written_is_read(rows: list[tuple[str, str]]) -> None:
    expected = [{"a": a, "b": b} for a, b in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in expected), encoding="utf-8", newline=""
        )
        assert listed(path) == expected
        path = Path(folder) / "a.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
        assert listed(path) == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(LINE, LINE), min_size=1, max_size=5))
def test_lines_and_fields_are_kept_as_they_are(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tsv"
        path.write_text("".join(f"{a}\t{b}\n" for a, b in [("a", "b"), *rows]), encoding="utf-8", newline="")
        assert listed(path) == [{"a": a, "b": b} for a, b in rows]
        text = "".join(f"{a}\r\n" for a, _ in [("first", ""), *rows])
        path.write_text(text, encoding="utf-8", newline="")
        assert [row["text"] for row in listed(path, format="lines")] == [
            "first",
            *(a for a, _ in rows if a.strip()),
        ]


REFUSED: list[tuple[dict[str, str | bytes], str, dict[str, Any], str]] = [
    ({}, "none.jsonl", {}, "there is no file or folder"),
    ({}, "some*.jsonl", {}, "no file fits"),
    ({"a.xyz": "x"}, "a.xyz", {}, "nothing is known of files with the suffix .xyz"),
    ({"a.jsonl": ""}, "a.jsonl", {}, "has no rows"),
    ({"a.txt": " \n"}, "a.txt", {}, "has no rows"),
    ({"a.csv": "text\n"}, "a.csv", {}, "has no rows"),
    ({"a.jsonl": '{"a": 1}\n{"a": '}, "a.jsonl", {}, "a.jsonl line 2 is not valid JSON"),
    ({"a.jsonl": "[1]"}, "a.jsonl", {}, "a.jsonl line 1 holds a list, not an object"),
    ({"a.jsonl": b'{"a": 1}\n{"a": "\xe9"}\n'}, "a.jsonl", {}, "a.jsonl line 2 is not UTF-8 text: byte 7 .* 0xe9"),
    ({"a.txt": b"ab\xff"}, "a.txt", {}, "a.txt is not UTF-8 text: byte 2"),
    ({"a.csv": b"text\n\xe9\n"}, "a.csv", {}, "a.csv line 2 is not UTF-8 text: byte 0"),
    ({"a.csv": "a,b\n1\n"}, "a.csv", {}, "a.csv line 2 has 1 field, where the first line has 2"),
    ({"a.csv": 'a,b\n"x" y,1\n'}, "a.csv", {}, "a.csv line 2 is not CSV"),
    ({"a.csv": "a,a\n1,2\n"}, "a.csv", {}, "names the column 'a' twice"),
    ({"a.conll": "EU B-ORG\nx\n"}, "a.conll", {}, "a.conll line 2 has 1 column, not 2"),
    ({"a.json": '{"a": 1'}, "a.json", {}, "a.json is not valid JSON"),
    ({"a.json": '{"a":\n 1}'}, "a.json", {}, "a.json has no list 'data'"),
    ({"a.jsonl.gz": b"not gzip"}, "a.jsonl.gz", {}, "is not a whole gzip file"),
    ({"a.txt.gz": gzip.compress(b"abc" * 999)[:-9]}, "a.txt.gz", {}, "is not a whole gzip file"),
    ({"a.npz": b"PK\x03\x04 cut"}, "a.npz", {}, "is not a whole npz file"),
    ({"a.txt": "x", "b.jsonl": "{}"}, "", {}, "several kinds: 1 text file, 1 jsonl file"),
    ({"x/a.wav": ""}, "x/a.wav", {}, "one file of audio"),
    ({"dataset_dict.json": "{}"}, "", {}, "holds several splits"),
    ({"a.csv": "a\n1\n"}, "a.csv", {"name": "x"}, "name has no effect on data of format csv"),
    ({"a.csv": "a\n1\n"}, "a.csv", {"split": "train"}, "split has no effect"),
    ({"a.jsonl": '{"a": 1}'}, "a.jsonl", {"header": True}, "header has no effect"),
    ({"a.jsonl": '{"a": 1}'}, "", {"format": "csv"}, "has no file of format csv"),
]


@pytest.mark.parametrize(("files", "path", "options", "said"), REFUSED, ids=[row[3] for row in REFUSED])
def test_refused(tmp_path: Path, files: dict[str, str | bytes], path: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError if not options or "format" in options else UsageError, match=said):
        list(rows_of(written(tmp_path, files) / path, **options))


def seeds(folder: Path) -> dict[str, bytes]:
    np.savez_compressed(folder / "seed.npz", x=np.arange(6).reshape(3, 2), y=np.array(["a", "b", "c"]))
    return {
        "a.jsonl": '{"a": [1, {"b": "x"}], "t": "é"}\n\n{"a": 1}\n'.encode(),
        "a.json": json.dumps(SQUAD).encode(),
        "a.csv": b'a,b\n"x, ""y""",2\r\n3,4\n',
        "a.tsv": b"a\tb\nc\td\n",
        "a.conll": b"-DOCSTART- O\n\na O\nb B\n\n# c\nd\tO\n",
        "a.npz": (folder / "seed.npz").read_bytes(),
        "a.jsonl.gz": gzip.compress(b'{"a": 1}\n' * 20),
    }


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    rng, outcomes = random.Random(0), Outcomes()
    parts = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"[[[", b"{", b"null", b"1e999", b"\\ud800", b""]
    for name, seed in seeds(tmp_path).items():
        for _ in range(60):
            data = bytearray(seed)
            for _ in range(rng.randint(0, 3)):
                place = rng.randrange(len(data) + 1)
                data[place : place + rng.choice([0, 1, 9])] = rng.choice(parts)
            (tmp_path / name).write_bytes(data)
            with outcomes.one():
                found = rows_of(tmp_path / name)
                rows = list(found)
                survey("train", rows, Columns({column: column for column in rows[0]}), list(rows[0])[:1])
    outcomes.check()


def test_the_digest_says_which_rows(tmp_path: Path) -> None:
    path = written(tmp_path, {"a.csv": "a,b\n1,2\n"}) / "a.csv"
    digests = [rows_of(path).digest(), rows_of(path, header=False).digest(), rows_of(path, limit=1).digest()]
    path.write_text("a,b\n1,3\n")
    digests.append(rows_of(path).digest())
    assert len(set(digests)) == 4
    path.write_text("a,b\n1,2\n")
    assert rows_of(path).digest() == digests[0]
