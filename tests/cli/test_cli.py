"""The command line: every verb on tiny models in this process, and what only a process of its own can show."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plainformer.cli.flags import as_flag
from plainformer.cli.main import run_app
from plainformer.cli.screen import shown
from plainformer.errors import UsageError, opt
from tests.support.cli import ENVIRONMENT, PROGRAM, Cli, done, refused
from tests.support.close import close
from tests.support.media import write_png, write_wav
from tests.support.models import save

VERBS = ("run", "chat", "entities", "explain", "info", "tasks", "models")
# ---- run: inputs ------------------------------------------------------------------------------------------------------


def test_run_one_and_several(cli: Cli, tiny: Callable[[str], Path]) -> None:
    folder = tiny("text-classification")
    one = done(cli("run", folder, "the cat"))
    two = done(cli("run", folder, "the cat", "bad dog"))
    assert len(one.lines) == 1 and two.lines[0] == one.lines[0] and len(two.lines) == 2
    label, score = one.lines[0].split()
    assert label in ("negative", "neutral", "positive") and 0 < float(score) <= 1


def test_run_reads_files_and_stdin(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny("text-classification")
    texts = ["the cat", "bad\x0cdog\u2028ran", "café"]
    expected = done(cli("run", folder, *texts)).lines
    content = "\n".join([texts[0], "", texts[1], texts[2]]).encode()
    (tmp_path / "in.txt").write_bytes(content)
    assert done(cli("run", folder, "in.txt")).lines == expected
    assert done(cli("run", folder, "-", stdin=content)).lines == expected
    windows = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") + b"\r\n"  # a byte order mark, and other line ends
    assert done(cli("run", folder, "-", stdin=windows)).lines == expected
    whole = done(cli("run", folder, "in.txt", "--whole")).lines
    assert whole == done(cli("run", folder, content.decode())).lines and len(whole) == 1
    assert done(cli("run", folder, "-", "--whole", stdin=content)).lines == whole
    assert done(cli("run", folder, "in.txt", "--literal")).lines != expected


def test_a_literal_hyphen_is_a_hyphen(cli: Cli, tiny: Callable[[str], Path]) -> None:
    generated = done(cli("run", tiny("text-generation"), "-", "--literal", "--json", "--max-new-tokens", 1))
    assert generated.json()[0]["prompt"] == "-"
    pair = done(cli("run", tiny("text-classification"), "the", "--pair", "-"))
    assert pair.lines != done(cli("run", tiny("text-classification"), "the", "--pair", "cat")).lines


def test_run_reads_jsonl(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    rows = ['"the cat"', '{"text": "the dog", "label": 1}', '{"text": "the dog", "pair": "sat"}', ""]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    found = done(cli("run", tiny("text-classification"), "in.jsonl")).lines
    folder = tiny("text-classification")
    alone = [
        cli("run", folder, "the cat"),
        cli("run", folder, "the dog"),
        cli("run", folder, "the dog", "--pair", "sat"),
    ]
    assert found == [done(answer).lines[0] for answer in alone]
    (tmp_path / "bad.jsonl").write_text('"fine"\n{nope\n')
    refused(cli("run", tiny("text-classification"), "bad.jsonl"), "line 2 of bad.jsonl is not valid JSON")
    (tmp_path / "number.jsonl").write_text("7\n")
    refused(cli("run", tiny("text-classification"), "number.jsonl"), "line 1 of number.jsonl: 7 is not an input")


def test_jsonl_holds_whole_questions_and_chats(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    context = "the cat sat on the mat"
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "who sat", "context": context}))
    asked = done(cli("run", tiny("question-answering"), context, "--question", "who sat"))
    assert done(cli("run", tiny("question-answering"), "q.jsonl")).lines == asked.lines
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "the cat", "choices": ["sat", "ran"]}))
    chosen = done(cli("run", tiny("multiple-choice"), "the cat", "--choice", "sat", "--choice", "ran"))
    assert done(cli("run", tiny("multiple-choice"), "c.jsonl")).lines == chosen.lines
    (tmp_path / "m.jsonl").write_text(json.dumps([{"role": "user", "content": "hi"}]))
    (answered,) = done(cli("run", tiny("chat"), "hi", "--chat", "--json", "--max-new-tokens", 3)).json()
    (read,) = done(cli("run", tiny("chat"), "m.jsonl", "--json", "--max-new-tokens", 3)).json()
    assert read == {"file": "m.jsonl", "line": 1, **answered, "input": [{"role": "user", "content": "hi"}]}
    refused(cli("run", tiny("chat"), "m.jsonl", "--chat"), "--chat has no effect on")


def test_a_misspelt_file_is_not_a_text(cli: Cli, tiny: Callable[[str], Path]) -> None:
    refused(cli("run", tiny("text-classification"), "nope.txt"), "there is no file 'nope.txt'", "--literal")
    done(cli("run", tiny("text-classification"), "nope.txt", "--literal"))
    done(cli("run", tiny("text-classification"), "see nope.txt"))


def test_inputs_that_are_not_text(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"caf\xe9")
    refused(cli("run", tiny("text-classification"), "in.txt"), "line 1 of in.txt is not UTF-8 text: byte 3")
    refused(cli("run", tiny("text-classification"), "-", stdin=b"\xff"), "stdin line 1 is not UTF-8 text: byte 0")
    refused(cli("run", tiny("text-classification"), "caf\udce9"), "half a surrogate pair")


def test_run_needs_something(cli: Cli, tiny: Callable[[str], Path]) -> None:
    refused(cli("run"), "REF")
    refused(cli("run", tiny("embedding")), "needs at least one INPUT")
    assert done(cli("run", tiny("embedding"), "-", "--json", stdin=b"")).out == ""


# ---- run: results -----------------------------------------------------------------------------------------------------


def test_json_is_one_value_a_line_and_nothing_else(cli: Cli, tiny: Callable[[str], Path]) -> None:
    found = done(cli("run", tiny("text-classification"), "the cat", "bad dog", "--json")).json()
    assert [list(row) for row in found] == [["input", "label", "score", "scores"]] * 2
    close(sum(score["score"] for score in found[0]["scores"]), 1)
    vector = done(cli("run", tiny("embedding"), "the cat", "--json", "--pooling", "cls")).json()[0]
    assert len(vector["vector"]) == 32 and vector["pooling"] == "cls"
    tokens = done(cli("run", tiny("token-classification"), "the cat", "--json")).json()[0]
    assert [token["text"] for token in tokens["results"]] == ["the", "cat"] and tokens["input"] == "the cat"


def test_every_task_answers_in_words(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    assert done(cli("run", tiny("fill-mask"), "the [MASK] sat", "--top-k", 2)).out.count("the ") == 2
    assert "[0:3]" in done(cli("run", tiny("token-classification"), "the cat")).lines[0]
    assert done(cli("run", tiny("embedding"), "the")).lines[0].startswith("32 numbers: ")
    answers = done(cli("run", tiny("question-answering"), "the cat sat", "--question", "who", "--top-k", 3)).lines
    assert len(answers) == 3 and all("[" in line for line in answers)
    assert done(cli("run", tiny("multiple-choice"), "the", "--choice", "cat", "--choice", "dog")).lines[0].split()[
        0
    ] in (
        "cat",
        "dog",
    )
    assert done(cli("run", tiny("text2text"), "hi", "--max-new-tokens", 3)).out
    picture, sound = write_png(tmp_path / "a.png"), write_wav(tmp_path / "a.wav")
    assert done(cli("run", tiny("image-classification"), picture)).lines[0].split()[0] in (
        "negative",
        "neutral",
        "positive",
    )
    assert done(cli("run", tiny("image-classification"), "-", stdin=picture.read_bytes())).lines
    assert len(done(cli("run", tiny("image-embedding"), picture, picture, "--pooling", "mean")).lines) == 2
    assert done(cli("run", tiny("speech"), sound)).lines
    assert done(cli("run", tiny("audio-classification"), sound, "--json")).json()[0]["label"]


def test_chat(cli: Cli, tiny: Callable[[str], Path]) -> None:
    options = ("--json", "--max-new-tokens", 2)
    plain = done(cli("run", tiny("chat"), "hi", *options)).json()[0]
    chat = done(cli("run", tiny("chat"), "hi", "--chat", *options)).json()[0]
    system = done(cli("run", tiny("chat"), "hi", "--chat", "--system", "be good", *options)).json()[0]
    assert plain["prompt"] == "hi"
    assert chat["prompt"] == "<s>user: hi</s><s>assistant: "
    assert system["prompt"] == "<s>system: be good</s><s>user: hi</s><s>assistant: "
    refused(cli("run", tiny("text-generation"), "hi", "--chat"), "has no chat template")
    refused(cli("run", tiny("chat"), "hi", "--system", "be good"), "--system has no effect without --chat")


def test_a_text_that_is_too_long(cli: Cli, tiny: Callable[[str], Path]) -> None:
    long = "the cat " * 40
    for name in ("text-classification", "embedding", "text-generation", "text2text", "fill-mask"):
        text = "[MASK] " + long if name == "fill-mask" else long
        refused(cli("run", tiny(name), text), "tokens; the limit is", "--truncate")
        done(cli("run", tiny(name), text, "--truncate"))


# ---- run: how text is generated -----------------------------------------------------------------------------------------


def test_generation_flags_are_the_tasks_options(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    import plainformer

    task = plainformer.load(str(tiny("text-generation")), backend="plain")
    for flags, options in (
        ("--num-beams 3 --length-penalty 0.5 --early-stopping never", {"num_beams": 3, "length_penalty": 0.5}),
        ("--do-sample --seed 4 --temperature 1.5 --top-k 9", {"do_sample": True, "seed": 4, "temperature": 1.5}),
        ("--stop x --stop y --output-scores", {"stop": ["x", "y"], "output_scores": True}),
        ("--choices yes --choices -", {"choices": ["yes", "-"]}),
        (
            "--answer-prefix 'so: ' --regex [ab]{3} --repetition-penalty 1.2",
            {"answer_prefix": "so: ", "regex": "[ab]{3}"},
        ),
        ("--defaults checkpoint --no-repeat-ngram-size 2", {"defaults": "checkpoint", "no_repeat_ngram_size": 2}),
    ):
        more = {"early_stopping": "never"} if "num_beams" in options else {"top_k": 9} if "seed" in options else {}
        more |= {"repetition_penalty": 1.2} if "regex" in options else {}
        expected = task("the cat", max_new_tokens=9, **options, **more)
        arguments = ("run", tiny("text-generation"), "the cat", "--max-new-tokens", 9, "--backend", "plain", "--json")
        (found,) = done(cli(*arguments, *shlex.split(flags))).json()
        assert found == {"input": "the cat", **json.loads(json.dumps(expected.to_dict()))}


def test_definitions_come_from_text_or_a_file(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    schema = {"enum": [1, 22], "x-guidance": {"whitespace_pattern": ""}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "g.lark").write_text('start: "ab" | "cd"')
    folder = tiny("text-generation")
    from_file = done(cli("run", folder, "a", "--json-schema", "@schema.json")).out
    assert json.loads(from_file) in (1, 22)
    assert done(cli("run", folder, "a", "--json-schema", json.dumps(schema))).out == from_file
    assert done(cli("run", folder, "a", "--grammar", "@g.lark")).lines[0] in ("ab", "cd")
    refused(cli("run", folder, "a", "--grammar", "@no.lark"), "there is no file 'no.lark'")
    refused(cli("run", folder, "a", "--json-schema", "{"), "--json-schema '{' is not valid JSON")


def test_several_answers_are_numbered(cli: Cli, tiny: Callable[[str], Path]) -> None:
    for name in ("text-generation", "text2text"):
        options = ("--num-beams", 3, "--num-return-sequences", 2, "--regex", "[a-z]{4}")
        found = done(cli("run", tiny(name), "the cat", *options)).lines
        assert len(found) == 2 and found[0].startswith("[1] (score -") and found[1].startswith("[2] (score -")
        (result,) = done(cli("run", tiny(name), "the cat", *options, "--json")).json()
        assert found[0].endswith(f" {result['text']}") and len(result["alternatives"]) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("text-classification", "--num-beams 2", "--num-beams has no effect in text-classification"),
        ("embedding", "--do-sample", "--do-sample has no effect in feature-extraction"),
        ("fill-mask", "--stop x", "--stop has no effect in fill-mask"),
        ("text2text", "--answer-prefix x", "--answer-prefix has no effect in text2text-generation"),
        ("text-generation", "--timestamps", "--timestamps has no effect in text-generation"),
        (
            "text-generation",
            "--temperature 0.5",
            "--temperature 0.5 has no effect in greedy mode\n  → --do-sample takes it",
        ),
        ("text-generation", "--num-return-sequences 2", "--num-return-sequences 2 has no effect in greedy mode"),
        ("text-generation", "--num-beams 3 --num-beam-groups 2", "--num-beam-groups 2 does not divide --num-beams 3"),
        ("text-generation", "--early-stopping maybe", "true, false or never"),
        ("text-generation", "--dola-layers x", "is not a list of layer numbers"),
        ("text-generation", "--choices a --regex b", "exclude each other"),
        ("text-generation", "--defaults chekpoint", "did you mean 'checkpoint'"),
        ("text-generation", "--regex (", "no look-around, no back-references"),
        ("text-generation", "--grammar x", "dialect of Lark"),
        ("text-generation", '--json-schema {"type":"text"}', "types and keywords of JSON Schema"),
        ("text-generation", "--num-beam 2", "--num-beams"),
        ("text-generation", "--draft-model ./nope", "there is no such file or folder"),
    ],
)
def test_generation_flags_without_effect(
    cli: Cli, tiny: Callable[[str], Path], name: str, options: str, message: str
) -> None:
    refused(cli("run", tiny(name), "the [MASK]", *options.split()), message, code=1 if "nope" in options else 2)


# ---- run: options that do nothing are errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("text-classification", "--chat", "--chat has no effect in text-classification"),
        ("text-classification", "--system ''", "--system has no effect in text-classification"),
        ("text-classification", "--question ''", "--question has no effect in text-classification"),
        ("text-classification", "--choice x", "--choice has no effect in text-classification"),
        ("text-classification", "--max-new-tokens 3", "--max-new-tokens has no effect in text-classification"),
        ("text-classification", "--top-k 3", "--top-k has no effect in text-classification"),
        ("text-classification", "--pooling cls", "--pooling has no effect in text-classification"),
        ("text-classification", "--language en", "--language has no effect in text-classification"),
        ("text-classification", "--whole", "--whole has no effect: no INPUT is read as a text file"),
        ("text-classification", "--revision main", "--revision 'main' does not apply"),
        ("text-classification", "--token secret", "a Hub --token does not apply"),
        ("question-answering", "--question who --truncate", "--truncate has no effect in question-answering"),
        ("question-answering", "", "question-answering needs --question"),
        ("multiple-choice", "", "multiple-choice needs --choice"),
        ("embedding", "--pair x", "--pair has no effect in feature-extraction"),
        ("image-classification", "--whole", "--whole has no effect in image-classification"),
        ("image-classification", "--literal", "--literal has no effect in image-classification"),
        ("image-classification", "--truncate", "--truncate has no effect in image-classification"),
        ("speech", "--truncate", "--truncate has no effect"),
        ("speech", "--max-new-tokens 3", "--max-new-tokens has no effect in automatic-speech-recognition"),
    ],
)
def test_options_without_effect(
    cli: Cli, tiny: Callable[[str], Path], tmp_path: Path, name: str, options: str, message: str
) -> None:
    given = {"image-classification": write_png, "speech": write_wav}.get(name)
    item = given(tmp_path / ("a.png" if given is write_png else "a.wav")) if given else "the cat"
    answer = cli("run", tiny(name), item, *shlex.split(options))
    refused(answer, message)
    assert "secret" not in answer.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-new-tokens 0", "--max-new-tokens 0 is not a whole number of at least 1\n  → ask for at least 1"),
        ("--max-new-tokens few", "'few' is not a whole number"),
        ("--dtype int8", "--dtype 'int8' is not supported"),
        ("--dtype bf17", "give fp32, bf16 or fp16"),
        ("--device tpu", "--device 'tpu' is unknown"),
        ("--device cuda:99", "CUDA devices"),
        ("--backend onednnn", "did you mean 'onednn'?"),
        ("--ffn-chunk-size -1", "--ffn-chunk-size -1 is not a whole number"),
        ("--task text-generatoin", "did you mean 'text-generation'"),
        ("--task ner", "text-generation"),
    ],
)
def test_values_that_cannot_work(cli: Cli, tiny: Callable[[str], Path], options: str, message: str) -> None:
    refused(cli("run", tiny("text-generation"), "hi", *options.split()), message)


def test_load_options_reach_the_model(cli: Cli, tiny: Callable[[str], Path]) -> None:
    arguments = ("run", tiny("text-classification"), "the cat sat on the mat")
    plain = done(cli(*arguments)).lines
    for options in ("--backend plain", "--backend onednn", "--ffn-chunk-size 2", "--task sentiment-analysis"):
        assert done(cli(*arguments, *options.split())).lines == plain
    rounded = done(cli(*arguments, "--dtype", "bf16", "--json")).json()[0]["score"]
    exact = done(cli(*arguments, "--json")).json()[0]["score"]
    assert rounded != exact and rounded == pytest.approx(exact, abs=0.1)


# ---- references -------------------------------------------------------------------------------------------------------


def test_references_that_lead_nowhere(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    refused(cli("run", "./nope", "x"), "there is no such file or folder", code=1)
    refused(cli("run", "", "x"), "an empty model reference")
    refused(cli("run", "-", "x"), "'-'")
    (tmp_path / "empty").mkdir()
    refused(cli("run", "./empty", "x"), "holds no config.json", code=1)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    refused(cli("run", "broken.gguf", "x"), "broken.gguf", code=1)
    refused(cli("info", "broken.gguf"), "broken.gguf", code=1)
    refused(cli("run", "no-such/model", "x"), "HF_HUB_OFFLINE is set", code=1)


def test_a_family_that_is_not_known(cli: Cli, tmp_path: Path) -> None:
    save("embedding", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "Bert-"}))
    for verb in (["run", "model", "x"], ["info", "model"], ["explain", "model", "x"]):
        refused(cli(*verb), "model_type 'Bert-'", "did you mean 'bert'", code=1)


def test_a_checkpoint_that_is_damaged(cli: Cli, tmp_path: Path) -> None:
    save("embedding", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", whole[:100], whole[:-1], b"\xff" * 64):
        weights.write_bytes(broken)
        for verb in (["run", "model", "x"], ["info", "model"]):
            refused(cli(*verb), "model.safetensors", code=1)
    (tmp_path / "model" / "config.json").write_text("{")
    refused(cli("info", "model"), "config.json", code=1)


# ---- explain ----------------------------------------------------------------------------------------------------------


def test_explain_text(cli: Cli, tiny: Callable[[str], Path]) -> None:
    found = done(cli("explain", tiny("text-generation"), "hi [b]\\", "--top-k", 3))
    assert "text-generation" in found.lines[0]
    assert "decoder.layers.0.attention   1 x 7 x 32" in found.lines
    assert "decoder.layers.1             the same" in found.lines
    assert all(line == line.rstrip() for line in found.lines)
    assert len(found.lines[[line.startswith("next token") for line in found.lines].index(True) + 2 :]) == 3
    assert any(line.split()[:2] == ["3", "["] for line in found.lines)  # markup is text, not colour
    every = done(cli("explain", tiny("text-generation"), "hi [b]\\", "--shapes")).out
    assert "decoder.layers.1.ffn" in every and "the same" not in every


def test_explain_json_has_everything(cli: Cli, tiny: Callable[[str], Path]) -> None:
    (found,) = done(cli("explain", tiny("text-generation"), "hi", "--json", "--top-k", 2)).json()
    assert [piece["text"] for piece in found["pieces"]] == ["h", "i"]
    assert [(piece["start"], piece["end"]) for piece in found["pieces"]] == [(0, 1), (1, 2)]
    steps = {step["step"]: step["shape"] for step in found["steps"]}
    assert steps["decoder.frontend"] == [1, 2, 32] and steps["decoder.layers.1.ffn"] == [1, 2, 32]
    assert steps["head"][:2] == [1, 2]
    assert len(found["next_tokens"]) == 2 and found["answer"] is None
    refused(cli("explain", tiny("text-generation"), "hi", "--json", "--shapes"), "--shapes has no effect with --json")


def test_explain_agrees_with_run(cli: Cli, tiny: Callable[[str], Path]) -> None:
    for name, text, options in (
        ("text-classification", "the cat", []),
        ("text-classification", "the cat", ["--pair", "sat"]),
        ("fill-mask", "the [MASK] sat", ["--top-k", "2"]),
        ("embedding", "the cat", []),
        ("token-classification", "the cat", []),
    ):
        # One backend for both: "auto" measures, and may choose another, whose last bits differ.
        same = [*options, "--backend", "plain", "--json"]
        (explained,) = done(cli("explain", tiny(name), text, *same)).json()
        (answered,) = done(cli("run", tiny(name), text, *same)).json()
        answered.pop("input")
        assert explained["answer"] == answered.get("results", answered)
    for name in ("text-generation", "text2text"):
        (explained,) = done(cli("explain", tiny(name), "the cat", "--json", "--top-k", "1")).json()
        (answered,) = done(cli("run", tiny(name), "the cat", "--json", "--max-new-tokens", 1)).json()
        assert explained["next_tokens"][0]["token"] == answered["text"]


def test_explain_pairs_chats_and_questions(cli: Cli, tiny: Callable[[str], Path]) -> None:
    asked = done(cli("explain", tiny("question-answering"), "who sat", "--pair", "the cat sat"))
    assert "0:3 (pair)" in asked.out and '"start"' in asked.out
    assert "cat" in done(cli("explain", tiny("multiple-choice"), "the", "--pair", "cat")).out
    chat = done(cli("explain", tiny("chat"), "hi", "--chat")).out
    assert "<s>" in chat and "next token" in chat
    seq2seq = done(cli("explain", tiny("text2text"), "hi")).lines
    assert any(line.startswith("decoder.layers.0.cross") for line in seq2seq)


def test_explain_reads_stdin(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    text = done(cli("explain", tiny("text-generation"), "a\nb")).out
    assert done(cli("explain", tiny("text-generation"), "-", stdin=b"a\nb")).out == text
    refused(cli("explain", tiny("text-generation"), "-", stdin=b""), "empty")
    picture = write_png(tmp_path / "a.png")
    found = done(cli("explain", tiny("image-classification"), "-", stdin=picture.read_bytes())).out
    assert found == done(cli("explain", tiny("image-classification"), picture)).out


def test_explain_images_and_sounds(cli: Cli, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    image = done(cli("explain", tiny("image-classification"), write_png(tmp_path / "a.png")))
    assert "class token" in image.out and "rows 24-31, columns 24-31" in image.out
    assert "encoder.frontend             1 x 17 x 32" in image.lines
    vector = done(cli("explain", tiny("image-embedding"), tmp_path / "a.png")).lines[-1]
    assert vector.startswith("answer: a vector of 32 numbers")
    sound = done(cli("explain", tiny("speech"), write_wav(tmp_path / "a.wav")))
    assert "samples from 80" in sound.out and '"text"' in sound.lines[-1]
    refused(cli("explain", tiny("image-classification"), "no.png"), "no.png")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("text-classification", "--top-k 2", "--top-k has no effect in text-classification"),
        ("text-classification", "--chat", "--chat has no effect in text-classification"),
        ("embedding", "--pair x", "--pair has no effect in feature-extraction"),
        ("text-generation", "--pair x", "--pair has no effect in text-generation"),
        ("text-generation", "--top-k 0", "--top-k 0 is not a whole number"),
        ("question-answering", "", "give the context of the question as --pair"),
        ("image-classification", "--truncate", "no effect on images"),
        ("chat", "--truncate", "limit"),
    ],
)
def test_explain_options_without_effect(
    cli: Cli, tiny: Callable[[str], Path], tmp_path: Path, name: str, options: str, message: str
) -> None:
    item = write_png(tmp_path / "a.png") if name == "image-classification" else "the cat"
    refused(cli("explain", tiny(name), item, *options.split()), message)


# ---- info, tasks, models, help ----------------------------------------------------------------------------------------


def test_info(cli: Cli, tiny: Callable[[str], Path]) -> None:
    found = done(cli("info", tiny("text2text"))).out
    for part in (
        "bart (BartForConditionalGeneration), encoder-decoder",
        "text2text-generation",
        "max positions      64",
    ):
        assert part in found
    (plain,) = done(cli("info", tiny("text2text"), "--json")).json()
    assert plain["parameters"] == sum(plain["parameters_by_part"].values())
    assert done(cli("info", tiny("text2text"), "--tensors")).out.count("decoder.layers.1.cross.") == 8
    assert "reads patches, positions learned" in done(cli("info", tiny("image-embedding"))).out
    assert "reads wave, positions convolution" in done(cli("info", tiny("speech"))).out


def test_info_of_bundled_models(cli: Cli) -> None:
    found = done(cli("info", "all-minilm-l6-v2")).out
    assert "22,713,216" in found and "feature-extraction" in found
    gguf = done(cli("info", "smollm2-135m-instruct")).out
    assert "134,515,008" in gguf and "Q4_1" in gguf and "chat template yes" in gguf


def test_run_a_real_model(cli: Cli) -> None:
    (first, second) = done(cli("run", "all-minilm-l6-v2", "A man eats.", "Somebody has a meal.", "--json")).json()
    similarity = sum(a * b for a, b in zip(first["vector"], second["vector"], strict=True))
    assert len(first["vector"]) == 384 and 0.5 < similarity < 0.9


def test_tasks_and_models(cli: Cli) -> None:
    rows = done(cli("tasks", "--json")).json()
    shown_tasks = done(cli("tasks")).out
    assert len(rows) >= 13 and all(row["name"] in shown_tasks for row in rows)
    rows = done(cli("models", "--json")).json()
    shown_models = done(cli("models")).out
    assert {"bert", "t5", "whisper"} <= {row.get("model_type") for row in rows}
    assert all((row.get("model_type") or row["bundled"]) in shown_models for row in rows)
    refused(cli("tasks", "more"), "unexpected 'more'")


def test_help_says_defaults_that_say_something(cli: Cli) -> None:
    for verb in ("run", "entities", "chat", "explain", "info"):
        text = " ".join(done(cli(verb, "--help")).out.split())
        assert "default: False]" not in text and "default: None]" not in text and "default: ]" not in text
    assert "[default: 20]" in done(cli("entities", "--help")).out


def test_help_and_version(cli: Cli) -> None:
    import plainformer

    assert done(cli("--version")).out.strip() == plainformer.__version__
    front = done(cli("--help")).out
    assert done(cli()).out == front
    for verb in VERBS:
        assert verb in front
        assert "--json" in done(cli(verb, "--help")).out


def test_numbers_are_read_as_they_are_typed(cli: Cli) -> None:
    for number in ("2.5", "five", "1e3", ""):
        for words in (
            ("run", "m", "x", "--max-new-tokens"),
            ("entities", "m", "x", "--top"),
            ("explain", "m", "x", "--steps"),
        ):
            refused(cli(*words, number), f"{words[-1]}: {number!r} is not a whole number")
    refused(cli("run", "m", "x", "--temperature", "hot"), "--temperature: 'hot' is not a number")


def test_misspelt_verbs_and_options(cli: Cli, tiny: Callable[[str], Path]) -> None:
    refused(cli("rum"), 'Did you mean "run"?')
    refused(cli("run", tiny("embedding"), "x", "--poolin", "cls"), "Did you mean --pooling?")
    refused(cli("info", tiny("embedding"), "x"), "unexpected 'x'")


# ---- messages ---------------------------------------------------------------------------------------------------------


def test_messages_speak_of_flags(cli: Cli, tiny: Callable[[str], Path]) -> None:
    error = UsageError(f"{opt('device', 'tpu')}, a token, a task: x=1", f"leave out {opt('task', ...)}")
    assert error.message(as_flag) == "--device 'tpu', a token, a task: x=1\n  → leave out --task"
    refused(cli("run", tiny("fill-mask"), "[MASK]", "--top-k", "0"), "error: --top-k 0 is not a whole number")


def test_tokens_are_shown_as_they_are() -> None:
    assert shown('"') == '"' and shown("\n") == "\\n" and shown("\\") == "\\\\" and shown("é [b]") == "é \\[b]"


def test_nan_is_not_written_as_json(cli: Cli, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save("text-classification", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(cli("run", folder, "the", "--json"), "NaN or infinity", code=1)


def test_out_of_memory_and_interrupts(cli: Cli, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: BaseException) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> Any:
            raise error

        return fail

    monkeypatch.setattr("plainformer.loading.load_chosen", fails(MemoryError("too much")))
    refused(cli("run", "x", "y"), "out of memory: too much", code=1)
    monkeypatch.setattr("plainformer.loading.load_chosen", fails(KeyboardInterrupt()))
    interrupted = cli("run", "x", "y")
    assert (interrupted.code, interrupted.out, interrupted.err) == (130, "", "interrupted\n")


def test_a_defect_is_owned_up_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("plainformer.loading.load_chosen", fail)
    monkeypatch.delenv("PLAINFORMER_DEBUG", raising=False)
    assert run_app(["run", "x", "y"]) == 1
    assert "this is a defect" in capsys.readouterr().err
    monkeypatch.setenv("PLAINFORMER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run_app(["run", "x", "y"])


# ---- a process of its own ---------------------------------------------------------------------------------------------


def shell(command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A shell command in which $P is the program."""
    program = " ".join(shlex.quote(part) for part in PROGRAM)
    script = f'set -o pipefail; p() {{ {program} "$@"; }}; {command}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=ENVIRONMENT, timeout=120, **options)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def test_the_program_and_its_exit_codes(tiny: Callable[[str], Path]) -> None:
    folder = shlex.quote(str(tiny("text-classification")))
    script = f"p run {folder} - --json < <(echo the cat); echo $?; p rum; echo $?; p info ./nope; echo $?"
    found = shell(script)
    first, *codes = found.stdout.decode().split("\n")
    assert json.loads(first)["label"] and codes[:3] == ["0", "2", "1"]
    assert found.stderr.count(b"error: ") == 2


def test_a_reader_that_leaves(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("the cat\n" * 20000)
    run = f"p run {tiny('text-classification')}"
    endless = f"{run} - < <(yes the cat) | head -3"
    for command in ("p tasks | head -1", "p models | true", f"{run} many.txt | head -1", endless):
        found = shell(command, cwd=tmp_path)
        assert found.returncode == 0 and found.stderr == b"", (command, found)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(tiny: Callable[[str], Path]) -> None:
    found = shell(f"p run {tiny('text-classification')} the > /dev/full")
    assert found.returncode == 1 and b"No space left" in found.stderr and b"free space" in found.stderr


def test_closed_streams(tiny: Callable[[str], Path]) -> None:
    folder = shlex.quote(str(tiny("text-classification")))
    found = shell(
        f"p run {folder} - <&-; echo $?; p tasks >&- ; echo $?; p rum 2>&-; echo $?; p run {folder} the 2>&-; echo $?"
    )
    lines = found.stdout.decode().split("\n")
    assert (
        lines[:3] == ["2", "1", "2"] and lines[4] == "0" and lines[3].split()[0] in ("negative", "neutral", "positive")
    )
    assert b"stdin is closed" in found.stderr and b"stdout is closed" in found.stderr


def test_arguments_that_are_not_utf8(tiny: Callable[[str], Path]) -> None:
    for arguments in ([str(tiny("text-classification")), b"caf\xe9"], [b"mod\xe9l", "x"]):
        found = subprocess.run([*PROGRAM, "run", *arguments], capture_output=True, env=ENVIRONMENT, timeout=120)
        assert found.returncode in (1, 2) and found.stdout == b"" and found.stderr.startswith(b"error: ")
        assert b"Traceback" not in found.stderr and b"defect" not in found.stderr


def test_control_c(tiny: Callable[[str], Path]) -> None:
    """While waiting for stdin, and while importing."""
    for seconds in (0.0, 3.0):
        process = subprocess.Popen(
            [*PROGRAM, "run", str(tiny("text-classification")), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, "PYTHONVERBOSE": "", "PYTHONPROFILEIMPORTTIME": "1"},
        )
        assert process.stderr is not None
        while b"plainformer.cli.main" not in process.stderr.readline():
            pass
        time.sleep(seconds or 0.15)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and out == b""
        assert err.endswith(b"interrupted\n") and b"Traceback" not in err


def test_an_endless_stream_is_answered_line_by_line(tiny: Callable[[str], Path]) -> None:
    """Nothing waits for the end of stdin, and nothing keeps what was answered."""
    command = [sys.executable, "-c", "from plainformer.cli.main import main; main()"]
    yes = subprocess.Popen(["yes", "the cat"], stdout=subprocess.PIPE)
    run = subprocess.Popen(
        [*command, "run", str(tiny("text-classification")), "-"], stdin=yes.stdout, stdout=subprocess.PIPE
    )
    try:
        assert run.stdout is not None
        assert [run.stdout.readline() for _ in range(20)][-1].strip()
    finally:
        for process in (run, yes):
            process.kill()
            process.communicate()
