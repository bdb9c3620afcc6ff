"""What is put into a store comes out; it is there whole or not at all, whatever happens while it is made."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from plainformer.data.cache import cache_key, cached, default_folder, file_digest, remove_oldest
from plainformer.data.store import BrokenStore, Fate, Store, StoreWriter
from plainformer.errors import InputError

Examples = list[dict[str, Any]]


def filling(examples: Examples) -> Any:
    def fill(writer: StoreWriter) -> None:
        writer.counts.rows = len(examples) + 1
        writer.counts.drop("empty", "line 3")
        for i, example in enumerate(examples):
            writer.add(example, length=i + 1, row=2 * i)

    return fill


def must_not_fill(writer: StoreWriter) -> None:
    raise AssertionError("it was there already")


EXAMPLES: Examples = [
    {
        "input_ids": np.arange(n, dtype=np.int64),
        "labels": np.array([-100] * n, dtype=np.int64),
        "image": np.full((2, n), n, dtype=np.uint8),
        "answer": np.array(n, dtype=np.int64),
        "wave": np.linspace(-1, 1, n, dtype=np.float32),
        "lengths": np.array([7, n], dtype=np.int64),  # called as the store's own files are
        "rows": np.array([n], dtype=np.int64),
    }
    for n in (3, 0, 5)
]


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert np.array_equal(found[name], array), name


def test_what_is_put_in_comes_out(tmp_path: Path) -> None:
    for _ in range(2):  # made, then found
        store = cached("k", filling(EXAMPLES) if not (tmp_path / "k").exists() else must_not_fill, tmp_path)
        assert len(store) == 3 and not store.temporary
        for i, example in enumerate(EXAMPLES):
            same(store[i], example)
        same(store[-1], EXAMPLES[-1])
        assert store.lengths.tolist() == [1, 2, 3] and store.rows.tolist() == [0, 2, 4]
        assert store.counts.rows == 4 and store.counts.dropped["empty"].places == ["line 3"]
        with pytest.raises(IndexError):
            store[3]
    stored = {name: field.stored for name, field in store.fields.items()}
    assert stored == {
        "input_ids": "uint8",
        "labels": "int16",
        "image": "uint8",
        "answer": "uint8",
        "wave": "float32",
    } | dict.fromkeys(("lengths", "rows"), "uint8")
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


INTEGERS = st.one_of(st.integers(-5, 5), st.integers(0, 300), st.integers(-300, 70_000), st.integers(-(2**40), 2**40))


@settings(deadline=None, max_examples=60)
@given(st.lists(arrays(np.int64, array_shapes(max_dims=1, min_side=0, max_side=6), elements=INTEGERS), max_size=8))
def test_integers_widen_as_they_come(arrays: list[Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(Path(folder))
        for array in arrays:
            writer.add({"x": array}, len(array), 0)
        writer.finish()
        store = Store(Path(folder))
        assert len(store) == len(arrays)
        for i, array in enumerate(arrays):
            same(store[i], {"x": array})
        if arrays:
            flat = np.concatenate(arrays)
            types = [np.dtype(name) for name in ("uint8", "uint16", "int16", "int32", "int64")]
            fits = [
                t for t in types if not flat.size or (np.iinfo(t).min <= flat.min() and flat.max() <= np.iinfo(t).max)
            ]
            assert store.fields["x"].stored == fits[0].name


def test_examples_are_alike(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path)
    writer.add({"x": np.zeros(2, np.int64)}, 2, 0)
    for wrong in ({"y": np.zeros(2)}, {"x": np.zeros((2, 2), np.int64)}, {"x": np.zeros(2, np.float32)}):
        with pytest.raises(ValueError):
            writer.add(wrong, 2, 0)


@pytest.mark.parametrize("damage", ["cut", "gone", "not json", "other version"])
def test_a_damaged_store_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cached("k", filling(EXAMPLES), tmp_path)
    file, described = tmp_path / "k" / "input_ids.bin", tmp_path / "k" / "store.json"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "not json":
        described.write_text("{")
    else:
        described.write_text(json.dumps({**json.loads(described.read_text()), "version": 0}))
    with pytest.raises(BrokenStore):
        Store(tmp_path / "k")
    with caplog.at_level(logging.WARNING):
        store = cached("k", filling(EXAMPLES), tmp_path)
    assert "is made again" in caplog.text
    same(store[0], EXAMPLES[0])
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(writer: StoreWriter) -> None:
        writer.add(EXAMPLES[0], 3, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("k", fail, tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_may_make_it_at_once(tmp_path: Path) -> None:
    """While one writes, another comes, writes and finishes: both end with a whole store."""

    def slow(writer: StoreWriter) -> None:
        filling(EXAMPLES)(writer)
        same(cached("k", filling(EXAMPLES), tmp_path)[2], EXAMPLES[2])

    same(cached("k", slow, tmp_path)[2], EXAMPLES[2])
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


KILLED = """
import sys, numpy as np
from plainformer.data.cache import cached
def fill(writer):
    writer.add({"x": np.arange(9)}, 9, 0)
    print("started", flush=True)
    sys.stdin.read()
cached("k", fill, sys.argv[1])
"""


def test_a_killed_process_leaves_no_store(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    child.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-k-")
    cached("k", filling(EXAMPLES), tmp_path)
    assert left.exists()  # it may be at work still
    for path in (*left.iterdir(), left):
        os.utime(path, (time.time() - 1e6,) * 2)
    cached("other", filling(EXAMPLES), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"k", "other"}


def test_where_nothing_can_be_written_a_temporary_folder_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locked: Path = Path("/sys") if os.geteuid() == 0 else tmp_path / "locked"
    if os.geteuid():
        locked.mkdir(mode=0o500)
    elif not locked.is_dir():
        pytest.skip("root may write anywhere but in /sys, which is not here")
    with caplog.at_level(logging.WARNING):
        store = cached("k", filling(EXAMPLES), locked / "cache")
    assert "kept for this run alone" in caplog.text
    same(store[0], EXAMPLES[0])
    folder = store.folder
    assert store.temporary and folder.is_dir()
    del store
    assert not folder.exists()


def test_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"is not a folder\n  → give data\.cache a folder"):
        cached("k", filling(EXAMPLES), tmp_path / "file")
    with pytest.raises(InputError, match=r"will take about .* MiB, and .* has .* MiB left"):
        cached("k", filling(EXAMPLES), tmp_path / "c", expected_bytes=2**62)
    assert not list((tmp_path / "c").iterdir())


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    def full(writer: StoreWriter) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(InputError, match="No space left on device\n  → free some space"):
        cached("k", full, tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_examples(tmp_path: Path) -> None:
    ids = np.arange(40)

    def fill(writer: StoreWriter) -> None:
        for i in range(20_000):
            if i == 1_000:
                tracemalloc.start()
            writer.add({"input_ids": ids + i}, 40, i)

    store = cached("k", fill, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 and store[19_999]["input_ids"][0] == 19_999  # 20,000 examples are 6.4 MB as int64


def test_the_key_is_all_that_decides(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"data": "ab", "options": {"max_length": 8, "labels": ("a", "b")}}
    assert cache_key(**parts) == cache_key(**dict(reversed(parts.items())))
    assert cache_key(**parts) != cache_key(**{**parts, "data": "ac"})
    assert cache_key(a=1, b=2) != cache_key(a=2, b=1)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    first = file_digest(tmp_path / "a", tmp_path / "b")
    assert first == file_digest(tmp_path / "b", tmp_path / "a")
    (tmp_path / "b").write_text("c")
    assert first != file_digest(tmp_path / "a", tmp_path / "b")


def test_the_default_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "plainformer" / "data"


def test_the_users_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days without a reader; each store is as large as any other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root, days = default_folder(), {"old": 31.0, "third": 3.0, "second": 2.0, "today": 0.5}
    for name in days:
        size = cached(name, filling(EXAMPLES)).nbytes
    (root / ".tmp-being-made").mkdir()
    (root / "not a store").mkdir()

    def age() -> None:
        for name, since in days.items():
            if (root / name).is_dir():
                os.utime(root / name, (time.time() - since * 24 * 3600,) * 2)

    def left() -> set[str]:
        return {path.name for path in root.iterdir()} - {".tmp-being-made", "not a store"}

    age()
    remove_oldest(root, 3 * size)
    assert left() == {"third", "second", "today"}
    remove_oldest(root, 2 * size)
    assert left() == {"second", "today"}
    remove_oldest(root, 0)
    assert left() == {"today"} and len(list(root.iterdir())) == 3
    cached("old", filling(EXAMPLES))
    age()
    cached("old", must_not_fill)  # read again: it is not old any more
    cached("new", filling(EXAMPLES))
    assert left() == {"old", "today", "new"}
    age()
    cached("newer", filling(EXAMPLES), root)  # a folder that was asked for is left alone
    assert "old" in left()
    cached("newest", filling(EXAMPLES))
    assert left() == {"today", "new", "newer", "newest"}


def test_some_rows_of_a_store_are_a_store(tmp_path: Path) -> None:
    """Their examples, in order, and what became of these rows."""
    writer = StoreWriter(tmp_path)
    for row in range(6):
        writer.counts.rows += 1
        if row == 2:
            writer.counts.drop("empty", "line 3")
            writer.fates.append(Fate(row, "line 3", "empty"))
            continue
        if row == 4:
            writer.counts.shorten(7, "line 5")
            writer.fates.append(Fate(row, "line 5", cut=7))
        for window in range(1 + row % 2):
            writer.add({"input_ids": np.arange(row, row + 2 + window)}, 2 + window, row)
    writer.finish()
    store = Store(tmp_path)
    found = store.of_rows(np.array([False, True, True, False, True, True]))
    assert len(found) == 5 and found.rows.tolist() == [1, 1, 4, 5, 5] and found.lengths.tolist() == [2, 3, 2, 2, 3]
    assert [found[i]["input_ids"].tolist() for i in range(5)] == [[1, 2], [1, 2, 3], [4, 5], [5, 6], [5, 6, 7]]
    assert found[-1]["input_ids"].tolist() == [5, 6, 7]
    assert (
        found.counts.rows == 4 and found.counts.dropped["empty"].places == ["line 3"] and found.counts.cut_tokens == 7
    )
    other = found.of_rows(np.array([True, True, False, False, False, False]))
    assert len(other) == 2 and other[1]["input_ids"].tolist() == [1, 2, 3] and not other.counts.dropped
    assert len(store) == 8 and store.counts.rows == 6
