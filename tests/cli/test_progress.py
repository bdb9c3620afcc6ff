"""What a terminal shows while something is going on; and that pipes get nothing of it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from plainformer.cli.progress import Count, duration
from tests.support.cli import Cli, done, terminal
from tests.support.models import save

Tiny = Callable[[str], Path]
ERASE = b"\r\x1b[K"
PLAIN = ("--backend", "plain")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that may write for minutes."""
    return save("chat", tmp_path_factory.mktemp("slow"), max_position_embeddings=100_000)


def drawn(seen: bytes) -> bytes:
    """What is left on the screen of lines that were erased and drawn anew."""
    lines = seen.replace(b"\r\n", b"\n").split(b"\n")
    return b"\n".join(line.rpartition(ERASE)[2] for line in lines)


def test_one_text_is_shown_as_it_is_written(cli: Cli, tiny: Tiny) -> None:
    """Loading is said at once; what stays is what a pipe gets."""
    for name, options in (("text-generation", ("--answer-prefix", "so: ")), ("text2text", ())):
        arguments = ("run", tiny(name), "the cat", "--max-new-tokens", 12, *options, *PLAIN)
        piped = done(cli(*arguments)).out
        with terminal(*arguments) as screen:
            screen.wait_for(b"loading ")
            assert screen.wait() == 0
        shown = re.sub(rb"\\x[0-9a-f]{2}", b"?", drawn(screen.seen))
        assert shown.decode() == re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", piped)


def test_streamed_text_is_that_of_the_task(cli: Cli, tiny: Tiny) -> None:
    import plainformer as pf

    task = pf.load(str(tiny("text-generation")), backend="plain")
    for flags, options in (((), {}), (("--num-beams", 3), {"num_beams": 3}), (("--stop", "e"), {"stop": "e"})):
        out = done(cli("run", tiny("text-generation"), "the cat", "--max-new-tokens", 20, *flags, *PLAIN)).out
        assert out == task("the cat", max_new_tokens=20, **options).text + "\n"


def test_ctrl_c_leaves_what_was_written(slow: Path) -> None:
    options = ("--regex", "[a-z]{90000}", "--max-new-tokens", 90000, *PLAIN)
    with terminal("run", slow, "the cat sat " * 60, *options) as screen:
        screen.wait_for(b"reading a prompt of 720 tokens ...")
        while not re.search(rb"[a-z]{9}$", screen.screen):
            assert screen._read()
        screen.type(b"\x03")
        assert screen.wait() == 130
    assert re.search(rb"\n?[a-z]{9,}\n\(interrupted\)\n$", drawn(screen.seen)), screen.seen[-300:]


def test_ctrl_c_before_there_is_anything(slow: Path) -> None:
    with terminal("run", slow, "-", *PLAIN) as screen:
        screen.wait_for(b"0 inputs")
        screen.type(b"\x03")
        assert screen.wait() == 130
    assert drawn(screen.seen).endswith(b"interrupted\n") and b"(interrupted)" not in screen.seen


def test_many_inputs_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    many = tmp_path / "many.txt"
    many.write_text("the cat\n" * 30 + "\n" + "the cat " * 40 + "\n")
    arguments = ("run", tiny("text-classification"), many, "--on-error", "skip", *PLAIN)
    with terminal(*arguments) as screen:
        screen.wait_for(b"0 of 31 inputs")
        assert screen.wait() == 1
    assert re.search(rb"8 of 31 inputs, [0-9.]+(/s| s each), \d+ s left", screen.seen)
    shown = drawn(screen.seen).splitlines()
    assert len(shown) == 30 + 3 and shown[-2] == b"error: 1 of 31 inputs was skipped"
    with terminal(*arguments, NO_PROGRESS="1") as screen:
        assert screen.wait() == 1
    assert ERASE not in screen.seen and b"inputs," not in screen.seen


def test_documents_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('"the cat"\n' * 9)
    with terminal("entities", tiny("token-classification"), tmp_path, *PLAIN) as screen:
        screen.wait_for(b"0 of 9 documents")
        assert screen.wait() == 0


def test_the_library_says_when_it_compiles(caplog: pytest.LogCaptureFixture) -> None:
    from plainformer.model.fast import compiled

    caplog.set_level(logging.INFO, "plainformer.progress")
    module = compiled.kernels()
    kernel = getattr(module, "multiply", SimpleNamespace(targetoptions={}))
    assert compiled._loaded(kernel, lambda *wanted: wanted, 1, 2) == (1, 2) and not caplog.messages
    assert compiled._loaded(kernel, lambda *wanted: None, 1, 2) is None
    assert caplog.messages == ["compiling kernels for this processor, once"]
    if module is not None:  # every one of them asks there
        caches = [getattr(kernel, "_cache", None) for kernel in vars(module).values()]
        watched = [cache.load_overload for cache in caches if hasattr(cache, "load_overload")]
        assert len(watched) > 10 and all(load.func is compiled._loaded for load in watched)


def test_the_library_says_how_much_of_a_prompt_is_read(caplog: pytest.LogCaptureFixture, slow: Path) -> None:
    import plainformer as pf

    task = pf.load(str(slow), backend="plain")
    caplog.set_level(logging.INFO, "plainformer.progress")
    task("hi", max_new_tokens=1)
    assert not caplog.messages
    task("the cat sat " * 60, max_new_tokens=1, prefill_chunk=360)
    assert caplog.messages == ["reading a prompt of 720 tokens"] * 2
    assert [record.share for record in caplog.records] == [0, 0.5]  # type: ignore[attr-defined]


def test_chat_asks_when_it_can_answer(slow: Path) -> None:
    """What is typed meanwhile is not on the screen twice, and not lost; nor is a "^C" in the answer."""
    with terminal("chat", slow, "--regex", "[a-z]{90000}", "--max-new-tokens", 90000, *PLAIN) as screen:
        screen.wait_for(b"loading ")
        screen.type(b"first")
        time.sleep(0.2)
        screen.type(b" words\n")
        before = screen.wait_for(b"> ")
        assert b"first" not in before
        assert screen.wait_for(b"words") == b"first "
        while not re.search(rb"[a-z]{9}$", screen.screen):
            assert screen._read()
        screen.type(b"\x03")
        answer = drawn(screen.wait_for(b"(stopped)"))
        assert re.fullmatch(rb"\s*[a-z]{9,}\n", answer) and b"^C" not in answer
        screen.wait_for(b"> ")
        screen.type(b"\x04")
        assert screen.wait() == 0


def test_counts_and_times() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 61, 3599, 7500)] == [
        *("0 s", "59 s", "1 min 1 s", "59 min 59 s", "2 h 5 min")
    ]
    found = Count(1500)
    assert str(found) == "0 of 1,500 inputs"
    found.began -= 10
    found.advance(20)
    found.began = found.last - 10
    assert str(found) == "20 of 1,500 inputs, 2.0/s, 12 min 20 s left"
    stream = Count(None)
    stream.advance(2)
    stream.began = stream.last - 10
    assert str(stream) == "2 inputs, 5.0 s each" and str(Count(1)) == "0 of 1 input"
