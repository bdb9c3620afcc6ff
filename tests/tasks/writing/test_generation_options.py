"""Options of the generating tasks: in words, in every mode, streamed, and those of the checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer as pf
from plainformer.errors import UsageError
from plainformer.tasks.speech.long import cut_window
from tests.support import models as make
from tests.support.models import save

PROMPTS = ["the cat", "a", "who is in france?"]
EVERY = {"text", "stop_reason", "new_tokens", "token_ids", "score"}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 5, "temperature": 1.5},
    "beam": {"num_beams": 3},
    "diverse beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "beam-sample": {"num_beams": 2, "do_sample": True, "seed": 3},
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make.load(save("text-generation", tmp_path_factory.mktemp("decoder")))


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make.load(save("text2text", tmp_path_factory.mktemp("seq2seq"), seed=1))


@pytest.fixture(params=["decoder", "seq2seq"])
def task(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


# ---- every mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_is_the_result_in_pieces(task: Any, mode: str) -> None:
    for prompt in PROMPTS:
        whole = task(prompt, max_new_tokens=14, **MODES[mode])
        stream = task.stream(prompt, max_new_tokens=14, **MODES[mode])
        assert "".join(stream) == whole.text
        assert stream.result == whole


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_string_ends_the_text_in_every_mode(task: Any, mode: str) -> None:
    free = task(PROMPTS, max_new_tokens=14, **MODES[mode])
    for prompt, long in zip(PROMPTS, free, strict=True):
        stop = [long.text[3:6], "never written"]
        if len(stop[0]) < 3 or "\N{REPLACEMENT CHARACTER}" in stop[0]:
            continue
        found = task(prompt, max_new_tokens=14, stop=stop, **MODES[mode])
        stream = task.stream(prompt, max_new_tokens=14, stop=stop, **MODES[mode])
        assert "".join(stream) == found.text and stream.result == found
        assert stop[0] not in found.text
        if "beam" not in mode:  # a beam that ends early may give way to another
            assert found.stop_reason == "stop_string" and found.stop_string == stop[0]
            assert found.text == long.text[: long.text.index(stop[0])] and found.new_tokens <= long.new_tokens


@pytest.mark.parametrize("mode", MODES)
def test_forced_beginnings_hold_in_every_mode(decoder: Any, seq2seq: Any, mode: str) -> None:
    options = {**MODES[mode], "max_new_tokens": 6}
    continued = decoder("the cat", answer_prefix=" sat on", **options)
    assert continued.text == " sat on" + decoder("the cat sat on", **options).text
    assert continued.prompt == "the cat" and continued.new_tokens <= 6
    assert "".join(decoder.stream("the cat", answer_prefix=" sat on", **options)) == continued.text
    begun = seq2seq("the cat", decoder_prefix="so ", **options)
    assert begun.text.startswith("so ")
    assert "".join(seq2seq.stream("the cat", decoder_prefix="so ", **options)) == begun.text


@pytest.mark.parametrize("mode", ["greedy", "sample", "beam"])
def test_constraints_hold_in_every_mode(task: Any, mode: str) -> None:
    options = {**MODES[mode], "max_new_tokens": 60}
    for result in task(PROMPTS, choices=["yes", "no", "maybe so"], **options):
        assert result.text in ("yes", "no", "maybe so") and result.stop_reason == "eos"
    for result in task(PROMPTS, regex=r"[a-c]{2}-[0-9]", **options):
        assert re.fullmatch(r"[a-c]{2}-[0-9]", result.text)
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    schema["x-guidance"] = {"whitespace_pattern": ""}
    for given in (schema, json.dumps(schema)):
        assert json.loads(task("a", json_schema=given, **options).text)["n"] in (1, 22)
    assert re.fullmatch("xy+z", task("a", grammar='start: "x" /y{1,4}/ "z"', **options).text)
    assert "".join(task.stream("a", choices=["yes", "no"], **options)) in ("yes", "no")


def test_a_constraint_holds_behind_the_prefix(decoder: Any, seq2seq: Any) -> None:
    assert decoder("a", answer_prefix="Answer: ", choices=["yes", "no"]).text in ("Answer: yes", "Answer: no")
    assert seq2seq("a", decoder_prefix="Answer: ", choices=["yes", "no"]).text in ("Answer: yes", "Answer: no")


# ---- several answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 3},
        {"do_sample": True, "seed": 1, "num_return_sequences": 3},
        {"num_alternatives": 3},
    ],
)
def test_further_answers_are_alternatives(task: Any, options: dict[str, Any]) -> None:
    found = task(PROMPTS, max_new_tokens=8, **options)
    assert len(found) == len(PROMPTS)
    # Bytes that make no character are all written alike, so not every prompt's answers need to differ.
    assert any(len({a.text for a in (result, *result.alternatives)}) > 1 for result in found)
    for prompt, result in zip(PROMPTS, found, strict=True):
        assert len(result.alternatives) == 2
        alone = task(prompt, max_new_tokens=8, **options)
        assert alone.text == result.text and [a.text for a in alone.alternatives] == [
            a.text for a in result.alternatives
        ]
        told = json.loads(json.dumps(result.to_dict()))
        assert [set(a) for a in told["alternatives"]] == [set(told) - {"alternatives", *told.keys() - EVERY}] * 2
    if "num_beams" in options:
        scores = [a.score for a in (found[0], *found[0].alternatives)]
        assert scores == sorted(scores, reverse=True)


def test_scores(task: Any) -> None:
    bare = task("a", max_new_tokens=5)
    assert bare.score is None and bare.log_probability is None and bare.log_probabilities is None
    found = task("a", max_new_tokens=5, output_scores=True)
    assert len(found.log_probabilities) == found.new_tokens == len(found.token_ids)
    assert found.score is None and found.log_probability == pytest.approx(sum(found.log_probabilities))
    beam = task("a", max_new_tokens=5, num_beams=2, length_penalty=0.0)
    assert beam.log_probability is None
    same = task("a", max_new_tokens=5, num_beams=2, length_penalty=0.0, output_scores=True)
    assert (same.text, same.score, same.token_ids) == (beam.text, beam.score, beam.token_ids)
    # Length penalty 0 divides by nothing: the beam's score is then the log-probability, and at least the greedy one's.
    assert same.log_probability == pytest.approx(same.score, rel=1e-5) and same.score >= found.log_probability - 1e-4


# ---- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"temperature": 0.7}, "has no effect in greedy mode"),
        ({"length_penalty": 2.0}, "num_beams=2 or more takes it"),
        ({"stop": 3}, "stop=3 is not a text or a list of texts"),
        ({"stop": ["a", ""]}, "is neither a text nor a list of texts"),
        ({"choices": ["a"], "regex": "b"}, "choices and regex exclude each other"),
        ({"regex": "("}, "cannot be used"),
        ({"choices": "ab"}, "not a list"),
        ({"defaults": "chekpoint"}, "did you mean 'checkpoint'"),
        ({"heal": "yes"}, "neither True nor False"),
    ],
)
def test_options_that_cannot_work(task: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        task("the cat", **options)
    with pytest.raises(UsageError, match=re.escape(message)):
        "".join(task.stream("the cat", **options))


def test_a_stream_is_of_one_answer(task: Any) -> None:
    with pytest.raises(UsageError, match="has no effect in greedy mode"):
        task("a", num_return_sequences=2)
    with pytest.raises(UsageError, match="has no effect in a stream"):
        task.stream("a", num_beams=2, num_return_sequences=2)
    stream = task.stream("a", max_new_tokens=3)
    with pytest.raises(UsageError, match="not come to its end"):
        _ = stream.result


def test_each_task_says_which_options_it_takes(decoder: Any, seq2seq: Any) -> None:
    for name in ("num_beams", "stop", "heal", "json_schema", "dry_multiplier", "truncate"):
        assert name in decoder.options() and name in seq2seq.options()
    assert "answer_prefix" in decoder.options() and "answer_prefix" not in seq2seq.options()
    with pytest.raises(UsageError, match="no option 'answer_prefix'"):
        seq2seq("a", answer_prefix="b")


# ---- healing --------------------------------------------------------------------------------------------------------


def test_healing_on_a_real_vocabulary() -> None:
    """Behind "http:", the model may write the token "://", which the prompt's own ":" had made impossible."""
    task = pf.load("smollm2-135m-instruct", backend="plain")
    prompt = "The address is http"
    healed = task(prompt + ":", heal=True, max_new_tokens=4)
    assert healed.text.startswith("//") and healed.prompt == prompt + ":"
    stream = task.stream(prompt + ":", heal=True, max_new_tokens=4)
    assert "".join(stream) == healed.text and stream.result == healed
    batch = task([prompt + ":", "a tok", prompt], heal=True, max_new_tokens=4)
    assert batch[0].text == healed.text
    # A stop string is looked for behind the prompt alone, part of which the model writes again.
    stopped = task(prompt + ":", heal=True, max_new_tokens=8, stop=[":", "."])
    assert stopped.text.startswith("//")
    answer = task("The capital of France is", answer_prefix=" Par", heal=True, max_new_tokens=1)
    assert answer.text == " Paris"
    chosen = task("Paris or Berlin? Par", heal=True, choices=["is", "king"])
    assert chosen.text in ("is", "king")


# ---- the checkpoint's own settings ----------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "num_beams": 3,
    "no_repeat_ngram_size": 2,
    "length_penalty": 2.0,
    "early_stopping": True,
    "min_length": 5,
    "max_length": 18,
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 2,
}


@pytest.mark.parametrize("changes", [{}, {"length_penalty": 0.5}, {"early_stopping": False, "max_length": 12}])
def test_checkpoint_defaults_give_the_references_summary(changes: dict[str, Any], tmp_path: Path) -> None:
    model = make.bart(tmp_path, {**SETTINGS, **changes})
    task = make.load(tmp_path)
    for prompt in PROMPTS:
        ids = torch.tensor([task.tokenizer.encode(prompt).input_ids])
        theirs = model.generate(input_ids=ids)[0].tolist()
        found = task(prompt, defaults="checkpoint")
        assert found.text == task.tokenizer.decode(theirs, skip_special_tokens=True)
        assert "".join(task.stream(prompt, defaults="checkpoint")) == found.text
    greedy = task("the cat")
    assert greedy.score is None and greedy == task("the cat", defaults="plain")
    assert task("the cat", defaults="checkpoint", num_beams=1).score is None
    assert task("the cat", defaults="checkpoint", max_new_tokens=3).new_tokens <= 3


def test_checkpoint_defaults_of_a_chat_model_sample(tmp_path: Path) -> None:
    make.gpt2(tmp_path)
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "num_beams": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps({**settings, "length_penalty": 3.0}))
    task = make.load(tmp_path)
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "top_k": 50, "seed": 4}
    assert task("the cat", defaults="checkpoint", seed=4) == task("the cat", **own)
    # The call goes before: greedy, and then the file's temperature has no effect and is left out.
    assert task("the cat", defaults="checkpoint", do_sample=False) == task("the cat", repetition_penalty=1.1)
    (tmp_path / "generation_config.json").write_text(json.dumps({"force_words_ids": [[[5]]]}))
    with pytest.raises(UsageError, match="asks for force_words_ids"):
        make.load(tmp_path)("the cat", defaults="checkpoint")


def test_longer_bad_words_are_banned(tmp_path: Path) -> None:
    make.gpt2(tmp_path)
    free = make.load(tmp_path)
    ids = make.predicted(free, ["the cat"], max_new_tokens=8).token_ids[0]
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "bad_words_ids": [list(ids[:2]), [2]]})
    )
    task = make.load(tmp_path)
    found = make.predicted(task, ["the cat"], max_new_tokens=8).token_ids[0]
    assert found[0] == ids[0] and found[1] != ids[1]
    assert 2 not in task.settings.suppress


# ---- speech ---------------------------------------------------------------------------------------------------------


def test_whisper_in_every_mode(whisper: tuple[Any, Any, Any]) -> None:
    model, task, clip = whisper
    features = torch.as_tensor(make.encoded(task, [clip]).input_features)
    start = torch.tensor([task.prompt.ids("en", None, None)])
    for own in ({"num_beams": 3}, {"repetition_penalty": 1.3}, {"num_beams": 2, "length_penalty": 0.3}):
        found = task(clip, language="en", max_new_tokens=9, **own)
        theirs = transformers.GenerationMixin.generate(
            model, features, decoder_input_ids=start, max_new_tokens=9, do_sample=False, **own
        )
        assert found.text == task.text_of(theirs[0, start.size(1) :].tolist()).strip()
    several = task([clip, clip], language="en", num_beams=3, num_return_sequences=2, max_new_tokens=5)
    assert len(several) == 2 and all(len(one.alternatives) == 1 for one in several)
    assert several[0].score >= several[0].alternatives[0].score
    with pytest.raises(UsageError, match="did you mean 'num_beams'"):
        task(clip, num_beam=2)


def test_whisper_timestamps(whisper: tuple[Any, Any, Any]) -> None:
    _, task, clip = whisper
    found = task(clip, language="en", timestamps=True, max_new_tokens=12)
    assert found.segments is not None
    times = [time for part in found.segments for time in (part.start, part.end) if time is not None]
    assert times == sorted(times) and all(0 <= time <= 30 for time in times)
    assert "<|" not in found.text and task(clip, language="en").segments is None
    begin = task.prompt.no_timestamps_id + 1
    words = [task.tokenizer.encode(word, add_special_tokens=False).input_ids for word in ("ab", "cd")]
    ids = (begin + 5, *words[0], begin + 10, begin + 10, *words[1], begin + 12)
    parts = task._segments(cut_window(ids, begin, 3000)[0])
    assert [(part.start, part.end, part.text) for part in parts] == [(0.1, 0.2, "ab"), (0.2, 0.24, "cd")]
    for name, value in (("choices", ["a"]), ("stop", "a")):
        with pytest.raises(UsageError, match=f"{name} and timestamps exclude"):
            task(clip, timestamps=True, **{name: value})


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    from tests.support.models import whisper as build

    folder = tmp_path_factory.mktemp("whisper")
    model = build(folder)
    generator = torch.Generator().manual_seed(3)
    clip = {"array": torch.randn(8000, generator=generator).numpy(), "sampling_rate": 16000}
    return model, make.load(folder), clip


def test_ctc_models_take_none(tiny: Callable[[str], Path]) -> None:
    task = make.load(tiny("speech"))
    with pytest.raises(UsageError, match="num_beams has no effect on a CTC model"):
        task({"array": torch.zeros(3000).numpy(), "sampling_rate": 16000}, num_beams=2)
