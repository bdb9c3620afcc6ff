"""`plainformer explain --steps`, `--replay` and `--what-if` on tiny models."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plainformer.explanation import Trace
from tests.support.cli import Cli, done, refused
from tests.support.media import write_wav

Tiny = Callable[[str], Path]


def column(lines: list[str], name: str) -> list[str]:
    """The cells below a heading of the first table that has it, up to the end of that table."""
    head = next(i for i, line in enumerate(lines) if name in line.split())
    end = lines[head].index(name) + len(name)
    cells = []
    for line in lines[head + 2 :]:
        if not line.startswith('"'):
            break
        cells.append(line[:end].split()[-1])
    return cells


def test_the_ladder(cli: Cli, tiny: Tiny) -> None:
    options = "--steps 2 --do-sample --seed 4 --temperature 2 --top-k 3 --candidates 4"
    found = done(cli("explain", tiny("text-generation"), "the cat", *options.split()))
    (trace,) = done(cli("explain", tiny("text-generation"), "the cat", *options.split(), "--json")).json()
    assert "sample, seed 4, prompt: 7 tokens" in found.lines[0]
    assert sum(line.startswith("step ") for line in found.lines) == 2
    assert "step 1   cache: 7 positions" in found.out and "step 2   cache: 8 positions" in found.out
    ladder = trace["steps"][0]["ladders"][0]
    assert column(found.lines, "logit") == [f"{value:.3f}" for value in ladder["logits"]]
    assert column(found.lines, "temperature") == [f"{value / 2:.3f}" for value in ladder["logits"]]
    assert column(found.lines, "top_k")[3] == "banned"
    vocabulary = ladder["effects"][0]["changed"]
    assert f"  temperature: changes {vocabulary} logits" in found.lines
    assert f"  top_k: removes {vocabulary - 3} of {vocabulary} tokens; 3 are left" in found.lines
    pick = trace["steps"][0]["picks"][0]
    assert f"the draw {pick['draw']:.6f} gives" in found.out and f"(id {pick['token_id']})" in found.out
    assert "stopped at the token limit after 2 new tokens" in found.lines[-1]


def test_steps_agree_with_run(cli: Cli, tiny: Tiny) -> None:
    for name in ("text-generation", "chat", "text2text"):
        for options in (
            "",
            "--num-beams 3",
            "--do-sample --seed 5",
            "--regex [a-z]{2,4}",
            "--stop e --seed 2 --do-sample",
        ):
            given = [*shlex.split(options), "--json", "--backend", "plain"]
            (trace,) = done(cli("explain", tiny(name), "the cat", "--steps", 6, *given)).json()
            (answer,) = done(cli("run", tiny(name), "the cat", "--max-new-tokens", 6, *given)).json()
            assert trace["about"]["texts"][0].startswith(answer["text"])
            assert trace["answers"][0]["stop_reason"] == answer["stop_reason"]
            assert len(trace["answers"][0]["token_ids"]) == answer["new_tokens"]


def test_a_chat(cli: Cli, tiny: Tiny) -> None:
    (plain,) = done(cli("explain", tiny("chat"), "hi", "--steps", 2, "--json")).json()
    (chat,) = done(cli("explain", tiny("chat"), "hi", "--chat", "--steps", 2, "--json")).json()
    assert len(chat["prompt_ids"]) > len(plain["prompt_ids"]) == 2
    refused(cli("explain", tiny("text2text"), "hi", "--chat", "--steps", 2), "chat has no effect in text2text")


def test_a_beam_search_is_a_tree(cli: Cli, tiny: Tiny) -> None:
    found = done(cli("explain", tiny("chat"), "hi", "--steps", 3, "--num-beams", 2))
    (trace,) = done(cli("explain", tiny("chat"), "hi", "--steps", 3, "--num-beams", 2, "--json")).json()
    branches = [b for step in trace["steps"] for group in step["groups"] for b in group["branches"]]
    at = next(i for i, line in enumerate(found.lines) if line.startswith("the search"))
    tree = [line for line in found.lines[at + 1 :] if "── " in line]
    assert len(tree) == len(branches)
    for fate in ("runs", "pruned"):
        assert sum(line.endswith(fate) for line in tree) == sum(b["fate"] == fate for b in branches)
    scores = [f"finished, score {b['score']:.4f}" for b in branches if b["fate"] == "finished"]
    assert scores and sorted(line.split("  ")[-1] for line in tree if "score" in line) == sorted(scores)
    assert f"score {trace['answers'][0]['score']:.4f}" in found.lines[-1]
    depths = {line.index("── ") for line in tree}
    assert len(depths) == 3


@pytest.mark.parametrize(
    "options",
    [
        "--repetition-penalty 1.2",
        "--do-sample --num-return-sequences 2",
        "--num-beams 3",
        "--num-beams 2 --do-sample",
        "--do-sample --regex [a-z]+ --stop e",
        '--chat --do-sample --json-schema \'{"type": "integer"}\'',
    ],
)
def test_replay(cli: Cli, tiny: Tiny, tmp_path: Path, options: str) -> None:
    recorded = done(cli("explain", tiny("chat"), "hi", "--steps", 5, "--json", *shlex.split(options)))
    (tmp_path / "t.json").write_text(recorded.out)
    trace = Trace.from_dict(json.loads(recorded.out))
    found = done(cli("explain", tiny("chat"), "--replay", "t.json"))
    tokens = sum(len(answer.token_ids) for answer in trace.answers)
    assert found.out.startswith(f"reproduces: {len(trace.steps)} steps, {tokens} tokens, ")
    assert done(cli("explain", tiny("chat"), "--replay", "t.json", "--json")).json()[0]["reproduces"] is True


def test_a_replay_that_fails(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    (trace,) = done(cli("explain", tiny("chat"), "hi", "--steps", 3, "--json")).json()
    trace["steps"][1]["picks"][0]["token_id"] = 1
    (tmp_path / "t.json").write_text(json.dumps(trace))
    answer = cli("explain", tiny("chat"), "--replay", "t.json")
    refused(answer, "the replay diverges at step 2: the token of row 0 is 1 in the trace", code=1)
    refused(cli("explain", tiny("text-generation"), "--replay", "t.json"), "the model is 'llama", code=1)
    refused(cli("explain", tiny("chat"), "--replay", "none.json"), "none.json cannot be read")
    (tmp_path / "x.json").write_text("{")
    refused(cli("explain", tiny("chat"), "--replay", "x.json"), "is not valid JSON")
    (tmp_path / "x.json").write_text("[]")
    refused(cli("explain", tiny("chat"), "--replay", "x.json"), "not a trace of a generation")
    refused(cli("explain", tiny("embedding"), "--replay", "t.json"), "a replay has no effect in feature-extraction")


def test_what_if(cli: Cli, tiny: Tiny) -> None:
    changes: tuple[Any, ...] = (
        "--what-if",
        "no-cache",
        "--what-if",
        "mask-head=0.1",
        "--what-if",
        "decoder-prefix=dog",
    )
    found = done(cli("explain", tiny("text2text"), "the cat", *changes, "--steps", 4))
    assert [line for line in found.lines if line.startswith("what if")] == [
        "what if no-cache?",
        "what if mask-head=0.1?",
        "what if decoder-prefix=dog?",
    ]
    assert "  the outputs are identical: 4 tokens" in found.lines
    assert any(line.startswith('  changed:   "dog') for line in found.lines)
    values = done(cli("explain", tiny("text2text"), "the cat", *changes, "--steps", 4, "--json")).json()
    assert [value["change"] for value in values] == ["no-cache", "mask-head=0.1", "decoder-prefix=dog"]
    assert values[0]["same"] and values[1]["logit_change"] > 0
    removed = done(cli("explain", tiny("chat"), "hi", "--what-if", "top-k=2", "--do-sample", "--steps", 1)).lines
    table = removed[next(i for i, line in enumerate(removed) if line.startswith("baseline")) + 2 :]
    assert [len(line.split('"')) // 2 for line in table[:5]] == [2, 2, 1, 1, 1]  # no tokens that cannot be drawn
    pair = ("--pair", "the cat sat", "--what-if", "attend-to-padding")
    assert "the answers" in done(cli("explain", tiny("question-answering"), "who", *pair)).out
    assert "a vector of 32 numbers" in done(cli("explain", tiny("embedding"), "hi", "--what-if", "mask-head=0.0")).out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("embedding", "hi --steps 2", "--steps has no effect in feature-extraction: this model answers in one pass"),
        ("text-classification", "hi --what-if no-cache", "possible: attend-to-padding and mask-head"),
        ("text-classification", "hi --what-if attend-to-padding --steps 3", "--steps has no effect in text-class"),
        ("embedding", "hi --what-if attend-to-padding --temperature 3", "no option 'temperature'"),
        ("chat", "hi --steps 0", "--steps 0 is not a whole number of at least 1"),
        ("chat", "hi --steps 2 --temperature 3", "--temperature 3.0 has no effect in greedy mode"),
        ("chat", "hi --steps 2 --candidates 0", "--candidates 0 is not a whole number of at least 1"),
        ("chat", "hi --steps 2 --shapes", "--shapes has no effect with --steps"),
        ("chat", "hi --steps 2 --pair x", "--pair has no effect with --steps"),
        ("chat", "hi --temperature 3", "--temperature has no effect without --steps or --what-if"),
        ("chat", "hi --candidates 3", "--candidates has no effect without"),
        ("chat", "hi --what-if no-cash", "did you mean 'no-cache'"),
        ("chat", "hi --what-if mask-head=9.9", "layers are 0 to 1, heads 0 to 3"),
        ("chat", "--steps 3", "explain needs a TEXT"),
        ("chat", "", "explain needs a TEXT"),
        ("chat", "--replay t.json --steps 3", "--steps has no effect with --replay"),
        ("chat", "--replay t.json --seed 3", "--seed has no effect with --replay"),
        ("chat", "--replay t.json --chat", "--chat has no effect with --replay"),
    ],
)
def test_options_without_effect(cli: Cli, tiny: Tiny, name: str, options: str, message: str) -> None:
    refused(cli("explain", tiny(name), *options.split()), message)


def test_one_pass_reads_what_the_task_reads(cli: Cli, tiny: Tiny) -> None:
    whole = done(cli("explain", tiny("text2text"), "sum: the cat", "--json")).json()
    assert done(cli("explain", tiny("text2text"), "the cat", "--prefix", "sum: ", "--json")).json() == whole
    refused(cli("explain", tiny("chat"), "the cat", "--prefix", "a"), "--prefix has no effect in text-generation")


def test_files_are_read_before_any_weight(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    for name in ("speech", "chat"):
        shutil.copytree(tiny(name), tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(b"damaged")
    sound = write_wav(tmp_path / "a.wav")
    (tmp_path / "bad.arpa").write_text("no n-grams")
    for given, message in (
        ((sound, "--words", "none.txt"), "none.txt"),
        ((sound, "--ngram", "none.arpa"), "none.arpa"),
        ((sound, "--ngram", "bad.arpa"), "bad.arpa"),
    ):
        refused(cli("run", tmp_path / "speech", *given), message)
    refused(cli("explain", tmp_path / "speech", "none.wav"), "'none.wav' is not a file")
    refused(cli("explain", tmp_path / "chat", "hi", "--steps", 2, "--grammar", "@none.lark"), "none.lark")
    refused(cli("explain", tmp_path / "chat", "--replay", "none.json"), "none.json cannot be read")


def test_sounds_are_refused_where_nothing_is_generated(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "a.wav")
    refused(cli("explain", tiny("speech"), sound, "--steps", 2), "--steps has no effect in automatic-speech")
    masked = done(cli("explain", tiny("speech"), sound, "--what-if", "mask-head=0.0"))
    assert "largest change of the model's output" in masked.out
