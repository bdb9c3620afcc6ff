"""`plainformer chat`: over a pipe, in a terminal, its commands, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import ENVIRONMENT, PROGRAM, Cli, done, refused
from tests.support.models import save

WORD = ("--regex", "[a-z]{6}", "--backend", "plain")


@pytest.fixture
def chat(cli: Cli, tiny: Callable[[str], Path]) -> Callable[..., list[str]]:
    """What a chat over a pipe writes, line by line."""

    def call(*lines: str, options: tuple[str, ...] = WORD) -> list[str]:
        answer = cli("chat", tiny("chat"), *options, stdin="".join(f"{line}\n" for line in lines).encode())
        assert answer.code == 0, answer
        return answer.lines

    return call


def test_each_line_is_a_message_and_each_answer_a_line(
    chat: Callable[..., list[str]],
    cli: Cli,
    tiny: Callable[[str], Path],
) -> None:
    first, second = chat("hi", "", "and then?")
    alone = done(cli("run", tiny("chat"), "hi", "--chat", *WORD))
    assert [first] == alone.lines and len(second) == 6
    assert chat() == []
    assert chat("hi", "/exit", "and then?") == [first]


def test_commands(chat: Callable[..., list[str]], tmp_path: Path) -> None:
    first, _ = chat("hi", "and then?")
    assert chat("hi", "/reset", "hi") == [first, first]
    assert chat("//hi") == chat("/system", "//hi")
    assert [
        len(line) for line in chat("hi", "/set regex=[0-9]{3}", "hi", "/set regex=", "/set max-new-tokens=1", "hi")
    ][:2] == [6, 3]
    assert chat("/set", "/help") == []
    lines = chat("/system be good", "hi", f"/save {tmp_path / 'saved.json'}", "/set temperature=")
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["messages"] == [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": lines[0]},
    ]
    assert saved["options"] == {"regex": "[a-z]{6}"} and saved["model"]
    assert chat("hi", options=(*WORD, "--system", "be good")) == lines


@pytest.mark.parametrize(
    ("line", "message", "code"),
    [
        ("/rest", "did you mean 'reset'", 2),
        ("/set temprature=1", "did you mean 'temperature'", 2),
        ("/set temperature=1", "--temperature 1 has no effect in greedy mode", 2),
        ("/set seed", "needs a value", 2),
        ("/set draft_model=x", "no option 'draft_model'", 2),
        ("/save", "needs a file", 2),
        ("/save nowhere/x.json", "cannot be written", 1),
        ("/reset now", "has no meaning", 2),
    ],
)
def test_over_a_pipe_an_error_ends_the_chat(
    cli: Cli,
    tiny: Callable[[str], Path],
    line: str,
    message: str,
    code: int,
) -> None:
    refused(cli("chat", tiny("chat"), stdin=f"{line}\nhi\n".encode()), message, code=code)


def test_a_conversation_that_has_become_too_long(cli: Cli, tmp_path: Path) -> None:
    folder = save("chat", tmp_path / "model", max_position_embeddings=100)
    answer = cli("chat", folder, *WORD, stdin=f"hi\n/reset\nhi\n{'x' * 100}\n".encode())
    assert answer.code == 2 and len(answer.lines) == 2 and answer.lines[0] == answer.lines[1]
    assert "the model reads 100" in answer.err and "/reset" in answer.err


def test_who_cannot_chat(cli: Cli, tiny: Callable[[str], Path]) -> None:
    refused(cli("chat", tiny("text-generation"), stdin=b"hi"), "has no chat template", "plainformer run")
    refused(cli("chat", tiny("text-classification"), stdin=b"hi"), "cannot chat")
    refused(cli("chat", tiny("chat"), "--num-return-sequences", 2, stdin=b"hi"), "--num-return-sequences has no effect")
    refused(cli("chat", tiny("chat"), "--decoder-prefix", "x", stdin=b"hi"), "Unknown option: --decoder-prefix")
    refused(cli("chat", tiny("chat"), "--temperature", 2, stdin=b"hi"), "has no effect in greedy mode")
    refused(cli("chat", tiny("chat"), stdin=b"\xff\n"), "not UTF-8")


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that may write for minutes."""
    return save("chat", tmp_path_factory.mktemp("slow"), max_position_embeddings=100_000)


def start(folder: Path, **more: int) -> subprocess.Popen[bytes]:
    options = ["--regex", "[a-z]{90000}", "--max-new-tokens", "90000", "--backend", "plain"]
    streams = more or {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*PROGRAM, "chat", str(folder), *options],
        **streams,  # type: ignore[call-overload]
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "TERM": "dumb"},
        bufsize=0,
    )


def read_some(process: subprocess.Popen[bytes], least: int) -> bytes:
    assert process.stdout is not None
    data = b""
    while len(data) < least:
        part = process.stdout.read(least - len(data))
        assert part, (data, process.stderr.read() if process.stderr else b"")
        data += part
    return data


def test_ctrl_c_stops_the_answer_and_not_the_program(slow: Path) -> None:
    process = start(slow)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(b"hi\n")
    begun = read_some(process, 5)
    process.send_signal(signal.SIGINT)
    while not begun.endswith(b"\n"):
        begun += read_some(process, 1)
    assert b"a" <= begun[:1] <= b"z" and len(begun) < 90000
    process.stdin.write(b"/set regex=[0-9]{4}\nand then?\n")
    again = read_some(process, 5)
    assert again[:4].isdigit() and again.endswith(b"\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stderr.read().splitlines()[0] == b"(stopped)"
    process.stdout.close(), process.stderr.close()


def test_a_terminal(slow: Path) -> None:
    """Prompts are drawn; Ctrl-C at the prompt says how to leave; an error is said, and the chat goes on."""
    ours, theirs = pty.openpty()
    process = start(slow, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = b""

    def wait_for(text: bytes) -> None:
        nonlocal screen
        end = time.monotonic() + 60
        while text not in screen:
            assert time.monotonic() < end, screen
            if select.select([ours], [], [], 1)[0]:
                screen += os.read(ours, 4096)
        screen = screen[screen.index(text) + len(text) :]

    try:
        wait_for(b"> ")
        time.sleep(1)  # the prompt is drawn before the program begins to wait for a key
        process.send_signal(signal.SIGINT)
        wait_for(b"(Ctrl-D or /exit ends the chat)")
        wait_for(b"> ")
        os.write(ours, b"/rest\n")
        wait_for(b"did you mean 'reset'?")
        wait_for(b"> ")
        os.write(ours, b"hi\n")
        wait_for(b"hi\r\n")
        while len(screen) < 5:
            screen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        wait_for(b"(stopped)")
        wait_for(b"> ")
        os.write(ours, b"\x04")
        for _ in drained(ours):
            pass
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def drained(terminal: int) -> Iterator[bytes]:
    """What is still written, until the other end is closed."""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            return
        if not part:
            return
        yield part
